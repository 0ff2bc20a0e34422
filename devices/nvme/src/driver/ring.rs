//! One submission queue and its completion queue, in memory and at their doorbells (4.1): no commands' meaning, no waiting.

use super::shadow::Shadow;
use crate::command::{COMMAND_SIZE, COMPLETION_SIZE, Command, Completion};
use crate::registers::{DOORBELLS, completion_doorbell, submission_doorbell};
use std::sync::Arc;
use udrv::dma::{Coherent, Pool};
use udrv::mmio::Io;
use udrv::mmio::order::{dma_rmb, dma_wmb};
use udrv_backend::Result;
use udrv_backend::register::{Register, WriteOnly};

/// How many entries the queues of a pair have.
#[derive(Clone, Copy)]
pub(super) struct Size {
    /// Of each, 2 at least.
    pub(super) entries: u16,
    /// Of the completion queue beside those: so many completions may be taken before the controller is told of them, once
    /// for all.
    pub(super) slack: u16,
}

/// How often the controller was told of something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Doorbells {
    /// Times that there was something to tell.
    pub rung: u64,
    /// Times that a register was written for it; with doorbells in memory that is not always needed.
    pub written: u64,
}

pub(super) struct Ring<I> {
    io: Arc<I>,
    commands: Coherent,
    completions: Coherent,
    size: Size,
    /// Where the next command goes.
    tail: u16,
    /// What the controller was last told of it.
    rung: u16,
    /// Where the next completion comes.
    head: u16,
    /// Its phase tag once it has come: inverted at each pass (4.6).
    phase: bool,
    /// Completions taken that the controller has not been told of.
    taken: u16,
    /// Where the next completion was when it was last told.
    released: u16,
    submission: Register<u32, WriteOnly>,
    completion: Register<u32, WriteOnly>,
    shadow: Option<Arc<Shadow>>,
    counts: Doorbells,
}

impl<I: Io> Ring<I> {
    /// Queue pair `queue`.
    pub(super) fn new(io: &Arc<I>, pool: &Pool, queue: u16, size: Size, stride: u64) -> Result<Self> {
        Ok(Self {
            io: Arc::clone(io),
            commands: pool.alloc_coherent(usize::from(size.entries) * COMMAND_SIZE)?,
            completions: pool.alloc_coherent(usize::from(size.entries + size.slack) * COMPLETION_SIZE)?,
            size,
            tail: 0,
            rung: 0,
            head: 0,
            phase: true,
            taken: 0,
            released: 0,
            submission: submission_doorbell(queue, stride),
            completion: completion_doorbell(queue, stride),
            shadow: None,
            counts: Doorbells::default(),
        })
    }

    /// With doorbells in memory, if its own are among them.
    pub(super) fn shadowed(self, shadow: Option<&Arc<Shadow>>) -> Self {
        let shadow = shadow.filter(|shadow| shadow.has(self.completion.offset - DOORBELLS)).cloned();
        Self { shadow, ..self }
    }

    /// Of the submission queue.
    pub(super) const fn entries(&self) -> u16 {
        self.size.entries
    }

    pub(super) const fn completion_entries(&self) -> u16 {
        self.size.entries + self.size.slack
    }

    /// Bus addresses of the submission and of the completion queue.
    pub(super) const fn addresses(&self) -> [u64; 2] {
        [self.commands.iova(), self.completions.iova()]
    }

    pub(super) const fn counts(&self) -> Doorbells {
        self.counts
    }

    /// As new, for a controller that has been reset and knows of no queue.
    pub(super) fn clear(&mut self) -> Result<()> {
        for at in 0..usize::from(self.completion_entries()) {
            self.completions.write(at * COMPLETION_SIZE + 12, 0u32)?;
        }
        (self.tail, self.rung, self.head) = (0, 0, 0);
        (self.phase, self.taken, self.released) = (true, 0, 0);
        if let Some(shadow) = &self.shadow {
            shadow.clear(self.submission.offset - DOORBELLS)?;
            shadow.clear(self.completion.offset - DOORBELLS)?;
        }
        Ok(())
    }

    /// Puts a command into the queue; the controller is told by [`Ring::ring`]. The caller sees to it that fewer are
    /// outstanding than there are entries.
    #[inline]
    pub(super) fn push(&mut self, command: &Command) -> Result<()> {
        let at = usize::from(self.tail) * COMMAND_SIZE;
        self.commands.write_all(at, command.qwords())?;
        self.tail = after(self.tail, self.size.entries);
        Ok(())
    }

    /// Tells the controller of all commands since the last time, by one write.
    #[inline]
    pub(super) fn ring(&mut self) -> Result<()> {
        if self.rung == self.tail {
            return Ok(());
        }
        self.counts.rung += 1;
        dma_wmb();
        let rung = std::mem::replace(&mut self.rung, self.tail);
        if let Some(shadow) = &self.shadow
            && !shadow.update(self.submission.offset - DOORBELLS, rung, self.tail)?
        {
            return Ok(());
        }
        self.counts.written += 1;
        self.io.write(self.submission, u32::from(self.tail))
    }

    /// Whether a completion has come.
    #[inline]
    pub(super) fn has_completion(&self) -> Result<bool> {
        let status: u32 = self.completions.read(usize::from(self.head) * COMPLETION_SIZE + 12)?;
        Ok((status >> 16 & 1 != 0) == self.phase)
    }

    /// The next completion, if it has come; the controller is told by [`Ring::release`].
    #[inline]
    pub(super) fn pop(&mut self) -> Result<Option<Completion>> {
        if !self.has_completion()? {
            return Ok(None);
        }
        // The tag, then what it stands for.
        dma_rmb();
        let at = usize::from(self.head) * COMPLETION_SIZE;
        let completion = Completion::from_qwords(self.completions.read_all(at)?);
        self.head = after(self.head, self.completion_entries());
        self.phase ^= self.head == 0;
        self.taken += 1;
        Ok(Some(completion))
    }

    /// Gives the entries of all completions taken so far back to the controller, by one write, unless it has room for those
    /// of all commands that may be outstanding without them.
    #[inline]
    pub(super) fn release(&mut self) -> Result<()> {
        if self.taken <= self.size.slack { Ok(()) } else { self.release_all() }
    }

    fn release_all(&mut self) -> Result<()> {
        self.taken = 0;
        self.counts.rung += 1;
        let released = std::mem::replace(&mut self.released, self.head);
        if let Some(shadow) = &self.shadow
            && !shadow.update(self.completion.offset - DOORBELLS, released, self.head)?
        {
            return Ok(());
        }
        self.counts.written += 1;
        self.io.write(self.completion, u32::from(self.head))
    }
}

/// The index that follows, in a ring of so many entries.
const fn after(index: u16, entries: u16) -> u16 {
    if index + 1 == entries { 0 } else { index + 1 }
}
