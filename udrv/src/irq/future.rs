//! Waiting for an interrupt as a task.

use super::{Delivery, Registration};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use udrv_backend::Result;

/// Completes once the source has been delivered since it was made, with the number of those deliveries. A plain future:
/// any executor will do.
///
/// In signal and poll delivery, polling it is a delivery point: handlers run on the executor's thread. A thread of the
/// domain, started with the first such future, watches the descriptors meanwhile and wakes the task.
pub struct NextDelivery<'a> {
    registration: &'a Registration,
    seen: u64,
}

impl<'a> NextDelivery<'a> {
    pub(super) fn new(registration: &'a Registration) -> Self {
        Self { registration, seen: registration.stats().delivered }
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
        shared.wake_later(context.waker());
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
