//! Waiting for an interrupt as a task.

use super::contain::contained;
use super::sync::lock;
use super::{Delivery, Registration};
use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::task::{Context, Poll, Waker};
use udrv_backend::Result;

/// Tasks that wait for a delivery: each by the number of its future. Wakers are the executor's code, which may drop tasks and so
/// come back here: they are woken and dropped with nothing locked.
#[derive(Default)]
pub(super) struct Tasks {
    all: Mutex<Vec<(u64, Waker)>>,
    /// There are some.
    some: AtomicBool,
}

impl Tasks {
    pub(super) fn wake(&self) {
        if !self.some.load(Ordering::Relaxed) {
            return;
        }
        let mut waiting = lock(&self.all);
        self.some.store(false, Ordering::Relaxed);
        let all = std::mem::take(&mut *waiting);
        drop(waiting);
        for (_, waker) in all {
            if contained(|| waker.wake()).is_none() {
                tracing::error!("the waker of a task that waits for an interrupt panicked");
            }
        }
    }

    /// Wakes the task at the next delivery. If the account says afterwards that there was one, the task may have missed it.
    fn wait(&self, future: u64, waker: &Waker) {
        let mut all = lock(&self.all);
        let before = match all.iter_mut().find(|(known, _)| *known == future) {
            Some((_, known)) if known.will_wake(waker) => None,
            Some((_, known)) => Some(std::mem::replace(known, waker.clone())),
            None => {
                all.push((future, waker.clone()));
                None
            }
        };
        self.some.store(true, Ordering::Relaxed);
        drop(all);
        // Before the account is looked at, as `Gate::advance` fences between the account and the look at this.
        fence(Ordering::SeqCst);
        drop(before);
    }

    fn forget(&self, future: u64) {
        let mut all = lock(&self.all);
        let gone = all.iter().position(|(known, _)| *known == future).map(|at| all.swap_remove(at));
        drop(all);
        drop(gone);
    }
}

/// Completes once the source has been delivered since it was made, with the number of those deliveries. A plain future:
/// any executor will do.
///
/// In signal and poll delivery, polling it is a delivery point: handlers run on the executor's thread. A thread of the
/// domain, started with the first such future, watches the descriptors meanwhile and wakes the task.
pub struct NextDelivery<'a> {
    registration: &'a Registration,
    seen: u64,
    /// Unlike that of any other.
    number: u64,
}

impl<'a> NextDelivery<'a> {
    pub(super) fn new(registration: &'a Registration) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { registration, seen: registration.stats().delivered, number: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    fn new_deliveries(&self) -> Option<u64> {
        match self.registration.stats().delivered - self.seen {
            0 => None,
            some => Some(some),
        }
    }
}

impl Future for NextDelivery<'_> {
    type Output = Result<u64>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let service = self.registration.service();
        let shared = service.shared();
        if shared.delivery != Delivery::Thread {
            shared.deliver();
        }
        shared.tasks.wait(self.number, context.waker());
        // After the waker is in place, so that no delivery falls between.
        match self.new_deliveries() {
            Some(count) => Poll::Ready(Ok(count)),
            None => match service.watch() {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
        }
    }
}

impl Drop for NextDelivery<'_> {
    /// What is not waited for any more is let go of, with the task that its waker may own.
    fn drop(&mut self) {
        self.registration.service().shared().tasks.forget(self.number);
    }
}
