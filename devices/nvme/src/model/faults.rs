//! What goes wrong on request.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// How long a command is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Until it is aborted.
    UntilAbort,
    /// Until the controller is reset: an Abort does not help.
    UntilReset,
}

/// Faults of a controller that runs: set from a test while the driver is at work.
#[derive(Debug, Default)]
pub struct Faults {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: Option<(u32, Hold)>,
    /// Queue and identifier of what is held and can be aborted.
    held: Vec<(u16, u16)>,
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next `count` commands of I/O queues do not end.
    pub fn hold_next(&self, count: u32, hold: Hold) {
        self.state().next = Some((count, hold));
    }

    pub(super) fn hold(&self, queue: u16, command: u16) -> bool {
        let mut state = self.state();
        let Some((count, hold)) = state.next else { return false };
        state.next = count.checked_sub(2).map(|left| (left + 1, hold));
        if hold == Hold::UntilAbort {
            state.held.push((queue, command));
        }
        count > 0
    }

    /// Whether it was held, and is no more.
    pub(super) fn abort(&self, queue: u16, command: u16) -> bool {
        let held = &mut self.state().held;
        let place = held.iter().position(|one| *one == (queue, command));
        place.map(|at| held.swap_remove(at)).is_some()
    }

    /// Forgets all that is held: the controller is reset.
    pub(super) fn forget_all(&self) {
        self.state().held.clear();
    }

    /// Forgets what is held in a queue that goes.
    pub(super) fn forget(&self, queue: u16) {
        self.state().held.retain(|(of, _)| *of != queue);
    }
}
