//! The memory for requests that have come and are not answered, of all connections of a server.

use super::peer::LOOK;
use super::wire::MAX_DATA;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Most bytes, as data goes either way.
pub const MOST_BYTES: u64 = 64 << 20;
/// Most of them for one connection, so that one that is slow to take its replies leaves as much to the others.
pub const MOST_BYTES_OF_ONE: u64 = MOST_BYTES / 2;
const _: () = assert!(MAX_DATA as u64 <= MOST_BYTES_OF_ONE, "the longest request would never be taken");

/// Bytes go to whoever asked first: a long request that waits is not overtaken by short ones for ever. What has been given
/// comes back without more being asked for, so that nobody waits for somebody who waits.
pub struct Budget {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    free: u64,
    /// Who waits, in the order of asking.
    waiting: VecDeque<u64>,
    next: u64,
}

impl Default for Budget {
    fn default() -> Self {
        let state = State { free: MOST_BYTES, waiting: VecDeque::new(), next: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl Budget {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for bytes, at most [`MOST_BYTES_OF_ONE`]; `false` if `gives_up` says so first.
    pub fn take(&self, bytes: u64, gives_up: impl Fn() -> bool) -> bool {
        if bytes == 0 {
            return !gives_up();
        }
        let mut state = self.state();
        let ours = state.next;
        state.next += 1;
        state.waiting.push_back(ours);
        loop {
            let is_given_up = gives_up();
            let is_given = !is_given_up && state.free >= bytes && state.waiting.front() == Some(&ours);
            if is_given {
                state.free -= bytes;
            }
            if is_given || is_given_up {
                state.waiting.retain(|number| *number != ours);
                drop(state);
                // The next in the row may be content with what there is.
                self.changed.notify_all();
                return is_given;
            }
            // Not long: what makes it give up wakes nobody here.
            state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Gives bytes back.
    pub fn give_back(&self, bytes: u64) {
        self.state().free += bytes;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::{Budget, MOST_BYTES};
    use std::sync::mpsc;
    use std::time::Duration;
    use udrv::clock::Deadline;

    const SOON: Duration = Duration::from_secs(20);

    /// Waits until so many wait for bytes.
    fn until_waiting(budget: &Budget, count: usize) {
        let waits = || Ok(budget.state().waiting.len() == count);
        Deadline::after(SOON).poll("somebody who waits", waits).expect("waiting");
    }

    #[test]
    fn long_request_that_waits_is_not_overtaken_by_short_ones() {
        let budget = Budget::default();
        assert!(budget.take(MOST_BYTES - 10, || false));
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            for (place, bytes) in [20, 5, 1].into_iter().enumerate() {
                let (budget, tell) = (&budget, tell.clone());
                scope.spawn(move || tell.send((bytes, budget.take(bytes, || false))));
                until_waiting(budget, place + 1);
            }
            assert!(told.try_recv().is_err(), "there was room for 5, but 20 had asked before");
            budget.give_back(10);
            assert_eq!(told.recv_timeout(SOON), Ok((20, true)));
            budget.give_back(6);
            let mut rest = [(); 2].map(|()| told.recv_timeout(SOON).expect("room for both"));
            rest.sort_unstable();
            assert_eq!(rest, [(1, true), (5, true)]);
        });
        assert_eq!(budget.state().free, 0);
    }

    #[test]
    fn one_that_gives_up_stands_in_nobodys_way() {
        let budget = Budget::default();
        assert!(budget.take(MOST_BYTES - 10, || false));
        let (stop, stopped) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let gives_up = move || stopped.try_recv() == Err(mpsc::TryRecvError::Disconnected);
            let first = scope.spawn(|| budget.take(20, gives_up));
            until_waiting(&budget, 1);
            let second = scope.spawn(|| budget.take(10, || false));
            until_waiting(&budget, 2);
            drop(stop);
            assert!(!first.join().expect("no panic"));
            assert!(second.join().expect("no panic"));
        });
        assert_eq!(budget.state().free, 0);
        assert!(budget.take(0, || false), "what takes no memory waits for none");
        assert!(!budget.take(0, || true));
    }
}
