//! Deferred work: what a handler leaves for when the handlers are done.

use super::contain::{contained, let_go};
use super::deliver::{Delivering, Shared};
use super::number::me;
use super::sync::lock;
use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use udrv_backend::{Error, Moment, Result};

/// Rounds in one go; work that schedules itself for ever must not keep a section's end from returning (as the kernel's
/// MAX_SOFTIRQ_RESTART, kernel/softirq.c).
const ROUNDS: u32 = 10;

const NOBODY: u32 = 0;

/// Work that runs after the handlers, with interrupts on: handlers may run beside it, and inside it at delivery points. No
/// two bottom halves of a domain run at once, and none inside another.
///
/// It is not held off by sections of other threads; what it shares with them belongs in an [`super::IrqLock`]. Dropping
/// it waits until it does not run any more; in a handler, or in a bottom half, it does not wait.
pub struct BottomHalf {
    shared: Arc<Shared>,
    half: Arc<Half>,
}

struct Half {
    /// Where it was made.
    at: &'static Location<'static>,
    queued: AtomicBool,
    /// It does not run again.
    closed: AtomicBool,
    work: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

thread_local! {
    /// Domains whose bottom halves this thread runs. None of them panics through.
    static RUNNING: Cell<u32> = const { Cell::new(0) };
}

#[derive(Default)]
pub(super) struct Halves {
    queue: Mutex<VecDeque<Arc<Half>>>,
    /// The thread that runs them, by its number plus one.
    runner: AtomicU32,
}

impl BottomHalf {
    pub(super) fn new(
        shared: &Arc<Shared>,
        at: &'static Location<'static>,
        work: impl FnMut() + Send + 'static,
    ) -> Self {
        let [queued, closed] = [false; 2].map(AtomicBool::new);
        let half = Half { at, queued, closed, work: Mutex::new(Some(Box::new(work))) };
        Self { shared: Arc::clone(shared), half: Arc::new(half) }
    }

    /// Lets it run once: after the handlers, when called from one; else at once, unless a section is open. Scheduling
    /// what is scheduled already does nothing; from within itself it lets it run once more.
    pub fn schedule(&self) {
        self.schedule_quietly();
        self.shared.deliver();
    }

    fn schedule_quietly(&self) {
        if !self.half.queued.swap(true, Ordering::AcqRel) {
            lock(&self.shared.halves.queue).push_back(Arc::clone(&self.half));
            self.shared.mark_bottom_halves();
        }
    }

    /// Takes it out, as dropping does, with the error instead of a log line.
    ///
    /// # Errors
    /// [`Error::NotSupported`] if it runs, and that cannot be waited for: from within itself, and in a handler, for whose end
    /// it may be waiting. It does not run again.
    #[track_caller]
    pub fn close(self) -> Result<()> {
        super::might_sleep();
        self.take_out()
    }

    fn take_out(&self) -> Result<()> {
        let halves = &self.shared.halves;
        self.half.closed.store(true, Ordering::Release);
        lock(&halves.queue).retain(|half| !Arc::ptr_eq(half, &self.half));
        // A bottom half, of which this may be the one that runs; or a handler, for whose end the one that runs may wait. Of
        // whatever domain.
        let must_not_wait = RUNNING.get() != 0 || Delivering::is_this_thread();
        let work = if must_not_wait {
            let Ok(mut slot) = self.half.work.try_lock() else {
                return Err(Error::NotSupported {
                    what: "waiting for a bottom half from itself, or in a handler",
                    by: "an interrupt domain".into(),
                });
            };
            slot.take()
        } else {
            lock(&self.half.work).take()
        };
        drop(work);
        Ok(())
    }
}

impl Drop for BottomHalf {
    fn drop(&mut self) {
        if let Err(error) = self.take_out() {
            tracing::warn!(%error, "a bottom half was not closed cleanly");
        }
    }
}

impl Halves {
    /// Runs what is queued, unless it is being run. True if some is left after as many rounds as may be.
    pub(super) fn run(&self, shared: &Shared) -> bool {
        loop {
            if self.runner.compare_exchange(NOBODY, me() + 1, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                // The one who runs them looks again when it is done.
                return false;
            }
            RUNNING.set(RUNNING.get() + 1);
            let left = (0..ROUNDS).all(|_| self.round(shared));
            RUNNING.set(RUNNING.get() - 1);
            self.runner.store(NOBODY, Ordering::SeqCst);
            if left || lock(&self.queue).is_empty() {
                return left;
            }
        }
    }

    /// Runs what is queued now. False if that was nothing.
    fn round(&self, shared: &Shared) -> bool {
        let batch = std::mem::take(&mut *lock(&self.queue));
        for half in &batch {
            half.queued.store(false, Ordering::Release);
            let mut slot = lock(&half.work);
            if let Some(work) = slot.as_mut().filter(|_| !half.closed.load(Ordering::Acquire)) {
                shared.observe(|domain| Moment::BottomHalfBegins { domain, at: half.at });
                let returned = contained(work).is_some();
                shared.observe(|domain| Moment::BottomHalfEnds { domain });
                if !returned {
                    tracing::error!("a bottom half panicked and is retired");
                }
                if !returned || half.closed.load(Ordering::Acquire) {
                    let work = slot.take();
                    drop(slot);
                    let_go(work);
                }
            }
        }
        !batch.is_empty()
    }
}
