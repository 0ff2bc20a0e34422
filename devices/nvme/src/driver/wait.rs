//! Waiting for commands to end: by looking, by interrupt, as a task.

use super::Io;
use super::queue::{Done, IoQueue, Wait};
use std::sync::Arc;
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Raiser, Registration, Timer};
use udrv_backend::{Error, Result};

/// How many looks at memory between two at the clock.
const SPINS: u32 = 1024;

impl<I: Io> IoQueue<I> {
    /// Rings, waits until at least one command has ended, and hands over all that have; how many, 0 only if none was
    /// outstanding. If none ends by the queue's timeout, all are aborted, and, if one still does not end, the controller is
    /// reset: each is then answered with a status that [`Outcome::is_ended_by_host`](crate::command::Outcome::is_ended_by_host).
    ///
    /// # Errors
    /// [`Error::Gone`]; [`Error::Timeout`] if not even a reset ends within CAP.TO; as [`IoQueue::poll`].
    #[inline]
    pub fn wait(&mut self, mut take: impl FnMut(Done)) -> Result<usize> {
        self.ring()?;
        // What has come already is taken without a look at the clock.
        match self.poll(&mut take)? {
            0 if self.outstanding() > 0 => self.wait_on(&mut take),
            ended => Ok(ended),
        }
    }

    fn wait_on(&mut self, take: &mut impl FnMut(Done)) -> Result<usize> {
        match self.wait_by(Deadline::after(self.config.timeout), &|| false, take)? {
            0 => self.abort_all(take),
            ended => Ok(ended),
        }
    }

    /// As [`IoQueue::wait`], for a thread that has something else to wait for: it returns, with 0, also when `other` is
    /// true, which is looked at with each wake-up ([`IoQueue::waker`]), and when `deadline` has passed. Nothing is aborted
    /// then: that is [`IoQueue::abort_all`].
    ///
    /// # Errors
    /// As [`IoQueue::poll`].
    pub fn wait_until(
        &mut self,
        deadline: Deadline,
        other: impl Fn() -> bool,
        mut take: impl FnMut(Done),
    ) -> Result<usize> {
        self.ring()?;
        self.wait_by(deadline, &other, &mut take)
    }

    fn wait_by(&mut self, deadline: Deadline, other: &impl Fn() -> bool, take: &mut impl FnMut(Done)) -> Result<usize> {
        while let Some(left) = deadline.remaining()
            && self.outstanding() > 0
            && self.await_completion(left, other)?
        {
            let ended = self.poll(&mut *take)?;
            // A phase tag that turns back again is a completion of nothing.
            if ended > 0 || other() {
                return Ok(ended);
            }
        }
        // Its interrupt may have been lost, and it not.
        self.poll(take)
    }

    /// Lets a thread in [`IoQueue::wait_until`] look again. `None` for a polled queue, which looks all the time.
    #[must_use]
    pub fn waker(&self) -> Option<Raiser> {
        self.irq.as_ref().map(|irq| irq.raiser())
    }

    /// As [`IoQueue::wait`], for a task: by its vector, whatever [`QueueConfig::wait`](super::QueueConfig::wait) says of
    /// looking at memory first. Only when a command does not end in time does it block, as long as its abort or the reset
    /// takes.
    ///
    /// # Errors
    /// [`Error::NotSupported`] for a polled queue; as [`IoQueue::wait`].
    pub async fn completed(&mut self, mut take: impl FnMut(Done)) -> Result<usize> {
        self.ring()?;
        if self.outstanding() == 0 {
            return Ok(0);
        }
        // Before the alarm is set, which comes once: when it does, the time is over.
        let deadline = Deadline::after(self.config.timeout);
        let irq = self.alarmed()?;
        loop {
            // Made before the look, so that what comes after it is not missed.
            let next = irq.next_delivery();
            let ended = self.poll(&mut take)?;
            if ended > 0 {
                self.alarm.as_ref().map_or(Ok(()), Timer::cancel)?;
                return Ok(ended);
            }
            if deadline.remaining().is_none() {
                return self.abort_all(take);
            }
            next.await?;
        }
    }

    /// The vector, which will be raised when the queue's timeout is over.
    fn alarmed(&mut self) -> Result<Arc<Registration>> {
        let Some(irq) = self.irq.clone() else {
            return Err(Error::NotSupported {
                what: "a future",
                by: format!("I/O queue {}, which is polled", self.id()),
            });
        };
        if self.alarm.is_none() {
            let raiser = irq.raiser();
            self.alarm = Some(self.shared.irqs.timer(move |_| raiser.raise())?);
        }
        self.alarm.as_ref().map_or(Ok(()), |alarm| alarm.arm(self.config.timeout))?;
        Ok(irq)
    }

    /// Whether one came in time, or a reset has ended all, or `other` is true.
    pub(super) fn await_completion(&self, patience: Duration, other: &impl Fn() -> bool) -> Result<bool> {
        let came = || self.has_completion().unwrap_or(true) || self.was_reset() || other();
        let spin = match self.config.wait {
            Wait::Interrupt => Duration::ZERO,
            Wait::Polled => patience,
            Wait::Hybrid(spin) => spin.min(patience),
        };
        if look(spin, &came) {
            return Ok(true);
        }
        if self.irq.is_none() {
            return Ok(false);
        }
        match self.shared.irqs.wait("a completion", Deadline::after(patience), came) {
            Ok(()) => Ok(true),
            Err(Error::Timeout { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Looks for as long as `limit`; whether it came.
#[inline]
fn look(limit: Duration, came: &impl Fn() -> bool) -> bool {
    if limit.is_zero() {
        return came();
    }
    let deadline = Deadline::after(limit);
    loop {
        for _ in 0..SPINS {
            if came() {
                return true;
            }
            std::hint::spin_loop();
        }
        if deadline.remaining().is_none() {
            return false;
        }
    }
}
