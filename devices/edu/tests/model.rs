//! The model against QEMU's specification (docs/specs/edu.rst) and, where that is silent, its device (hw/misc/edu.c).
//! Every number is retyped from there, none imported: driver and model share registers.rs, and could share an error.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use udrv_backend::Width::{Bits8, Bits16, Bits32, Bits64};
use udrv_backend::{Backend, Dma, DmaAccess, DmaMap, IrqIndex, RegionIndex, Width};
use udrv_edu::model::{EduModel, edu};
use udrv_model::ModelBackend;

type Edu = ModelBackend<EduModel>;

fn read(edu: &Edu, offset: u64) -> u64 {
    edu.read(RegionIndex(0), offset, Bits32).expect("a register")
}

fn write(edu: &Edu, offset: u64, value: u64) {
    edu.write(RegionIndex(0), offset, Bits32, value).expect("a register");
}

fn config(edu: &Edu, offset: u64, width: Width) -> u64 {
    edu.read(RegionIndex(7), offset, width).expect("configuration space")
}

/// The device with bus mastering on, and its message or its pin at an eventfd.
fn armed(index: IrqIndex) -> (Edu, EventFd) {
    let edu = edu();
    edu.write(RegionIndex(7), 0x04, Bits16, 0x0006).expect("command");
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
    edu.set_triggers(index, 0, &[Some(event.as_fd())]).expect("armed");
    (edu, event)
}

fn signals(event: &EventFd) -> u64 {
    event.read().unwrap_or(0)
}

/// Two pages of memory at a bus address.
fn with_memory(edu: &Edu, iova: u64) -> File {
    let fd = nix::sys::memfd::memfd_create(c"edu", nix::sys::memfd::MFdFlags::empty()).expect("a memfd");
    let file = File::from(fd);
    file.set_len(0x2000).expect("its size");
    let access = DmaAccess::READ | DmaAccess::WRITE;
    edu.map(&DmaMap { iova, size: 0x2000, access, file: file.as_fd(), offset: 0 }).expect("mapped");
    file
}

fn transfer(edu: &Edu, source: u64, destination: u64, count: u64, command: u64) {
    for (offset, value) in [(0x80, source), (0x88, destination), (0x90, count), (0x98, command)] {
        edu.write(RegionIndex(0), offset, Bits64, value).expect("an operand");
    }
}

#[test]
fn configuration_space_is_that_of_the_device() {
    let edu = edu();
    assert_eq!(config(&edu, 0x00, Bits32), 0x11e8_1234);
    assert_eq!(config(&edu, 0x08, Bits32), 0x00ff_0010, "class others, revision 0x10");
    assert_eq!(config(&edu, 0x2c, Bits32), 0x1100_1af4);
    assert_eq!(config(&edu, 0x3d, Bits8), 1, "INTA");
    assert_eq!(edu.region(RegionIndex(0)).expect("BAR 0").size, 1 << 20);
    assert_eq!(edu.irq(IrqIndex::INTX).expect("INTx").count, 1);
    assert_eq!(edu.irq(IrqIndex::MSI).expect("MSI").count, 1);
    assert_eq!(edu.irq(IrqIndex::MSIX).expect("MSI-X").count, 0);
    assert!(edu.resettable().is_none());
}

#[test]
fn bar_written_with_ones_reads_its_size() {
    let edu = edu();
    edu.write(RegionIndex(7), 0x10, Bits32, 0xffff_ffff).expect("BAR 0");
    assert_eq!(config(&edu, 0x10, Bits32), 0xfff0_0000, "1 MiB of 32-bit memory");
    edu.write(RegionIndex(7), 0x14, Bits32, 0xffff_ffff).expect("BAR 1");
    assert_eq!(config(&edu, 0x14, Bits32), 0);
}

#[test]
fn capability_list_holds_one_64_bit_msi() {
    let edu = edu();
    assert_eq!(config(&edu, 0x06, Bits16) & 0x10, 0x10);
    assert_eq!(config(&edu, 0x34, Bits8), 0x40);
    assert_eq!(config(&edu, 0x40, Bits32), 0x0080_0005, "ID 5, no next, one message, 64-bit address");
}

#[test]
fn identification_is_revision_one() {
    assert_eq!(read(&edu(), 0x00), 0x0100_00ed);
}

#[test]
fn registers_after_power_on_are_zero() {
    let edu = edu();
    for offset in [0x04, 0x08, 0x20, 0x24, 0x80, 0x88, 0x90, 0x98] {
        assert_eq!(read(&edu, offset), 0, "{offset:#x}");
    }
}

#[test]
fn liveness_reads_the_complement() {
    let edu = edu();
    write(&edu, 0x04, 0x1234_5678);
    assert_eq!(read(&edu, 0x04), 0xedcb_a987);
}

#[test]
fn factorial_is_computed_modulo_two_to_the_32() {
    let edu = edu();
    for (n, expected) in [(0, 1), (1, 1), (5, 120), (12, 479_001_600), (13, 1_932_053_504), (40, 0), (0xffff_ffff, 0)] {
        write(&edu, 0x08, n);
        assert_eq!((read(&edu, 0x08), read(&edu, 0x20) & 1), (expected, 0), "{n}!");
    }
}

#[test]
fn status_keeps_only_the_interrupt_bit() {
    let edu = edu();
    write(&edu, 0x20, 0xffff_ffff);
    assert_eq!(read(&edu, 0x20), 0x80);
    write(&edu, 0x20, 0x01);
    assert_eq!(read(&edu, 0x20), 0);
}

#[test]
fn access_of_another_width_reads_ones_and_writes_nothing() {
    let edu = edu();
    for (offset, width) in [(0x00, Bits8), (0x00, Bits16), (0x00, Bits64), (0x80, Bits8), (0x80, Bits16)] {
        assert_eq!(
            edu.read(RegionIndex(0), offset, width).expect("a read"),
            width.all_ones(),
            "{width} at {offset:#x}"
        );
        edu.write(RegionIndex(0), offset + 8, width, 7).expect("a write");
    }
    assert_eq!((read(&edu, 0x08), read(&edu, 0x88)), (0, 0));
}

#[test]
fn operand_takes_eight_bytes_or_four_zero_extended() {
    let edu = edu();
    edu.write(RegionIndex(0), 0x80, Bits64, 0x1122_3344_5566_7788).expect("a write");
    assert_eq!(edu.read(RegionIndex(0), 0x80, Bits64).expect("a read"), 0x1122_3344_5566_7788);
    assert_eq!(read(&edu, 0x84), 0xffff_ffff, "the upper half has no address of its own");
    write(&edu, 0x80, 0x99);
    assert_eq!(edu.read(RegionIndex(0), 0x80, Bits64).expect("a read"), 0x99);
}

#[test]
fn message_tells_the_story_of_an_interrupt() {
    let (edu, event) = armed(IrqIndex::MSI);
    assert_eq!((read(&edu, 0x24), signals(&event)), (0, 0), "nothing");
    write(&edu, 0x60, 0);
    assert_eq!((read(&edu, 0x24), signals(&event)), (0, 0), "raising nothing is nothing");
    write(&edu, 0x60, 0x10);
    assert_eq!((read(&edu, 0x24), signals(&event)), (0x10, 1), "a cause");
    assert_eq!((read(&edu, 0x24), signals(&event)), (0x10, 0), "read twice");
    write(&edu, 0x64, 0x20);
    assert_eq!((read(&edu, 0x24), signals(&event)), (0x10, 0), "another cause acknowledged");
    write(&edu, 0x64, 0x10);
    assert_eq!((read(&edu, 0x24), signals(&event)), (0, 0), "acknowledged");
}

#[test]
fn cause_raised_before_the_last_is_acknowledged_sends_another_message() {
    let (edu, event) = armed(IrqIndex::MSI);
    write(&edu, 0x60, 0x01);
    assert_eq!((read(&edu, 0x24), signals(&event)), (0x01, 1));
    // Between a handler's read and its acknowledgement: a driver that got no second message would wait for ever.
    write(&edu, 0x60, 0x100);
    write(&edu, 0x64, 0x01);
    assert_eq!((read(&edu, 0x24), signals(&event)), (0x100, 1));
}

#[test]
fn message_without_bus_mastering_is_lost() {
    let (edu, event) = armed(IrqIndex::MSI);
    edu.write(RegionIndex(7), 0x04, Bits16, 0x0002).expect("command");
    write(&edu, 0x60, 1);
    edu.write(RegionIndex(7), 0x04, Bits16, 0x0006).expect("command");
    assert_eq!(signals(&event), 0);
    write(&edu, 0x60, 1);
    assert_eq!(signals(&event), 1);
}

#[test]
fn pin_is_asserted_until_every_cause_is_acknowledged() {
    let (edu, event) = armed(IrqIndex::INTX);
    write(&edu, 0x60, 0x03);
    assert_eq!(signals(&event), 1);
    write(&edu, 0x64, 0x01);
    edu.unmask_irq(IrqIndex::INTX, 0).expect("unmask");
    assert_eq!(signals(&event), 1, "one cause is left");
    write(&edu, 0x64, 0x02);
    edu.unmask_irq(IrqIndex::INTX, 0).expect("unmask");
    assert_eq!(signals(&event), 0);
}

#[test]
fn pin_disabled_by_the_command_register_is_silent_until_enabled() {
    let (edu, event) = armed(IrqIndex::INTX);
    edu.write(RegionIndex(7), 0x04, Bits16, 0x0406).expect("command");
    write(&edu, 0x60, 1);
    assert_eq!(signals(&event), 0);
    edu.write(RegionIndex(7), 0x04, Bits16, 0x0006).expect("command");
    assert_eq!(signals(&event), 1);
}

#[test]
fn factorial_raises_its_interrupt_only_when_asked() {
    let (edu, event) = armed(IrqIndex::MSI);
    write(&edu, 0x08, 3);
    assert_eq!((read(&edu, 0x24), signals(&event)), (0, 0));
    write(&edu, 0x20, 0x80);
    write(&edu, 0x08, 3);
    assert_eq!((read(&edu, 0x24), signals(&event)), (0x001, 1));
}

#[test]
fn transfer_goes_both_ways_and_raises_its_interrupt_only_when_asked() {
    let (edu, event) = armed(IrqIndex::MSI);
    let memory = with_memory(&edu, 0x10_0000);
    memory.write_all_at(b"education", 0).expect("memory");
    transfer(&edu, 0x10_0000, 0x4_0000, 9, 0x1);
    assert_eq!((read(&edu, 0x98) & 1, read(&edu, 0x24), signals(&event)), (0, 0, 0));
    transfer(&edu, 0x4_0000, 0x10_0064, 9, 0x7);
    assert_eq!((read(&edu, 0x98), read(&edu, 0x24), signals(&event)), (0x6, 0x100, 1));
    let mut came = [0; 9];
    memory.read_exact_at(&mut came, 0x64).expect("memory");
    assert_eq!(&came, b"education");
}

#[test]
fn command_without_start_is_not_stored() {
    let edu = edu();
    write(&edu, 0x98, 0x6);
    assert_eq!((read(&edu, 0x98), read(&edu, 0x24)), (0, 0));
}

#[test]
fn transfer_beyond_the_buffer_moves_nothing() {
    let (edu, _event) = armed(IrqIndex::MSI);
    let memory = with_memory(&edu, 0x10_0000);
    memory.write_all_at(&[7; 0x2000], 0).expect("memory");
    let beyond = [
        (0x4_0000, 4097),
        (0x4_0fff, 2),
        (0x4_1000, 1),
        (0x3_ffff, 1),
        (0x3_ffff, 2),
        (u64::MAX, 1),
        (0x4_0000, u64::MAX),
    ];
    for (source, count) in beyond {
        transfer(&edu, source, 0x10_0000, count, 0x3);
        let mut first = [0; 2];
        memory.read_exact_at(&mut first, 0).expect("memory");
        assert_eq!((first, read(&edu, 0x98) & 1), ([7; 2], 0), "{count} bytes from {source:#x}");
    }
    transfer(&edu, 0x4_0000, 0x10_0000, 4096, 0x3);
    let mut page = [9; 4097];
    memory.read_exact_at(&mut page, 0).expect("memory");
    assert_eq!((page[0], page[4095], page[4096]), (0, 0, 7), "the whole buffer is in reach");
}

#[test]
fn transfer_address_is_cut_to_28_bits() {
    let (edu, _event) = armed(IrqIndex::MSI);
    let memory = with_memory(&edu, 0x10_0000);
    memory.write_all_at(&[7; 4], 0).expect("memory");
    transfer(&edu, 0x4_0000, 0x1_0000_0000 + 0x10_0000, 4, 0x3);
    let mut came = [1; 4];
    memory.read_exact_at(&mut came, 0).expect("memory");
    assert_eq!(came, [0; 4]);
}

#[test]
fn transfer_without_bus_mastering_reaches_nothing() {
    let (edu, _event) = armed(IrqIndex::MSI);
    let memory = with_memory(&edu, 0x10_0000);
    memory.write_all_at(&[7; 4], 0).expect("memory");
    edu.write(RegionIndex(7), 0x04, Bits16, 0x0002).expect("command");
    transfer(&edu, 0x4_0000, 0x10_0000, 4, 0x3);
    let mut came = [0; 4];
    memory.read_exact_at(&mut came, 0).expect("memory");
    assert_eq!(came, [7; 4]);
}
