//! The gate's protocol, under a model checker: every interleaving of small scenes, with the reorderings that the memory
//! model allows.
//!
//! The files of the protocol are compiled here a second time, against loom instead of the standard library. Proven
//! for these scenes (two or three threads, one or two sources): no handler runs inside a section, no
//! mark is lost, no wake-up is lost, and whoever disables a source does not return before its handler. Not proven: that
//! membarrier(2) is a full fence on both sides, which is how it is modelled here, and anything outside those files. The
//! scenes are worth something only because small changes to the protocol make them fail, which is tested as well.
#![expect(unsafe_code, reason = "loom's cell hands out raw pointers; it is what checks their use")]

#[path = "../src/irq/gate.rs"]
#[expect(dead_code, reason = "the scenes do not use all of it")]
mod gate;
#[path = "../src/irq/mark.rs"]
#[expect(dead_code, reason = "as above")]
mod mark;
#[path = "../src/irq/parking.rs"]
mod parking;
#[path = "../src/irq/pending.rs"]
#[expect(dead_code, reason = "as above")]
mod pending;

mod sync {
    //! What `src/irq/sync.rs` is to the library.

    pub(super) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
    pub(super) use loom::sync::{Mutex, MutexGuard};
    use std::cell::Cell;
    use std::time::Duration;

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) enum Mutant {
        NoFenceAtDisable,
        NoFenceAtEnable,
        ClearAfterCheck,
        WakeBeforeMark,
        EndForgetsTheHolder,
        EndDoesNotWait,
        WithdrawalForgetsTheOthers,
        SleepTrustsTheSection,
        NoFenceAtSleep,
        NoFenceAtWait,
    }

    thread_local! {
        /// loom runs a model's threads as coroutines of the thread that started it.
        pub(super) static MUTANT: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    pub(super) fn mutant(which: Mutant) -> bool {
        MUTANT.get() == Some(which)
    }

    loom::lazy_static! {
        static ref FENCES: AtomicU32 = AtomicU32::new(0);
    }

    /// A fence that is an access to one object, too: loom changes the order only of accesses to the same object, and of those
    /// it compares each with the last one only, so that it misses what happens between a fence and the load behind it.
    /// Being relaxed, the access orders nothing by itself.
    pub(super) fn fence(order: Ordering) {
        FENCES.fetch_add(1, Ordering::Relaxed);
        loom::sync::atomic::fence(order);
    }

    pub(super) fn fence_after_rmw() {
        fence(Ordering::SeqCst);
    }

    #[derive(Clone, Copy)]
    pub(super) struct Ahead;

    impl Ahead {
        pub(super) fn of<T>(_what: &T) -> Self {
            Self
        }
    }

    /// As few as make a thread without a place possible: the third.
    pub(super) const SLOTS: usize = 3;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum Barrier {
        Asymmetric,
        Fence,
    }

    impl Barrier {
        pub(super) fn is_asymmetric(self) -> bool {
            self == Self::Asymmetric
        }
        pub(super) fn light() {
            fence(Ordering::SeqCst);
        }
        pub(super) fn heavy(self) {
            fence(Ordering::SeqCst);
        }
    }

    pub(super) struct Condvar(loom::sync::Condvar);

    impl Default for Condvar {
        fn default() -> Self {
            Self(loom::sync::Condvar::new())
        }
    }

    impl Condvar {
        /// Without the limit: a wake-up that is lost must show as a deadlock.
        pub(super) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>, _limit: Option<Duration>) -> MutexGuard<'a, T> {
            self.0.wait(guard).expect("loom does not poison")
        }
        pub(super) fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().expect("loom does not poison")
    }
}

use gate::{Claim, Gate, Slot};
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use mark::Mark;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::Arc;
use sync::{Barrier, MUTANT, Mutant};

/// Preemptions that a schedule may have: one more takes minutes, and found nothing.
const TWO_THREADS: Option<usize> = Some(3);
/// As above.
const THREE_THREADS: Option<usize> = Some(2);

/// A gate and two sources, delivering as `deliver.rs` does.
struct World {
    gate: Gate,
    marks: [Mark; 2],
    /// What sections and handlers share: loom reports any access that is not ordered with the others.
    shared: loom::cell::UnsafeCell<u32>,
    handled: [AtomicU32; 2],
    active: AtomicBool,
    /// The descriptor that wakes a sleeper, and the sleep itself.
    nudge: loom::sync::Mutex<bool>,
    nudged: loom::sync::Condvar,
}

// SAFETY: the cell is shared between threads on purpose; loom reports accesses that race.
unsafe impl Sync for World {}

/// One thread's share in a world. A world in which the checker found something is left as it is: loom does not let a
/// panicking thread touch its objects.
struct Share(ManuallyDrop<Arc<World>>);

impl Share {
    fn of(world: Arc<World>) -> Self {
        Self(ManuallyDrop::new(world))
    }
}

impl Clone for Share {
    fn clone(&self) -> Self {
        Self::of(Arc::clone(&self.0))
    }
}

impl Deref for Share {
    type Target = World;
    fn deref(&self) -> &World {
        &self.0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: this is the only drop, and nothing uses the field after it.
            unsafe { ManuallyDrop::drop(&mut self.0) }
        }
    }
}

impl World {
    fn start(barrier: Barrier) -> Share {
        Share::of(Arc::new(Self {
            gate: Gate::new(barrier, 1),
            marks: [Mark::new(), Mark::new()],
            shared: loom::cell::UnsafeCell::new(0),
            handled: [AtomicU32::new(0), AtomicU32::new(0)],
            active: AtomicBool::new(false),
            nudge: loom::sync::Mutex::new(false),
            nudged: loom::sync::Condvar::new(),
        }))
    }

    fn touch(&self) {
        // SAFETY: no other access is under way: that is what the model checks.
        self.shared.with_mut(|value| unsafe { *value += 1 });
    }

    fn section(&self, me: u32) {
        let slot = self.begin_section(me);
        self.touch();
        self.end_section(me, slot);
    }

    /// As `SectionGuard::open`.
    fn begin_section(&self, me: u32) -> Option<&Slot> {
        let slot = self.gate.slot(me as u8);
        if self.gate.enter_quickly(slot) { Some(slot) } else { self.gate.enter_slowly(me) }
    }

    /// As `SectionGuard::drop` and `Shared::after_section`.
    fn end_section(&self, me: u32, quick: Option<&Slot>) {
        if quick.map_or_else(|| self.gate.leave_slowly(me), |slot| self.gate.leave_quickly(slot)) {
            self.deliver(me);
            self.gate.wait_out(me);
        }
    }

    fn raise(&self, source: usize) {
        if self.marks[source].raise(1) && self.gate.mark(source as u32) {
            self.wake();
        }
    }

    fn wake(&self) {
        *sync::lock(&self.nudge) = true;
        self.nudged.notify_all();
    }

    /// As `Shared::deliver`. True if it stopped before a section that is open.
    fn deliver(&self, me: u32) -> bool {
        self.deliver_waiting(me, true)
    }

    fn deliver_waiting(&self, me: u32, may_wait: bool) -> bool {
        self.gate.pending.any() && self.deliver_having_looked(me, may_wait)
    }

    /// Something was pending a moment ago.
    fn deliver_having_looked(&self, me: u32, may_wait: bool) -> bool {
        loop {
            match self.gate.claim(me, may_wait) {
                Claim::Held { .. } => {}
                Claim::Nested | Claim::Busy => return false,
                Claim::Open => return true,
            }
            while let Some(rank) = self.gate.pending.take() {
                self.active.store(true, Ordering::Relaxed);
                if let Some(count) = self.marks[rank as usize].take() {
                    self.touch();
                    self.handled[rank as usize].fetch_add(count as u32, Ordering::Relaxed);
                }
                self.active.store(false, Ordering::Release);
                if self.gate.advance() {
                    self.wake();
                }
            }
            self.gate.release();
            if !self.gate.pending.any() {
                return false;
            }
        }
    }

    /// As `Shared::serve`: delivers and sleeps, until `done`.
    fn serve(&self, me: u32, done: impl Fn() -> bool) {
        while !done() {
            let held_back = self.deliver(me);
            if self.gate.fall_asleep(me, self.gate.progress(), held_back, 62) {
                if done() {
                    return self.gate.wake_up();
                }
                let mut nudge = sync::lock(&self.nudge);
                while !*nudge {
                    nudge = self.nudged.wait(nudge).expect("loom does not poison");
                }
                *nudge = false;
                drop(nudge);
                self.gate.wake_up();
            }
        }
    }

    fn handled(&self, source: usize) -> u32 {
        self.handled[source].load(Ordering::Relaxed)
    }
}

fn check(mutant: Option<Mutant>, bound: Option<usize>, scene: impl Fn() + Send + Sync + 'static) {
    MUTANT.set(mutant);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = bound;
    model.check(scene);
    MUTANT.set(None);
}

/// The scene must fail once the protocol is changed so.
fn catches(mutant: Mutant, scene: impl Fn() + Send + Sync + std::panic::UnwindSafe + 'static) {
    let caught = std::panic::catch_unwind(|| check(Some(mutant), TWO_THREADS, scene));
    MUTANT.set(None);
    assert!(caught.is_err(), "the model checker does not notice {mutant:?}");
}

/// Sections on the driver's thread, an interrupt delivered by the domain's thread.
fn section_against_delivery(barrier: Barrier) {
    let world = World::start(barrier);
    let driver = world.clone();
    let thread = loom::thread::spawn(move || {
        driver.section(0);
        driver.section(0);
    });
    world.raise(0);
    world.deliver(1);
    thread.join().expect("the driver's thread");
    assert_eq!(world.handled(0), 1, "an interrupt was lost");
}

/// A section inside another, which ends after it, and a delivery.
fn crossed_sections_against_delivery() {
    let world = World::start(Barrier::Asymmetric);
    let driver = world.clone();
    let thread = loom::thread::spawn(move || {
        let outer = driver.begin_section(0);
        let inner = driver.begin_section(0);
        driver.end_section(0, outer);
        driver.touch();
        driver.end_section(0, inner);
    });
    world.raise(0);
    world.deliver(1);
    thread.join().expect("the driver's thread");
    assert_eq!(world.handled(0), 1, "an interrupt was lost");
}

/// Two drivers' threads, of which one has no slot of its own, and a delivery.
fn sections_of_two_threads_against_delivery() {
    let world = World::start(Barrier::Asymmetric);
    let threads = [0, 2].map(|me| {
        let driver = world.clone();
        loom::thread::spawn(move || {
            let slot = driver.begin_section(me);
            driver.end_section(me, slot);
        })
    });
    world.raise(0);
    world.deliver(1);
    for thread in threads {
        thread.join().expect("a driver's thread");
    }
    assert_eq!(world.handled(0), 1, "an interrupt was lost");
}

/// Two sources marked while a section closes.
fn two_marks_against_a_closing_section() {
    let world = World::start(Barrier::Asymmetric);
    world.raise(0);
    let driver = world.clone();
    let thread = loom::thread::spawn(move || driver.section(0));
    world.raise(1);
    world.deliver(1);
    thread.join().expect("the driver's thread");
    assert_eq!((world.handled(0), world.handled(1)), (1, 1), "an interrupt was lost");
}

/// A sleeper in the kernel against a raise that delivers nothing itself.
fn sleep_against_raise() {
    let world = World::start(Barrier::Asymmetric);
    let other = world.clone();
    let thread = loom::thread::spawn(move || other.raise(0));
    world.serve(1, || world.handled(0) == 1);
    thread.join().expect("the raising thread");
}

/// What is pending when a section closes has been handled when that returns, though another thread may just have begun to
/// deliver it. (The section is the first thread's: with the two exchanged, the checker comes by too few orders to notice the
/// mutants.)
fn section_end_against_delivery_just_begun(barrier: Barrier) {
    let world = World::start(barrier);
    let domain = world.clone();
    let slot = world.begin_section(0);
    world.raise(0);
    let thread = loom::thread::spawn(move || domain.deliver(1));
    world.end_section(0, slot);
    assert_eq!(world.handled(0), 1, "the section's end returned before its interrupt was handled");
    // What the handler touched, and whoever opened the section touches next.
    world.touch();
    thread.join().expect("the domain's thread");
}

/// The domain's thread falls asleep beside a section that holds back what is pending, while that section closes and one more
/// source is raised, by a call that delivers nothing.
fn sleep_against_a_closing_section_and_a_raise() {
    let world = World::start(Barrier::Asymmetric);
    world.raise(1);
    let driver = world.clone();
    let thread = loom::thread::spawn(move || {
        driver.section(0);
        driver.raise(0);
    });
    world.serve(1, || world.handled(0) == 1 && world.handled(1) == 1);
    thread.join().expect("the driver's thread");
}

/// A thread that waits for a delivery made by another.
fn wait_against_delivery() {
    let world = World::start(Barrier::Asymmetric);
    let domain = world.clone();
    let thread = loom::thread::spawn(move || {
        domain.raise(0);
        domain.deliver(1);
    });
    loop {
        let seen = world.gate.progress();
        if world.handled(0) == 1 {
            break;
        }
        world.gate.wait_for_progress(0, seen, None);
    }
    thread.join().expect("the domain's thread");
}

/// Whoever disables a source may free what its handler uses.
fn disable_against_delivery() {
    let world = World::start(Barrier::Asymmetric);
    world.raise(0);
    let domain = world.clone();
    let thread = loom::thread::spawn(move || domain.deliver(1));
    world.marks[0].disable();
    world.gate.wait_until_not(|| world.active.load(Ordering::Acquire));
    world.touch();
    if world.marks[0].enable() {
        world.gate.mark(0);
        world.deliver(0);
    }
    thread.join().expect("the domain's thread");
    assert_eq!(world.handled(0), 1, "an interrupt was lost");
}

/// Two threads that mark and deliver, of which one, in another domain's handler, does not wait for the other.
fn delivery_that_does_not_wait_against_delivery() {
    let world = World::start(Barrier::Asymmetric);
    let domain = world.clone();
    let thread = loom::thread::spawn(move || {
        domain.raise(0);
        domain.deliver(1);
    });
    world.raise(1);
    world.deliver_waiting(0, false);
    thread.join().expect("the domain's thread");
    assert_eq!((world.handled(0), world.handled(1)), (1, 1), "an interrupt was lost");
}

/// As that, where the other withdraws from a section that has closed by now and found nothing. (The closing and the marking
/// thread are one here: with three threads the checker takes hours.)
fn delivery_that_does_not_wait_against_one_that_withdraws() {
    let world = World::start(Barrier::Asymmetric);
    let domain = world.clone();
    let slot = world.begin_section(0).expect("a quick one");
    // What it has looked at, a third one has taken.
    let thread = loom::thread::spawn(move || domain.deliver_having_looked(1, true));
    world.gate.leave_quickly(slot);
    world.raise(1);
    world.deliver_waiting(0, false);
    thread.join().expect("the domain's thread");
    assert_eq!(world.handled(1), 1, "an interrupt was lost");
}

#[test]
fn delivery_that_withdraws_delivers_what_was_left_to_it() {
    check(None, TWO_THREADS, delivery_that_does_not_wait_against_one_that_withdraws);
}

#[test]
fn checker_notices_a_withdrawal_that_forgets_the_others() {
    catches(Mutant::WithdrawalForgetsTheOthers, delivery_that_does_not_wait_against_one_that_withdraws);
}

#[test]
fn delivery_that_does_not_wait_loses_nothing() {
    check(None, TWO_THREADS, delivery_that_does_not_wait_against_delivery);
}

#[test]
fn section_and_delivery_exclude_each_other() {
    for barrier in [Barrier::Asymmetric, Barrier::Fence] {
        check(None, TWO_THREADS, move || section_against_delivery(barrier));
    }
}

#[test]
fn sections_that_cross_keep_deliveries_out() {
    check(None, TWO_THREADS, crossed_sections_against_delivery);
}

#[test]
fn sections_of_two_threads_lose_nothing() {
    check(None, THREE_THREADS, sections_of_two_threads_against_delivery);
}

#[test]
fn marks_beside_a_closing_section_are_delivered() {
    check(None, TWO_THREADS, two_marks_against_a_closing_section);
}

#[test]
fn raise_beside_a_sleeper_wakes_it() {
    check(None, TWO_THREADS, sleep_against_raise);
}

#[test]
fn section_end_waits_for_a_delivery_just_begun() {
    for barrier in [Barrier::Asymmetric, Barrier::Fence] {
        check(None, TWO_THREADS, move || section_end_against_delivery_just_begun(barrier));
    }
}

#[test]
fn sleeper_beside_a_closing_section_is_woken_by_a_raise() {
    check(None, TWO_THREADS, sleep_against_a_closing_section_and_a_raise);
}

#[test]
fn delivery_ends_a_wait() {
    check(None, TWO_THREADS, wait_against_delivery);
}

#[test]
fn disable_waits_for_the_handler_and_loses_nothing() {
    check(None, TWO_THREADS, disable_against_delivery);
}

#[test]
fn checker_notices_a_missing_fence_at_disable() {
    catches(Mutant::NoFenceAtDisable, || section_against_delivery(Barrier::Asymmetric));
}

#[test]
fn checker_notices_a_missing_fence_at_enable() {
    for barrier in [Barrier::Asymmetric, Barrier::Fence] {
        catches(Mutant::NoFenceAtEnable, move || section_against_delivery(barrier));
    }
}

#[test]
fn checker_notices_pending_cleared_after_the_check() {
    catches(Mutant::ClearAfterCheck, two_marks_against_a_closing_section);
}

#[test]
fn checker_notices_a_wake_before_the_mark() {
    catches(Mutant::WakeBeforeMark, sleep_against_raise);
}

#[test]
fn checker_notices_a_section_end_that_forgets_the_holder() {
    for barrier in [Barrier::Asymmetric, Barrier::Fence] {
        catches(Mutant::EndForgetsTheHolder, move || section_end_against_delivery_just_begun(barrier));
    }
}

#[test]
fn checker_notices_a_section_end_that_does_not_wait() {
    catches(Mutant::EndDoesNotWait, || section_end_against_delivery_just_begun(Barrier::Asymmetric));
}

#[test]
fn checker_notices_a_sleep_that_trusts_a_section_that_has_closed() {
    catches(Mutant::SleepTrustsTheSection, sleep_against_a_closing_section_and_a_raise);
}

#[test]
fn checker_notices_a_missing_fence_at_wait() {
    catches(Mutant::NoFenceAtWait, wait_against_delivery);
}

#[test]
fn checker_notices_a_missing_fence_at_sleep() {
    catches(Mutant::NoFenceAtSleep, sleep_against_raise);
}
