//! Timers, delivered through the gate.

use super::sigio::SigioTimer;
use super::source::Interrupt;
use super::{Delivery, IrqDomain, IrqReturn, IrqStats, Registration};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::os::fd::AsFd as _;
use std::time::Duration;
use udrv_backend::{Error, Result};

/// A timer of a domain. Its handler runs as an interrupt's handler does; [`Interrupt::merged`] says how often it expired.
/// Dropping it waits for the handler.
pub struct Timer {
    registration: Registration,
    timer: TimerFd,
    /// In signal delivery, a second one that raises SIGIO, which timerfds cannot.
    signal: Option<SigioTimer>,
}

impl Timer {
    pub(super) fn new(domain: &IrqDomain, mut handler: impl FnMut(Interrupt) + Send + 'static) -> Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(|errno| Error::os("making a timer", errno))?;
        let ours = timer.as_fd().try_clone_to_owned().map_err(|error| Error::os("duplicating a timer", error))?;
        let signal = match domain.delivery() {
            Delivery::Signal => Some(SigioTimer::new(domain.shared().owner)?),
            Delivery::Thread | Delivery::Poll => None,
        };
        let handler = Box::new(move |interrupt: Interrupt| {
            handler(interrupt);
            IrqReturn::Handled
        });
        Ok(Self { registration: Registration::of_timer(domain, ours, handler)?, timer, signal })
    }

    /// Lets it expire once, `after` from now. Replaces what was armed.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn arm(&self, after: Duration) -> Result<()> {
        // Zero would disarm.
        let after = after.max(Duration::from_nanos(1));
        self.set(Expiration::OneShot(TimeSpec::from_duration(after)), after, Duration::ZERO)
    }

    /// Lets it expire every `period`, first one period from now. Replaces what was armed.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn arm_every(&self, period: Duration) -> Result<()> {
        let period = period.max(Duration::from_nanos(1));
        self.set(Expiration::Interval(TimeSpec::from_duration(period)), period, period)
    }

    fn set(&self, expiration: Expiration, first: Duration, every: Duration) -> Result<()> {
        let set = self.timer.set(expiration, TimerSetTimeFlags::empty());
        set.map_err(|errno| Error::os("setting a timer", errno))?;
        // The second is set later, so that its signal finds the first expired.
        self.signal.as_ref().map_or(Ok(()), |signal| signal.set(first, every))
    }

    /// Disarms it. An expiry that is pending already is forgotten; a handler that runs is not waited for.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn cancel(&self) -> Result<()> {
        self.timer.unset().map_err(|errno| Error::os("disarming a timer", errno))?;
        self.registration.unpend();
        self.signal.as_ref().map_or(Ok(()), |signal| signal.set(Duration::ZERO, Duration::ZERO))
    }

    /// What it has seen so far; [`IrqStats::raised`] counts expiries.
    #[must_use]
    pub fn stats(&self) -> IrqStats {
        self.registration.stats()
    }
}
