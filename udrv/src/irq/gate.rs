//! The gate: sections keep deliveries out, a delivery keeps sections waiting, and whoever closes the last section knows
//! whether something became pending.
//!
//! # Protocol
//! Each thread owns a *slot* per domain, written by that thread alone, so that opening and closing a section are plain
//! stores. That somebody delivers is a bit beside the marks, *held*, and whoever sets it does.
//! Three pairs of "write mine, barrier, read yours" make it safe:
//!
//! | | writes | then reads | so that |
//! |---|---|---|---|
//! | section opens | its slot | held | one of the two sees the other: |
//! | delivery begins | held | all slots | no handler runs inside a section |
//! | section closes | its slot | what is pending, held | one of the two sees the other: |
//! | source is marked, delivery withdraws | what is pending | all slots | no mark is left behind |
//! | domain's thread falls asleep | that it sleeps | what is pending | one of the two sees the other: |
//! | source is marked | what is pending | whether it sleeps | no wake-up is lost |
//!
//! The section's side is the frequent one, and its barrier is [`Barrier::light`]. The other side pays with [`Barrier::heavy`], unless every other thread's slot says [`AWAY`]: such a thread fences fully when it next opens
//! a section. Threads beyond the number of slots are counted together, with locked instructions.
//!
//! What is not a thread's only section of a domain where nothing happens opens slowly: a nested one, the first after a wait, all
//! without membarrier, all of a domain that somebody looks on at. Whether that is so, it learns from what it reads
//! anyway, its slot and the summary of what is pending. A slot counts those that also end slowly apart from the one that
//! ends quickly, which so has nothing to ask but the summary: a pair is two branches and no locked instruction.
//!
//! A section that meets a delivery takes its slot back and waits; a delivery that meets a section lets go
//! and leaves the rest to that section's end. So neither waits for the other while holding it up.

use super::parking::Parking;
use super::pending::Pending;
use super::sync::{AtomicU32, Barrier, Mutant, Ordering, SLOTS, fence, fence_after_rmw, mutant};
use std::time::Duration;

/// [`Slot::quick`]: no such section, in a thread that has used some. Zero, so that a look at it and one at the marks are one
/// branch.
const CLEAR: u32 = 0;
/// [`Slot::quick`]: one section open.
const OPEN: u32 = 1;
/// [`Slot::quick`]: no such section, and the next one begins with a full fence.
const AWAY: u32 = 2;

const NOBODY: u32 = 0;

/// One thread's sections. A cache line each, so that threads do not slow one another.
#[repr(align(64))]
pub(super) struct Slot {
    /// Whether the section is open that closes quickly. Written without a look at what it was, so there is one at most.
    quick: AtomicU32,
    /// The other sections: nested ones, and all of those without membarrier or with somebody who looks on.
    slow: AtomicU32,
}

impl Slot {
    fn new() -> Self {
        Self { quick: AtomicU32::new(AWAY), slow: AtomicU32::new(0) }
    }

    /// Quick first: what was opened inside that one is seen by whoever sees it closed.
    fn is_open(&self) -> bool {
        self.quick.load(Ordering::Acquire) == OPEN || self.slow.load(Ordering::Acquire) != 0
    }

    /// Whether the thread's next section begins with a full fence, as those that it has open have.
    fn is_away(&self) -> bool {
        self.quick.load(Ordering::Acquire) == AWAY
    }
}

/// What is read by those who mark and seldom written: apart from what delivery writes.
#[repr(align(64))]
struct Asleep(AtomicU32);

pub(super) struct Gate {
    barrier: Barrier,
    /// By the places of threads. The last is nobody's: threads without a place are sent there, and as it is never clear, no
    /// section is quick there.
    slots: [Slot; SLOTS],
    /// As the last.
    elsewhere: Slot,
    /// The thread that delivers, by its number plus one, for itself to know; that there is one, `pending` says.
    holder: AtomicU32,
    pub(super) pending: Pending,
    /// Slots in use are below this.
    used: AtomicU32,
    /// Open sections of threads without a slot.
    crowd: AtomicU32,
    /// The thread that waits for descriptors sleeps in the kernel, or is about to.
    asleep: Asleep,
    /// Threads that wait for the delivery to end, to open a section.
    entering: AtomicU32,
    /// 1: somebody met a delivery, did not wait, and left a mark to it.
    left: AtomicU32,
    parking: Parking,
}

/// What came of an attempt to become the one who delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// This thread delivers, until [`Gate::release`]; whether it waited for another one.
    Held { waited: bool },
    /// This thread delivers already: the loop around the caller will find what is pending.
    Nested,
    /// Another thread delivers, and was not to be waited for: it looks again before it lets go, or, if it has met a section
    /// that is open, after it.
    Busy,
    /// A section is open; its end delivers.
    Open,
}

impl Gate {
    pub(super) fn new(barrier: Barrier, words: usize) -> Self {
        Self {
            barrier,
            slots: std::array::from_fn(|_| Slot::new()),
            elsewhere: Slot::new(),
            holder: AtomicU32::new(NOBODY),
            pending: Pending::new(words),
            used: AtomicU32::new(0),
            crowd: AtomicU32::new(0),
            asleep: Asleep(AtomicU32::new(0)),
            entering: AtomicU32::new(0),
            left: AtomicU32::new(0),
            parking: Parking::new(),
        }
    }

    /// The slot at a thread's place, or nobody's. There are as many as there are places, so that nothing is checked here.
    #[inline(always)]
    pub(super) fn slot(&self, place: u8) -> &Slot {
        self.slots.get(usize::from(place)).unwrap_or(&self.elsewhere)
    }

    /// The slot of thread `me`, if it has one.
    fn own(&self, me: u32) -> Option<&Slot> {
        self.slots.get(me as usize).filter(|_| (me as usize) < SLOTS - 1)
    }

    /// Opens a section of the calling thread, whose slot this is, for [`Gate::leave_quickly`]. False, with nothing done, if
    /// that takes [`Gate::enter_slowly`].
    ///
    /// The slot is written before anybody knows what it was: one that was away is open for a moment without a fence. Who
    /// sees that withdraws, and loses nothing, since the section does open, with a fence, and its end looks.
    #[inline(always)]
    pub(super) fn enter_quickly(&self, Slot { quick, .. }: &Slot) -> bool {
        let before = quick.load(Ordering::Relaxed);
        quick.store(OPEN, Ordering::Relaxed);
        if !mutant(Mutant::NoFenceAtDisable) {
            Barrier::light();
        }
        u64::from(before) | self.pending.summary() == 0 || Self::take_back(quick, before)
    }

    #[cold]
    fn take_back(quick: &AtomicU32, before: u32) -> bool {
        // Again what it was to those who wait for this thread's last section.
        quick.store(before, Ordering::Release);
        false
    }

    /// Opens a section of thread `me`, whatever its slot says, waiting for a delivery of another thread. The slot, if
    /// [`Gate::leave_quickly`] closes it; otherwise [`Gate::leave_slowly`] does.
    #[cold]
    pub(super) fn enter_slowly(&self, me: u32) -> Option<&Slot> {
        let Some(own) = self.own(me) else {
            self.enter_crowd(me);
            return None;
        };
        let Slot { quick, slow } = own;
        if own.is_open() {
            slow.store(slow.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
            return None;
        }
        if self.used.load(Ordering::Relaxed) <= me {
            self.used.fetch_max(me + 1, Ordering::AcqRel);
        }
        quick.store(AWAY, Ordering::Release);
        loop {
            let is_quick = self.barrier.is_asymmetric() && !self.pending.is_watched();
            let (word, open, closed) = if is_quick { (quick, OPEN, AWAY) } else { (slow, 1, 0) };
            word.store(open, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if !self.meets_other(me) {
                return is_quick.then_some(own);
            }
            word.store(closed, Ordering::Release);
            self.wait_to_enter(me);
        }
    }

    fn enter_crowd(&self, me: u32) {
        loop {
            self.crowd.fetch_add(1, Ordering::AcqRel);
            fence(Ordering::SeqCst);
            if !self.meets_other(me) {
                return;
            }
            self.crowd.fetch_sub(1, Ordering::AcqRel);
            self.wait_to_enter(me);
        }
    }

    fn meets_other(&self, me: u32) -> bool {
        self.pending.is_held() && !self.is_holder(me)
    }

    fn wait_to_enter(&self, me: u32) {
        self.entering.fetch_add(1, Ordering::AcqRel);
        self.parking.wait_while(|| self.meets_other(me));
        self.entering.fetch_sub(1, Ordering::AcqRel);
    }

    /// Closes a section that opened quickly, whose slot this is; others of the thread may be open. True if something is
    /// pending or being delivered: then [`Gate::claim`] is due, and [`Gate::wait_out`].
    #[inline(always)]
    pub(super) fn leave_quickly(&self, Slot { quick, .. }: &Slot) -> bool {
        quick.store(CLEAR, Ordering::Release);
        if !mutant(Mutant::NoFenceAtEnable) {
            Barrier::light();
        }
        self.pending.summary() != 0 && self.has_work()
    }

    /// Something is pending, or another thread has just taken what was: a section's end waits for that, too.
    #[cold]
    fn has_work(&self) -> bool {
        if mutant(Mutant::EndForgetsTheHolder) {
            return self.pending.any();
        }
        self.pending.any_or_held()
    }

    /// Closes any other section of thread `me`. True as for [`Gate::leave_quickly`], if it was the last one open.
    #[cold]
    pub(super) fn leave_slowly(&self, me: u32) -> bool {
        let Some(own) = self.own(me) else {
            let last = self.crowd.fetch_sub(1, Ordering::AcqRel) == 1;
            fence(Ordering::SeqCst);
            return last && self.has_work();
        };
        own.slow.store(own.slow.load(Ordering::Relaxed).saturating_sub(1), Ordering::Release);
        if own.is_open() {
            return false;
        }
        if !mutant(Mutant::NoFenceAtEnable) {
            fence(Ordering::SeqCst);
        }
        self.has_work()
    }

    /// Whether this thread has a section open. (A thread without a slot cannot tell, and says no.)
    pub(super) fn is_inside(&self, me: u32) -> bool {
        self.own(me).is_some_and(Slot::is_open)
    }

    /// Whether this thread delivers.
    pub(super) fn is_holder(&self, me: u32) -> bool {
        self.holder.load(Ordering::Relaxed) == me + 1
    }

    /// Becomes the one who delivers; waits for another thread that does, if that may be.
    pub(super) fn claim(&self, me: u32, may_wait: bool) -> Claim {
        if self.is_holder(me) {
            return Claim::Nested;
        }
        if self.is_inside(me) {
            return Claim::Open;
        }
        let mut waited = false;
        loop {
            while !self.pending.hold() {
                if !may_wait {
                    self.left.store(1, Ordering::Relaxed);
                    // Whoever delivers lets go only after it has seen that, or has let go by now.
                    if !self.pending.hold() {
                        return Claim::Busy;
                    }
                    break;
                }
                waited = true;
                self.parking.wait_while(|| self.pending.is_held());
            }
            fence_after_rmw();
            self.holder.store(me + 1, Ordering::Relaxed);
            if !self.others(me).all(Slot::is_away) {
                self.barrier.heavy();
            }
            if !self.is_section_open(me) {
                return Claim::Held { waited };
            }
            self.release();
            // The section may have closed before that mark was left, and nobody else looks.
            if mutant(Mutant::WithdrawalForgetsTheOthers) || self.left.swap(0, Ordering::Relaxed) == 0 {
                return Claim::Open;
            }
        }
    }

    /// Whether another thread has a section open.
    fn is_section_open(&self, me: u32) -> bool {
        self.others(me).any(Slot::is_open) || self.crowd.load(Ordering::Acquire) != 0
    }

    /// Waits until no other thread delivers.
    pub(super) fn wait_out(&self, me: u32) {
        if mutant(Mutant::EndDoesNotWait) {
            return;
        }
        self.parking.wait_while(|| self.meets_other(me));
    }

    fn others(&self, me: u32) -> impl Iterator<Item = &Slot> {
        let used = self.used.load(Ordering::Acquire) as usize;
        let slots = self.slots.iter().take(used).enumerate();
        slots.filter(move |(number, _)| *number != me as usize).map(|(_, slot)| slot)
    }

    /// Ends the delivery that [`Claim::Held`] began.
    pub(super) fn release(&self) {
        self.holder.store(NOBODY, Ordering::Relaxed);
        self.pending.let_go();
        self.parking.tell();
    }

    /// Whether threads wait to open a section. Each of them will look for what is pending when it closes it.
    pub(super) fn is_wanted(&self) -> bool {
        self.entering.load(Ordering::Relaxed) > 0
    }

    /// Marks a rank pending. True if the thread that waits for descriptors must be woken from its sleep.
    pub(super) fn mark(&self, rank: u32) -> bool {
        if mutant(Mutant::WakeBeforeMark) {
            let wake = self.must_wake();
            self.pending.set(rank);
            return wake;
        }
        self.pending.set(rank);
        self.must_wake()
    }

    /// After an atomic read-modify-write.
    fn must_wake(&self) -> bool {
        fence_after_rmw();
        self.asleep.0.load(Ordering::Relaxed) != 0
    }

    /// Announces that thread `me` is about to sleep until it is woken. False if it must not: there was progress since
    /// `seen`, or something is pending. With `held_back` that is left to the end of a section, if one is still open. What
    /// pends at rank `besides` does not count: the sleep ends by it anyway.
    pub(super) fn fall_asleep(&self, me: u32, seen: u64, held_back: bool, besides: u32) -> bool {
        self.asleep.0.store(1, Ordering::Relaxed);
        if !mutant(Mutant::NoFenceAtSleep) {
            fence(Ordering::SeqCst);
        }
        let is_quiet = !self.pending.any_besides(besides) || (held_back && self.is_held_back(me));
        let may = is_quiet && self.progress() == seen;
        if !may {
            self.wake_up();
        }
        may
    }

    /// Whether another thread has a section open, whose end will find what was pending before this call.
    fn is_held_back(&self, me: u32) -> bool {
        if mutant(Mutant::SleepTrustsTheSection) {
            return true;
        }
        self.barrier.heavy();
        self.is_section_open(me)
    }

    pub(super) fn wake_up(&self) {
        self.asleep.0.store(0, Ordering::Relaxed);
    }

    /// Counts one more thing that a thread might be waiting for. True as for [`Gate::mark`].
    pub(super) fn advance(&self) -> bool {
        self.parking.advance();
        self.must_wake()
    }

    pub(super) fn progress(&self) -> u64 {
        self.parking.progress()
    }

    /// Becomes the thread that waits for descriptors. If there is one, sleeps as [`Gate::wait_for_progress`] does, or until
    /// that one stops, and says no.
    pub(super) fn lead(&self, me: u32, seen: u64, limit: Option<Duration>) -> bool {
        if self.progress() != seen {
            return false;
        }
        if self.parking.lead() {
            return true;
        }
        self.step_away(me);
        self.parking.wait_once(|| self.progress() == seen && self.parking.is_led(), limit);
        false
    }

    /// Another thread that waits becomes the one.
    pub(super) fn stop_leading(&self) {
        self.parking.stop_leading();
    }

    /// Sleeps until there is progress since `seen`, or for `limit`. Meanwhile no delivery needs the heavy barrier for
    /// this thread.
    pub(super) fn wait_for_progress(&self, me: u32, seen: u64, limit: Option<Duration>) {
        self.step_away(me);
        self.parking.wait_once(|| self.progress() == seen, limit);
    }

    /// Sleeps until `is_so` no longer holds; it must change only before [`Gate::advance`] or [`Gate::release`].
    pub(super) fn wait_until_not(&self, is_so: impl Fn() -> bool) {
        self.parking.wait_while(is_so);
    }

    fn step_away(&self, me: u32) {
        if let Some(Slot { quick, .. }) = self.own(me)
            && quick.load(Ordering::Relaxed) == CLEAR
        {
            quick.store(AWAY, Ordering::Release);
        }
    }
}
