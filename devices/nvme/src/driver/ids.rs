//! The identifiers of I/O queue pairs: 1 to as many as the controller gave, each used once at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Those that no queue has, the lowest last.
pub(super) struct QueueIds(Mutex<Vec<u16>>);

/// One that a queue has. It is free again when dropped.
pub(super) struct QueueId {
    pub(super) number: u16,
    ids: Arc<QueueIds>,
    is_lost: bool,
}

impl QueueIds {
    pub(super) fn new(count: u16) -> Arc<Self> {
        Arc::new(Self(Mutex::new((1..=count).rev().collect())))
    }

    fn free(&self) -> MutexGuard<'_, Vec<u16>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(self: &Arc<Self>) -> Option<QueueId> {
        self.free().pop().map(|number| QueueId { number, ids: Arc::clone(self), is_lost: false })
    }
}

impl QueueId {
    /// The controller may still have a queue of this number: it is not used again.
    pub(super) const fn lose(&mut self) {
        self.is_lost = true;
    }
}

impl Drop for QueueId {
    fn drop(&mut self) {
        if !self.is_lost {
            let mut free = self.ids.free();
            free.push(self.number);
            free.sort_unstable_by(|one, other| other.cmp(one));
        }
    }
}
