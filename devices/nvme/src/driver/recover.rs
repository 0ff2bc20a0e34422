//! When a command does not end, or what ended cannot be: Abort, then a reset of the controller (5.1, 7.3.2).

use super::Io;
use super::queue::{Done, IoQueue};
use super::shared::ENDED_BY_RESET;
use crate::registers::Status;
use std::time::Duration;
use udrv::clock::Deadline;
use udrv_backend::{Error, Result};

/// How long an aborted command has to end before the controller is reset.
const ABORT_PATIENCE: Duration = Duration::from_secs(1);
/// How often a queue is made again that a reset takes away as soon as it is made.
const JOINS: u32 = 8;

impl<I: Io> IoQueue<I> {
    /// Aborts all that is outstanding; if one still does not end, resets the controller. All is handed over, what ended
    /// before included; how many.
    ///
    /// # Errors
    /// [`Error::Gone`]: a controller that is gone ends nothing. [`Error::Timeout`] if not even a reset ends within CAP.TO; as
    /// [`IoQueue::poll`].
    pub fn abort_all(&mut self, mut take: impl FnMut(Done)) -> Result<usize> {
        // A controller that has failed (CSTS.CFS), or does not answer an Abort, is not asked again.
        let mut listens = !self.shared.check_alive()?.contains(Status::FATAL);
        let mut ended = self.poll(&mut take)?;
        for id in 0..self.config.depth {
            if !self.is_outstanding(id) {
                continue;
            }
            // One that cannot be aborted, or not in time, is left to the reset.
            let answer = listens.then(|| self.shared.abort(self.id(), id));
            let aborted = matches!(answer, Some(Ok(true)));
            listens &= !matches!(answer, Some(Err(Error::Timeout { .. } | Error::Gone { .. })));
            tracing::warn!(queue = self.id(), command = id, aborted, "a command did not end in time");
        }
        let deadline = Deadline::after(ABORT_PATIENCE);
        while listens
            && self.outstanding() > 0
            && let Some(left) = deadline.remaining()
            && self.await_completion(left, &|| false)?
        {
            ended += self.poll(&mut take)?;
        }
        if self.outstanding() > 0 {
            tracing::warn!(queue = self.id(), outstanding = self.outstanding(), "resetting the controller");
            self.shared.reset(self.generation)?;
            ended += self.rejoin(&mut take)?;
        }
        Ok(ended)
    }

    /// The controller says things that cannot be: which commands it still has, only a reset can tell.
    #[cold]
    pub(super) fn distrust(&mut self, id: u16, queue: u16, take: &mut impl FnMut(Done)) -> Error {
        let reset = self.shared.reset(self.generation).and_then(|()| self.rejoin(take));
        let found = format!("a completion of command {id} of queue {queue}");
        let expected = format!("one outstanding in queue {}", self.id());
        reset.err().unwrap_or_else(|| self.shared.protocol(found, &expected))
    }

    /// After a reset: answers what was outstanding, and makes the queue again.
    #[cold]
    pub(super) fn rejoin(&mut self, take: &mut impl FnMut(Done)) -> Result<usize> {
        let mut ended = 0;
        for id in 0..self.config.depth {
            if let Some(done) = self.end(id, ENDED_BY_RESET) {
                take(done);
                ended += 1;
            }
        }
        self.join()?;
        Ok(ended)
    }

    /// Makes the queue, also if another thread resets the controller meanwhile.
    pub(super) fn join(&mut self) -> Result<()> {
        for _ in 0..JOINS {
            self.generation = self.shared.generation();
            self.clear()?;
            if self.create()? {
                return Ok(());
            }
        }
        Err(Error::Unavailable {
            device: self.shared.device.info().address.clone(),
            why: format!("it was reset {JOINS} times while I/O queue {} was made", self.id()),
            advice: "see which of its other queues does so, and why".into(),
        })
    }
}
