//! The gate (who may run), the sources (what is pending), and the delivery loop between them.

use super::sigio::SignalLine;
use super::thread::Listener;
use super::{Delivery, IrqReturn, IrqStats};
use crate::clock::Deadline;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::ThreadId;
use std::time::Duration;
use udrv_backend::{AnyBackend, Error, IrqFlags, IrqIndex, Result};

/// What a handler is told.
#[derive(Debug, Clone, Copy)]
pub struct Interrupt {
    /// How many signals this one delivery stands for; at least 1.
    pub merged: u64,
}

type Handler = Box<dyn FnMut(Interrupt) -> IrqReturn + Send>;

/// A set of interrupt sources and the sections that hold them back. Cheap to clone; clones are the same domain.
#[derive(Clone)]
pub struct IrqDomain {
    shared: Arc<Shared>,
    /// Ends the domain's thread when the last clone goes.
    _listener: Option<Arc<Listener>>,
}

pub(super) struct Shared {
    state: Mutex<State>,
    /// Signalled when a handler or section ends, and when something becomes pending.
    changed: Condvar,
    signal: Option<SignalLine>,
}

#[derive(Default)]
struct State {
    /// Sections open, over all threads and nesting levels.
    sections: usize,
    /// The thread that is delivering. It may open sections of its own; everybody else waits.
    delivering: Option<ThreadId>,
    /// The source whose handler is running.
    active: Option<u64>,
    /// Deliveries since the domain was made; what `wait` watches.
    deliveries: u64,
    next: u64,
    /// In delivery order: sources are tried in order of registration.
    sources: BTreeMap<u64, Source>,
}

struct Source {
    /// Signals not yet delivered. The mark of rule 1 is `pending > 0`; the number is only for statistics.
    pending: u64,
    /// Nested `disable` calls.
    disabled: u32,
    handler: Option<Handler>,
    line: Line,
    stats: IrqStats,
}

/// Where a source comes from.
#[derive(Clone)]
struct Line {
    backend: AnyBackend,
    index: IrqIndex,
    vector: u32,
    /// The kernel or server masked it before signalling: unmask after the handler.
    automasked: bool,
}

impl IrqDomain {
    /// A domain without sources. In [`Delivery::Signal`] the calling thread becomes its driver's thread.
    ///
    /// # Errors
    /// [`Error::Os`] if the thread, the event loop or the signal handler cannot be set up.
    pub fn new(delivery: Delivery) -> Result<Self> {
        let signal = match delivery {
            Delivery::Signal => Some(SignalLine::new()?),
            Delivery::Thread => None,
        };
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), signal });
        let listener = match delivery {
            Delivery::Thread => Some(Arc::new(Listener::start(Arc::downgrade(&shared))?)),
            Delivery::Signal => None,
        };
        Ok(Self { shared, _listener: listener })
    }

    /// Which delivery was chosen.
    #[must_use]
    pub fn delivery(&self) -> Delivery {
        if self.shared.signal.is_some() { Delivery::Signal } else { Delivery::Thread }
    }

    /// Takes one vector of a device. The handler runs with all others of the domain held off.
    ///
    /// # Errors
    /// [`Error::NoSuchIrq`] if the device has no such vector; [`Error::Os`].
    pub fn register(
        &self,
        backend: &AnyBackend,
        index: IrqIndex,
        vector: u32,
        handler: impl FnMut(Interrupt) -> IrqReturn + Send + 'static,
    ) -> Result<Registration> {
        let info = backend.irq(index)?;
        if vector >= info.count {
            return Err(Error::NoSuchIrq { index, start: vector, count: 1, available: info.count });
        }
        let automasked = info.flags.contains(IrqFlags::AUTOMASKED);
        let line = Line { backend: Arc::clone(backend), index, vector, automasked };
        let id = {
            let mut state = self.shared.lock();
            let id = state.next;
            state.next += 1;
            let handler: Handler = Box::new(handler);
            let source = Source { pending: 0, disabled: 0, handler: Some(handler), line, stats: IrqStats::default() };
            state.sources.insert(id, source);
            id
        };
        let registration = Registration { domain: self.clone(), id, open: true };
        // From here on a failure drops the registration, which takes the source out again.
        match (&self.shared.signal, &self._listener) {
            (Some(signal), _) => {
                let trigger = signal.add(id)?;
                backend.set_triggers(index, vector, &[Some(trigger.as_fd())])?;
            }
            (None, Some(listener)) => {
                let trigger = listener.add(id)?;
                backend.set_triggers(index, vector, &[Some(trigger.as_fd() as BorrowedFd<'_>)])?;
            }
            (None, None) => unreachable!("a domain has a signal line or a listener"),
        }
        if automasked {
            // A client before us may have left it masked.
            backend.unmask_irq(index, vector)?;
        }
        Ok(registration)
    }

    /// Runs `section` with this domain's interrupts off. What became pending is delivered before this returns, if it is
    /// the outermost section. A panic inside restores the state.
    pub fn off<T>(&self, section: impl FnOnce(&Section<'_>) -> T) -> T {
        let guard = self.off_guard();
        section(&guard.section)
    }

    /// As [`IrqDomain::off`], as a guard. Waits for a handler that is running on another thread.
    #[must_use = "interrupts are off only as long as the guard lives"]
    pub fn off_guard(&self) -> SectionGuard<'_> {
        let me = std::thread::current().id();
        let mut state = self.shared.lock();
        while state.delivering.is_some_and(|thread| thread != me) {
            state = self.shared.wait(state);
        }
        state.sections += 1;
        SectionGuard { section: Section { domain: PhantomData, not_send: PhantomData }, shared: &self.shared }
    }

    /// Delivers what is pending now, on this thread, unless a section is open. Returns how many handlers ran.
    pub fn deliver(&self) -> u64 {
        self.shared.deliver()
    }

    /// Waits until `done` holds, delivering interrupts meanwhile (in signal delivery, here; in thread delivery, on the
    /// domain's thread). `done` is tried after every delivery.
    ///
    /// # Errors
    /// [`Error::Timeout`] naming `what` when `deadline` passes first.
    ///
    /// # Panics
    /// If this thread has a section open, since nothing could ever be delivered.
    pub fn wait(&self, what: &str, deadline: Deadline, mut done: impl FnMut() -> bool) -> Result<()> {
        match &self.shared.signal {
            Some(signal) => loop {
                // Signals are blocked between the check and the sleep, so that none is slept through.
                let blocked = signal.block()?;
                self.shared.deliver();
                if done() {
                    return Ok(());
                }
                let Some(left) = deadline.remaining() else { return Err(deadline.missed(what)) };
                blocked.sleep(left)?;
            },
            None => {
                let mut seen = self.shared.lock().deliveries;
                loop {
                    if done() {
                        return Ok(());
                    }
                    let Some(left) = deadline.remaining() else { return Err(deadline.missed(what)) };
                    let mut state = self.shared.lock();
                    if state.deliveries == seen {
                        state = self.shared.wait_for(state, left);
                    }
                    seen = state.deliveries;
                }
            }
        }
    }
}

/// Proof that interrupts of a domain are off. Neither Send nor Sync: it speaks of the thread that opened it.
pub struct Section<'domain> {
    domain: PhantomData<&'domain IrqDomain>,
    not_send: PhantomData<*const ()>,
}

/// An open section; closes when dropped.
pub struct SectionGuard<'domain> {
    section: Section<'domain>,
    shared: &'domain Shared,
}

impl<'domain> std::ops::Deref for SectionGuard<'domain> {
    type Target = Section<'domain>;
    fn deref(&self) -> &Section<'domain> {
        &self.section
    }
}

impl Drop for SectionGuard<'_> {
    fn drop(&mut self) {
        let outermost = {
            let mut state = self.shared.lock();
            state.sections -= 1;
            state.sections == 0
        };
        if outermost {
            self.shared.changed.notify_all();
            self.shared.deliver();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of State is complete before its lock is released, a panic included.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Marks a source pending; `count` signals came since the last mark.
    pub(super) fn mark(&self, id: u64, count: u64) {
        let mut state = self.lock();
        let held = state.sections > 0;
        if let Some(source) = state.sources.get_mut(&id) {
            source.pending = source.pending.saturating_add(count);
            source.stats.raised = source.stats.raised.saturating_add(count);
            source.stats.deferred += u64::from(held);
        }
    }

    /// The delivery loop: as long as no section is open, runs the first pending, enabled source; then looks again.
    pub(super) fn deliver(&self) -> u64 {
        let me = std::thread::current().id();
        let mut ran = 0;
        loop {
            if let Some(signal) = &self.signal {
                signal.drain(|id, count| self.mark(id, count));
            }
            let mut state = self.lock();
            if state.sections > 0 || state.delivering.is_some() {
                return ran;
            }
            let ready = |source: &Source| source.pending > 0 && source.disabled == 0 && source.handler.is_some();
            let Some((&id, source)) = state.sources.iter_mut().find(|(_, source)| ready(source)) else {
                return ran;
            };
            let interrupt = Interrupt { merged: source.pending };
            source.pending = 0;
            source.stats.delivered += 1;
            let line = source.line.clone();
            let mut handler = source.handler.take().expect("ready() asked for it");
            state.delivering = Some(me);
            state.active = Some(id);
            drop(state);

            let outcome = catch_unwind(AssertUnwindSafe(|| handler(interrupt)));
            if line.automasked
                && let Err(error) = line.backend.unmask_irq(line.index, line.vector)
            {
                tracing::warn!(%error, index = %line.index, "unmasking after the handler");
            }

            let mut state = self.lock();
            if let Some(source) = state.sources.get_mut(&id) {
                match outcome {
                    Ok(found) => {
                        source.stats.spurious += u64::from(found == IrqReturn::None);
                        source.handler = Some(handler);
                    }
                    // What it left half done is unknown: it is not called again.
                    Err(_) => {
                        tracing::error!(index = %line.index, vector = line.vector, "an interrupt handler panicked");
                    }
                }
            }
            state.delivering = None;
            state.active = None;
            state.deliveries += 1;
            ran += 1;
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Whether this thread is inside the handler of `id`.
    fn is_inside(state: &State, id: u64) -> bool {
        state.active == Some(id) && state.delivering == Some(std::thread::current().id())
    }
}

/// One vector of one device, taken. Dropping it waits for a running handler, then disarms the vector.
pub struct Registration {
    domain: IrqDomain,
    id: u64,
    open: bool,
}

impl Registration {
    /// Keeps the handler from running until [`Registration::enable`]; nests. What arrives meanwhile is kept. Waits for
    /// a handler that is running.
    ///
    /// # Errors
    /// [`Error::NotSupported`] from the handler itself, which would wait for its own end.
    pub fn disable(&self) -> Result<()> {
        let shared = &self.domain.shared;
        let mut state = shared.lock();
        if Shared::is_inside(&state, self.id) {
            return Err(Error::NotSupported {
                what: "disable() from the interrupt's own handler (use disable_nosync)",
                by: "a domain".into(),
            });
        }
        if let Some(source) = state.sources.get_mut(&self.id) {
            source.disabled += 1;
        }
        while state.active == Some(self.id) {
            state = shared.wait(state);
        }
        Ok(())
    }

    /// As [`Registration::disable`], without waiting.
    pub fn disable_nosync(&self) {
        if let Some(source) = self.domain.shared.lock().sources.get_mut(&self.id) {
            source.disabled += 1;
        }
    }

    /// Undoes one disable. The last one delivers what came meanwhile, unless a section is open.
    pub fn enable(&self) {
        if let Some(source) = self.domain.shared.lock().sources.get_mut(&self.id) {
            source.disabled = source.disabled.saturating_sub(1);
        }
        self.domain.shared.deliver();
    }

    /// Makes it pending as if the device had signalled it.
    pub fn pend(&self) {
        self.domain.shared.mark(self.id, 1);
        self.domain.shared.deliver();
    }

    /// Whether it waits for delivery.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.domain.shared.lock().sources.get(&self.id).is_some_and(|source| source.pending > 0)
    }

    /// What it has seen so far.
    #[must_use]
    pub fn stats(&self) -> IrqStats {
        self.domain.shared.lock().sources.get(&self.id).map(|source| source.stats).unwrap_or_default()
    }

    /// Gives the vector back, as dropping does, with the error instead of a log line.
    ///
    /// # Errors
    /// [`Error::NotSupported`] from the handler itself; what disarming gave.
    pub fn close(mut self) -> Result<()> {
        self.take_out()
    }

    fn take_out(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.open) {
            return Ok(());
        }
        let shared = &self.domain.shared;
        let mut state = shared.lock();
        let inside = Shared::is_inside(&state, self.id);
        let Some(source) = state.sources.remove(&self.id) else { return Ok(()) };
        while !inside && state.active == Some(self.id) {
            state = shared.wait(state);
        }
        drop(state);
        let line = source.line;
        let disarmed = line.backend.set_triggers(line.index, line.vector, &[None]);
        if let Some(signal) = &shared.signal {
            signal.remove(self.id);
        }
        if let Some(listener) = &self.domain._listener {
            listener.remove(self.id);
        }
        if inside {
            return Err(Error::NotSupported { what: "waiting for a handler from itself", by: "a domain".into() });
        }
        disarmed
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Err(error) = self.take_out() {
            tracing::warn!(%error, "an interrupt registration was not closed cleanly");
        }
    }
}

/// What the listener thread holds: it must not keep the domain alive.
pub(super) type WeakShared = Weak<Shared>;
