//! Signal delivery: what SIGIO adds to a readable descriptor.
//!
//! The signal carries no information: its handler marks that one came, so that the end of a section knows in one load
//! that the sockets are worth a look, and its arrival breaks a sleep. What is pending is read from the sockets. So
//! signals that coalesce, overflow or are taken by somebody else lose nothing; at worst an interrupt waits for the next
//! delivery point that looks at the sockets unasked ([`super::IrqDomain::wait`], [`super::IrqDomain::deliver`]).
//!
//! The handler that stood before ours is called on, so that an application's own use of SIGIO goes on working.
#![expect(unsafe_code, reason = "nix has neither F_SETOWN_EX nor a way to chain signal handlers, nor SIGEV_THREAD_ID")]

use super::deliver::NEWS;
use super::pending::Pending;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use udrv_backend::{Error, Result};

/// The action that was installed before ours.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// The domains in signal delivery, by what the handler marks: [`NEWS`].
static LISTENERS: [AtomicPtr<Pending>; 64] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 64];

/// Those in use are below this.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Handlers that look at them now.
static LOOKING: AtomicU32 = AtomicU32::new(0);

/// Lets the handler mark [`NEWS`] in `pending`, until [`forget`].
pub(super) fn listen(pending: &Pending) -> Result<()> {
    let it = std::ptr::from_ref(pending).cast_mut();
    for (place, listener) in LISTENERS.iter().enumerate() {
        if listener.compare_exchange(std::ptr::null_mut(), it, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            USED.fetch_max(place + 1, Ordering::SeqCst);
            return Ok(());
        }
    }
    Err(Error::NotSupported { what: "more than 64 domains in signal delivery", by: "one process".into() })
}

/// Afterwards no handler looks at `pending` any more.
pub(super) fn forget(pending: &Pending) {
    let it = std::ptr::from_ref(pending).cast_mut();
    for listener in &LISTENERS {
        let _other = listener.compare_exchange(it, std::ptr::null_mut(), Ordering::SeqCst, Ordering::SeqCst);
    }
    // A handler that is there already goes on for a few instructions; on this thread there is none.
    while LOOKING.load(Ordering::SeqCst) != 0 {
        std::thread::yield_now();
    }
}

fn tell_listeners() {
    LOOKING.fetch_add(1, Ordering::SeqCst);
    for listener in LISTENERS.iter().take(USED.load(Ordering::SeqCst)) {
        // SAFETY: null, or the address of a `Pending` that `forget` keeps alive as long as `LOOKING` counts us; it is only
        // shared, and `set` is two atomic operations.
        if let Some(pending) = unsafe { listener.load(Ordering::SeqCst).as_ref() } {
            pending.set(NEWS);
        }
    }
    LOOKING.fetch_sub(1, Ordering::SeqCst);
}

/// When the first one came that no domain has looked into yet, in nanoseconds of CLOCK_MONOTONIC; 0 if there is none.
static FIRST: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_sigio(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // Atomics and clock_gettime(2) are async-signal-safe. The time first: whoever sees the mark finds it.
    let _earlier = FIRST.compare_exchange(0, monotonic_ns(), Ordering::Relaxed, Ordering::Relaxed);
    tell_listeners();
    // OnceLock::get is one atomic load: async-signal-safe.
    let Some(previous) = PREVIOUS.get() else { return };
    let handler = previous.sa_sigaction;
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        return;
    }
    if previous.sa_flags & libc::SA_SIGINFO != 0 {
        // SAFETY: the kernel called this address with these three arguments before we stood here.
        let call: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            unsafe { std::mem::transmute(handler) };
        call(signal, info, context);
    } else {
        // SAFETY: without SA_SIGINFO the installed handler takes the signal number only.
        let call: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
        call(signal);
    }
}

fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec to write to; CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// When the first SIGIO came that nobody has looked into; from now on somebody has. With several domains in signal
/// delivery the first to look takes it.
pub(super) fn take_first(now: Instant) -> Option<Instant> {
    if FIRST.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let first = FIRST.swap(0, Ordering::Relaxed);
    let age = Duration::from_nanos(monotonic_ns().saturating_sub(first));
    (first != 0).then(|| now.checked_sub(age).unwrap_or(now))
}

/// Installs the handler once a process. SIGIO's default action would kill it.
pub(super) fn install() -> Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    // SAFETY: all-zero is a valid sigaction: default action, no flags, empty mask.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    let failed = || Error::os("installing the SIGIO handler", std::io::Error::last_os_error());
    // SAFETY: without a new action the call only writes the old one.
    if unsafe { libc::sigaction(libc::SIGIO, std::ptr::null(), &mut previous) } != 0 {
        return Err(failed());
    }
    // Before ours can run and look for it.
    let previous = PREVIOUS.get_or_init(|| previous);
    let action =
        libc::sigaction { sa_sigaction: on_sigio as *const () as usize, sa_flags: flags(previous), ..*previous };
    // SAFETY: the action lives as long as the call; the handler is async-signal-safe (see `on_sigio`).
    if unsafe { libc::sigaction(libc::SIGIO, &action, std::ptr::null_mut()) } != 0 {
        return Err(failed());
    }
    *installed = true;
    Ok(())
}

/// Those of our action. A handler that is called on runs as it was installed to: with its mask, on its stack, and interrupting
/// what its application wants interrupted.
fn flags(previous: &libc::sigaction) -> libc::c_int {
    let is_handler = ![libc::SIG_DFL, libc::SIG_IGN].contains(&previous.sa_sigaction);
    let its = previous.sa_flags & (libc::SA_RESTART | libc::SA_ONSTACK | libc::SA_NODEFER);
    libc::SA_SIGINFO | if is_handler { its } else { libc::SA_RESTART }
}

/// This thread, as the kernel numbers it.
pub(super) fn this_thread() -> libc::pid_t {
    nix::unistd::gettid().as_raw()
}

/// Lets the kernel send SIGIO to `thread` whenever `socket` becomes readable.
pub(super) fn raise_on_input(socket: &UnixStream, thread: libc::pid_t) -> Result<()> {
    #[repr(C)]
    struct OwnerEx {
        kind: libc::c_int,
        pid: libc::pid_t,
    }
    const F_OWNER_TID: libc::c_int = 0;
    const F_SETOWN_EX: libc::c_int = 15;
    let failed = |error| Error::os("making a socket raise SIGIO", error);
    let owner = OwnerEx { kind: F_OWNER_TID, pid: thread };
    // The owner is set before O_ASYNC, so that no signal goes astray.
    // SAFETY: F_SETOWN_EX reads a struct f_owner_ex, which `owner` is (fcntl(2)).
    if unsafe { libc::fcntl(socket.as_raw_fd(), F_SETOWN_EX, &raw const owner) } != 0 {
        return Err(failed(std::io::Error::last_os_error()));
    }
    // SAFETY: F_SETFL takes an integer.
    if unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK) } != 0 {
        return Err(failed(std::io::Error::last_os_error()));
    }
    // O_ASYNC "succeeds" on files that ignore it, so it is read back.
    // SAFETY: F_GETFL takes no argument.
    let now = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_GETFL) };
    if now & libc::O_ASYNC == 0 {
        return Err(failed(std::io::Error::from_raw_os_error(libc::ENOTSUP)));
    }
    Ok(())
}

/// A kernel timer that raises SIGIO on one thread: timerfds cannot.
pub(super) struct SigioTimer(libc::timer_t);

// SAFETY: a timer_t is a number to the kernel, valid on every thread of the process; glibc's wrappers take no state.
unsafe impl Send for SigioTimer {}
// SAFETY: as above.
unsafe impl Sync for SigioTimer {}

impl SigioTimer {
    pub(super) fn new(thread: libc::pid_t) -> Result<Self> {
        // SAFETY: all-zero is a valid sigevent.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGIO;
        event.sigev_notify_thread_id = thread;
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: both point to live values for the length of the call.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) } != 0 {
            return Err(Error::os("making a timer that raises SIGIO", std::io::Error::last_os_error()));
        }
        Ok(Self(timer))
    }

    /// As timerfd_settime(2); zero disarms.
    pub(super) fn set(&self, first: Duration, every: Duration) -> Result<()> {
        let spec = |time: Duration| libc::timespec {
            tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        let value = libc::itimerspec { it_value: spec(first), it_interval: spec(every) };
        // SAFETY: the timer lives as long as self, and `value` is only read.
        if unsafe { libc::timer_settime(self.0, 0, &raw const value, std::ptr::null_mut()) } != 0 {
            return Err(Error::os("setting a timer", std::io::Error::last_os_error()));
        }
        Ok(())
    }
}

impl Drop for SigioTimer {
    fn drop(&mut self) {
        // SAFETY: made by timer_create and deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}
