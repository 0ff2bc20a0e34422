//! A mapped device that vanishes reads as all ones; any other SIGBUS does what it did before.
//!
//! The device here is a memfd, and truncating it is its removal: the kernel then raises SIGBUS for every access, as it
//! does for the memory of an unplugged PCI device.
#![expect(unsafe_code, reason = "raises a SIGBUS of its own, and installs a handler for it")]

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use udrv::mmio::{Io as _, Mapped, Window};
use udrv_backend::{
    AnyBackend, Backend, DeviceInfo, Dma, Error, IrqIndex, IrqInfo, MapRegion, RegionFile, RegionFlags, RegionIndex,
    RegionInfo, Result, SparseArea, Trigger, Width,
};

/// A device that is nothing but 64 KiB of mappable memory.
struct Memory {
    info: DeviceInfo,
    file: OwnedFd,
}

const SIZE: u64 = 0x1_0000;

impl Memory {
    fn plugged_in() -> Arc<Self> {
        let file = memfd_create(c"device", MFdFlags::MFD_CLOEXEC).expect("a memfd");
        nix::unistd::ftruncate(&file, SIZE as i64).expect("its size");
        Arc::new(Self { info: DeviceInfo { address: "test:memory".into(), regions: 1, irqs: 0 }, file })
    }

    fn unplug(&self) {
        nix::unistd::ftruncate(&self.file, 0).expect("truncated");
    }

    fn none<T>(&self) -> Result<T> {
        Err(Error::NotSupported { what: "anything but memory", by: self.info.address.clone() })
    }
}

impl MapRegion for Memory {
    fn region_file(&self, _: RegionIndex) -> Result<RegionFile<'_>> {
        Ok(RegionFile { file: self.file.as_fd(), offset: 0 })
    }
}

impl Backend for Memory {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn region(&self, index: RegionIndex) -> Result<RegionInfo> {
        let mappable = vec![SparseArea { offset: 0, size: SIZE }];
        Ok(RegionInfo { index, size: SIZE, flags: RegionFlags::all(), mappable })
    }
    fn mappable(&self) -> Option<&dyn MapRegion> {
        Some(self)
    }
    fn irq(&self, _: IrqIndex) -> Result<IrqInfo> {
        self.none()
    }
    fn read(&self, _: RegionIndex, _: u64, _: Width) -> Result<u64> {
        self.none()
    }
    fn write(&self, _: RegionIndex, _: u64, _: Width, _: u64) -> Result<()> {
        self.none()
    }
    fn set_triggers(&self, _: IrqIndex, _: u32, _: &[Option<Trigger<'_>>]) -> Result<()> {
        self.none()
    }
    fn disable_irq(&self, _: IrqIndex) -> Result<()> {
        self.none()
    }
    fn mask_irq(&self, _: IrqIndex, _: u32) -> Result<()> {
        self.none()
    }
    fn unmask_irq(&self, _: IrqIndex, _: u32) -> Result<()> {
        self.none()
    }
    fn fire_irq(&self, _: IrqIndex, _: u32) -> Result<()> {
        self.none()
    }
    fn dma(&self) -> Option<&dyn Dma> {
        None
    }
}

fn mapped(device: &Memory) -> Mapped<{ SIZE as usize }> {
    Mapped::map(device, RegionIndex::BAR0).expect("mapped").expect("mappable")
}

#[test]
fn device_that_vanishes_reads_all_ones_and_says_so() {
    let device = Memory::plugged_in();
    let io = mapped(&device);
    io.store(0x24, 0x1234_5678u32).expect("in bounds");
    assert_eq!(io.load::<u32>(0x24).expect("in bounds"), 0x1234_5678);
    assert!(io.alive().is_ok() && !io.is_gone());

    device.unplug();

    assert_eq!(io.load::<u32>(0x24).expect("in bounds"), u32::MAX);
    assert_eq!(io.load::<u8>(SIZE - 1).expect("in bounds, on another page"), u8::MAX);
    assert!(io.is_gone());
    assert!(matches!(io.alive(), Err(Error::Gone { .. })));
}

#[test]
fn device_that_vanishes_takes_writes_without_a_crash() {
    let device = Memory::plugged_in();
    let io = mapped(&device);
    device.unplug();
    io.store(0x100, 7u64).expect("in bounds");
    assert!(io.is_gone());
    assert_eq!(io.load::<u64>(0x108).expect("in bounds"), u64::MAX);
}

#[test]
fn device_that_vanishes_leaves_the_mappings_of_others() {
    let (gone, stays) = (Memory::plugged_in(), Memory::plugged_in());
    let (gone_io, stays_io) = (mapped(&gone), mapped(&stays));
    stays_io.store(0, 5u32).expect("in bounds");
    gone.unplug();
    assert_eq!(gone_io.load::<u32>(0).expect("in bounds"), u32::MAX);
    assert_eq!(stays_io.load::<u32>(0).expect("in bounds"), 5);
    assert!(!stays_io.is_gone());
}

#[test]
fn device_mapped_anew_is_there_again() {
    let device = Memory::plugged_in();
    let io = mapped(&device);
    device.unplug();
    assert_eq!(io.load::<u32>(0).expect("in bounds"), u32::MAX);
    drop(io);
    nix::unistd::ftruncate(&device.file, SIZE as i64).expect("plugged in again");
    let io = mapped(&device);
    assert_eq!(io.load::<u32>(0).expect("in bounds"), 0);
    assert!(!io.is_gone(), "the mark of an earlier mapping must not stick");
}

#[test]
fn device_that_vanishes_under_many_threads_is_noticed_by_each() {
    let device = Memory::plugged_in();
    let io = mapped(&device);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let io = &io;
            scope.spawn(move || {
                let at = thread * 0x1000;
                while !io.is_gone() {
                    let value = io.load::<u32>(at).expect("in bounds");
                    assert!(value == 0 || value == u32::MAX, "{value:#x} was never there");
                }
                assert_eq!(io.load::<u32>(at).expect("in bounds"), u32::MAX);
            });
        }
        device.unplug();
    });
}

#[test]
fn window_reports_a_vanished_device() {
    let device = Memory::plugged_in();
    let any: AnyBackend = device.clone();
    let window: Window<0x1000> = Window::open(&any, RegionIndex::BAR0).expect("a window");
    device.unplug();
    assert_eq!(window.load::<u16>(2).expect("in bounds"), u16::MAX);
    assert!(matches!(window.alive(), Err(Error::Gone { .. })));
}

#[test]
fn access_beyond_the_mapping_is_an_error() {
    let io: Mapped<0x1000> = Mapped::map(&*Memory::plugged_in(), RegionIndex::BAR0).expect("mapped").expect("mappable");
    for offset in [0xffd, 0xffe, 0xfff, 0x1000, 0x1004, u64::MAX, u64::MAX - 3] {
        assert!(io.load::<u32>(offset).is_err(), "{offset:#x}");
        assert!(io.store(offset, 0u32).is_err(), "{offset:#x}");
    }
    assert!(matches!(io.load::<u32>(2), Err(Error::Unaligned { .. })));
    assert!(matches!(io.load::<u32>(0x1000), Err(Error::OutOfRegion { .. })));
}

/// Runs one test of this file in a process of its own, as the child it then is. The child must end by itself before it
/// would come here.
fn as_child(test: &str) -> ExitStatus {
    assert!(!is_child(), "the child went on");
    let me = std::env::current_exe().expect("this test's binary");
    let arguments = ["--exact", test, "--nocapture", "--test-threads=1"];
    Command::new(me).args(arguments).env("UDRV_TEST_CHILD", "1").output().expect("a child").status
}

fn is_child() -> bool {
    std::env::var_os("UDRV_TEST_CHILD").is_some()
}

/// A SIGBUS that has nothing to do with a device: memory of a file with nothing in it.
fn fault_elsewhere() -> ! {
    let file = memfd_create(c"empty", MFdFlags::MFD_CLOEXEC).expect("a memfd");
    let length = NonZeroUsize::new(4096).expect("not 0");
    // SAFETY: a new mapping at an address the kernel chooses replaces nothing.
    let at = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0) }.expect("mapped");
    // SAFETY: the page is mapped; reading it raises SIGBUS, which ends this process.
    let byte = unsafe { at.cast::<u8>().read_volatile() };
    panic!("read {byte} where nothing is");
}

#[test]
fn sigbus_elsewhere_kills_as_before() {
    if is_child() {
        let _io = mapped(&Memory::plugged_in());
        fault_elsewhere();
    }
    assert_eq!(as_child("sigbus_elsewhere_kills_as_before").signal(), Some(libc::SIGBUS));
}

fn set_action(handler: nix::sys::signal::SigHandler) {
    use nix::sys::signal::{SaFlags, SigAction, SigSet, Signal, sigaction};
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handlers given are the kernel's own and one that only calls _exit.
    unsafe { sigaction(Signal::SIGBUS, &action) }.expect("installed");
}

fn send_sigbus() {
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGBUS).expect("raised");
}

#[test]
fn sigbus_that_was_sent_kills_where_it_did() {
    if is_child() {
        set_action(nix::sys::signal::SigHandler::SigDfl);
        let _io = mapped(&Memory::plugged_in());
        send_sigbus();
        std::process::exit(1);
    }
    assert_eq!(as_child("sigbus_that_was_sent_kills_where_it_did").signal(), Some(libc::SIGBUS));
}

#[test]
fn memory_error_found_in_the_background_kills_where_it_did() {
    if is_child() {
        set_action(nix::sys::signal::SigHandler::SigDfl);
        let _io = mapped(&Memory::plugged_in());
        // SAFETY: all-zero is a valid siginfo.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        (info.si_signo, info.si_code) = (libc::SIGBUS, libc::BUS_MCEERR_AO);
        let (process, thread) = (std::process::id(), nix::unistd::gettid().as_raw());
        // SAFETY: the kernel only reads `info`, which is live. To itself a process may send any code.
        let sent =
            unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, libc::SIGBUS, &raw const info) };
        std::process::exit(if sent == 0 { 1 } else { 2 });
    }
    assert_eq!(as_child("memory_error_found_in_the_background_kills_where_it_did").signal(), Some(libc::SIGBUS));
}

#[test]
fn sigbus_that_was_sent_leaves_the_device_guarded() {
    if is_child() {
        let device = Memory::plugged_in();
        let io = mapped(&device);
        // Swallowed by the handler of Rust's runtime, which thereby takes itself out.
        send_sigbus();
        device.unplug();
        let ones = io.load::<u32>(0).expect("in bounds") == u32::MAX;
        std::process::exit(if ones { 43 } else { 1 });
    }
    assert_eq!(as_child("sigbus_that_was_sent_leaves_the_device_guarded").code(), Some(43));
}

extern "C" fn exit_42(_: libc::c_int) {
    // SAFETY: _exit is async-signal-safe.
    unsafe { libc::_exit(42) };
}

#[test]
fn sigbus_elsewhere_reaches_the_handler_before_ours() {
    if is_child() {
        set_action(nix::sys::signal::SigHandler::Handler(exit_42));
        let device = Memory::plugged_in();
        let io = mapped(&device);
        device.unplug();
        assert_eq!(io.load::<u32>(0).expect("in bounds"), u32::MAX, "ours is not passed on");
        fault_elsewhere();
    }
    assert_eq!(as_child("sigbus_elsewhere_reaches_the_handler_before_ours").code(), Some(42));
}
