//! One handler of one source, and what can be asked of it.

use super::contain::{contained, let_go};
use super::deliver::{Delivering, Shared};
use super::future::NextDelivery;
use super::inlet::{Kind, event_fd};
use super::service::Service;
use super::sigio;
use super::source::{Handler, Interrupt, Line, Source, Threaded};
use super::sync::lock;
use super::{Delivery, IrqDomain, IrqOptions, IrqReturn, IrqStats};
use std::cell::Cell;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use udrv_backend::{AnyBackend, Error, IrqFlags, IrqIndex, Moment, Result};

thread_local! {
    /// The address of the source whose threaded half this thread runs; 0 elsewhere. The thread keeps the source alive.
    static HALF_OF: Cell<usize> = const { Cell::new(0) };
}

/// One handler of one vector, registered. Dropping it waits for the handler if it runs; the last one of a vector disarms
/// it.
pub struct Registration {
    /// Of its domain, which so outlives it.
    service: Arc<Service>,
    source: Arc<Source>,
    /// Of its threaded half.
    thread: Option<Box<JoinHandle<()>>>,
    id: u32,
    open: bool,
}

/// Raises a source from any thread, without delivering there.
#[derive(Clone)]
pub struct Raiser {
    shared: Arc<Shared>,
    source: Arc<Source>,
}

impl Raiser {
    /// Makes the source pending. Handlers run where they run for a device's signal; this is not a delivery point.
    pub fn raise(&self) {
        self.shared.raise(&self.source, 1);
    }
}

impl Registration {
    pub(super) fn new(
        domain: &IrqDomain,
        backend: &AnyBackend,
        (index, vector): (IrqIndex, u32),
        options: IrqOptions,
        handler: Handler,
    ) -> Result<Self> {
        let it = Self::prepare(domain, backend, (index, vector), options, handler)?;
        // From here on a failure drops the registration, which takes the handler out again.
        it.be_armed()?;
        Ok(it)
    }

    /// All but arming.
    fn prepare(
        domain: &IrqDomain,
        backend: &AnyBackend,
        (index, vector): (IrqIndex, u32),
        options: IrqOptions,
        handler: Handler,
    ) -> Result<Self> {
        let info = backend.irq(index)?;
        if vector >= info.count {
            return Err(Error::NoSuchIrq { index, start: vector, count: 1, available: info.count });
        }
        let automasked = info.flags.contains(IrqFlags::AUTOMASKED);
        domain.shared().observed_with(backend);
        let line = Line { backend: Arc::clone(backend), index, vector };
        Self::add(domain, Some(line), automasked, options, handler)
    }

    pub(super) fn threaded(
        domain: &IrqDomain,
        backend: &AnyBackend,
        at: (IrqIndex, u32),
        options: IrqOptions,
        first: impl FnMut(Interrupt) -> IrqReturn + Send + 'static,
        mut threaded: Box<dyn FnMut(Interrupt) + Send>,
    ) -> Result<Self> {
        let (wake, woken) = mpsc::channel();
        let handler = Box::new(Threaded { first, half: wake });
        let mut it = Self::prepare(domain, backend, at, options, handler)?;
        let (shared, source) = (Arc::clone(domain.shared()), Arc::clone(&it.source));
        let id = it.id;
        let serve = move || {
            HALF_OF.set(Arc::as_ptr(&source).addr());
            // Ends when the action that holds the sender goes.
            for interrupt in woken {
                let run = || contained(|| threaded(interrupt));
                let begins = |index, vector| Moment::ThreadedBegins { index, vector };
                let ends = |index, vector, _: &Option<()>| Moment::ThreadedEnds { index, vector };
                if source.observed(run, begins, ends).is_none() {
                    tracing::error!(source = %source.describe(), "a threaded interrupt handler panicked and is retired");
                    source.retire(id);
                }
                source.thread_done(&shared);
            }
        };
        let thread = std::thread::Builder::new().name("udrv-irq-half".into()).spawn(serve);
        it.thread = Some(Box::new(thread.map_err(|error| Error::os("starting a threaded interrupt handler", error))?));
        it.be_armed()?;
        Ok(it)
    }

    /// A source that no device has, fed by `fd`.
    pub(super) fn of_timer(domain: &IrqDomain, fd: OwnedFd, handler: Handler) -> Result<Self> {
        let it = Self::add(domain, None, false, IrqOptions::default(), handler)?;
        domain.shared().inlet.add(&it.source, fd, Kind::Timer)?;
        Ok(it)
    }

    fn add(
        domain: &IrqDomain,
        line: Option<Line>,
        automasked: bool,
        options: IrqOptions,
        handler: Handler,
    ) -> Result<Self> {
        // Told apart within one source only.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let (source, refused) = {
            // Nobody finds a line that is just being given back, and none whose last handler goes before this one comes.
            let _alone = domain.shared().inlet.alone();
            let source = enlist(domain.shared(), line, automasked, options)?;
            let refused = source.add(id, handler);
            (source, refused)
        };
        let it = Self { service: Arc::clone(domain.service()), source, thread: None, id, open: true };
        if refused.is_none() {
            return Ok(it);
        }
        let_go(refused);
        let device = it.source.line().map(|line| line.backend.info().address.clone()).unwrap_or_default();
        let why = format!("all handlers of {} have panicked, and it is disabled", it.source.describe());
        Err(Error::Unavailable { device, why, advice: "drop their registrations first".into() })
    }

    /// Arms the line unless that is done. Of several handlers that are registered at once the first does it for all; if it
    /// fails, that is its own error, and the next tries for itself.
    fn be_armed(&self) -> Result<()> {
        let _alone = self.shared().inlet.alone();
        if self.shared().inlet.has(self.source.rank()) { Ok(()) } else { self.arm() }
    }

    /// Arms the line anew, or leaves it disarmed. Called with [`super::inlet::Inlet::alone`].
    fn arm(&self) -> Result<()> {
        let Some(line) = self.source.line() else { return Ok(()) };
        self.shared().inlet.remove(self.source.rank());
        let armed = self.give_trigger(line);
        if armed.is_err() {
            self.shared().inlet.remove(self.source.rank());
            // It may have got its trigger before it failed, and may not have: the error to tell is the first.
            let _not_armed = line.backend.set_triggers(line.index, line.vector, &[None]);
        }
        armed
    }

    /// Gives the device a trigger, and lets a level line speak, which a client before us may have left masked.
    fn give_trigger(&self, line: &Line) -> Result<()> {
        let shared = self.shared();
        let trigger: OwnedFd = if shared.delivery == Delivery::Signal {
            let os = |error: std::io::Error| Error::os("making an interrupt's socketpair", error);
            let (ours, theirs) = UnixStream::pair().map_err(os)?;
            theirs.set_nonblocking(true).map_err(os)?;
            sigio::raise_on_input(&ours, shared.owner)?;
            self.source.mark.signalled_by(None);
            shared.inlet.add(&self.source, ours.into(), Kind::Stream)?;
            theirs.into()
        } else {
            let ours: OwnedFd = event_fd()?.into();
            let theirs = ours.try_clone().map_err(|error| Error::os("duplicating an interrupt's eventfd", error))?;
            self.source.mark.signalled_by(Some(ours.as_fd()));
            shared.inlet.add(&self.source, ours, Kind::Event)?;
            theirs
        };
        line.backend.set_triggers(line.index, line.vector, &[Some(trigger.as_fd())])?;
        if self.source.is_automasked {
            line.backend.unmask_irq(line.index, line.vector)?;
        }
        Ok(())
    }

    fn shared(&self) -> &Arc<Shared> {
        self.service.shared()
    }

    pub(super) fn service(&self) -> &Service {
        &self.service
    }

    /// Whether waiting for the line's handlers would wait for this thread: it runs one of them, a threaded half included; or it
    /// runs another handler, of whatever domain, for whose end a threaded half that opens a section may wait.
    fn must_not_wait(&self) -> bool {
        let in_half = HALF_OF.get() == Arc::as_ptr(&self.source).addr();
        let in_handler = || Delivering::is_this_thread() && self.source.has_halves();
        in_half || in_handler() || (self.source.is_active() && self.shared().gate.is_holder(super::number::me()))
    }

    /// Waits for the line's handlers, which is disabled. False if that would wait for this thread, be it since a handler of the line
    /// has just woken its threaded half.
    fn wait_for_handlers(&self) -> bool {
        self.shared().gate.wait_until_not(|| self.source.is_active() && !self.must_not_wait());
        !self.must_not_wait()
    }

    /// Keeps the line's handlers from running until [`Registration::enable`]; nests. What arrives meanwhile is kept.
    /// Waits for handlers that are running, threaded halves included.
    ///
    /// # Errors
    /// [`Error::NotSupported`] where that would be a deadlock: from a handler of the line, and in another handler while a
    /// threaded half of the line runs.
    #[track_caller]
    pub fn disable(&self) -> Result<()> {
        super::might_sleep();
        self.source.mark.disable();
        if !self.wait_for_handlers() {
            if self.source.mark.enable() {
                self.shared().mark(self.source.rank());
            }
            return Err(Error::NotSupported {
                what: "disable() from the interrupt's own handler, or in a handler while its threaded half runs",
                by: "an interrupt domain: use disable_nosync()".into(),
            });
        }
        Ok(())
    }

    /// As [`Registration::disable`], without waiting.
    pub fn disable_nosync(&self) {
        self.source.mark.disable();
    }

    /// Undoes one disable. The last one delivers what came meanwhile, as [`Registration::pend`] does.
    pub fn enable(&self) {
        if self.source.mark.enable() {
            self.shared().mark(self.source.rank());
        }
        self.shared().deliver_out();
    }

    /// Makes it pending as if the device had signalled it, and delivers it, unless a section is open; in a handler the loop that
    /// runs it does. It waits for another thread that has begun to, but not in a handler.
    pub fn pend(&self) {
        self.shared().raise(&self.source, 1);
        self.shared().deliver_out();
    }

    /// Makes it not pending. A level line that is asserted stays masked until something is delivered.
    pub fn unpend(&self) {
        self.source.forget();
    }

    /// A handle that raises it from anywhere.
    #[must_use]
    pub fn raiser(&self) -> Raiser {
        Raiser { shared: Arc::clone(self.shared()), source: Arc::clone(&self.source) }
    }

    /// Whether it waits for delivery.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.source.mark.waiting() != 0
    }

    /// Whether a handler of the line runs, or a threaded half of one.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.source.is_active()
    }

    /// Lets it be delivered again after a storm ([`IrqStats::stormed`]). Does nothing if there was none.
    ///
    /// # Errors
    /// What arming gave; it then stays masked.
    pub fn rearm(&self) -> Result<()> {
        if !self.source.stats().stormed {
            return Ok(());
        }
        {
            let _alone = self.shared().inlet.alone();
            self.arm()?;
        }
        // Of two threads that do this at once, one undoes the storm's disable.
        if self.source.forget_storm() {
            // What the device signalled while it was disarmed is unknown.
            self.source.mark.raise(1);
            self.enable();
        }
        Ok(())
    }

    /// What it has seen so far.
    #[must_use]
    pub fn stats(&self) -> IrqStats {
        self.source.stats()
    }

    /// Completes with the number of deliveries since this call, once there is one. See [`NextDelivery`].
    pub fn next_delivery(&self) -> NextDelivery<'_> {
        NextDelivery::new(self)
    }

    /// Gives the vector back, as dropping does, with the error instead of a log line.
    ///
    /// # Errors
    /// As [`Registration::disable`], and it is given back all the same; what disarming gave.
    #[track_caller]
    pub fn close(mut self) -> Result<()> {
        super::might_sleep();
        self.take_out()
    }

    fn take_out(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.open) {
            return Ok(());
        }
        let shared = Arc::clone(self.shared());
        self.source.mark.disable();
        let inside = !self.wait_for_handlers();
        let alone = shared.inlet.alone();
        let (mine, is_last) = self.source.remove(self.id);
        let mut disarmed = Ok(());
        if is_last {
            if let Some(line) = self.source.line() {
                disarmed = line.backend.set_triggers(line.index, line.vector, &[None]);
            }
            shared.inlet.remove(self.source.rank());
            lock(&shared.sources).remove(self.source.rank());
        } else if self.source.mark.enable() {
            shared.mark(self.source.rank());
        }
        drop(alone);
        // With its sender goes the threaded half.
        drop(mine);
        // Nothing of the driver's runs on it any more, but what its threaded half owned may want the handler's end to go.
        if let Some(thread) = self.thread.take()
            && !inside
            && !Delivering::is_this_thread()
        {
            let _ended = thread.join();
        }
        if inside {
            return Err(Error::NotSupported {
                what: "waiting for an interrupt handler from itself",
                by: "an interrupt domain".into(),
            });
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

/// The source of a line, new or shared. Called with [`super::inlet::Inlet::alone`].
fn enlist(shared: &Shared, line: Option<Line>, is_automasked: bool, options: IrqOptions) -> Result<Arc<Source>> {
    let mut sources = lock(&shared.sources);
    if let Some(line) = &line {
        let same = sources.values().find(|source| source.line().is_some_and(|other| other.is(line)));
        if let Some(source) = same {
            if options.shared && source.join() {
                return Ok(Arc::clone(source));
            }
            return Err(Error::Unavailable {
                device: line.backend.info().address.clone(),
                why: format!("{} vector {} has a handler in this domain", line.index, line.vector),
                advice: "drop it first, or register both as shared".into(),
            });
        }
    }
    let Some(rank) = Shared::free_rank(&sources, options.priority) else {
        return Err(Error::NotSupported { what: "more sources of this priority", by: "an interrupt domain".into() });
    };
    let source = Source::new(shared, rank, line, is_automasked, options);
    sources.insert(rank, Arc::clone(&source));
    Ok(source)
}
