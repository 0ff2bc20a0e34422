//! The one place here that reads the clock.

use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "this is the module that reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
