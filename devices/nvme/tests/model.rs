//! The model against the NVM Express Base Specification 1.4. Every number is retyped from there, none imported: driver and model
//! share registers.rs and command.rs, and could share an error.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use udrv_backend::Width::{Bits16, Bits32, Bits64};
use udrv_backend::{Backend, Dma, DmaAccess, DmaMap, IrqIndex, RegionIndex};
use udrv_model::ModelBackend;
use udrv_nvme::model::{NvmeModel, nvme};

/// Where the memory below is on the bus: admin queues in its first two pages, I/O queues in the next, data after that.
const BASE: u64 = 0x10_0000;

struct Nvme {
    device: ModelBackend<NvmeModel>,
    memory: File,
    tail: u32,
    head: u32,
}

impl Nvme {
    /// With admin queues of 16 entries, enabled.
    fn enabled() -> Self {
        let device = nvme().expect("a model");
        device.write(RegionIndex(7), 0x04, Bits16, 0x0006).expect("command");
        let fd = nix::sys::memfd::memfd_create(c"nvme", nix::sys::memfd::MFdFlags::empty()).expect("a memfd");
        let memory = File::from(fd);
        memory.set_len(0x10_0000).expect("its size");
        let access = DmaAccess::READ | DmaAccess::WRITE;
        let map = DmaMap { iova: BASE, size: 0x10_0000, access, file: memory.as_fd(), offset: 0 };
        device.map(&map).expect("mapped");
        let mut nvme = Self { device, memory, tail: 0, head: 0 };
        nvme.write(0x24, 0x000f_000f);
        nvme.device.write(RegionIndex(0), 0x28, Bits64, BASE).expect("ASQ");
        nvme.device.write(RegionIndex(0), 0x30, Bits64, BASE + 0x1000).expect("ACQ");
        nvme.write(0x14, 0x0046_0001);
        nvme
    }

    fn read(&self, offset: u64) -> u64 {
        self.device.read(RegionIndex(0), offset, Bits32).expect("a register")
    }

    fn write(&mut self, offset: u64, value: u64) {
        self.device.write(RegionIndex(0), offset, Bits32, value).expect("a register");
    }

    fn put(&self, at: u64, dwords: [u32; 16]) {
        for (index, dword) in dwords.iter().enumerate() {
            self.memory.write_all_at(&dword.to_le_bytes(), at + 4 * index as u64).expect("memory");
        }
    }

    fn dword(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.memory.read_exact_at(&mut bytes, at).expect("memory");
        u32::from_le_bytes(bytes)
    }

    /// An admin command with its data at page 8; its status field, without the phase tag.
    fn admin(&mut self, opcode: u32, namespace: u32, cdw10: u32, cdw11: u32) -> u32 {
        let mut command = [0; 16];
        (command[0], command[1], command[6]) = (opcode | 0x77 << 16, namespace, BASE as u32 + 0x8000);
        (command[10], command[11]) = (cdw10, cdw11);
        self.put(u64::from(self.tail) * 64, command);
        self.tail = (self.tail + 1) % 16;
        self.write(0x1000, self.tail.into());
        let last = self.dword(0x1000 + u64::from(self.head) * 16 + 12);
        assert_eq!(last & 0xffff, 0x77, "CID");
        self.head = (self.head + 1) % 16;
        self.write(0x1004, self.head.into());
        last >> 17
    }
}

#[test]
fn class_is_nvme_and_vectors_are_msix() {
    let device = nvme().expect("a model");
    assert_eq!(device.read(RegionIndex(7), 0x08, Bits32).expect("class") >> 8, 0x01_0802);
    assert_eq!(device.irq(IrqIndex::MSIX).expect("MSI-X").count, 17);
    assert!(device.resettable().is_some());
}

#[test]
fn capabilities_are_those_of_an_nvm_controller() {
    let nvme = Nvme::enabled();
    let cap = nvme.device.read(RegionIndex(0), 0, Bits64).expect("CAP");
    assert_eq!((cap & 0xffff, cap >> 16 & 1, cap >> 37 & 1, cap >> 48 & 0xff), (1023, 1, 1, 0));
    assert!(cap >> 24 & 0xff > 0, "TO");
    assert_eq!((nvme.read(0x00), nvme.read(0x04)), (cap & 0xffff_ffff, cap >> 32), "by halves");
    assert_eq!(nvme.read(0x08), 0x0001_0400, "VS");
}

#[test]
fn ready_follows_enable() {
    let mut nvme = Nvme::enabled();
    assert_eq!(nvme.read(0x1c), 1);
    nvme.write(0x14, 0);
    assert_eq!(nvme.read(0x1c), 0);
}

#[test]
fn shutdown_is_told_complete_and_ends_work() {
    let mut nvme = Nvme::enabled();
    nvme.write(0x14, 0x0046_4001);
    assert_eq!(nvme.read(0x1c) >> 2 & 3, 2, "SHST");
}

#[test]
fn identify_controller_answers_by_figure_247() {
    let mut nvme = Nvme::enabled();
    assert_eq!(nvme.admin(0x06, 0, 1, 0), 0);
    assert_eq!(nvme.dword(0x8000 + 516), 2, "NN");
    assert_eq!(nvme.dword(0x8000 + 512) & 0xffff, 0x4466, "SQES, CQES");
    assert_eq!(nvme.dword(0x8000 + 520) & 0xffff, 0x000c, "ONCS");
    assert_eq!(nvme.dword(0x8000 + 80), 0x0001_0400, "VER");
}

#[test]
fn identify_namespaces_answers_by_figure_245() {
    let mut nvme = Nvme::enabled();
    for (namespace, blocks, format) in [(1, 131_072, 9 << 16), (2, 4096, 12 << 16)] {
        assert_eq!(nvme.admin(0x06, namespace, 0, 0), 0);
        assert_eq!((nvme.dword(0x8000), nvme.dword(0x8000 + 128)), (blocks, format), "NSZE, LBAF0");
    }
    assert_eq!(nvme.admin(0x06, 3, 0, 0), 0x0b, "Invalid Namespace or Format");
    assert_eq!(nvme.admin(0x06, 1, 2, 0), 0);
    assert_eq!((nvme.dword(0x8000), nvme.dword(0x8004)), (2, 0), "active namespaces above 1");
}

#[test]
fn namespaces_are_named_by_uuids_that_differ() {
    let mut nvme = Nvme::enabled();
    let mut names = Vec::new();
    for namespace in [1, 2] {
        assert_eq!(nvme.admin(0x06, namespace, 3, 0), 0);
        assert_eq!(nvme.dword(0x8000), 0x0000_1003, "NIDT 3h, NIDL 16");
        assert_eq!(nvme.dword(0x8014), 0, "the end of the list");
        names.push([0x8004, 0x8008, 0x800c, 0x8010].map(|at| nvme.dword(at)));
    }
    assert_ne!(names[0], names[1]);
    assert_eq!(nvme.admin(0x06, 3, 3, 0), 0x0b, "Invalid Namespace or Format");
}

#[test]
fn what_is_not_there_is_refused_with_its_own_status() {
    let mut nvme = Nvme::enabled();
    assert_eq!(nvme.admin(0x7f, 0, 0, 0), 0x01, "Invalid Command Opcode");
    assert_eq!(nvme.admin(0x06, 0, 0x99, 0), 0x02, "Invalid Field in Command");
    assert_eq!(nvme.admin(0x02, 0, 0x0f_0099, 0), 0x109, "Invalid Log Page");
    assert_eq!(nvme.admin(0x01, 0, 0x000f_0001, 0x0001_0001), 0x100, "Completion Queue Invalid");
    assert_eq!(nvme.admin(0x05, 0, 0x000f_0063, 1), 0x101, "Invalid Queue Identifier");
    assert_eq!(nvme.admin(0x05, 0, 0x0000_0001, 1), 0x102, "Invalid Queue Size");
    assert_eq!(nvme.admin(0x05, 0, 0x000f_0001, 0x0063_0003), 0x108, "Invalid Interrupt Vector");
    assert_eq!(nvme.admin(0x00, 0, 1, 0), 0x101, "deleting what is not there");
}

#[test]
fn completion_queue_in_use_is_not_deleted() {
    let mut nvme = Nvme::enabled();
    assert_eq!(nvme.admin(0x05, 0, 0x000f_0001, 1), 0);
    assert_eq!(nvme.admin(0x01, 0, 0x000f_0001, 0x0001_0001), 0);
    assert_eq!(nvme.admin(0x04, 0, 1, 0), 0x10c, "Invalid Queue Deletion");
    assert_eq!(nvme.admin(0x00, 0, 1, 0), 0);
    assert_eq!(nvme.admin(0x04, 0, 1, 0), 0);
}

/// Nothing; a completion signals; the phase tag turns at each pass; what a full queue cannot take waits for room.
#[test]
fn the_story_of_the_admin_completion_queue() {
    let mut nvme = Nvme::enabled();
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
    nvme.device.set_triggers(IrqIndex::MSIX, 0, &[Some(event.as_fd())]).expect("armed");
    assert!(event.read().is_err(), "nothing");
    for turn in 0..40 {
        assert_eq!(nvme.admin(0x0a, 0, 0x07, 0), 0);
        assert_eq!(event.read().ok(), Some(1));
        let phase = nvme.dword(0x1000 + (turn % 16) * 16 + 12) >> 16 & 1;
        assert_eq!(phase, if turn / 16 % 2 == 0 { 1 } else { 0 }, "turn {turn}");
    }
}

#[test]
fn commands_beyond_a_full_completion_queue_wait_for_room() {
    let mut nvme = Nvme::enabled();
    // A completion queue of two entries, which holds one, for a submission queue of sixteen.
    nvme.memory.write_all_at(&[0; 64], 0x8000).expect("memory");
    assert_eq!(nvme.admin(0x05, 0, 0x0001_0001, 1), 0);
    let base = BASE as u32;
    let mut create = [0; 16];
    (create[0], create[6], create[10], create[11]) = (0x01, base + 0x9000, 0x000f_0001, 0x0001_0001);
    nvme.put(u64::from(nvme.tail) * 64, create);
    nvme.write(0x1000, u64::from(nvme.tail) + 1);
    for index in 0..3 {
        let mut flush = [0; 16];
        (flush[0], flush[1]) = (index << 16, 1);
        nvme.put(0x9000 + u64::from(index) * 64, flush);
    }
    nvme.write(0x1008, 3);
    assert_eq!(nvme.dword(0x8000 + 12) & 0x1_ffff, 0x1_0000, "the first");
    assert_eq!(nvme.dword(0x8010 + 12), 0, "no room for the second");
    nvme.write(0x100c, 1);
    assert_eq!(nvme.dword(0x8010 + 12) & 0x1_ffff, 0x1_0001, "the second");
    nvme.write(0x100c, 0);
    assert_eq!(nvme.dword(0x8000 + 12) & 0x1_ffff, 0x0_0002, "the third, with the other phase");
}

#[test]
fn doorbell_beyond_its_queue_or_of_no_queue_changes_nothing() {
    let mut nvme = Nvme::enabled();
    for (offset, value) in [(0x1000, 16), (0x1004, 0xffff_ffff), (0x1008, 1), (0x1ffc, 1)] {
        nvme.write(offset, value);
    }
    assert_eq!((nvme.read(0x1c), nvme.admin(0x0a, 0, 0x07, 0)), (1, 0));
}

#[test]
fn event_requests_wait_up_to_their_limit_and_are_answered_by_type() {
    let mut nvme = Nvme::enabled();
    for _ in 0..4 {
        nvme.put(u64::from(nvme.tail) * 64, [0x0c | 0x99 << 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        nvme.tail += 1;
        nvme.write(0x1000, nvme.tail.into());
    }
    assert_eq!(nvme.dword(0x1000 + 12), 0, "none answered");
    assert_eq!(nvme.admin(0x0c, 0, 0, 0), 0x105, "Asynchronous Event Request Limit Exceeded");
    nvme.write(0x1000, 0xffff);
    nvme.write(0x1008, 1);
    assert_eq!((nvme.dword(0x1010), nvme.dword(0x101c) & 0xffff), (0x0001_0100, 0x99), "Invalid Doorbell Write Value");
    assert_eq!(nvme.dword(0x102c), 0, "no second of its type before the log was read");
    nvme.head += 1;
    nvme.write(0x1004, nvme.head.into());
    assert_eq!(nvme.admin(0x02, 0, 0x000f_0001, 0), 0, "the error log");
    assert_eq!(
        (nvme.dword(0x1030), nvme.dword(0x103c) & 0xffff),
        (0x0001_0000, 0x99),
        "of an Invalid Doorbell Register"
    );
}

/// The tail in memory counts, and the event index says that the next one is to be told.
#[test]
fn shadow_doorbells_are_looked_at_and_answered_with_event_indices() {
    let mut nvme = Nvme::enabled();
    assert_eq!(nvme.admin(0x06, 0, 1, 0), 0);
    assert_eq!(nvme.dword(0x8000 + 256) & 0x100, 0x100, "OACS: Doorbell Buffer Config");
    let admin = |nvme: &mut Nvme, mut command: [u32; 16]| {
        command[0] |= 0x77 << 16;
        nvme.put(u64::from(nvme.tail) * 64, command);
        nvme.tail += 1;
        nvme.write(0x1000, nvme.tail.into());
        nvme.head += 1;
        nvme.write(0x1004, nvme.head.into());
        nvme.dword(0x1000 + u64::from(nvme.head - 1) * 16 + 12) >> 17
    };
    let base = BASE as u32;
    let config = |at, events| [0x7c, 0, 0, 0, 0, 0, at, 0, events, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(admin(&mut nvme, config(base + 0xa000, 0)), 0x02, "no event indices");
    assert_eq!(admin(&mut nvme, config(base + 0xa000, base + 0xb004)), 0x02, "not a page");
    assert_eq!(admin(&mut nvme, config(base + 0xa000, base + 0xb000)), 0);
    nvme.memory.write_all_at(&[0; 4096], 0x8000).expect("memory");
    assert_eq!(nvme.admin(0x05, 0, 0x000f_0001, 1), 0);
    let create = [1, 0, 0, 0, 0, 0, base + 0x9000, 0, 0, 0, 0x000f_0001, 0x0001_0001, 0, 0, 0, 0];
    assert_eq!(admin(&mut nvme, create), 0);
    for index in 0..3 {
        nvme.put(0x9000 + 64 * index, [(index as u32) << 16, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    nvme.memory.write_all_at(&3u32.to_le_bytes(), 0xa000 + 8).expect("SQ1TDBL's shadow");
    nvme.write(0x1008, 1);
    assert_eq!(nvme.dword(0x8000 + 32 + 12) & 0x1_ffff, 0x1_0002, "the third is done, of which memory alone told");
    assert_eq!(nvme.dword(0xb000 + 8), 3, "its event index");
}

#[test]
fn queue_that_cannot_be_read_is_fatal() {
    let mut nvme = Nvme::enabled();
    nvme.device.unmap(BASE, 0x10_0000).expect("unmapped");
    nvme.write(0x1000, 1);
    assert_eq!(nvme.read(0x1c) & 2, 2, "CFS");
}

#[test]
fn pin_follows_the_completions_and_its_mask() {
    let mut nvme = Nvme::enabled();
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
    nvme.device.set_triggers(IrqIndex::INTX, 0, &[Some(event.as_fd())]).expect("armed");
    nvme.write(0x0c, 1);
    nvme.put(0, [0x0a; 16]);
    nvme.write(0x1000, 1);
    assert!(event.read().is_err(), "INTMS holds it");
    nvme.write(0x10, 1);
    assert_eq!(event.read().ok(), Some(1), "INTMC lets it");
    nvme.write(0x1004, 1);
    nvme.device.unmask_irq(IrqIndex::INTX, 0).expect("unmasked");
    assert!(event.read().is_err(), "taken");
}
