//! Signal delivery: one socketpair a source; the device's side writes, ours has `O_ASYNC`, the driver's thread gets
//! SIGIO.
//!
//! The signal handler does nothing but return: that a signal came breaks the sleep in [`Blocked::sleep`], and what is
//! pending is read from the sockets, all of them each time, so that coalesced or lost signals lose no interrupt. The
//! handler that stood before is called on, so that an application's own use of SIGIO goes on working.
#![expect(unsafe_code, reason = "nix has neither F_SETOWN_EX nor a way to chain signal handlers")]

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use udrv_backend::{Error, Result};

/// The action that was installed before ours.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

extern "C" fn on_sigio(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
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

/// Installs the handler once a process. SIGIO's default action would kill it.
fn install() -> Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    // SAFETY: all-zero is a valid sigaction: default action, no flags, empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigio as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: as above.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: both point to live sigactions; the handler is async-signal-safe (see `on_sigio`).
    if unsafe { libc::sigaction(libc::SIGIO, &action, &mut previous) } != 0 {
        return Err(Error::os("installing the SIGIO handler", std::io::Error::last_os_error()));
    }
    let _first = PREVIOUS.set(previous);
    *installed = true;
    Ok(())
}

/// The sockets of one domain.
pub(super) struct SignalLine {
    sockets: Mutex<BTreeMap<u64, UnixStream>>,
    owner: libc::pid_t,
}

impl SignalLine {
    /// For a domain whose driver's thread is this one.
    pub(super) fn new() -> Result<Self> {
        install()?;
        Ok(Self { sockets: Mutex::default(), owner: nix::unistd::gettid().as_raw() })
    }

    fn sockets(&self) -> MutexGuard<'_, BTreeMap<u64, UnixStream>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a socketpair with SIGIO on our end; returns the other, for use as a trigger.
    pub(super) fn add(&self, id: u64) -> Result<UnixStream> {
        let doing = "making a socketpair that raises SIGIO";
        let os = |error: std::io::Error| Error::os(doing, error);
        let (ours, theirs) = UnixStream::pair().map_err(os)?;
        theirs.set_nonblocking(true).map_err(os)?;
        #[repr(C)]
        struct OwnerEx {
            kind: libc::c_int,
            pid: libc::pid_t,
        }
        const F_OWNER_TID: libc::c_int = 0;
        const F_SETOWN_EX: libc::c_int = 15;
        let owner = OwnerEx { kind: F_OWNER_TID, pid: self.owner };
        // The owner is set before O_ASYNC, so that no signal goes astray.
        // SAFETY: F_SETOWN_EX reads a struct f_owner_ex, which `owner` is (fcntl(2)).
        if unsafe { libc::fcntl(ours.as_raw_fd(), F_SETOWN_EX, &raw const owner) } != 0 {
            return Err(os(std::io::Error::last_os_error()));
        }
        let flags = libc::O_ASYNC | libc::O_NONBLOCK;
        // SAFETY: F_SETFL takes an integer.
        if unsafe { libc::fcntl(ours.as_raw_fd(), libc::F_SETFL, flags) } != 0 {
            return Err(os(std::io::Error::last_os_error()));
        }
        // O_ASYNC "succeeds" on files that ignore it, so it is read back.
        // SAFETY: F_GETFL takes no argument.
        let now = unsafe { libc::fcntl(ours.as_raw_fd(), libc::F_GETFL) };
        if now & libc::O_ASYNC == 0 {
            return Err(os(std::io::Error::from_raw_os_error(libc::ENOTSUP)));
        }
        self.sockets().insert(id, ours);
        Ok(theirs)
    }

    pub(super) fn remove(&self, id: u64) {
        self.sockets().remove(&id);
    }

    /// Reads all sockets empty and reports the signals of each.
    pub(super) fn drain(&self, mut found: impl FnMut(u64, u64)) {
        for (&id, socket) in &mut *self.sockets() {
            let mut bytes = [0u8; 1024];
            let mut total = 0;
            // A server that never stops writing must not keep us here: the rest raises the next signal.
            for _ in 0..64 {
                match socket.read(&mut bytes) {
                    Ok(read) if read > 0 => total += read as u64,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    _ => break,
                }
            }
            if total > 0 {
                found(id, total.div_ceil(8));
            }
        }
    }

    /// Blocks SIGIO on this thread until the returned value goes.
    pub(super) fn block(&self) -> Result<Blocked> {
        let mut sigio = SigSet::empty();
        sigio.add(Signal::SIGIO);
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&sigio), Some(&mut before))
            .map_err(|errno| Error::os("blocking SIGIO", errno))?;
        Ok(Blocked { before })
    }
}

/// SIGIO is blocked on this thread as long as this lives.
pub(super) struct Blocked {
    before: SigSet,
}

impl Blocked {
    /// Sleeps until SIGIO (pending ones included) or `limit`.
    pub(super) fn sleep(&self, limit: Duration) -> Result<()> {
        let mut open = self.before;
        open.remove(Signal::SIGIO);
        match nix::poll::ppoll(&mut [], Some(limit.into()), Some(open)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(Error::os("waiting for SIGIO", errno)),
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let _restored = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}
