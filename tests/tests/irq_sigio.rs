//! Applications and libraries that use SIGIO beside the runtime, as docs/irq-semantics.md has it. What is installed for a signal
//! is of a process and stays, so each case is this test, started again.
#![expect(unsafe_code, reason = "signal handlers, and a descriptor's signal, are set by unsafe calls")]

mod irq_device;

use irq_device::{Counted, until};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use udrv::irq::Delivery;

/// fcntl(2), of Linux.
const F_SETSIG: libc::c_int = 10;
/// Of `si_code`: there is something to read.
const POLL_IN: i32 = 1;

/// Times that an application's own handler ran.
static SEEN: AtomicU64 = AtomicU64::new(0);
/// The descriptor whose SIGIO it was told of last.
static DESCRIPTOR: AtomicI32 = AtomicI32::new(-1);
/// What a library found installed, and calls on.
static CALLED_ON: AtomicUsize = AtomicUsize::new(0);

extern "C" fn plain(_signal: libc::c_int) {
    SEEN.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn told(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    SEEN.fetch_add(1, Ordering::SeqCst);
    // SAFETY: the kernel passes a siginfo_t to an SA_SIGINFO handler, and ours is to pass it on.
    let code = unsafe { (*info).si_code };
    if code == POLL_IN {
        // struct siginfo_t: three ints, an alignment, then si_band (a long) and si_fd.
        // SAFETY: with POLL_IN the kernel has filled both.
        DESCRIPTOR.store(unsafe { info.wrapping_byte_add(24).cast::<i32>().read() }, Ordering::SeqCst);
    }
}

extern "C" fn calls_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    SEEN.fetch_add(1, Ordering::SeqCst);
    let before = CALLED_ON.load(Ordering::SeqCst);
    // SAFETY: what was installed was an SA_SIGINFO handler, which the case has asserted.
    let before: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
        unsafe { std::mem::transmute(before) };
    before(signal, info, context);
}

fn install(handler: SigHandler, flags: SaFlags, mask: SigSet) -> SigAction {
    // SAFETY: the handlers of this file are atomic operations.
    unsafe { sigaction(Signal::SIGIO, &SigAction::new(handler, flags, mask)) }.expect("installed")
}

/// What is installed now.
fn installed() -> libc::sigaction {
    // SAFETY: all-zero is a valid sigaction.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: without a new action the call only writes the old one.
    assert_eq!(unsafe { libc::sigaction(libc::SIGIO, std::ptr::null(), &mut now) }, 0);
    now
}

/// A socket of the application's own, readable now, whose SIGIO says which descriptor it is of.
fn own_socket() -> (UnixStream, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().expect("a socketpair");
    let owner = nix::unistd::getpid().as_raw();
    for (what, value) in [(F_SETSIG, libc::SIGIO), (libc::F_SETOWN, owner), (libc::F_SETFL, libc::O_ASYNC)] {
        // SAFETY: all three take an integer.
        assert_eq!(unsafe { libc::fcntl(ours.as_raw_fd(), what, value) }, 0);
    }
    theirs.write_all(&[1]).expect("written");
    (ours, theirs)
}

/// A section's end finds what SIGIO announced.
fn assert_announced(it: &Counted) {
    let before = it.runs();
    it.domain.off(|_| it.device.fire(0));
    assert_eq!(it.runs(), before + 1);
}

fn handler_before_is_called_on() {
    install(SigHandler::Handler(plain), SaFlags::SA_RESTART, SigSet::empty());
    // Kept: at its end it has a SIGIO more.
    let it = Counted::new(Delivery::Signal);
    assert_announced(&it);
    assert_eq!(SEEN.load(Ordering::SeqCst), 1);
}

fn handler_before_is_told_of_its_own_descriptor() {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGUSR2);
    install(SigHandler::SigAction(told), SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK, mask);
    let it = Counted::new(Delivery::Signal);

    let (ours, _theirs) = own_socket();
    until("its SIGIO", || DESCRIPTOR.load(Ordering::SeqCst) == ours.as_raw_fd());
    assert_announced(&it);

    // And it runs as it was installed to: calls that it is to interrupt are not restarted.
    let now = installed();
    assert_eq!(now.sa_flags & (libc::SA_ONSTACK | libc::SA_RESTART), libc::SA_ONSTACK);
    // SAFETY: the mask is one that the kernel has filled in.
    assert_eq!(unsafe { libc::sigismember(&now.sa_mask, libc::SIGUSR2) }, 1);
}

fn ignored_before_is_no_handler() {
    install(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    assert_announced(&Counted::new(Delivery::Signal));
}

fn handler_after_that_calls_on_costs_nothing() {
    let it = Counted::new(Delivery::Signal);
    let before = installed();
    assert_ne!(before.sa_flags & libc::SA_SIGINFO, 0);
    CALLED_ON.store(before.sa_sigaction, Ordering::SeqCst);
    let previous = install(SigHandler::SigAction(calls_on), SaFlags::SA_SIGINFO | SaFlags::SA_RESTART, SigSet::empty());
    assert_announced(&it);
    assert_eq!(SEEN.load(Ordering::SeqCst), 1);

    // The library goes, and leaves what it found.
    // SAFETY: it was installed before.
    unsafe { sigaction(Signal::SIGIO, &previous) }.expect("installed");
    assert_announced(&it);
    assert_eq!(SEEN.load(Ordering::SeqCst), 1);
}

fn handler_after_that_does_not_call_on_delays_interrupts_and_loses_none() {
    let it = Counted::new(Delivery::Signal);
    install(SigHandler::Handler(plain), SaFlags::SA_RESTART, SigSet::empty());
    it.domain.off(|_| it.device.fire(0));
    assert_eq!(it.runs(), 0, "nobody could tell the section's end");
    it.wait_runs(1);
    std::thread::scope(|scope| {
        scope.spawn(|| it.device.fire(0));
        it.wait_runs(2);
    });
    assert_eq!(it.irq.stats().raised, 2);
}

fn signalfd_after_delays_interrupts_and_loses_none() {
    let mut sigio = SigSet::empty();
    sigio.add(Signal::SIGIO);
    sigio.thread_block().expect("blocked");
    let it = Counted::new(Delivery::Signal);
    let taken = nix::sys::signalfd::SignalFd::new(&sigio).expect("a signalfd");
    it.domain.off(|_| it.device.fire(0));
    assert!(taken.read_signal().expect("read").is_some(), "it takes the signal");
    it.wait_runs(1);
}

/// Name and case.
const CASES: [(&str, fn()); 6] = [
    ("handler_before", handler_before_is_called_on),
    ("handler_before_told", handler_before_is_told_of_its_own_descriptor),
    ("ignored_before", ignored_before_is_no_handler),
    ("handler_after_calling_on", handler_after_that_calls_on_costs_nothing),
    ("handler_after", handler_after_that_does_not_call_on_delays_interrupts_and_loses_none),
    ("signalfd_after", signalfd_after_delays_interrupts_and_loses_none),
];

#[test]
fn application_with_sigio_of_its_own_goes_on_and_no_interrupt_is_lost() {
    for (name, _) in CASES {
        let mut again = Command::new(std::env::current_exe().expect("this test"));
        let output = again.args(["--exact", "child_process_is_a_case"]).env("UDRV_TEST_SIGIO", name).output();
        let output = output.expect("started");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{name}: {}\n{said}", output.status);
    }
}

/// Not a test by itself: one case, in a process of its own.
#[test]
fn child_process_is_a_case() {
    let Ok(name) = std::env::var("UDRV_TEST_SIGIO") else { return };
    let (_, case) = CASES.iter().find(|(known, _)| *known == name).expect("a case");
    case();
}
