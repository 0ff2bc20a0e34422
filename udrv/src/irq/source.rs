//! One source: a line of a device (or a timer), its handlers, and what it has seen.

use super::accounts::{Shown, irq_is_delivered};
use super::checks::InHandler;
use super::contain::{contained, let_go};
use super::deliver::Shared;
use super::sync::lock;
use super::{IrqOptions, IrqReturn, IrqStats};
use crate::clock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use udrv_backend::{AnyBackend, IrqIndex, Moment, Observe};

/// What a handler is told.
#[derive(Debug, Clone, Copy)]
pub struct Interrupt {
    /// How many signals this one delivery stands for; at least 1.
    pub merged: u64,
}

pub(super) type Handler = Box<dyn FnMut(Interrupt) -> IrqReturn + Send>;

/// How many deliveries in a thousand must have been unhandled for it to be a storm: as the Linux kernel does
/// (kernel/irq/spurious.c).
const STORM_UNHANDLED_PERMILLE: u64 = 999;
/// Unhandled deliveries further apart than this are no storm, however many (as above).
const STORM_GAP: Duration = Duration::from_millis(100);

/// Where a source comes from.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) backend: AnyBackend,
    pub(super) index: IrqIndex,
    pub(super) vector: u32,
    /// The kernel or server masked it before signalling: unmask after the handlers.
    pub(super) automasked: bool,
    /// Who looks on.
    pub(super) observer: Option<Arc<dyn Observe>>,
}

impl Line {
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.backend, &other.backend) && (self.index, self.vector) == (other.index, other.vector)
    }

    fn observe(&self, moment: impl FnOnce(IrqIndex, u32) -> Moment) {
        if let Some(observer) = &self.observer {
            observer.observe(moment(self.index, self.vector));
        }
    }

    /// What an unmask cannot do for us is a line that stays silent: it is told, and the driver's deadline is met.
    pub(super) fn unmask(&self) {
        if self.automasked
            && let Err(error) = self.backend.unmask_irq(self.index, self.vector)
        {
            tracing::warn!(%error, index = %self.index, vector = self.vector, "unmasking after the handlers");
        }
    }
}

/// One handler of a line.
pub(super) struct Action {
    pub(super) id: u64,
    pub(super) work: Work,
}

impl Action {
    fn is_alive(&self) -> bool {
        !matches!(self.work, Work::Retired)
    }
}

pub(super) enum Work {
    Handler(Handler),
    /// The handler and where its threaded half waits.
    Threaded(Handler, mpsc::Sender<Interrupt>),
    /// It panicked: what it left half done is unknown, so it is not called again.
    Retired,
    /// Its registration was dropped while the line's handlers ran, possibly by itself.
    Gone,
}

pub(super) struct Source {
    pub(super) mark: Shown,
    rank: u32,
    is_shared: bool,
    storm_window: u32,
    /// Handlers that are registered, including those about to be; 0: it is being given back.
    registered: AtomicU32,
    /// `None`: a timer.
    line: Option<Line>,
    actions: Mutex<Vec<Action>>,
    /// Its handlers run.
    active: AtomicBool,
    /// Threaded halves that have not returned.
    threads: AtomicU32,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    stats: IrqStats,
    /// When a section was found to hold it back.
    held_since: Option<Instant>,
    /// Deliveries of the window so far, and those unhandled.
    window: u32,
    unhandled: u32,
    last_unhandled: Option<Instant>,
}

/// What one delivery came to.
struct Outcome {
    handled: bool,
    threads: Vec<mpsc::Sender<Interrupt>>,
    alive: bool,
}

impl Source {
    pub(super) fn new(shared: &Shared, rank: u32, line: Option<Line>, options: IrqOptions) -> Arc<Self> {
        Arc::new(Self {
            mark: Shown::new(&shared.shown, line.as_ref()),
            rank,
            is_shared: options.shared,
            storm_window: options.storm_window.max(1),
            registered: AtomicU32::new(1),
            line,
            actions: Mutex::default(),
            active: AtomicBool::new(false),
            threads: AtomicU32::new(0),
            tally: Mutex::default(),
        })
    }

    pub(super) fn rank(&self) -> u32 {
        self.rank
    }

    pub(super) fn line(&self) -> Option<&Line> {
        self.line.as_ref()
    }

    /// Its handlers run: on the thread that delivers.
    pub(super) fn is_running(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    pub(super) fn is_active(&self) -> bool {
        self.is_running() || self.threads.load(Ordering::Acquire) > 0
    }

    pub(super) fn stats(&self) -> IrqStats {
        lock(&self.tally).stats
    }

    /// Counts signals. Called once they are marked, so that who sees the count will find the mark.
    pub(super) fn count(&self, count: u64) {
        let stats = &mut lock(&self.tally).stats;
        stats.raised = stats.raised.saturating_add(count);
        self.mark.count(stats);
    }

    /// It is pending while a section is open, since `since`.
    pub(super) fn hold(&self, since: Instant) {
        let mut tally = lock(&self.tally);
        if tally.held_since.is_none() {
            tally.held_since = Some(since);
            tally.stats.deferred += 1;
            self.mark.count(&tally.stats);
        }
    }

    /// Counts one more handler of a shared line. Called with the domain's table locked.
    pub(super) fn join(&self) -> bool {
        let count = |registered| (self.is_shared && registered > 0).then_some(registered + 1);
        self.registered.fetch_update(Ordering::AcqRel, Ordering::Acquire, count).is_ok()
    }

    pub(super) fn add(&self, action: Action) {
        let mut actions = lock(&self.actions);
        // Most lines have one.
        actions.reserve_exact(1);
        actions.push(action);
    }

    /// Takes one handler out, and says whether it was the last. While the handlers run this is only noted.
    pub(super) fn remove(&self, id: u64) -> (Option<Action>, bool) {
        let mut actions = lock(&self.actions);
        let removed = actions.iter().position(|action| action.id == id).map(|at| actions.remove(at));
        if removed.is_none() {
            actions.push(Action { id, work: Work::Gone });
        }
        (removed, self.registered.fetch_sub(1, Ordering::AcqRel) == 1)
    }

    /// Runs the handlers, if it is still to be delivered. True if they ran.
    pub(super) fn deliver(self: &Arc<Self>, shared: &Arc<Shared>) -> bool {
        self.active.store(true, Ordering::Relaxed);
        let merged = self.mark.take();
        if let Some(merged) = merged {
            let start = clock::now();
            self.mark.runs(true);
            let (index, vector) = self.line.as_ref().map_or((u32::MAX, 0), |line| (line.index.0, line.vector));
            irq_is_delivered(index, vector, merged);
            let outcome = {
                let _inside = InHandler::of(shared, self);
                self.observe(|index, vector| Moment::HandlerBegins { index, vector });
                let outcome = self.call(Interrupt { merged });
                self.observe(|index, vector| Moment::HandlerEnds { index, vector, handled: outcome.handled });
                outcome
            };
            self.mark.runs(false);
            let stormed = self.settle(start, clock::now(), merged, outcome.handled);
            self.finish(shared, Interrupt { merged }, &outcome, stormed);
        }
        self.active.store(false, Ordering::Release);
        shared.advance();
        merged.is_some()
    }

    fn observe(&self, moment: impl FnOnce(IrqIndex, u32) -> Moment) {
        if let Some(line) = &self.line {
            line.observe(moment);
        }
    }

    fn call(&self, interrupt: Interrupt) -> Outcome {
        // Taken out, so that a handler may register and drop others of its line.
        let mut actions = std::mem::take(&mut *lock(&self.actions));
        let mut outcome = Outcome { handled: false, threads: Vec::new(), alive: false };
        for Action { work, .. } in &mut actions {
            let (Work::Handler(handler) | Work::Threaded(handler, _)) = &mut *work else { continue };
            match (contained(|| handler(interrupt)), &work) {
                (Some(IrqReturn::None), _) => {}
                (Some(IrqReturn::WakeThread), Work::Threaded(_, thread)) => {
                    outcome.handled = true;
                    outcome.threads.push(thread.clone());
                }
                (Some(_), _) => outcome.handled = true,
                (None, _) => {
                    tracing::error!(source = %self.describe(), "an interrupt handler panicked and is retired");
                    let_go(std::mem::replace(work, Work::Retired));
                }
            }
        }
        let mut current = lock(&self.actions);
        actions.append(&mut current);
        let gone: Vec<u64> =
            actions.iter().filter(|action| matches!(action.work, Work::Gone)).map(|action| action.id).collect();
        let (removed, kept): (Vec<_>, Vec<_>) = actions.into_iter().partition(|action| gone.contains(&action.id));
        outcome.alive = kept.iter().any(Action::is_alive);
        *current = kept;
        drop(current);
        // What a handler owns may take locks when it goes, ours included.
        removed.into_iter().for_each(let_go);
        outcome
    }

    /// Accounts for one delivery. True if it made a storm.
    fn settle(&self, start: Instant, end: Instant, merged: u64, handled: bool) -> bool {
        let mut tally = lock(&self.tally);
        let held = tally.held_since.take().map(|since| start.saturating_duration_since(since)).unwrap_or_default();
        let stats = &mut tally.stats;
        stats.delivered += 1;
        stats.merged = stats.merged.saturating_add(merged - 1);
        stats.spurious += u64::from(!handled);
        stats.longest_deferral = stats.longest_deferral.max(held);
        stats.longest_handler = stats.longest_handler.max(end.saturating_duration_since(start));
        if !handled {
            let in_a_row = tally.last_unhandled.is_some_and(|last| end.saturating_duration_since(last) < STORM_GAP);
            tally.unhandled = if in_a_row { tally.unhandled + 1 } else { 1 };
            tally.last_unhandled = Some(end);
        }
        tally.window += 1;
        if tally.window < self.storm_window {
            self.mark.settle(&tally.stats);
            return false;
        }
        tally.window = 0;
        let unhandled = std::mem::take(&mut tally.unhandled);
        let storm = u64::from(unhandled) * 1000 > u64::from(self.storm_window) * STORM_UNHANDLED_PERMILLE;
        // What somebody handles is not the moment to give up: if it is a storm, the next window ends in one.
        let storm = storm && !handled;
        tally.stats.stormed |= storm;
        self.mark.settle(&tally.stats);
        storm
    }

    fn finish(self: &Arc<Self>, shared: &Arc<Shared>, interrupt: Interrupt, outcome: &Outcome, stormed: bool) {
        if self.is_given_back() {
            // By its own handler. The vector may be another's by now.
        } else if stormed || !outcome.alive {
            // Nobody handles it. A level line stays masked as it came; a message is disarmed.
            self.mark.disable();
            if stormed {
                tracing::error!(source = %self.describe(), "interrupts that nobody handles: masked until rearmed");
            }
            self.silence();
        } else if outcome.threads.is_empty() {
            if let Some(line) = &self.line {
                line.unmask();
            }
        } else {
            // ONESHOT: neither delivered nor unmasked until the last threaded half has returned.
            self.mark.disable();
            self.threads.fetch_add(outcome.threads.len() as u32, Ordering::AcqRel);
            for thread in &outcome.threads {
                if thread.send(interrupt).is_err() {
                    self.thread_done(shared);
                }
            }
        }
    }

    /// Its last registration is gone, and the vector has been disarmed.
    fn is_given_back(&self) -> bool {
        self.registered.load(Ordering::Acquire) == 0
    }

    /// A threaded half panicked: neither it nor its handler is called again. Its line is disabled, so that no handler runs.
    pub(super) fn retire(&self, id: u64) {
        let mut actions = lock(&self.actions);
        let action = actions.iter_mut().find(|action| action.id == id);
        let work = action.map(|action| std::mem::replace(&mut action.work, Work::Retired));
        drop(actions);
        let_go(work);
    }

    fn silence(&self) {
        if let Some(line) = &self.line
            && !line.automasked
            && let Err(error) = line.backend.set_triggers(line.index, line.vector, &[None])
        {
            tracing::warn!(%error, source = %self.describe(), "disarming an interrupt that nobody handles");
        }
    }

    /// One threaded half has returned.
    pub(super) fn thread_done(&self, shared: &Shared) {
        if self.threads.fetch_sub(1, Ordering::AcqRel) == 1 && !self.is_given_back() {
            if lock(&self.actions).iter().any(Action::is_alive) {
                if let Some(line) = &self.line {
                    line.unmask();
                }
                if self.mark.enable() {
                    shared.mark(self.rank);
                }
            } else {
                // It stays disabled, and as after handlers that have all panicked.
                self.silence();
            }
        }
        shared.advance();
    }

    /// Forgets a storm. True if there was one.
    pub(super) fn forget_storm(&self) -> bool {
        let mut tally = lock(&self.tally);
        (tally.window, tally.unhandled) = (0, 0);
        let stormed = std::mem::take(&mut tally.stats.stormed);
        self.mark.settle(&tally.stats);
        stormed
    }

    pub(super) fn describe(&self) -> String {
        match &self.line {
            Some(line) => format!("{} vector {} of {}", line.index, line.vector, line.backend.info().address),
            None => "a timer".into(),
        }
    }
}
