//! One source: a line of a device (or a timer), its handlers, and what it has seen.

use super::accounts::{Shown, irq_is_delivered};
use super::checks::InHandler;
use super::contain::{contained, let_go};
use super::deliver::Shared;
use super::sync::lock;
use super::{IrqOptions, IrqReturn, IrqStats};
use crate::clock;
use smallvec::SmallVec;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};
use udrv_backend::{AnyBackend, IrqIndex, Moment};

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

impl Action {
    fn is_alive(&self) -> bool {
        self.handler.is_some()
    }
}

/// Most lines have one, and it is kept in place.
type Actions = SmallVec<[Action; 1]>;

/// A device may have thousands, so this is kept small: what it costs is measured by `cargo xtask bench irq`.
pub(super) struct Source {
    pub(super) mark: Shown,
    /// `None`: a timer.
    line: Option<Line>,
    state: Mutex<State>,
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

/// Under one lock, since each would take eight bytes.
#[derive(Default)]
struct State {
    actions: Actions,
    tally: Tally,
}

#[derive(Default)]
struct Tally {
    /// Signals that no longer wait, saturating: with the mark, all there were. Changes under one lock with it.
    taken: u64,
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
    pub(super) fn new(
        shared: &Shared,
        rank: u32,
        line: Option<Line>,
        is_automasked: bool,
        options: IrqOptions,
    ) -> Arc<Self> {
        let _first = Stamp::of(clock::now());
        Arc::new(Self {
            mark: Shown::new(&shared.shown, line.as_ref()),
            line,
            state: Mutex::default(),
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
        self.stats_of(&lock(&self.state).tally)
    }

    fn stats_of(&self, tally: &Tally) -> IrqStats {
        IrqStats {
            raised: tally.taken.saturating_add(self.mark.waiting()),
            delivered: tally.delivered,
            merged: tally.merged,
            spurious: tally.spurious,
            deferred: tally.deferred,
            longest_deferral: Duration::from_nanos(tally.longest_deferral_ns),
            longest_handler: Duration::from_nanos(tally.longest_handler_ns),
            stormed: self.stormed.load(Ordering::Acquire),
        }
    }

    /// Shows the account, whose lock the caller has.
    fn show(&self, tally: &Tally) {
        self.mark.settle(&self.stats_of(tally));
    }

    /// Makes it not pending.
    pub(super) fn forget(&self) {
        let tally = &mut lock(&self.state).tally;
        tally.taken = tally.taken.saturating_add(self.mark.forget());
        self.mark.show_taken(tally.taken);
    }

    /// Takes the mark for a delivery, if it is still to be delivered, and the handlers, so that they may register and drop
    /// others of their line.
    fn take(&self) -> Option<(u64, Actions)> {
        let state = &mut *lock(&self.state);
        let merged = self.mark.take()?;
        state.tally.taken = state.tally.taken.saturating_add(merged);
        self.mark.show_taken(state.tally.taken);
        Some((merged, std::mem::take(&mut state.actions)))
    }

    /// It is pending while a section is open, since `since`.
    pub(super) fn hold(&self, since: Instant) {
        let tally = &mut lock(&self.state).tally;
        if tally.held_since.is_none() {
            tally.held_since = Some(Stamp::of(since));
            tally.deferred += 1;
            self.show(tally);
        }
    }

    /// Counts one more handler of a shared line. Called with the domain's table locked.
    pub(super) fn join(&self) -> bool {
        let count = |registered: u16| registered.checked_add(1).filter(|_| self.is_shared && registered > 0);
        self.registered.fetch_update(Ordering::AcqRel, Ordering::Acquire, count).is_ok()
    }

    pub(super) fn add(&self, id: u32, handler: Handler) {
        lock(&self.state).actions.push(Action { id, is_gone: false, handler: Some(handler) });
    }

    /// Takes one handler out, and says whether it was the last. While the handlers run this is only noted.
    pub(super) fn remove(&self, id: u32) -> (Option<Action>, bool) {
        let actions = &mut lock(&self.state).actions;
        let removed = actions.iter().position(|action| action.id == id).map(|at| actions.remove(at));
        if removed.is_none() {
            actions.push(Action { id, is_gone: true, handler: None });
        }
        (removed, self.registered.fetch_sub(1, Ordering::AcqRel) == 1)
    }

    /// Runs the handlers, if it is still to be delivered. True if they ran.
    pub(super) fn deliver(self: &Arc<Self>, shared: &Arc<Shared>) -> bool {
        self.active.store(true, Ordering::Relaxed);
        let taken = self.take();
        let is_due = taken.is_some();
        if let Some((merged, actions)) = taken {
            let start = clock::now();
            // Only now, since whoever raises may be writing it.
            self.mark.show_mark();
            self.mark.runs(true);
            let (index, vector) = self.line.as_ref().map_or((u32::MAX, 0), |line| (line.index.0, line.vector));
            irq_is_delivered(index, vector, merged);
            let outcome = {
                let _inside = InHandler::of(shared, self);
                self.call_observed(Interrupt { merged }, actions)
            };
            self.mark.runs(false);
            let stormed = self.settle(start, clock::now(), merged, outcome.handled);
            self.finish(shared, Interrupt { merged }, &outcome, stormed);
        }
        self.active.store(false, Ordering::Release);
        shared.advance();
        is_due
    }

    /// As [`Source::call`], telling whoever looks on.
    fn call_observed(&self, interrupt: Interrupt, actions: Actions) -> Outcome {
        let observed = self.line.as_ref().and_then(|line| Some((line.backend.observer()?, line.index, line.vector)));
        let Some((observer, index, vector)) = observed else { return self.call(interrupt, actions) };
        observer.observe(Moment::HandlerBegins { index, vector });
        let outcome = self.call(interrupt, actions);
        observer.observe(Moment::HandlerEnds { index, vector, handled: outcome.handled });
        outcome
    }

    fn call(&self, interrupt: Interrupt, mut actions: Actions) -> Outcome {
        let mut outcome = Outcome { handled: false, threads: Vec::new(), alive: false };
        for Action { handler: place, .. } in &mut actions {
            let Some(handler) = place else { continue };
            match contained(|| handler.handle(interrupt)) {
                Some(IrqReturn::None) => {}
                Some(returned) => {
                    outcome.handled = true;
                    let half = handler.half().filter(|_| returned == IrqReturn::WakeThread);
                    outcome.threads.extend(half.cloned());
                }
                None => {
                    tracing::error!(source = %self.describe(), "an interrupt handler panicked and is retired");
                    let_go(place.take());
                }
            }
        }
        let mut state = lock(&self.state);
        actions.append(&mut state.actions);
        let mut removed = Actions::new();
        if actions.iter().any(|action| action.is_gone) {
            let gone: Vec<u32> = actions.iter().filter(|action| action.is_gone).map(|action| action.id).collect();
            (removed, actions) = actions.into_iter().partition(|action| gone.contains(&action.id));
        }
        outcome.alive = actions.iter().any(Action::is_alive);
        state.actions = actions;
        drop(state);
        // What a handler owns may take locks when it goes, ours included.
        removed.into_iter().for_each(let_go);
        outcome
    }

    /// Accounts for one delivery. True if it made a storm.
    fn settle(&self, start: Instant, end: Instant, merged: u64, handled: bool) -> bool {
        let tally = &mut lock(&self.state).tally;
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
            self.show(tally);
            return false;
        }
        tally.window = 0;
        let unhandled = std::mem::take(&mut tally.unhandled);
        let storm = u64::from(unhandled) * 1000 > u64::from(self.storm_window) * STORM_UNHANDLED_PERMILLE;
        // What somebody handles is not the moment to give up: if it is a storm, the next window ends in one.
        let storm = storm && !handled;
        self.stormed.fetch_or(storm, Ordering::AcqRel);
        self.show(tally);
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

    /// Its last registration is gone, and the vector has been disarmed.
    fn is_given_back(&self) -> bool {
        self.registered.load(Ordering::Acquire) == 0
    }

    /// A threaded half panicked: neither it nor its handler is called again. Its line is disabled, so that no handler runs.
    pub(super) fn retire(&self, id: u32) {
        let mut state = lock(&self.state);
        let action = state.actions.iter_mut().find(|action| action.id == id);
        let handler = action.and_then(|action| action.handler.take());
        drop(state);
        let_go(handler);
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
        if self.threads.fetch_sub(1, Ordering::AcqRel) == 1 && !self.is_given_back() {
            if lock(&self.state).actions.iter().any(Action::is_alive) {
                self.unmask();
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
        let tally = &mut lock(&self.state).tally;
        (tally.window, tally.unhandled) = (0, 0);
        let stormed = self.stormed.swap(false, Ordering::AcqRel);
        self.show(tally);
        stormed
    }

    pub(super) fn describe(&self) -> String {
        match &self.line {
            Some(line) => format!("{} vector {} of {}", line.index, line.vector, line.backend.info().address),
            None => "a timer".into(),
        }
    }
}
