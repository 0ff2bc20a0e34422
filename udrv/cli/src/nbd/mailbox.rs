//! What lies between the thread that takes a client's requests and the one that answers them.

use super::budget::{Budget, MOST_BYTES_OF_ONE};
use super::peer::LOOK;
use super::wire::{Command, MAX_DATA, Request};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Most requests of a connection that have come and are not answered.
const MOST_REQUESTS: usize = 128;

/// A request, with what a write brought.
#[derive(Debug, Clone)]
pub struct Job {
    pub request: Request,
    pub data: Vec<u8>,
}

pub struct Mailbox<'a> {
    /// Of all connections.
    budget: &'a Budget,
    state: Mutex<State>,
    changed: Condvar,
    /// Whether something lies in it: looked at without the lock.
    has_job: AtomicBool,
    /// Whether who answers waits for its disk, and has to be woken when something comes.
    waits: AtomicBool,
}

#[derive(Default)]
struct State {
    /// What is not yet begun; with an error, what is only to be answered.
    jobs: VecDeque<(Job, Option<u32>)>,
    /// What is not yet answered.
    requests: usize,
    /// Bytes of it, and of the request that is just coming.
    bytes: u64,
    is_closed: bool,
}

/// Bytes that a request takes, while it comes or while it is answered.
fn weight(request: &Request) -> u64 {
    let read = if request.command == Command::Read { request.length.min(MAX_DATA) } else { 0 };
    read.max(request.payload).into()
}

/// What is not answered any more holds no memory either.
impl Drop for Mailbox<'_> {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.state().bytes);
        self.budget.give_back(bytes);
    }
}

impl<'a> Mailbox<'a> {
    pub fn new(budget: &'a Budget) -> Self {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Self { budget, state, changed, has_job: AtomicBool::new(false), waits: AtomicBool::new(false) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to change; not long, so that whoever waits looks at other things too.
    fn look<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits until there is room for a request, whose bytes are set aside; `false` if none is taken any more, or `ends` says so.
    pub fn has_room_for(&self, request: &Request, ends: impl Fn() -> bool) -> bool {
        let bytes = weight(request);
        let mut state = self.state();
        while !state.is_closed
            && (state.requests >= MOST_REQUESTS || state.bytes.saturating_add(bytes) > MOST_BYTES_OF_ONE)
        {
            state = self.look(state);
        }
        drop(state);
        if !self.budget.take(bytes, || self.state().is_closed || ends()) {
            return false;
        }
        self.state().bytes += bytes;
        true
    }

    /// Puts one in that there was room for. Whether who answers has to be woken at its disk.
    pub fn put(&self, job: Job, refusal: Option<u32>) -> bool {
        let mut state = self.state();
        state.requests += 1;
        state.jobs.push_back((job, refusal));
        self.has_job.store(true, Ordering::SeqCst);
        drop(state);
        self.changed.notify_all();
        // It says that it waits before it looks whether there is a job; here it is the other way round.
        self.waits.swap(false, Ordering::SeqCst)
    }

    /// The next one, with the error that it is to be answered with, if it is not to be begun.
    pub fn take(&self) -> Option<(Job, Option<u32>)> {
        let mut state = self.state();
        let job = state.jobs.pop_front();
        self.has_job.store(!state.jobs.is_empty(), Ordering::SeqCst);
        job
    }

    /// Waits for one; `false` if it is closed and there is none.
    pub fn await_job(&self) -> bool {
        let mut state = self.state();
        while state.jobs.is_empty() && !state.is_closed {
            state = self.look(state);
        }
        !state.jobs.is_empty()
    }

    /// Whether there is one, without a lock.
    pub fn has_job(&self) -> bool {
        self.has_job.load(Ordering::SeqCst)
    }

    /// Said by who answers, before and after it waits for its disk.
    pub fn waits_elsewhere(&self, waits: bool) {
        self.waits.store(waits, Ordering::SeqCst);
    }

    /// One has been answered: there is room for more.
    pub fn answered(&self, request: &Request) {
        let mut state = self.state();
        state.requests = state.requests.saturating_sub(1);
        let bytes = weight(request).min(state.bytes);
        state.bytes -= bytes;
        drop(state);
        self.budget.give_back(bytes);
        self.changed.notify_all();
    }

    /// Nothing more is taken in. Whether that is new.
    pub fn close(&self) -> bool {
        let was_closed = std::mem::replace(&mut self.state().is_closed, true);
        self.changed.notify_all();
        !was_closed
    }
}
