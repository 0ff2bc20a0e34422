//! What stands in for `checks.rs` where the checks are not compiled: nothing.

use super::deliver::Shared;
use super::source::Source;
use super::violation::{IrqsOff, Place, Violation};
use std::sync::Arc;
use std::time::Duration;

/// What was found so far: nothing, since the checks are not compiled (feature `checks`).
#[must_use]
pub fn violations() -> Vec<Violation> {
    Vec::new()
}

/// Whether they are compiled.
pub(super) const ARE_COMPILED: bool = false;

/// Whether the checks are compiled, and not turned off: not in this build (feature `checks`).
#[must_use]
pub const fn are_checked() -> bool {
    false
}

/// Says that the caller may block; not checked in this build (feature `checks`).
#[inline(always)]
pub fn might_sleep() {}

pub(super) fn off_at(_shared: &Shared) -> Option<Place> {
    None
}

#[inline(always)]
pub(super) fn opened(_shared: &Shared, _at: Place) {}

#[inline(always)]
pub(super) fn closed(_shared: &Shared) {}

pub(super) struct InHandler;

impl InHandler {
    #[inline(always)]
    pub(super) fn of(_shared: &Shared, _source: &Arc<Source>) -> Self {
        Self
    }
}

#[derive(Default)]
pub(super) struct OffAccount(());

impl OffAccount {
    pub(super) fn set_budget(&self, _budget: Duration) {}

    pub(super) fn snapshot(&self) -> IrqsOff {
        IrqsOff::default()
    }
}

/// In place of `lockdep.rs`.
pub(super) struct LockCheck;
pub(super) struct Hold;

#[expect(dead_code, reason = "nothing looks at a class here")]
pub(super) enum Class {
    Made(Place),
    Named(&'static str),
}

impl LockCheck {
    #[inline(always)]
    pub(super) fn new(_class: Class) -> Self {
        Self
    }

    #[inline(always)]
    pub(super) fn before(&self, _at: Place) -> Option<Hold> {
        None
    }
}
