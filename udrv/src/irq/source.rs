//! One source: a line of a device (or a timer), its handlers, and what it has seen.

use super::accounts::{Shown, irq_is_delivered};
use super::checks::InHandler;
use super::contain::{contained, let_go};
use super::deliver::Shared;
use super::sync::lock;
use super::tally::{Done, Tally};
use super::{IrqOptions, IrqReturn, IrqStats};
use crate::clock;
use smallvec::SmallVec;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;
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

/// Whether all of a line's handlers have panicked. With none at all, one that is about to be added is waited for.
fn are_retired(actions: &Actions) -> bool {
    !actions.is_empty() && !actions.iter().any(Action::is_alive)
}

/// A device may have thousands, so this is kept small: what it costs is measured by `cargo xtask bench irq`.
///
/// In this order, since an `Arc`'s content is aligned to 16 bytes: who raises needs the first 16 and so one cache line, none of
/// those that a delivery writes besides.
#[repr(C)]
pub(super) struct Source {
    rank: u32,
    storm_window: u32,
    pub(super) mark: Shown,
    /// `None`: a timer.
    line: Option<Line>,
    state: Mutex<State>,
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
struct State {
    actions: Actions,
    tally: Tally,
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
        Arc::new(Self {
            mark: Shown::new(&shared.shown, line.as_ref()),
            line,
            state: Mutex::new(State { actions: Actions::new(), tally: Tally::new() }),
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
        self.is_running() || self.has_halves()
    }

    /// Threaded halves run, or are about to.
    pub(super) fn has_halves(&self) -> bool {
        self.threads.load(Ordering::Acquire) > 0
    }

    pub(super) fn stats(&self) -> IrqStats {
        self.stats_of(&lock(&self.state).tally)
    }

    fn stats_of(&self, tally: &Tally) -> IrqStats {
        tally.stats(self.mark.waiting(), self.stormed.load(Ordering::Acquire))
    }

    /// Shows the account, whose lock the caller has.
    fn show(&self, tally: &Tally) {
        self.mark.settle(&self.stats_of(tally));
    }

    /// Makes it not pending.
    pub(super) fn forget(&self) {
        let tally = &mut lock(&self.state).tally;
        self.mark.show_taken(tally.take(self.mark.forget()));
    }

    /// Takes the mark for a delivery, if it is still to be delivered, and the handlers, so that they may register and drop
    /// others of their line. Under one lock, so that no account misses the signals. With how many no longer wait.
    fn take(&self) -> Option<(u64, u64, Actions)> {
        let State { actions, tally } = &mut *lock(&self.state);
        let merged = self.mark.take()?;
        Some((merged, tally.take(merged), std::mem::take(actions)))
    }

    /// It is pending while a section is open, since `since`.
    pub(super) fn hold(&self, since: Instant) {
        let tally = &mut lock(&self.state).tally;
        if tally.hold(since) {
            self.show(tally);
        }
    }

    /// Counts one more handler of a shared line. Called with the domain's table locked.
    pub(super) fn join(&self) -> bool {
        let count = |registered: u16| registered.checked_add(1).filter(|_| self.is_shared && registered > 0);
        self.registered.fetch_update(Ordering::AcqRel, Ordering::Acquire, count).is_ok()
    }

    /// Gives the handler back if all others of the line have panicked: the line is silenced, or about to be, and it would never
    /// be called. It then only has its place, for [`Source::remove`]. Handlers that run are not here, and what becomes of their
    /// line is decided with this one among them.
    pub(super) fn add(&self, id: u32, handler: Handler) -> Option<Handler> {
        let actions = &mut lock(&self.state).actions;
        let is_late = are_retired(actions) && !actions.iter().any(|action| action.is_gone);
        let (handler, refused) = if is_late { (None, Some(handler)) } else { (Some(handler), None) };
        actions.push(Action { id, is_gone: false, handler });
        refused
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
    pub(super) fn deliver(self: &Arc<Self>, shared: &Arc<Shared>, start: Option<Instant>) -> bool {
        let start = start.unwrap_or_else(clock::now);
        self.active.store(true, Ordering::Relaxed);
        let taken = self.take();
        let is_due = taken.is_some();
        if let Some((merged, signals, actions)) = taken {
            // Only now, since whoever raises may be writing it; and no locked instruction waits for it until the handlers run.
            self.mark.show_mark();
            self.mark.show_taken(signals);
            self.mark.runs(true);
            let (index, vector) = self.line.as_ref().map_or((u32::MAX, 0), |line| (line.index.0, line.vector));
            irq_is_delivered(index, vector, merged);
            let outcome = {
                let _inside = InHandler::of(shared, self);
                self.call_observed(Interrupt { merged }, actions)
            };
            self.mark.runs(false);
            let stormed = self.settle(&Done { start, end: clock::now(), merged, handled: outcome.handled });
            self.finish(shared, Interrupt { merged }, &outcome, stormed);
        }
        self.active.store(false, Ordering::Release);
        shared.advance();
        is_due
    }

    /// As [`Source::call`], telling whoever looks on.
    fn call_observed(&self, interrupt: Interrupt, actions: Actions) -> Outcome {
        let begins = |index, vector| Moment::HandlerBegins { index, vector };
        let ends = |index, vector, outcome: &Outcome| Moment::HandlerEnds { index, vector, handled: outcome.handled };
        self.observed(|| self.call(interrupt, actions), begins, ends)
    }

    /// Runs something, telling whoever looks on at the line's device.
    pub(super) fn observed<T>(
        &self,
        run: impl FnOnce() -> T,
        begins: impl FnOnce(IrqIndex, u32) -> Moment,
        ends: impl FnOnce(IrqIndex, u32, &T) -> Moment,
    ) -> T {
        let observed = self.line.as_ref().and_then(|line| Some((line.backend.observer()?, line.index, line.vector)));
        let Some((observer, index, vector)) = observed else { return run() };
        observer.observe(begins(index, vector));
        let outcome = run();
        observer.observe(ends(index, vector, &outcome));
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
        outcome.alive = !are_retired(&actions);
        state.actions = actions;
        drop(state);
        // What a handler owns may take locks when it goes, ours included.
        removed.into_iter().for_each(let_go);
        outcome
    }

    /// Accounts for one delivery. True if it made a storm.
    fn settle(&self, done: &Done) -> bool {
        let tally = &mut lock(&self.state).tally;
        let storm = tally.settle(done, self.storm_window);
        self.show(tally);
        storm
    }

    fn finish(self: &Arc<Self>, shared: &Arc<Shared>, interrupt: Interrupt, outcome: &Outcome, stormed: bool) {
        if self.is_given_back() {
            // By its own handler. The vector may be another's by now.
        } else if stormed || !outcome.alive {
            // Nobody handles it. A level line stays masked as it came; a message is disarmed.
            self.mark.disable();
            self.silence(shared);
            if stormed {
                // Only now, that whoever sees it may rearm the line.
                self.stormed.store(true, Ordering::Release);
                self.show(&lock(&self.state).tally);
                tracing::error!(source = %self.describe(), "interrupts that nobody handles: masked until rearmed");
            }
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
        let Some(line) = self.line.as_ref().filter(|_| self.is_automasked) else { return };
        // Others wait for what comes after.
        match contained(|| line.backend.unmask_irq(line.index, line.vector)) {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::warn!(%error, source = %self.describe(), "unmasking after the handlers");
            }
            None => tracing::error!(source = %self.describe(), "the device's backend panicked in unmasking it"),
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

    fn silence(&self, shared: &Shared) {
        let _alone = shared.inlet.alone();
        // Since then it may have been given back, and taken anew.
        let line = self.line.as_ref().filter(|_| !self.is_automasked && !self.is_given_back());
        let Some(line) = line else { return };
        match contained(|| line.backend.set_triggers(line.index, line.vector, &[None])) {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::warn!(%error, source = %self.describe(), "disarming an interrupt that nobody handles");
            }
            None => tracing::error!(source = %self.describe(), "the device's backend panicked in disarming it"),
        }
    }

    /// One threaded half has returned. Until the last one's line is unmasked, or silenced, the source is active: who waits for
    /// that finds the line as the halves left it.
    pub(super) fn thread_done(&self, shared: &Shared) {
        let all_but_the_last = |threads: u16| threads.checked_sub(1).filter(|left| *left > 0);
        let is_last = self.threads.fetch_update(Ordering::AcqRel, Ordering::Acquire, all_but_the_last).is_err();
        if is_last {
            let is_retired = are_retired(&lock(&self.state).actions);
            if is_retired {
                // It stays disabled, and as after handlers that have all panicked.
                self.silence(shared);
            } else if !self.is_given_back() {
                self.unmask();
            }
            // Only now, and before it is enabled: a delivery begins with a count of its own.
            self.threads.store(0, Ordering::Release);
            if !is_retired && self.mark.enable() {
                shared.mark(self.rank);
            }
        }
        shared.advance();
    }

    /// Forgets a storm. True if there was one.
    pub(super) fn forget_storm(&self) -> bool {
        let tally = &mut lock(&self.state).tally;
        tally.forget_storm();
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
