//! Who has a device: nobody, one client, or one client that is just being shown out.

use super::accept::has_hung_up;
use super::hold::Hold;
use super::lease::Counters;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use udrv_backend::AnyBackend;

/// How long a client waits for the lease before it to end. Below the 5 s that clients wait for an answer; a secondary bus
/// reset takes a second and more.
const PATIENCE: Duration = Duration::from_secs(4);

/// How long a client that has the device may seem to be there before another one is refused. A process that has just died can
/// hold its socket for some milliseconds more: the kernel closes what io_uring waits for (as QEMU does) after the process.
const GRACE: Duration = Duration::from_millis(500);

/// One client.
pub(super) struct Tenant {
    pub(super) pid: i32,
    pub(super) uid: u32,
    pub(super) since: Instant,
    pub(super) counters: Arc<Counters>,
    pub(super) hold: Arc<Hold>,
    /// Its connection; shutting that down ends the lease.
    pub(super) stream: UnixStream,
    /// Its device, once opened.
    pub(super) device: Option<AnyBackend>,
    /// Why the lease is ended, if by us.
    pub(super) revoked: Option<String>,
}

impl Tenant {
    fn revoke(&mut self, why: &str) {
        self.revoked.get_or_insert_with(|| why.into());
        // It may have gone by itself, which serves as well.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// The state of a lease.
enum State {
    Free,
    Held(Tenant),
    Ending,
}

/// One device's lease.
pub(super) struct Slot {
    state: Mutex<(State, bool)>,
    freed: Condvar,
}

impl Slot {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new((State::Free, false)), freed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, (State, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lease: at once if it is free, refused soon if a client has it. Where the client before has gone and
    /// its lease is being ended, waits for that.
    pub(super) fn take(&self, tenant: Tenant) -> Result<(), String> {
        let begin = udrv_backend::clock::now();
        let mut guard = self.lock();
        loop {
            let waited = begin.elapsed();
            let left = PATIENCE.saturating_sub(waited);
            match &guard.0 {
                _ if guard.1 => return Err("serving has ended".into()),
                State::Free => {
                    guard.0 = State::Held(tenant);
                    return Ok(());
                }
                State::Held(other) if !has_hung_up(&other.stream) => {
                    let grace = GRACE.saturating_sub(waited);
                    if grace.is_zero() {
                        return Err(format!("process {} of user {} has it", other.pid, other.uid));
                    }
                    guard = self.freed.wait_timeout(guard, grace).unwrap_or_else(PoisonError::into_inner).0;
                }
                _ if left.is_zero() => return Err(format!("the previous lease did not end within {PATIENCE:?}")),
                _ => guard = self.freed.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0,
            }
        }
    }

    /// The tenant's device, once opened, so that it can be looked at from outside.
    pub(super) fn opened(&self, device: &AnyBackend) {
        if let State::Held(tenant) = &mut self.lock().0 {
            tenant.device = Some(device.clone());
        }
    }

    /// The tenant goes: from here on nobody looks at its device. Returns why, if we made it go.
    pub(super) fn ending(&self) -> Option<String> {
        match std::mem::replace(&mut self.lock().0, State::Ending) {
            State::Held(tenant) => tenant.revoked,
            State::Free | State::Ending => None,
        }
    }

    /// The lease has ended.
    pub(super) fn free(&self) {
        self.lock().0 = State::Free;
        self.freed.notify_all();
    }

    /// Ends the lease, if there is one, and gives no further one.
    pub(super) fn close(&self) {
        let mut guard = self.lock();
        guard.1 = true;
        if let State::Held(tenant) = &mut guard.0 {
            tenant.revoke("the stub ends");
        }
        self.freed.notify_all();
    }

    /// Ends the lease and waits until it has ended. Returns whether there was one.
    pub(super) fn revoke(&self, why: &str, patience: Duration) -> Result<bool, String> {
        let mut guard = self.lock();
        match &mut guard.0 {
            State::Free => return Ok(false),
            State::Held(tenant) => tenant.revoke(why),
            State::Ending => {}
        }
        // A new tenant is not the one that was meant.
        let leaving = |(state, _): &mut (State, bool)| match state {
            State::Free => false,
            State::Held(tenant) => tenant.revoked.is_some(),
            State::Ending => true,
        };
        let (guard, outcome) =
            self.freed.wait_timeout_while(guard, patience, leaving).unwrap_or_else(PoisonError::into_inner);
        drop(guard);
        if outcome.timed_out() { Err(format!("the lease did not end within {patience:?}")) } else { Ok(true) }
    }

    /// Looks at the tenant. It stays meanwhile, so its device is not closed in the middle of a look.
    pub(super) fn look<T>(&self, look: impl FnOnce(Option<&Tenant>) -> T) -> T {
        match &self.lock().0 {
            State::Held(tenant) => look(Some(tenant)),
            State::Free | State::Ending => look(None),
        }
    }
}
