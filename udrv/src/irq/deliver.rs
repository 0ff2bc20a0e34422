//! The delivery loop: what runs the handlers, and when it stops.

use super::bottom_half::Halves;
use super::checks::{OffAccount, off_at};
use super::future::Tasks;
use super::gate::{Claim, Gate, Slot};
use super::inlet::Inlet;
use super::number::me;
use super::pending::WORDS;
use super::ranks::Ranks;
use super::sigio;
use super::source::Source;
use super::sync::{Ahead, Barrier, lock};
use super::{Delivery, Priority};
use crate::clock;
use std::cell::Cell;
use std::panic::Location;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use udrv_backend::{AnyBackend, Error, Moment, Observe, Result};

/// Ranks of the pending bitmap: 3,968. The last stands for the bottom halves, the one before for a SIGIO that nobody
/// has looked into, so that the end of a section finds everything in one load.
const BOTTOM_HALVES: u32 = 64 * WORDS as u32 - 1;
pub(super) const NEWS: u32 = BOTTOM_HALVES - 1;

/// Handlers that run in a row while somebody waits to open a section.
const BATCH: u32 = 64;

/// How long poll delivery spins before it sleeps.
const SPIN: Duration = Duration::from_micros(50);

/// Deliveries in a row that may go by what the spinning found, before the descriptors are looked at again.
const SPUN: u32 = 16;

thread_local! {
    /// Domains whose handlers this thread runs, one called in another's.
    static DELIVERING: Cell<u32> = const { Cell::new(0) };
}

/// This thread runs handlers.
pub(super) struct Delivering;

impl Delivering {
    fn begin() -> Self {
        DELIVERING.set(DELIVERING.get() + 1);
        Self
    }

    /// A thread that does must not wait for one that delivers in another domain: that one may be waiting for it.
    pub(super) fn is_this_thread() -> bool {
        DELIVERING.get() != 0
    }
}

impl Drop for Delivering {
    fn drop(&mut self) {
        DELIVERING.set(DELIVERING.get() - 1);
    }
}

/// What a wait's last spin came to.
#[derive(Default)]
pub(super) struct Spun {
    /// It found something marked, a moment after it had looked at the descriptors.
    pub(super) found: bool,
    in_a_row: u32,
    /// The mark that was last delivered: likely the next one.
    last: Option<Ahead>,
}

impl Spun {
    /// How often the next spin looks at the marks before it asks the kernel, which takes as long as many looks: seldom, if
    /// the last was found among the marks.
    pub(super) fn looks(&self) -> u32 {
        if self.found { 256 } else { 64 }
    }
}

/// What a domain's threads and handles share.
pub(super) struct Shared {
    pub(super) gate: Gate,
    pub(super) delivery: Delivery,
    /// Its place in the inspection page.
    pub(super) shown: udrv_inspect::Domain,
    pub(super) inlet: Inlet,
    pub(super) halves: Halves,
    /// How long interrupts were off, if the checks are on.
    pub(super) off: OffAccount,
    /// Who is told of sections and bottom halves: whoever looks on at the first device that somebody looks on at.
    observer: OnceLock<Arc<dyn Observe>>,
    pub(super) sources: Mutex<Ranks<Arc<Source>>>,
    pub(super) tasks: Tasks,
    /// The thread that SIGIO goes to.
    pub(super) owner: i32,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.delivery == Delivery::Signal {
            sigio::forget(&self.gate.pending);
        }
    }
}

/// What a call of the delivery loop came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Delivered {
    pub(super) handlers: u64,
    /// It stopped before a section that is open: its end goes on.
    pub(super) held_back: bool,
    /// The last mark that it took.
    last: Option<Ahead>,
}

impl Shared {
    pub(super) fn new(delivery: Delivery, barrier: Barrier) -> Result<Self> {
        if delivery == Delivery::Signal {
            sigio::install()?;
        }
        Ok(Self {
            gate: Gate::new(barrier, WORDS),
            delivery,
            shown: super::accounts::show(delivery),
            inlet: Inlet::new(delivery)?,
            halves: Halves::default(),
            off: OffAccount::default(),
            observer: OnceLock::new(),
            sources: Mutex::default(),
            tasks: Tasks::default(),
            owner: sigio::this_thread(),
        })
    }

    /// Whoever looks on at a device is from now on told of the domain's sections and bottom halves.
    pub(super) fn observed_with(&self, backend: &AnyBackend) {
        if let Some(observer) = backend.observer() {
            self.observer.get_or_init(|| observer);
            self.gate.pending.watch();
        }
    }

    /// Tells of what is the domain's and no line's, if anybody looks on.
    pub(super) fn observe(&self, moment: impl FnOnce(u64) -> Moment) {
        if let Some(observer) = self.observer.get() {
            observer.observe(moment(std::ptr::from_ref(self).addr() as u64));
        }
    }

    /// What is due when [`Gate::enter_quickly`] has not opened a section.
    #[cold]
    pub(super) fn open_slowly(&self, at: &'static Location<'static>) -> Option<&Slot> {
        let slot = self.gate.enter_slowly(me());
        self.observe(|domain| Moment::SectionBegins { domain, at });
        slot
    }

    /// What is due at the end of a section that does not end quickly.
    #[cold]
    pub(super) fn close_slowly(self: &Arc<Self>) {
        self.observe(|domain| Moment::SectionEnds { domain });
        if self.gate.leave_slowly(me()) {
            self.after_section();
        }
    }

    /// The lowest free rank of a priority.
    pub(super) fn free_rank(sources: &Ranks<Arc<Source>>, priority: Priority) -> Option<u32> {
        priority.ranks().find(|rank| *rank < NEWS && sources.get(*rank).is_none())
    }

    /// What is due when [`Gate::leave_quickly`] or [`Gate::leave_slowly`] says so.
    #[cold]
    pub(super) fn after_section(self: &Arc<Self>) {
        if !self.gate.is_holder(me()) {
            let now = clock::now();
            let since = if self.delivery == Delivery::Signal { sigio::take_first(now) } else { None };
            self.collect();
            self.hold_back(since.unwrap_or(now));
            // It waits in any case, as opening the section has.
            self.deliver_until(None, true, || self.collect());
            // What another thread took just when the section closed was pending, too: its handler ends first.
            self.gate.wait_out(me());
        }
    }

    /// Marks a rank, and wakes the thread that waits for descriptors.
    pub(super) fn mark(&self, rank: u32) {
        if self.gate.mark(rank) {
            self.inlet.nudge();
        }
    }

    pub(super) fn raise(&self, source: &Source, count: u64) {
        // Both lines were last written by whoever delivers: they come at once, not one after the other.
        if let Some(ahead) = self.gate.pending.ahead(source.rank()) {
            ahead.fetch();
        }
        if source.mark.raise(count) {
            self.mark(source.rank());
        }
        source.mark.show_mark();
    }

    pub(super) fn mark_bottom_halves(&self) {
        self.mark(BOTTOM_HALVES);
    }

    /// Something changed that a thread or a task may wait for.
    pub(super) fn advance(&self) {
        if self.gate.advance() {
            self.inlet.nudge();
        }
        self.tasks.wake();
    }

    /// Marks what the descriptors say. The thread of thread delivery does this itself.
    fn collect(&self) {
        if self.delivery == Delivery::Thread {
            return;
        }
        // Before the descriptors: whoever signals later marks it again.
        self.gate.pending.clear(NEWS);
        let marked = |source: &Arc<Source>, count| self.raise(source, count);
        if let Err(error) = self.inlet.collect(marked) {
            tracing::error!(%error, "interrupts cannot be looked for");
        }
    }

    /// Notes that a section holds back what is pending.
    fn hold_back(&self, since: Instant) {
        let sources = lock(&self.sources);
        for source in self.gate.pending.ranks().filter_map(|rank| sources.get(rank)) {
            source.hold(since);
        }
    }

    /// Runs handlers until nothing is pending, unless a section is open. Within a handler it only marks: the loop that
    /// called it goes on.
    pub(super) fn deliver(self: &Arc<Self>) -> Delivered {
        self.deliver_until(None, !Delivering::is_this_thread(), || self.collect())
    }

    /// As [`Shared::deliver`], for who was promised that what is pending has been delivered: what another thread has just taken
    /// ends first. In a handler of another domain that is left to the other thread.
    pub(super) fn deliver_out(self: &Arc<Self>) -> Delivered {
        let done = self.deliver();
        if !done.held_back && !Delivering::is_this_thread() {
            self.gate.wait_out(me());
        }
        done
    }

    /// As [`Shared::deliver`], as part of a wait that spins: what the spinning found is delivered without another look at
    /// the descriptors, which it takes between two deliveries anyway.
    pub(super) fn deliver_in_wait(self: &Arc<Self>, spun: &mut Spun) -> Delivered {
        let again = spun.found && spun.in_a_row < SPUN;
        spun.in_a_row = if again { spun.in_a_row + 1 } else { 0 };
        let done = if again {
            // What whoever raised has written comes while the clock is read, which takes as long.
            self.gate.pending.ahead_of_hold().fetch();
            if let Some(ahead) = spun.last {
                ahead.fetch();
            }
            self.deliver_until(Some(clock::now()), !Delivering::is_this_thread(), || ())
        } else {
            self.deliver()
        };
        spun.last = done.last.or(spun.last);
        done
    }

    /// The first handler starts now, if the clock has been read just before.
    fn deliver_until(self: &Arc<Self>, mut now: Option<Instant>, may_wait: bool, collect: impl Fn()) -> Delivered {
        let me = me();
        let (mut done, mut no_halves) = (Delivered::default(), false);
        loop {
            collect();
            if !self.gate.pending.any() {
                return done;
            }
            match self.gate.claim(me, may_wait) {
                Claim::Nested | Claim::Busy => return done,
                Claim::Open => {
                    self.hold_back(clock::now());
                    done.held_back = true;
                    return done;
                }
                Claim::Held { waited: false } => {}
                Claim::Held { waited: true } => now = None,
            }
            let (halves, stopped) = {
                let _delivering = Delivering::begin();
                self.run_pending(&mut now, &mut done)
            };
            self.gate.release();
            // It was read for the first handler, if there was one.
            now = None;
            if stopped {
                return done;
            }
            if halves && (no_halves || self.halves.run(self)) {
                // As many rounds as may be: the rest waits for the domain's thread, or the next delivery point. What was
                // marked meanwhile by one that did not wait is this one's to deliver.
                no_halves = true;
                self.mark_bottom_halves();
                if !self.gate.pending.any_besides(BOTTOM_HALVES) {
                    return done;
                }
            }
        }
    }

    /// Whether bottom halves are due, and whether it stopped for a section that wants to open (whose end goes on).
    fn run_pending(self: &Arc<Self>, now: &mut Option<Instant>, done: &mut Delivered) -> (bool, bool) {
        let mut halves = false;
        for handled in 1.. {
            let Some(rank) = self.gate.pending.take() else { break };
            if rank == BOTTOM_HALVES {
                halves = true;
                continue;
            }
            if rank == NEWS {
                self.collect();
                continue;
            }
            let source = lock(&self.sources).get(rank).cloned();
            if let Some(source) = source {
                done.last = Some(Ahead::of(&source.mark));
                done.handlers += u64::from(source.deliver(self, now.take()));
            }
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
            let direct = self.inlet.prepare(|source, count| self.raise(source, count));
            if !self.gate.fall_asleep(me(), self.gate.progress(), held_back, NEWS) {
                continue;
            }
            // Again, now that whoever stops us sees that we sleep, and how to wake us.
            if stop() {
                return self.gate.wake_up();
            }
            let waited = self.inlet.block(direct, || self.gate.wake_up(), |source, count| self.raise(source, count));
            if let Err(error) = waited {
                return tracing::error!(%error, "an interrupt thread ends");
            }
        }
    }

    /// Sleeps until something may be pending, there is progress since `seen`, or for `limit`. One thread at a time waits
    /// for descriptors; others wait for it. In `Poll` it spins before, unless `looks` is 0, asking the kernel after so many
    /// looks at the marks. True if that found something.
    pub(super) fn idle(&self, seen: u64, held_back: bool, looks: u32, limit: Option<Duration>) -> Result<bool> {
        let me = me();
        if self.delivery == Delivery::Thread {
            self.gate.wait_for_progress(me, seen, limit);
            return Ok(false);
        }
        if !self.gate.lead(me, seen, limit) {
            return Ok(false);
        }
        let looks = if self.delivery == Delivery::Poll && !held_back { looks } else { 0 };
        let slept = self.idle_as_leader(seen, held_back, looks, limit);
        self.gate.stop_leading();
        slept
    }

    fn idle_as_leader(&self, seen: u64, held_back: bool, looks: u32, limit: Option<Duration>) -> Result<bool> {
        if looks > 0 {
            let until = clock::now() + limit.map_or(SPIN, |limit| limit.min(SPIN));
            loop {
                for _ in 0..looks {
                    if self.gate.pending.any() {
                        return Ok(true);
                    }
                    std::hint::spin_loop();
                }
                self.collect();
                if self.gate.progress() != seen || clock::now() >= until {
                    break;
                }
            }
        }
        // A SIGIO that nobody has looked into left its socket readable, which ends the sleep.
        if !self.gate.fall_asleep(me(), seen, held_back, NEWS) {
            return Ok(false);
        }
        let slept = self.inlet.sleep(limit);
        self.gate.wake_up();
        slept.map(|()| false)
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
        } else if super::service::is_thread_of(self) {
            // A bottom half, or what a handler's waker called: nobody would look at the descriptors.
            "waiting on the domain's own thread"
        } else {
            return Ok(());
        };
        let since = off_at(self).map_or_else(String::new, |at| format!(" (at {here}; off since {at})"));
        Err(Error::NotSupported { what, by: format!("an interrupt domain: leave first, then wait{since}") })
    }
}
