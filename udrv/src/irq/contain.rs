//! Code of the driver's, run where a panic must go no further: the gate is held, or others wait for what comes after.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `work` returned; `None` if it panicked. What it panicked with may panic again when it is dropped: that one is leaked.
pub(super) fn contained<T>(work: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(value) => Some(value),
        Err(payload) => {
            if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                mem::forget(another);
            }
            None
        }
    }
}

/// Drops what a driver gave us.
pub(super) fn let_go<T>(of: T) {
    if contained(|| drop(of)).is_none() {
        tracing::error!("what a driver's handler owned panicked when it was dropped");
    }
}
