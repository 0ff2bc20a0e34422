//! The delivery loop: what runs the handlers, and when it stops.

use super::bottom_half::Halves;
use super::checks::{OffAccount, off_at};
use super::gate::{Claim, Gate};
use super::inlet::Inlet;
use super::number::me;
use super::sigio;
use super::source::Source;
use super::sync::{Barrier, lock};
use super::{Delivery, Priority};
use crate::clock;
use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::{Duration, Instant};
use udrv_backend::{Error, Result};

/// Words of the pending bitmap: 4,096 ranks, the last of which stands for the bottom halves.
const WORDS: usize = 64;
const BOTTOM_HALVES: u32 = 64 * WORDS as u32 - 1;

/// Handlers that run in a row while somebody waits to open a section.
const BATCH: u32 = 64;

/// How long poll delivery spins before it sleeps.
const SPIN: Duration = Duration::from_micros(50);

/// What a domain's threads and handles share.
pub(super) struct Shared {
    pub(super) gate: Gate,
    pub(super) delivery: Delivery,
    pub(super) inlet: Inlet,
    pub(super) halves: Halves,
    /// How long interrupts were off, if the checks are on.
    pub(super) off: OffAccount,
    pub(super) sources: Mutex<BTreeMap<u32, Arc<Source>>>,
    /// Tasks that wait for a delivery.
    pub(super) wakers: Mutex<Vec<Waker>>,
    /// The thread that SIGIO goes to.
    pub(super) owner: i32,
    /// How many SIGIOs were looked into; only in signal delivery.
    seen: AtomicU64,
}

/// What a call of the delivery loop came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Delivered {
    pub(super) handlers: u64,
    /// It stopped before a section that is open: its end goes on.
    pub(super) held_back: bool,
}

impl Shared {
    pub(super) fn new(delivery: Delivery, barrier: Barrier) -> Result<Self> {
        if delivery == Delivery::Signal {
            sigio::install()?;
        }
        Ok(Self {
            gate: Gate::new(barrier, WORDS),
            delivery,
            inlet: Inlet::new(delivery == Delivery::Thread)?,
            halves: Halves::default(),
            off: OffAccount::default(),
            sources: Mutex::default(),
            wakers: Mutex::default(),
            owner: sigio::this_thread(),
            seen: AtomicU64::new(sigio::SIGNALS.load(Ordering::Acquire)),
        })
    }

    /// The lowest free rank of a priority.
    pub(super) fn free_rank(sources: &BTreeMap<u32, Arc<Source>>, priority: Priority) -> Option<u32> {
        let mut ranks = priority.ranks();
        let mut taken = sources.range(ranks.clone()).map(|(&rank, _)| rank);
        ranks.find(|rank| *rank != BOTTOM_HALVES && taken.next() != Some(*rank))
    }

    #[inline(always)]
    pub(super) fn leave(self: &Arc<Self>, me: u32) {
        let pending = self.gate.leave(me);
        if pending || self.has_news() {
            self.after_section();
        }
    }

    /// Whether a SIGIO came that nobody has looked into.
    #[inline(always)]
    fn has_news(&self) -> bool {
        self.delivery == Delivery::Signal && sigio::SIGNALS.load(Ordering::Relaxed) != self.seen.load(Ordering::Relaxed)
    }

    #[cold]
    fn after_section(self: &Arc<Self>) {
        if !self.gate.is_holder(me()) {
            let now = clock::now();
            let since = if self.has_news() { sigio::take_first(now).unwrap_or(now) } else { now };
            self.collect();
            self.hold_back(since);
            self.deliver();
        }
    }

    /// Marks a rank, and wakes the thread that waits for descriptors.
    pub(super) fn mark(&self, rank: u32) {
        if self.gate.mark(rank) {
            self.inlet.nudge();
        }
    }

    pub(super) fn raise(&self, source: &Source, count: u64) {
        if source.mark.raise(count) {
            self.mark(source.rank());
        }
        source.count(count);
    }

    pub(super) fn mark_bottom_halves(&self) {
        self.mark(BOTTOM_HALVES);
    }

    /// Something changed that a thread or a task may wait for.
    pub(super) fn advance(&self) {
        if self.gate.advance() {
            self.inlet.nudge();
        }
        self.wake_tasks();
    }

    pub(super) fn wake_tasks(&self) {
        let wakers = std::mem::take(&mut *lock(&self.wakers));
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Marks what the descriptors say. The thread of thread delivery does this itself.
    fn collect(&self) {
        if self.delivery == Delivery::Thread {
            return;
        }
        self.seen.store(sigio::SIGNALS.load(Ordering::Acquire), Ordering::Relaxed);
        let marked = |source: &Arc<Source>, count| self.raise(source, count);
        if let Err(error) = self.inlet.collect(marked) {
            tracing::error!(%error, "interrupts cannot be looked for");
        }
    }

    /// Notes that a section holds back what is pending.
    fn hold_back(&self, since: Instant) {
        let sources = lock(&self.sources);
        for source in self.gate.pending.ranks().filter_map(|rank| sources.get(&rank)) {
            source.hold(since);
        }
    }

    /// Runs handlers until nothing is pending, unless a section is open. Within a handler it only marks: the loop that
    /// called it goes on.
    pub(super) fn deliver(self: &Arc<Self>) -> Delivered {
        let me = me();
        let mut done = Delivered::default();
        loop {
            self.collect();
            if !self.gate.pending.any() {
                return done;
            }
            match self.gate.claim(me) {
                Claim::Nested => return done,
                Claim::Open => {
                    self.hold_back(clock::now());
                    done.held_back = true;
                    return done;
                }
                Claim::Held => {}
            }
            let (halves, stopped) = self.run_pending(&mut done);
            self.gate.release();
            if stopped {
                return done;
            }
            if halves && self.halves.run() {
                // As many rounds as may be: the rest waits for the domain's thread, or the next delivery point.
                self.mark_bottom_halves();
                return done;
            }
        }
    }

    /// Whether bottom halves are due, and whether it stopped for a section that wants to open (whose end goes on).
    fn run_pending(self: &Arc<Self>, done: &mut Delivered) -> (bool, bool) {
        let mut halves = false;
        for handled in 1.. {
            let Some(rank) = self.gate.pending.take() else { break };
            if rank == BOTTOM_HALVES {
                halves = true;
                continue;
            }
            let source = lock(&self.sources).get(&rank).cloned();
            done.handlers += u64::from(source.is_some_and(|source| source.deliver(self)));
            if handled % BATCH == 0 && self.gate.is_wanted() {
                if halves {
                    self.gate.mark(BOTTOM_HALVES);
                }
                return (false, true);
            }
        }
        (halves, false)
    }

    /// What the domain's thread does in thread delivery, until `stop` says so.
    pub(super) fn serve(self: &Arc<Self>, stop: impl Fn() -> bool) {
        while !stop() {
            let held_back = self.deliver().held_back;
            if !self.gate.fall_asleep(self.gate.progress(), held_back) {
                continue;
            }
            let waited = self.inlet.block(|source, count| self.raise(source, count));
            self.gate.wake_up();
            if let Err(error) = waited {
                return tracing::error!(%error, "an interrupt thread ends");
            }
        }
    }

    /// Sleeps until something may be pending, there is progress since `seen`, or for `limit`. One thread at a time waits
    /// for descriptors; others wait for it.
    pub(super) fn idle(&self, seen: u64, held_back: bool, spin: bool, limit: Option<Duration>) -> Result<()> {
        let me = me();
        if self.delivery == Delivery::Thread {
            self.gate.wait_for_progress(me, seen, limit);
            return Ok(());
        }
        if !self.gate.lead(me, seen, limit) {
            return Ok(());
        }
        let slept = self.idle_as_leader(seen, held_back, spin && self.delivery == Delivery::Poll, limit);
        self.gate.stop_leading();
        slept
    }

    fn idle_as_leader(&self, seen: u64, held_back: bool, spin: bool, limit: Option<Duration>) -> Result<()> {
        if spin && !held_back {
            let until = clock::now() + limit.map_or(SPIN, |limit| limit.min(SPIN));
            loop {
                for _ in 0..64 {
                    if self.gate.pending.any() {
                        return Ok(());
                    }
                    std::hint::spin_loop();
                }
                self.collect();
                if self.gate.progress() != seen || clock::now() >= until {
                    break;
                }
            }
        }
        if !self.gate.fall_asleep(seen, held_back) {
            return Ok(());
        }
        let slept = self.inlet.sleep(limit);
        self.gate.wake_up();
        slept
    }

    /// Waiting where nothing can be delivered would wait for ever.
    #[track_caller]
    pub(super) fn check_may_wait(&self) -> Result<()> {
        let here = Location::caller();
        let me = me();
        let what = if self.gate.is_holder(me) {
            "waiting in an interrupt handler"
        } else if self.gate.is_inside(me) {
            "waiting with interrupts off"
        } else {
            return Ok(());
        };
        let since = off_at(self).map_or_else(String::new, |at| format!(" (at {here}; off since {at})"));
        Err(Error::NotSupported { what, by: format!("an interrupt domain: leave first, then wait{since}") })
    }
}
