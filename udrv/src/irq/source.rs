//! One source: a line of a device (or a timer), its handlers, and what it has seen.

use super::checks::InHandler;
use super::deliver::Shared;
use super::mark::Mark;
use super::sync::lock;
use super::{IrqOptions, IrqReturn, IrqStats};
use crate::clock;
use smallvec::SmallVec;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};
use udrv_backend::{AnyBackend, IrqIndex};

/// What a handler is told.
#[derive(Debug, Clone, Copy)]
pub struct Interrupt {
    /// How many signals this one delivery stands for; at least 1.
    pub merged: u64,
}

pub(super) type Handler = Box<dyn Handle>;

/// What a delivery calls.
pub(super) trait Handle: Send {
    fn handle(&mut self, interrupt: Interrupt) -> IrqReturn;

    /// Where its threaded half waits, if it has one.
    fn half(&self) -> Option<&mpsc::Sender<Interrupt>> {
        None
    }
}

impl<F: FnMut(Interrupt) -> IrqReturn + Send> Handle for F {
    fn handle(&mut self, interrupt: Interrupt) -> IrqReturn {
        self(interrupt)
    }
}

/// A handler in two halves.
pub(super) struct Threaded<F> {
    pub(super) first: F,
    pub(super) half: mpsc::Sender<Interrupt>,
}

impl<F: FnMut(Interrupt) -> IrqReturn + Send> Handle for Threaded<F> {
    fn handle(&mut self, interrupt: Interrupt) -> IrqReturn {
        (self.first)(interrupt)
    }
    fn half(&self) -> Option<&mpsc::Sender<Interrupt>> {
        Some(&self.half)
    }
}

/// How many deliveries in a thousand must have been unhandled for it to be a storm: as the Linux kernel does
/// (kernel/irq/spurious.c).
const STORM_UNHANDLED_PERMILLE: u64 = 999;
/// Unhandled deliveries further apart than this are no storm, however many (as above).
const STORM_GAP_NS: u64 = 100_000_000;

/// Where a source comes from.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) backend: AnyBackend,
    pub(super) index: IrqIndex,
    pub(super) vector: u32,
}

impl Line {
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.backend, &other.backend) && (self.index, self.vector) == (other.index, other.vector)
    }
}

/// One handler of a line.
pub(super) struct Action {
    pub(super) id: u32,
    /// Its registration was dropped while the line's handlers ran, possibly by itself.
    is_gone: bool,
    /// `None`: it panicked. What it left half done is unknown, so it is not called again.
    handler: Option<Handler>,
}

/// Most lines have one, and it is kept in place.
type Actions = SmallVec<[Action; 1]>;

/// A device may have thousands, so this is kept small: what it costs is measured by `cargo xtask bench irq`.
pub(super) struct Source {
    pub(super) mark: Mark,
    /// `None`: a timer.
    line: Option<Line>,
    actions: Mutex<Actions>,
    /// Signals, saturating.
    raised: AtomicU64,
    tally: Mutex<Tally>,
    rank: u32,
    storm_window: u32,
    /// Handlers that are registered, including those about to be; 0: it is being given back.
    registered: AtomicU16,
    /// Threaded halves that have not returned.
    threads: AtomicU16,
    is_shared: bool,
    /// The kernel or server masks the line before it signals: unmask after the handlers.
    pub(super) is_automasked: bool,
    /// Its handlers run.
    active: AtomicBool,
    stormed: AtomicBool,
}

#[derive(Default)]
struct Tally {
    delivered: u64,
    merged: u64,
    spurious: u64,
    deferred: u64,
    longest_deferral_ns: u64,
    longest_handler_ns: u64,
    /// When a section was found to hold it back.
    held_since: Option<Stamp>,
    last_unhandled: Option<Stamp>,
    /// Deliveries of the window so far, and those unhandled.
    window: u32,
    unhandled: u32,
}

/// A time in half the size of an `Instant`: nanoseconds since the process made its first source, and one.
#[derive(Clone, Copy)]
struct Stamp(NonZeroU64);

impl Stamp {
    fn of(at: Instant) -> Self {
        static FIRST: OnceLock<Instant> = OnceLock::new();
        let since_first = at.saturating_duration_since(*FIRST.get_or_init(|| at));
        Self(NonZeroU64::MIN.saturating_add(nanoseconds(since_first)))
    }

    fn nanoseconds_since(self, earlier: Self) -> u64 {
        self.0.get().saturating_sub(earlier.0.get())
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What one delivery came to.
struct Outcome {
    handled: bool,
    threads: Vec<mpsc::Sender<Interrupt>>,
    alive: bool,
}

impl Source {
    pub(super) fn new(rank: u32, line: Option<Line>, is_automasked: bool, options: IrqOptions) -> Arc<Self> {
        let _first = Stamp::of(clock::now());
        Arc::new(Self {
            mark: Mark::new(),
            line,
            actions: Mutex::default(),
            raised: AtomicU64::new(0),
            tally: Mutex::default(),
            rank,
            storm_window: options.storm_window.max(1),
            registered: AtomicU16::new(1),
            threads: AtomicU16::new(0),
            is_shared: options.shared,
            is_automasked,
            active: AtomicBool::new(false),
            stormed: AtomicBool::new(false),
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
        let tally = lock(&self.tally);
        IrqStats {
            raised: self.raised.load(Ordering::Acquire),
            delivered: tally.delivered,
            merged: tally.merged,
            spurious: tally.spurious,
            deferred: tally.deferred,
            longest_deferral: Duration::from_nanos(tally.longest_deferral_ns),
            longest_handler: Duration::from_nanos(tally.longest_handler_ns),
            stormed: self.stormed.load(Ordering::Acquire),
        }
    }

    /// Counts signals. Called once they are marked, so that who sees the count will find the mark.
    pub(super) fn count(&self, count: u64) {
        let add = |raised: u64| Some(raised.saturating_add(count));
        let _before = self.raised.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
    }

    /// It is pending while a section is open, since `since`.
    pub(super) fn hold(&self, since: Instant) {
        let mut tally = lock(&self.tally);
        if tally.held_since.is_none() {
            tally.held_since = Some(Stamp::of(since));
            tally.deferred += 1;
        }
    }

    /// Counts one more handler of a shared line. Called with the domain's table locked.
    pub(super) fn join(&self) -> bool {
        let count = |registered: u16| registered.checked_add(1).filter(|_| self.is_shared && registered > 0);
        self.registered.fetch_update(Ordering::AcqRel, Ordering::Acquire, count).is_ok()
    }

    pub(super) fn add(&self, id: u32, handler: Handler) {
        lock(&self.actions).push(Action { id, is_gone: false, handler: Some(handler) });
    }

    /// Takes one handler out, and says whether it was the last. While the handlers run this is only noted.
    pub(super) fn remove(&self, id: u32) -> (Option<Action>, bool) {
        let mut actions = lock(&self.actions);
        let removed = actions.iter().position(|action| action.id == id).map(|at| actions.remove(at));
        if removed.is_none() {
            actions.push(Action { id, is_gone: true, handler: None });
        }
        (removed, self.registered.fetch_sub(1, Ordering::AcqRel) == 1)
    }

    /// Runs the handlers, if it is still to be delivered. True if they ran.
    pub(super) fn deliver(self: &Arc<Self>, shared: &Arc<Shared>) -> bool {
        self.active.store(true, Ordering::Relaxed);
        let merged = self.mark.take();
        if let Some(merged) = merged {
            let start = clock::now();
            let outcome = {
                let _inside = InHandler::of(shared, self);
                self.call(Interrupt { merged })
            };
            let stormed = self.settle(start, clock::now(), merged, outcome.handled);
            self.finish(shared, Interrupt { merged }, &outcome, stormed);
        }
        self.active.store(false, Ordering::Release);
        shared.advance();
        merged.is_some()
    }

    fn call(&self, interrupt: Interrupt) -> Outcome {
        // Taken out, so that a handler may register and drop others of its line.
        let mut actions = std::mem::take(&mut *lock(&self.actions));
        let mut outcome = Outcome { handled: false, threads: Vec::new(), alive: false };
        for Action { handler: place, .. } in &mut actions {
            let Some(handler) = place else { continue };
            match catch_unwind(AssertUnwindSafe(|| handler.handle(interrupt))) {
                Ok(IrqReturn::None) => {}
                Ok(returned) => {
                    outcome.handled = true;
                    let half = handler.half().filter(|_| returned == IrqReturn::WakeThread);
                    outcome.threads.extend(half.cloned());
                }
                Err(_) => {
                    tracing::error!(source = %self.describe(), "an interrupt handler panicked and is retired");
                    *place = None;
                }
            }
        }
        let mut current = lock(&self.actions);
        actions.append(&mut current);
        let mut removed = Actions::new();
        if actions.iter().any(|action| action.is_gone) {
            let gone: Vec<u32> = actions.iter().filter(|action| action.is_gone).map(|action| action.id).collect();
            (removed, actions) = actions.into_iter().partition(|action| gone.contains(&action.id));
        }
        outcome.alive = actions.iter().any(|action| action.handler.is_some());
        *current = actions;
        drop(current);
        // What a handler owns may take locks when it goes, ours included.
        drop(removed);
        outcome
    }

    /// Accounts for one delivery. True if it made a storm.
    fn settle(&self, start: Instant, end: Instant, merged: u64, handled: bool) -> bool {
        let mut tally = lock(&self.tally);
        tally.delivered += 1;
        tally.merged = tally.merged.saturating_add(merged - 1);
        tally.longest_handler_ns = tally.longest_handler_ns.max(nanoseconds(end.saturating_duration_since(start)));
        if let Some(since) = tally.held_since.take() {
            tally.longest_deferral_ns = tally.longest_deferral_ns.max(Stamp::of(start).nanoseconds_since(since));
        }
        if !handled {
            let now = Stamp::of(end);
            let in_a_row = tally.last_unhandled.is_some_and(|last| now.nanoseconds_since(last) < STORM_GAP_NS);
            tally.spurious += 1;
            tally.unhandled = if in_a_row { tally.unhandled + 1 } else { 1 };
            tally.last_unhandled = Some(now);
        }
        tally.window += 1;
        if tally.window < self.storm_window {
            return false;
        }
        tally.window = 0;
        let unhandled = std::mem::take(&mut tally.unhandled);
        let storm = u64::from(unhandled) * 1000 > u64::from(self.storm_window) * STORM_UNHANDLED_PERMILLE;
        self.stormed.fetch_or(storm, Ordering::AcqRel);
        storm
    }

    fn finish(self: &Arc<Self>, shared: &Arc<Shared>, interrupt: Interrupt, outcome: &Outcome, stormed: bool) {
        if stormed || !outcome.alive {
            // Nobody handles it. A level line stays masked as it came; a message is disarmed.
            self.mark.disable();
            if stormed {
                tracing::error!(source = %self.describe(), "interrupts that nobody handles: masked until rearmed");
            }
            self.silence();
        } else if outcome.threads.is_empty() {
            self.unmask();
        } else {
            // ONESHOT: neither delivered nor unmasked until the last threaded half has returned.
            self.mark.disable();
            self.threads.fetch_add(outcome.threads.len() as u16, Ordering::AcqRel);
            for thread in &outcome.threads {
                if thread.send(interrupt).is_err() {
                    self.thread_done(shared);
                }
            }
        }
    }

    /// What an unmask cannot do for us is a line that stays silent: it is told, and the driver's deadline is met.
    fn unmask(&self) {
        if let Some(line) = self.line.as_ref().filter(|_| self.is_automasked)
            && let Err(error) = line.backend.unmask_irq(line.index, line.vector)
        {
            tracing::warn!(%error, index = %line.index, vector = line.vector, "unmasking after the handlers");
        }
    }

    fn silence(&self) {
        if let Some(line) = &self.line
            && !self.is_automasked
            && let Err(error) = line.backend.set_triggers(line.index, line.vector, &[None])
        {
            tracing::warn!(%error, source = %self.describe(), "disarming an interrupt that nobody handles");
        }
    }

    /// One threaded half has returned.
    pub(super) fn thread_done(&self, shared: &Shared) {
        if self.threads.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.unmask();
            if self.mark.enable() {
                shared.mark(self.rank);
            }
        }
        shared.advance();
    }

    /// Forgets a storm. True if there was one.
    pub(super) fn forget_storm(&self) -> bool {
        let mut tally = lock(&self.tally);
        (tally.window, tally.unhandled) = (0, 0);
        self.stormed.swap(false, Ordering::AcqRel)
    }

    pub(super) fn describe(&self) -> String {
        match &self.line {
            Some(line) => format!("{} vector {} of {}", line.index, line.vector, line.backend.info().address),
            None => "a timer".into(),
        }
    }
}
