//! What the glue gives to every model, on the smallest device there is: configuration space as PCI 3.0 lays it out (the
//! numbers are retyped from there), memory, MSI-X structures, messages.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use udrv_backend::Width::{self, Bits8, Bits16, Bits32, Bits64};
use udrv_backend::pci::{Capability, Config};
use udrv_backend::{Backend, Error, IrqIndex, MapRegion as _, RegionIndex};
use udrv_model::{Bar, Bus, DeviceModel, Identity, ModelBackend, Msix, device_memory};

/// A write to BAR 0 sends the message of the vector written.
struct Tiny {
    memory: Arc<File>,
    sent: [u64; 4],
}

impl DeviceModel for Tiny {
    fn identity(&self) -> Identity {
        Identity {
            vendor: 0x1af4,
            device: 0x1234,
            subsystem_vendor: 0x1af4,
            subsystem: 0x0007,
            class: 0x01_08_02,
            revision: 3,
            bars: [Bar::Registers(0x4000), Bar::None, Bar::Memory(0x10_0000), Bar::None, Bar::None, Bar::None],
            interrupt_pin: 1,
            msi_vectors: 2,
            msix: Some(Msix { vectors: 4, bar: 0, table: 0x2000, pending: 0x3000 }),
            resettable: true,
        }
    }
    fn read(&mut self, _bar: u32, _offset: u64, _width: Width) -> u64 {
        0x5a
    }
    fn write(&mut self, _bar: u32, _offset: u64, _width: Width, value: u64, _bus: &mut Bus<'_>) {
        if let Some(sent) = self.sent.get_mut(value as usize) {
            *sent += 1;
        }
    }
    fn line(&self) -> bool {
        false
    }
    fn messages(&self) -> &[u64] {
        &self.sent
    }
    fn reset(&mut self) {
        self.sent = [0; 4];
    }
    fn memory(&self, _bar: u32) -> Option<Arc<File>> {
        Some(Arc::clone(&self.memory))
    }
}

fn tiny() -> ModelBackend<Tiny> {
    let memory = Arc::new(device_memory(0x10_0000).expect("memory"));
    ModelBackend::new("tiny", Tiny { memory, sent: [0; 4] })
}

fn config(device: &impl Backend, offset: u64) -> u64 {
    device.read(RegionIndex(7), offset, Bits32).expect("configuration space")
}

fn eventfds(count: usize) -> Vec<EventFd> {
    (0..count).map(|_| EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd")).collect()
}

fn arm(device: &impl Backend, index: IrqIndex, events: &[EventFd]) {
    device.write(RegionIndex(7), 0x04, Bits16, 0x0006).expect("memory and bus mastering on");
    let triggers: Vec<_> = events.iter().map(|event| Some(event.as_fd())).collect();
    device.set_triggers(index, 0, &triggers).expect("armed");
}

fn counts(events: &[EventFd]) -> Vec<u64> {
    events.iter().map(|event| event.read().unwrap_or(0)).collect()
}

#[test]
fn header_names_device_class_and_subsystem() {
    let device = tiny();
    assert_eq!(config(&device, 0x00), 0x1234_1af4);
    assert_eq!(config(&device, 0x08), 0x0108_0203);
    assert_eq!(config(&device, 0x2c), 0x0007_1af4);
}

#[test]
fn bars_written_with_ones_read_their_size_and_kind() {
    let device = tiny();
    for bar in [0x10, 0x14, 0x18, 0x1c] {
        device.write(RegionIndex(7), bar, Bits32, 0xffff_ffff).expect("a BAR");
    }
    let sizes = [0x10, 0x14, 0x18, 0x1c].map(|bar| config(&device, bar));
    assert_eq!(sizes, [0xffff_c000, 0, 0xfff0_000c, 0xffff_ffff], "16 KiB of 32 bits; 1 MiB, 64 bits, prefetchable");
}

#[test]
fn identifiers_cannot_be_written() {
    let device = tiny();
    device.write(RegionIndex(7), 0x00, Bits32, 0).expect("a write");
    device.write(RegionIndex(7), 0x08, Bits32, 0).expect("a write");
    assert_eq!((config(&device, 0x00), config(&device, 0x08)), (0x1234_1af4, 0x0108_0203));
}

#[test]
fn capability_list_holds_msi_then_msix_and_ends() {
    let device = tiny();
    let found = Config::new(&device).capabilities().expect("the list");
    assert_eq!(found, [Capability { offset: 0x40, id: 0x05 }, Capability { offset: 0x50, id: 0x11 }]);
    assert_eq!(config(&device, 0x40), 0x0082_5005, "64-bit address, two messages");
    assert_eq!(config(&device, 0x50), 0x0003_0011, "four vectors, no next");
    assert_eq!((config(&device, 0x54), config(&device, 0x58)), (0x2000, 0x3000), "BAR 0 for both");
}

#[test]
fn msix_control_keeps_only_enable_and_function_mask() {
    let device = tiny();
    device.write(RegionIndex(7), 0x52, Bits16, 0xffff).expect("a write");
    assert_eq!(config(&device, 0x50), 0xc003_0011);
}

#[test]
fn msix_table_holds_what_is_written_and_is_masked_by_a_reset() {
    let device = tiny();
    assert_eq!(device.read(RegionIndex(0), 0x200c, Bits32).expect("vector control"), 1);
    device.write(RegionIndex(0), 0x2030, Bits64, 0x1122_3344_5566_7788).expect("the last entry's address");
    device.write(RegionIndex(0), 0x203c, Bits32, 0).expect("its vector control");
    assert_eq!(device.read(RegionIndex(0), 0x2034, Bits32).expect("its upper half"), 0x1122_3344);
    device.resettable().expect("a reset").reset().expect("reset");
    assert_eq!(device.read(RegionIndex(0), 0x203c, Bits32).expect("vector control"), 1);
}

#[test]
fn model_is_asked_for_neither_table_nor_pending_bits() {
    let device = tiny();
    let read = |offset| device.read(RegionIndex(0), offset, Bits8).expect("a read");
    assert_eq!([0x1fff, 0x2000, 0x203f, 0x2040].map(read), [0x5a, 0, 0, 0x5a]);
    assert_eq!([0x2fff, 0x3000, 0x3007, 0x3008].map(read), [0x5a, 0, 0, 0x5a]);
    let events = eventfds(1);
    arm(&device, IrqIndex::MSIX, &events);
    device.write(RegionIndex(0), 0x2000, Bits32, 0).expect("a table entry");
    device.write(RegionIndex(0), 0x3000, Bits32, 0).expect("pending bits");
    assert_eq!(counts(&events), [0], "the writes reached the model");
}

#[test]
fn memory_is_the_file_that_can_be_mapped() {
    let device = tiny();
    device.write(RegionIndex(2), 0xf_fffc, Bits32, 0xdead_beef).expect("its last word");
    let place = device.region_file(RegionIndex(2)).expect("its file");
    let file = File::from(place.file.try_clone_to_owned().expect("a duplicate"));
    let mut word = [0; 4];
    file.read_exact_at(&mut word, place.offset + 0xf_fffc).expect("the file");
    assert_eq!(u32::from_le_bytes(word), 0xdead_beef);
    assert!(matches!(device.region_file(RegionIndex(0)), Err(Error::NotSupported { .. })));
}

#[test]
fn message_goes_to_its_msix_vector() {
    let (device, events) = (tiny(), eventfds(4));
    arm(&device, IrqIndex::MSIX, &events);
    for vector in [3, 3, 1] {
        device.write(RegionIndex(0), 0, Bits32, vector).expect("raise");
    }
    assert_eq!(counts(&events), [0, 1, 0, 2]);
}

#[test]
fn messages_fold_onto_fewer_msi_vectors() {
    let (device, events) = (tiny(), eventfds(2));
    arm(&device, IrqIndex::MSI, &events);
    for vector in 0..4 {
        device.write(RegionIndex(0), 0, Bits32, vector).expect("raise");
    }
    assert_eq!(counts(&events), [2, 2]);
}

#[test]
fn reset_sends_no_message() {
    let (device, events) = (tiny(), eventfds(4));
    arm(&device, IrqIndex::MSIX, &events);
    device.write(RegionIndex(0), 0, Bits32, 2).expect("raise");
    device.resettable().expect("a reset").reset().expect("reset");
    assert_eq!(counts(&events), [0, 0, 1, 0]);
    arm(&device, IrqIndex::MSIX, &events);
    device.write(RegionIndex(0), 0, Bits32, 2).expect("raise");
    assert_eq!(counts(&events), [0, 0, 1, 0], "the first message after the reset");
}

#[test]
fn pipe_is_opened_so_that_writing_never_waits_and_its_owner_sees_nothing_of_it() {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let device = tiny();
    let (read, write) = std::io::pipe().expect("a pipe");
    device.set_triggers(IrqIndex::MSIX, 0, &[Some(write.as_fd())]).expect("armed");
    let pipe = std::fs::read_link(format!("/proc/self/fd/{}", read.as_raw_fd())).expect("its name");
    let ours = [read.as_raw_fd(), write.as_raw_fd()].map(|fd| fd.to_string());
    let kept: Vec<_> =
        std::fs::read_dir("/proc/self/fd").expect("descriptors").flatten().map(|entry| entry.path()).collect();
    let kept = kept.iter().filter(|link| std::fs::read_link(link).is_ok_and(|to| to == pipe));
    let kept: Vec<_> = kept.filter(|link| !ours.iter().any(|fd| link.ends_with(fd))).collect();
    assert_eq!(kept.len(), 1, "the device keeps one descriptor of it");
    let info = std::fs::read_to_string(kept[0].to_string_lossy().replace("/fd/", "/fdinfo/")).expect("its flags");
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags").trim();
    let flags = i32::from_str_radix(flags, 8).expect("octal");
    assert_ne!(flags & OFlag::O_NONBLOCK.bits(), 0, "{info}");
    assert_eq!(fcntl(&write, FcntlArg::F_GETFL).expect("flags") & OFlag::O_NONBLOCK.bits(), 0);
}

#[test]
fn full_eventfd_is_not_waited_for() {
    let device = tiny();
    // Blocking, and one short of what it holds.
    let event = EventFd::from_value_and_flags(0, EfdFlags::empty()).expect("an eventfd");
    event.write(u64::MAX - 1).expect("as much as it holds");
    arm(&device, IrqIndex::MSIX, std::slice::from_ref(&event));
    device.write(RegionIndex(0), 0, Bits32, 0).expect("a write that returns");
    // The kernel's own signal, of which there is always room for one.
    assert_eq!(event.read(), Ok(u64::MAX));
}
