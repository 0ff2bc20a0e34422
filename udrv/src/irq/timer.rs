//! Timers, delivered through the gate.

use super::sigio::SigioTimer;
use super::source::Interrupt;
use super::sync::lock;
use super::{Delivery, IrqDomain, IrqReturn, IrqStats, Registration};
use crate::clock;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use udrv_backend::{Error, Result};

/// A timer of a domain. Its handler runs as an interrupt's handler does; [`Interrupt::merged`] says how often it expired.
/// Dropping it waits for the handler.
pub struct Timer {
    registration: Registration,
    alarm: Arc<Alarm>,
}

/// The kernel's timers, and when they are due by the runtime's clock, which stands still while a debugger holds the process.
struct Alarm {
    timer: TimerFd,
    /// In signal delivery, a second one that raises SIGIO, which timerfds cannot.
    signal: Option<SigioTimer>,
    due: Mutex<Option<Due>>,
}

struct Due {
    at: Instant,
    /// Zero: once.
    every: Duration,
}

impl Alarm {
    fn set(&self, first: Duration, every: Duration) -> Result<()> {
        let mut due = lock(&self.due);
        // Before the kernel is told: what it then tells is never early.
        *due = Some(Due { at: clock::now() + first, every });
        self.tell_kernel(first, every)
    }

    fn tell_kernel(&self, first: Duration, every: Duration) -> Result<()> {
        let expiration = if every.is_zero() {
            Expiration::OneShot(TimeSpec::from_duration(first))
        } else {
            Expiration::IntervalDelayed(TimeSpec::from_duration(first), TimeSpec::from_duration(every))
        };
        let set = self.timer.set(expiration, TimerSetTimeFlags::empty());
        set.map_err(|errno| Error::os("setting a timer", errno))?;
        // The second is set later, so that its signal finds the first expired.
        self.signal.as_ref().map_or(Ok(()), |signal| signal.set(first, every))
    }

    /// How often it was due, of the times that the kernel says. Not at all if the process was held meanwhile: then it is
    /// set again, for what is left.
    fn came(&self, expired: u64) -> u64 {
        let now = clock::now();
        let mut state = lock(&self.due);
        // Cancelled while it expired: as the kernel says.
        let Some(due) = &mut *state else { return expired };
        let early = due.at.saturating_duration_since(now);
        if !early.is_zero() {
            if let Err(error) = self.tell_kernel(early, due.every) {
                tracing::error!(%error, "a timer cannot be set again after the process was held");
            }
            return 0;
        }
        if due.every.is_zero() {
            *state = None;
            return expired;
        }
        let late = now.saturating_duration_since(due.at).as_nanos() / due.every.as_nanos();
        let times = u32::try_from(late).unwrap_or(u32::MAX - 1).saturating_add(1);
        due.at += due.every.saturating_mul(times);
        expired.min(times.into())
    }
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
        let alarm = Arc::new(Alarm { timer, signal, due: Mutex::default() });
        let its = Arc::clone(&alarm);
        let handler = Box::new(move |interrupt: Interrupt| {
            let merged = its.came(interrupt.merged);
            if merged > 0 {
                handler(Interrupt { merged });
            }
            IrqReturn::Handled
        });
        Ok(Self { registration: Registration::of_timer(domain, ours, handler)?, alarm })
    }

    /// Lets it expire once, `after` from now. Replaces what was armed.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn arm(&self, after: Duration) -> Result<()> {
        // Zero would disarm.
        self.alarm.set(after.max(Duration::from_nanos(1)), Duration::ZERO)
    }

    /// Lets it expire every `period`, first one period from now. Replaces what was armed.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn arm_every(&self, period: Duration) -> Result<()> {
        let period = period.max(Duration::from_nanos(1));
        self.alarm.set(period, period)
    }

    /// Disarms it. An expiry that is pending already is forgotten; a handler that runs is not waited for.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn cancel(&self) -> Result<()> {
        let Alarm { timer, signal, due } = &*self.alarm;
        *lock(due) = None;
        timer.unset().map_err(|errno| Error::os("disarming a timer", errno))?;
        self.registration.unpend();
        signal.as_ref().map_or(Ok(()), |signal| signal.set(Duration::ZERO, Duration::ZERO))
    }

    /// What it has seen so far; [`IrqStats::raised`] counts expiries.
    #[must_use]
    pub fn stats(&self) -> IrqStats {
        self.registration.stats()
    }
}
