//! The only reader of the clock in both sides' libraries, so that time can stand still while a debugger holds the driver.

use crate::{Error, Result};
use std::time::{Duration, Instant};

/// Monotonic time.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the module that reads the clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// A point in time by which something must have happened, and how long was allowed.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: Instant,
    allowed: Duration,
}

impl Deadline {
    /// `allowed` from now.
    #[must_use]
    pub fn after(allowed: Duration) -> Self {
        Self { at: now() + allowed, allowed }
    }

    /// What is left; `None` once it has passed.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.at.checked_duration_since(now()).filter(|left| !left.is_zero())
    }

    /// The error to return when it passed before `what` happened.
    pub fn missed(&self, what: impl Into<String>) -> Error {
        Error::Timeout { what: what.into(), after: self.allowed }
    }

    /// Yields the processor until `done` says so.
    ///
    /// # Errors
    /// [`Error::Timeout`] with `what`, or what `done` returned.
    pub fn poll(&self, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        loop {
            if done()? {
                return Ok(());
            }
            if self.remaining().is_none() {
                return Err(self.missed(what));
            }
            std::thread::yield_now();
        }
    }
}
