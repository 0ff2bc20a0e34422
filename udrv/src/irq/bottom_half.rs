//! Deferred work: what a handler leaves for when the handlers are done.

use super::deliver::Shared;
use super::number::me;
use super::sync::lock;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use udrv_backend::{Error, Result};

/// Rounds in one go; work that schedules itself for ever must not keep a section's end from returning (as the kernel's
/// MAX_SOFTIRQ_RESTART, kernel/softirq.c).
const ROUNDS: u32 = 10;

const NOBODY: u32 = 0;

/// Work that runs after the handlers, with interrupts on: handlers may run beside it, and inside it at delivery points. No
/// two bottom halves of a domain run at once, and none inside another.
///
/// It is not held off by sections of other threads; what it shares with them belongs in an [`super::IrqLock`]. Dropping
/// it waits until it does not run any more.
pub struct BottomHalf {
    shared: Arc<Shared>,
    half: Arc<Half>,
}

struct Half {
    queued: AtomicBool,
    work: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

#[derive(Default)]
pub(super) struct Halves {
    queue: Mutex<VecDeque<Arc<Half>>>,
    /// The thread that runs them, by its number plus one.
    runner: AtomicU32,
}

impl BottomHalf {
    pub(super) fn new(shared: &Arc<Shared>, work: impl FnMut() + Send + 'static) -> Self {
        let half = Half { queued: AtomicBool::new(false), work: Mutex::new(Some(Box::new(work))) };
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
    /// [`Error::NotSupported`] from within itself, which would wait for its own end; it does not run again.
    #[track_caller]
    pub fn close(self) -> Result<()> {
        super::might_sleep();
        self.take_out()
    }

    fn take_out(&self) -> Result<()> {
        let halves = &self.shared.halves;
        lock(&halves.queue).retain(|half| !Arc::ptr_eq(half, &self.half));
        if halves.runner.load(Ordering::Acquire) == me() + 1 {
            // This thread runs bottom halves: another one, or this very one, whose lock we hold already.
            return match self.half.work.try_lock() {
                Ok(mut work) => {
                    *work = None;
                    Ok(())
                }
                Err(_) => Err(Error::NotSupported {
                    what: "waiting for a bottom half from itself",
                    by: "an interrupt domain".into(),
                }),
            };
        }
        *lock(&self.half.work) = None;
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
    pub(super) fn run(&self) -> bool {
        loop {
            if self.runner.compare_exchange(NOBODY, me() + 1, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                // The one who runs them looks again when it is done.
                return false;
            }
            let left = (0..ROUNDS).all(|_| self.round());
            self.runner.store(NOBODY, Ordering::SeqCst);
            if left || lock(&self.queue).is_empty() {
                return left;
            }
        }
    }

    /// Runs what is queued now. False if that was nothing.
    fn round(&self) -> bool {
        let batch = std::mem::take(&mut *lock(&self.queue));
        for half in &batch {
            half.queued.store(false, Ordering::Release);
            let mut slot = lock(&half.work);
            if let Some(work) = slot.as_mut()
                && catch_unwind(AssertUnwindSafe(work)).is_err()
            {
                tracing::error!("a bottom half panicked and is retired");
                *slot = None;
            }
        }
        !batch.is_empty()
    }
}
