//! The one thread behind all USB devices of a process: a mio loop over libusb's descriptors, and the timers.
//!
//! Here, and nowhere else in this crate, the clock is read.

use crate::{Error, Result, TransferId, UsbBackend};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

const WAKE: Token = Token(usize::MAX);

/// A timer that was set. Ordered by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TimerId(Instant, u64);

/// What is done when a timer's time has come.
enum Action {
    Run(Box<dyn FnOnce() + Send>),
    /// The deadline of a transfer, which every transfer has: without memory of its own.
    Cancel(Weak<dyn UsbBackend>, TransferId),
}

impl Action {
    fn run(self) {
        match self {
            Self::Run(action) => action(),
            Self::Cancel(backend, id) => {
                if let Some(backend) = backend.upgrade() {
                    backend.cancel(id);
                }
            }
        }
    }
}

/// Something with descriptors in the loop.
pub(crate) trait Source: Send + Sync {
    /// One of its descriptors may be ready. Leaves none that is: readiness is told once (edge-triggered).
    fn ready(&self);
}

/// The loop. Cheap to clone; the thread ends with the last clone.
#[derive(Clone)]
pub(crate) struct Reactor {
    shared: Arc<Shared>,
    _thread: Arc<Thread>,
}

struct Shared {
    state: Mutex<State>,
    registry: Registry,
    waker: Waker,
}

#[derive(Default)]
struct State {
    timers: BTreeMap<TimerId, Action>,
    next: u64,
    sleep: Sleep,
    /// The time of a timer that was taken back. The thread wakes for it nevertheless, so that the next timer, which is
    /// probably later, need not wake it: a transfer that ends in time costs no wake-up for its deadline.
    lingers: Option<Instant>,
    sources: BTreeMap<RawFd, Weak<dyn Source>>,
    stop: bool,
}

#[derive(Default, Clone, Copy)]
enum Sleep {
    #[default]
    Awake,
    /// Until then at the latest.
    Until(Instant),
    /// Until it is woken.
    Indefinite,
}

/// The loop's timers; they do not keep its thread.
pub(crate) struct Timers(Arc<Shared>);

impl Timers {
    /// As [`Reactor::forget`].
    pub(crate) fn forget(&self, timer: TimerId) -> bool {
        self.0.forget(timer)
    }
}

struct Thread {
    shared: Arc<Shared>,
    handle: Mutex<Option<JoinHandle<()>>>,
    id: ThreadId,
}

impl Reactor {
    /// This process's loop, started if it does not run.
    pub(crate) fn shared() -> Result<Self> {
        static CURRENT: Mutex<Option<(Weak<Shared>, Weak<Thread>)>> = Mutex::new(None);
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((shared, thread)) = &*current
            && let (Some(shared), Some(thread)) = (shared.upgrade(), thread.upgrade())
        {
            return Ok(Self { shared, _thread: thread });
        }
        let new = Self::start()?;
        *current = Some((Arc::downgrade(&new.shared), Arc::downgrade(&new._thread)));
        Ok(new)
    }

    fn start() -> Result<Self> {
        let os = |error: std::io::Error| Error::os("starting the USB thread", error);
        let poll = Poll::new().map_err(os)?;
        let registry = poll.registry().try_clone().map_err(os)?;
        let waker = Waker::new(&registry, WAKE).map_err(os)?;
        let shared = Arc::new(Shared { state: Mutex::default(), registry, waker });
        let serve = {
            let shared = Arc::clone(&shared);
            move || shared.serve(poll)
        };
        let handle = std::thread::Builder::new().name("udrv-usb".into()).spawn(serve).map_err(os)?;
        let id = handle.thread().id();
        let thread = Thread { shared: Arc::clone(&shared), handle: Mutex::new(Some(handle)), id };
        Ok(Self { shared, _thread: Arc::new(thread) })
    }

    /// Whether the caller runs on the loop's thread, and so must not wait for what it does.
    pub(crate) fn is_here(&self) -> bool {
        self._thread.id == std::thread::current().id()
    }

    /// Runs `action` on the loop's thread, `allowed` from now.
    pub(crate) fn after(&self, allowed: Duration, action: impl FnOnce() + Send + 'static) -> TimerId {
        self.shared.set(allowed, Action::Run(Box::new(action)))
    }

    /// Cancels a transfer, `allowed` from now.
    pub(crate) fn cancel_after(&self, allowed: Duration, backend: Weak<dyn UsbBackend>, id: TransferId) -> TimerId {
        self.shared.set(allowed, Action::Cancel(backend, id))
    }

    /// Takes a timer back. Whether its time had not come.
    pub(crate) fn forget(&self, timer: TimerId) -> bool {
        self.shared.forget(timer)
    }

    /// To take timers back with, by what ends on the loop's thread or anywhere.
    pub(crate) fn timers(&self) -> Timers {
        Timers(Arc::clone(&self.shared))
    }

    /// Adds a descriptor to the loop. `events` as in `poll(2)`.
    pub(crate) fn watch(&self, fd: RawFd, events: i16, source: Weak<dyn Source>) -> Result<()> {
        self.shared.lock().sources.insert(fd, source);
        let interest = if events & libc::POLLOUT != 0 { Interest::WRITABLE } else { Interest::READABLE };
        let token = Token(usize::try_from(fd).unwrap_or_default());
        let added = self.shared.registry.register(&mut SourceFd(&fd), token, interest);
        added.map_err(|error| Error::os(format!("adding descriptor {fd} to the USB thread"), error))
    }

    /// Takes a descriptor out of the loop.
    pub(crate) fn unwatch(&self, fd: RawFd) {
        if self.shared.lock().sources.remove(&fd).is_some()
            && let Err(error) = self.shared.registry.deregister(&mut SourceFd(&fd))
        {
            tracing::debug!(%error, fd, "taking a descriptor out of the USB thread");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "waking the USB thread");
        }
    }

    fn set(&self, allowed: Duration, action: Action) -> TimerId {
        let now = udrv_backend::clock::now();
        // A century stands for what cannot be added.
        let at = now.checked_add(allowed).unwrap_or_else(|| now + Duration::from_secs(100 * 365 * 86400));
        let mut state = self.lock();
        let id = TimerId(at, state.next);
        state.next += 1;
        state.timers.insert(id, action);
        let wake = match state.sleep {
            Sleep::Awake => false,
            Sleep::Until(until) => at < until,
            Sleep::Indefinite => true,
        };
        drop(state);
        if wake {
            self.wake();
        }
        id
    }

    fn forget(&self, timer: TimerId) -> bool {
        let mut state = self.lock();
        let action = state.timers.remove(&timer);
        state.lingers = Some(state.lingers.map_or(timer.0, |at| at.min(timer.0)));
        drop(state);
        // Dropped only now: what it holds may set or take back timers.
        action.is_some()
    }

    fn serve(&self, mut poll: Poll) {
        let mut events = Events::with_capacity(64);
        loop {
            let now = self.run_timers();
            let timeout = {
                let mut state = self.lock();
                if state.stop {
                    return;
                }
                state.lingers = state.lingers.filter(|at| *at > now);
                let next = state.timers.first_key_value().map(|(id, _)| id.0);
                let next = next.into_iter().chain(state.lingers).min();
                state.sleep = next.map_or(Sleep::Indefinite, Sleep::Until);
                next.map(|at| at.saturating_duration_since(now))
            };
            let polled = poll.poll(&mut events, timeout);
            self.lock().sleep = Sleep::Awake;
            match polled {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return tracing::error!(%error, "the USB thread cannot wait"),
                Ok(()) => self.tell(&events),
            }
        }
    }

    fn tell(&self, events: &Events) {
        let mut told: Vec<Arc<dyn Source>> = Vec::new();
        for event in events {
            let fd = RawFd::try_from(event.token().0).ok();
            let source = fd.and_then(|fd| self.lock().sources.get(&fd).and_then(Weak::upgrade));
            // All descriptors of one source are handled at once.
            if let Some(source) = source
                && !told.iter().any(|other| Arc::ptr_eq(other, &source))
            {
                source.ready();
                told.push(source);
            }
        }
    }

    /// Runs those whose time has come, and says what time it is.
    fn run_timers(&self) -> Instant {
        let mut now = udrv_backend::clock::now();
        loop {
            let action = {
                let mut state = self.lock();
                match state.timers.first_entry() {
                    Some(first) if first.key().0 <= now => first.remove(),
                    _ => return now,
                }
            };
            action.run();
            now = udrv_backend::clock::now();
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake();
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The last user may be dropped by a completion, on this very thread.
        if let Some(handle) = handle.filter(|handle| handle.thread().id() != std::thread::current().id()) {
            let _ended = handle.join();
        }
    }
}
