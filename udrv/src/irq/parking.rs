//! Threads of a domain that wait for one another: for progress, for a delivery to end, for whoever waits for descriptors.
//!
//! Nothing of it takes the lock as long as nobody waits: a change is announced by [`Parking::tell`], which looks for threads
//! that wait after the change, as they look for the change after they have said that they wait.

use super::sync::{AtomicU32, AtomicU64, Condvar, Mutant, Mutex, Ordering, fence, fence_after_rmw, lock, mutant};
use std::time::Duration;

pub(super) struct Parking {
    /// Counts what a thread might wait for.
    progress: AtomicU64,
    /// 1: a thread waits for descriptors, on behalf of all.
    led: AtomicU32,
    /// Threads that sleep here, or are about to.
    waiting: AtomicU32,
    /// Has whoever is about to sleep, from its last look until it does.
    door: Mutex<()>,
    changed: Condvar,
}

impl Parking {
    pub(super) fn new() -> Self {
        Self {
            progress: AtomicU64::new(0),
            led: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            door: Mutex::new(()),
            changed: Condvar::default(),
        }
    }

    /// Counts one more thing that a thread might be waiting for.
    pub(super) fn advance(&self) {
        self.progress.fetch_add(1, Ordering::AcqRel);
        self.tell();
    }

    pub(super) fn progress(&self) -> u64 {
        self.progress.load(Ordering::Acquire)
    }

    /// Becomes the one that waits for descriptors, if nobody is.
    pub(super) fn lead(&self) -> bool {
        self.led.swap(1, Ordering::AcqRel) == 0
    }

    pub(super) fn stop_leading(&self) {
        self.led.swap(0, Ordering::AcqRel);
        self.tell();
    }

    pub(super) fn is_led(&self) -> bool {
        self.led.load(Ordering::Acquire) != 0
    }

    /// Wakes those that sleep here, to look again. What they look for was changed by an atomic read-modify-write just now, or
    /// before it.
    pub(super) fn tell(&self) {
        fence_after_rmw();
        if self.waiting.load(Ordering::Relaxed) != 0 {
            // Whoever has looked sleeps once this lock can be had.
            drop(lock(&self.door));
            self.changed.notify_all();
        }
    }

    /// Sleeps as long as something is so; it must change only before [`Parking::tell`].
    pub(super) fn wait_while(&self, is_so: impl Fn() -> bool) {
        if is_so() {
            self.sleep(|| !is_so(), None);
        }
    }

    /// Sleeps if something is so, until it may have changed, or for `limit`.
    pub(super) fn wait_once(&self, is_so: impl Fn() -> bool, limit: Option<Duration>) {
        let woken = std::cell::Cell::new(false);
        self.sleep(|| woken.replace(true) || !is_so(), limit);
    }

    fn sleep(&self, is_done: impl Fn() -> bool, limit: Option<Duration>) {
        let mut door = lock(&self.door);
        self.waiting.fetch_add(1, Ordering::AcqRel);
        if !mutant(Mutant::NoFenceAtWait) {
            fence(Ordering::SeqCst);
        }
        while !is_done() {
            door = self.changed.wait(door, limit);
        }
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        drop(door);
    }
}
