//! Fault plans: each fault is what it says, and no fault is none.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use udrv_backend::conformance::{Outcome, Subject, checks};
use udrv_backend::register::Bits;
use udrv_backend::{AnyBackend, Backend as _, DmaAccess, DmaMap, Error, IrqIndex, RegionIndex, Result, Width};
use udrv_debug::fault::{Fault, FaultPlan, Faulty, Span};
use udrv_edu::registers::MAP;

const BAR0: RegionIndex = RegionIndex::BAR0;
const LIVENESS: u64 = 0x04;
const RAISE: u64 = 0x60;
const ALL: Span = Span { from: 0, count: u64::MAX };

fn faulty(fault: Fault) -> Faulty<AnyBackend> {
    let edu: AnyBackend = Arc::new(udrv_edu::model::edu());
    Faulty::new(edu, FaultPlan::one(fault)).expect("a wrapper")
}

fn write(device: &Faulty<AnyBackend>, offset: u64, value: u64) -> Result<()> {
    device.write(BAR0, offset, Width::Bits32, value)
}

fn read(device: &Faulty<AnyBackend>, offset: u64) -> Result<u64> {
    device.read(BAR0, offset, Width::Bits32)
}

/// MSI enabled as far as the model needs, and its trigger.
fn armed(device: &Faulty<AnyBackend>) -> EventFd {
    udrv_backend::pci::Config::new(device)
        .change_command(udrv_backend::pci::Command::BUS_MASTER, udrv_backend::pci::Command::empty())
        .expect("bus master");
    let trigger = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_SEMAPHORE).expect("an eventfd");
    device.set_triggers(IrqIndex::MSI, 0, &[Some(trigger.as_fd())]).expect("armed");
    trigger
}

/// Whether a signal comes within this many milliseconds; it is taken.
fn signalled(trigger: &EventFd, within_ms: u16) -> bool {
    poll(&mut [PollFd::new(trigger.as_fd(), PollFlags::POLLIN)], PollTimeout::from(within_ms)).expect("poll");
    trigger.read().is_ok()
}

#[test]
fn device_without_faults_conforms() {
    let open = || -> Result<AnyBackend> {
        let inner: AnyBackend = Arc::new(udrv_tests::vectors::vectors()?);
        Ok(Arc::new(Faulty::new(inner, FaultPlan::default())?))
    };
    let subject = Subject { open: &open, knowledge: udrv_tests::vectors::KNOWLEDGE };
    let mut failed = Vec::new();
    for check in checks() {
        if let Outcome::Failed(why) = check.run(&subject) {
            failed.push(format!("{}: {why}", check.name));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn all_ones_from_an_access_on_are_read_and_only_those() {
    let device = faulty(Fault::AllOnes { accesses: Span::new(1, 1) });
    let read: Vec<_> = (0..3).map(|_| read(&device, 0).expect("read")).collect();
    assert_eq!(read, [0x0100_00ed, 0xffff_ffff, 0x0100_00ed]);
}

#[test]
fn stuck_bits_read_as_stuck_and_others_as_they_are() {
    let device = faulty(Fault::StuckBits { region: 0, offset: LIVENESS, ones: 0x1, zeros: 0x10 });
    write(&device, LIVENESS, !0x30 & 0xffff_ffff).expect("written");
    assert_eq!(read(&device, LIVENESS).expect("read"), 0x21);
}

#[test]
fn register_never_ready_keeps_its_value() {
    let device = faulty(Fault::NeverReady { region: 0, offset: LIVENESS });
    let before = read(&device, LIVENESS).expect("read");
    write(&device, LIVENESS, 0x1234).expect("written");
    assert_eq!(read(&device, LIVENESS).expect("read"), before);
}

#[test]
fn second_interrupt_lost_does_not_arrive_and_the_others_do() {
    let device = faulty(Fault::LostInterrupt { interrupts: Span::new(1, 1) });
    let trigger = armed(&device);
    let arrived = [1000, 100, 1000].map(|patience| {
        write(&device, RAISE, 1).expect("raised");
        signalled(&trigger, patience)
    });
    assert_eq!(arrived, [true, false, true]);
}

#[test]
fn late_interrupt_arrives_late() {
    let device = faulty(Fault::LateInterrupt { interrupts: ALL, by_ms: 200 });
    let trigger = armed(&device);
    let raised = udrv_backend::clock::now();
    write(&device, RAISE, 1).expect("raised");
    assert!(signalled(&trigger, 5000), "it is lost");
    assert!(raised.elapsed().as_millis() >= 200, "after {:?}", raised.elapsed());
}

#[test]
fn duplicate_interrupt_arrives_twice() {
    let device = faulty(Fault::DuplicateInterrupt { interrupts: ALL });
    let trigger = armed(&device);
    write(&device, RAISE, 1).expect("raised");
    let arrived = [1000, 1000, 100].map(|patience| signalled(&trigger, patience));
    assert_eq!(arrived, [true, true, false]);
}

#[test]
fn spurious_interrupt_arrives_without_a_cause() {
    let device = faulty(Fault::SpuriousInterrupt { accesses: Span::new(3, 1) });
    let trigger = armed(&device);
    while !signalled(&trigger, 0) {
        assert_eq!(read(&device, 0x24).expect("read"), 0, "a cause");
    }
}

#[test]
fn device_gone_at_an_access_stays_gone() {
    let device = faulty(Fault::Gone { at: 1 });
    read(&device, 0).expect("still there");
    for _ in 0..2 {
        let end = read(&device, 0);
        assert!(matches!(end, Err(Error::Gone { .. })), "{end:?}");
    }
    assert!(matches!(device.disable_irq(IrqIndex::MSI), Err(Error::Gone { .. })));
}

#[test]
fn slow_device_takes_longer() {
    let device = faulty(Fault::Slow { by_us: 20_000 });
    let start = udrv_backend::clock::now();
    read(&device, 0).expect("read");
    assert!(start.elapsed().as_millis() >= 20);
}

#[test]
fn second_mapping_fails_as_for_want_of_memory() {
    let device = faulty(Fault::DmaMapFails { mappings: Span::new(1, 1) });
    let file = memory();
    let map = |iova| {
        let access = DmaAccess::READ | DmaAccess::WRITE;
        device.dma().expect("DMA").map(&DmaMap { iova, size: 4096, access, file: file.as_fd(), offset: 0 })
    };
    map(0x10_0000).expect("the first");
    let second = map(0x11_0000).map_err(|error| error.errno());
    assert_eq!(second, Err(nix::libc::ENOMEM));
    map(0x11_0000).expect("the third");
}

fn memory() -> File {
    let file = File::from(memfd_create(c"dma", MFdFlags::empty()).expect("a memfd"));
    file.set_len(8192).expect("sized");
    file
}

/// What 32 bytes are when they have been to the device and back.
fn there_and_back(device: &Faulty<AnyBackend>) -> [u8; 32] {
    let file = memory();
    let _trigger = armed(device);
    let sent: [u8; 32] = std::array::from_fn(|i| i as u8 + 1);
    file.write_all_at(&sent, 0).expect("written");
    let map = |iova, offset, access| DmaMap { iova, size: 4096, access, file: file.as_fd(), offset };
    let dma = device.dma().expect("DMA");
    dma.map(&map(0x10_0000, 0, DmaAccess::READ)).expect("mapped");
    dma.map(&map(0x20_0000, 4096, DmaAccess::WRITE)).expect("mapped");
    for (source, destination, command) in [(0x10_0000, 0x4_0000, 1), (0x4_0000, 0x20_0000, 3)] {
        for (offset, value) in [(0x80, source), (0x88, destination), (0x90, 32), (0x98, command)] {
            write(device, offset, value).expect("written");
        }
        while read(device, 0x98).expect("read") & 1 != 0 {}
    }
    let mut came = [0; 32];
    file.read_exact_at(&mut came, 4096).expect("read");
    came
}

#[test]
fn short_transfer_leaves_its_second_half_as_it_was() {
    let came = there_and_back(&faulty(Fault::ShortDma));
    let expected: [u8; 32] = std::array::from_fn(|i| if i < 16 { i as u8 + 1 } else { 0 });
    assert_eq!(came, expected);
}

#[test]
fn corrupt_transfer_has_one_wrong_bit() {
    let came = there_and_back(&faulty(Fault::CorruptDma));
    let expected: [u8; 32] = std::array::from_fn(|i| if i == 0 { 0 } else { i as u8 + 1 });
    assert_eq!(came, expected);
}

#[test]
fn plan_survives_its_own_text() {
    for plan in FaultPlan::catalogue(&MAP) {
        let text = plan.to_toml().expect("text");
        assert_eq!(FaultPlan::from_toml(&text).expect(&text), plan);
    }
}

#[test]
fn plan_with_a_word_that_is_unknown_names_it() {
    for (text, word) in [
        ("[[fault]]\nkind = \"lots-interrupt\"", "lots-interrupt"),
        ("[[fault]]\nkind = \"slow\"\nby_us = 1\nby_ms = 2", "by_ms"),
        ("[[faults]]\nkind = \"slow\"", "faults"),
        ("not toml", "line 1"),
        ("[[fault]]\nkind = \"stuck-bits\"\nregion = 0\noffset = 4\nones = \"80\"", "`80`"),
    ] {
        let error = FaultPlan::from_toml(text).expect_err(text).to_string();
        assert!(error.contains(word) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn seed_gives_the_same_plan_again_and_another_gives_another() {
    let plans: Vec<_> = (0..50).map(|seed| FaultPlan::from_seed(seed, &MAP)).collect();
    assert_eq!(plans[7], FaultPlan::from_seed(7, &MAP));
    assert!(plans.iter().all(|plan| (1..=3).contains(&plan.faults.len())));
    assert!(plans.windows(2).filter(|pair| pair[0] == pair[1]).count() == 0);
}

#[test]
fn register_map_decodes_bits_by_name() {
    let (status, byte) = MAP.find(BAR0, 0x21).expect("a register");
    assert_eq!((status.name, byte), ("status", 1));
    assert_eq!(status.bits()[1], Bits { name: "IRQ_ON_FACTORIAL", mask: 0x80 });
    assert_eq!(status.decode(0x91), "COMPUTING | IRQ_ON_FACTORIAL | 0x10");
    assert!(MAP.find(RegionIndex::CONFIG, 0).is_none());
}
