//! The only reader of the clock in both sides' libraries, so that time can stand still while a debugger holds the driver.

use crate::{Error, Result};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// For how many nanoseconds the process was held so far, little-endian.
static HELD: OnceLock<&'static AtomicU64> = OnceLock::new();

/// Lets the clock stand still for as long as `nanoseconds` (a little-endian number, which only grows) says the process was
/// held. Whoever holds the process adds to it before the process goes on. The first call counts.
pub fn stands_still_by(nanoseconds: &'static AtomicU64) {
    let _first = HELD.get_or_init(|| nanoseconds);
}

/// Monotonic time, without the time for which a debugger held the process.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the module that reads the clock")]
pub fn now() -> Instant {
    let Some(held) = HELD.get() else { return Instant::now() };
    loop {
        // Held between the two, the time read would be from before, or from after, what is subtracted.
        let before = held.load(Ordering::Acquire);
        let now = Instant::now();
        if held.load(Ordering::Acquire) == before {
            // What another process has written is not believed further than it goes.
            return now.checked_sub(Duration::from_nanos(u64::from_le(before))).unwrap_or(now);
        }
    }
}

/// A point in time by which something must have happened, and how long was allowed. The earlier one is the lesser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
