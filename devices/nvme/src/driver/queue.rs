//! One I/O queue pair, for one thread: commands with their buffers go in, and come out answered. How they go in is in
//! `submit.rs`, how they are waited for in `wait.rs`, and what happens to those that do not end in `recover.rs`.
//!
//! Submitting, ringing and polling allocate nothing and, where the registers are mapped, call nothing of the system.

use super::ids::QueueId;
use super::ring::{Doorbells, Ring, Size};
use super::shared::{ENDED_BY_RESET, Shared};
use super::{Io, REGISTERS};
use crate::command::{Command, Completion, Outcome, PAGE, admin};
use std::sync::Arc;
use std::time::Duration;
use udrv::dma::{Buffer, Coherent, FromDevice, InFlight, ToDevice};
use udrv::irq::{IrqReturn, Registration, Timer};
use udrv::mmio::Window;
use udrv_backend::{Error, IrqIndex, Result};

/// How completions are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// By the queue's own MSI-X vector.
    Interrupt,
    /// By looking at memory, all the time.
    Polled,
    /// By looking for so long, then by interrupt.
    Hybrid(Duration),
}

/// One queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// Commands that may be outstanding, 1 to 1023; the controller's limit is one less than CAP.MQES says.
    pub depth: u16,
    /// How completions are waited for.
    pub wait: Wait,
    /// How long a command may take before it is aborted.
    pub timeout: Duration,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self { depth: 32, wait: Wait::Interrupt, timeout: Duration::from_secs(10) }
    }
}

/// The buffer of a command that has ended.
#[derive(Default)]
pub enum Data {
    /// It had none.
    #[default]
    None,
    /// What was read.
    Read(Buffer<FromDevice>),
    /// What was written.
    Written(Buffer<ToDevice>),
}

/// A command that has ended.
pub struct Done {
    /// What the submission returned.
    pub id: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// Its buffer.
    pub data: Data,
}

/// A command's buffer while the controller has it.
pub(super) enum Flight {
    Free,
    NoData,
    Read(InFlight<FromDevice>),
    Write(InFlight<ToDevice>),
}

/// An I/O queue pair. Dropping it deletes it from the controller.
pub struct IoQueue<I: Io = Window<REGISTERS>> {
    pub(super) shared: Arc<Shared<I>>,
    ring: Ring<I>,
    /// A page of PRP entries for each command that may be outstanding.
    pub(super) lists: Coherent,
    slots: Box<[Flight]>,
    free: Vec<u16>,
    pub(super) config: QueueConfig,
    pub(super) max_transfer: usize,
    pub(super) generation: u64,
    pub(super) irq: Option<Arc<Registration>>,
    /// Made with the first future: raises the vector when a command takes too long.
    pub(super) alarm: Option<Timer>,
    pub(super) read_bounce: Option<Buffer<FromDevice>>,
    pub(super) write_bounce: Option<Buffer<ToDevice>>,
    /// How much of it the controller has, for all we know: 1 is the completion queue, 2 both.
    made: u8,
    /// Last, so that the vector of the same number is free before it is.
    id: QueueId,
}

impl<I: Io> IoQueue<I> {
    pub(super) fn new(shared: &Arc<Shared<I>>, id: QueueId, max_transfer: usize, config: QueueConfig) -> Result<Self> {
        let most = shared.capabilities.queue_entries().min(1024) as u16;
        let depth = config.depth.clamp(1, most - 1);
        let entries = depth + 1;
        // Nobody is told by an interrupt that completions are there, so the controller may be told late that they are gone.
        let slack = if config.wait == Wait::Polled { entries.min(most - entries) } else { 0 };
        let stride = shared.capabilities.doorbell_stride();
        let ring = Ring::new(&shared.io, &shared.pool, id.number, Size { entries, slack }, stride)?;
        let ring = ring.shadowed(shared.shadow.get());
        let irq = match config.wait {
            Wait::Polled => None,
            // What has come is in memory: the handler has only to be run, for whoever waits to look there.
            _ => {
                let handler = |_| IrqReturn::Handled;
                Some(Arc::new(shared.irqs.register(&shared.device, IrqIndex::MSIX, id.number.into(), handler)?))
            }
        };
        let mut queue = Self {
            lists: shared.pool.alloc_coherent(usize::from(depth) * PAGE as usize)?,
            shared: Arc::clone(shared),
            ring,
            slots: std::iter::repeat_with(|| Flight::Free).take(depth.into()).collect(),
            free: (0..depth).rev().collect(),
            config: QueueConfig { depth, ..config },
            max_transfer,
            generation: shared.generation(),
            irq,
            alarm: None,
            read_bounce: None,
            write_bounce: None,
            made: 2,
            id,
        };
        queue.join()?;
        Ok(queue)
    }

    /// Create I/O Completion Queue (5.3), then the submission queue that uses it (5.4). `false` if a reset came between.
    pub(super) fn create(&mut self) -> Result<bool> {
        const CONTIGUOUS: u32 = 1;
        const INTERRUPTS: u32 = 1 << 1;
        let id = u32::from(self.id());
        let [commands, completions] = self.ring.addresses();
        let which = |entries: u16| id | u32::from(entries - 1) << 16;
        let interrupts = if self.irq.is_some() { INTERRUPTS | id << 16 } else { 0 };
        let create = |name, command| self.shared.execute_in_generation(self.generation, name, command);
        let is_refused = |created: &Result<bool>| created.as_ref().is_err_and(|error| Outcome::of(error).is_some());
        let completion = Command::new(admin::CREATE_COMPLETION_QUEUE, 0).cdw10(which(self.ring.completion_entries()));
        let completion = completion.cdw11(CONTIGUOUS | interrupts).data([completions, 0]);
        let created = create("Create I/O Completion Queue", completion);
        if !matches!(created, Ok(true)) {
            self.made = if is_refused(&created) { 0 } else { 2 };
            return created;
        }
        let submission = Command::new(admin::CREATE_SUBMISSION_QUEUE, 0).cdw10(which(self.ring.entries()));
        let submission = submission.cdw11(CONTIGUOUS | id << 16).data([commands, 0]);
        let created = create("Create I/O Submission Queue", submission);
        self.made = if is_refused(&created) { 1 } else { 2 };
        created
    }

    /// Its identifier in the controller; its MSI-X vector has the same number.
    #[must_use]
    pub const fn id(&self) -> u16 {
        self.id.number
    }

    /// Most commands that may be outstanding.
    #[must_use]
    pub const fn depth(&self) -> u16 {
        self.config.depth
    }

    /// Commands that are outstanding, those not yet rung for included.
    #[must_use]
    #[inline]
    pub fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn is_outstanding(&self, id: u16) -> bool {
        !matches!(self.slots.get(usize::from(id)), None | Some(Flight::Free))
    }

    /// Whether a command can be submitted.
    #[must_use]
    #[inline]
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Most bytes that one command moves.
    #[must_use]
    pub const fn max_transfer(&self) -> usize {
        self.max_transfer
    }

    /// How often its doorbells were rung.
    #[must_use]
    pub const fn doorbells(&self) -> Doorbells {
        self.ring.counts()
    }

    /// Interrupts of its vector.
    #[must_use]
    pub fn interrupts(&self) -> u64 {
        self.irq.as_ref().map_or(0, |irq| irq.stats().raised)
    }

    #[cold]
    pub(super) fn full(&self) -> Error {
        Error::Unavailable {
            device: self.shared.device.info().address.clone(),
            why: format!("all {} commands of I/O queue {} are outstanding", self.config.depth, self.id()),
            advice: "wait for one first".into(),
        }
    }

    /// The identifier of the next command.
    #[inline]
    pub(super) fn next_id(&self) -> Option<u16> {
        self.free.last().copied()
    }

    /// Puts the command that has [`IoQueue::next_id`] into the queue.
    #[inline]
    pub(super) fn push(&mut self, command: &Command, flight: Flight) -> Result<()> {
        self.ring.push(command)?;
        if let Some(slot) = self.free.pop().and_then(|id| self.slots.get_mut(usize::from(id))) {
            *slot = flight;
        }
        Ok(())
    }

    /// Tells the controller of all that was submitted, by one write to its doorbell.
    ///
    /// # Errors
    /// As [`udrv_backend::Backend::write`].
    #[inline]
    pub fn ring(&mut self) -> Result<()> {
        self.ring.ring()
    }

    #[inline]
    pub(super) fn has_completion(&self) -> Result<bool> {
        self.ring.has_completion()
    }

    /// Whether the controller has been reset, and does not know this queue any more.
    #[inline]
    pub(super) fn was_reset(&self) -> bool {
        self.generation != self.shared.generation()
    }

    pub(super) fn clear(&mut self) -> Result<()> {
        self.ring.clear()
    }

    /// Hands over all commands that have ended, without waiting; how many. One write to the doorbell for all of them at most.
    ///
    /// # Errors
    /// [`Error::Protocol`] if the controller ends a command that it does not have. It has then been reset, and all that was
    /// outstanding has been handed over. As [`IoQueue::wait`] after a reset.
    #[inline]
    pub fn poll(&mut self, mut take: impl FnMut(Done)) -> Result<usize> {
        if self.was_reset() {
            return self.rejoin(&mut take);
        }
        let mut count = 0;
        while let Some(Completion { id, queue, outcome, .. }) = self.ring.pop()? {
            let done = if queue == self.id.number { self.end(id, outcome) } else { None };
            let Some(done) = done else { return Err(self.distrust(id, queue, &mut take)) };
            take(done);
            count += 1;
        }
        self.ring.release()?;
        Ok(count)
    }

    #[inline]
    pub(super) fn end(&mut self, id: u16, outcome: Outcome) -> Option<Done> {
        let data = match std::mem::replace(self.slots.get_mut(usize::from(id))?, Flight::Free) {
            Flight::Free => return None,
            Flight::NoData => Data::None,
            Flight::Read(buffer) => Data::Read(buffer.complete()),
            Flight::Write(buffer) => Data::Written(buffer.complete()),
        };
        // There is room: `new` made it.
        self.free.push(id);
        Some(Done { id, outcome, data })
    }

    /// Delete I/O Submission Queue (5.6), which ends its commands, then its completion queue (5.5).
    fn delete(&mut self) -> Result<()> {
        if self.was_reset() {
            return Ok(());
        }
        let which = u32::from(self.id());
        let submission = Command::new(admin::DELETE_SUBMISSION_QUEUE, 0).cdw10(which);
        if self.made > 1 {
            self.shared.execute("Delete I/O Submission Queue", submission)?;
        }
        let completion = Command::new(admin::DELETE_COMPLETION_QUEUE, 0).cdw10(which);
        if self.made > 0 {
            self.shared.execute("Delete I/O Completion Queue", completion)?;
        }
        Ok(())
    }
}

impl<I: Io> Drop for IoQueue<I> {
    fn drop(&mut self) {
        let quiet = self.delete().or_else(|_| self.shared.reset(self.generation));
        match quiet {
            // The controller has no command of this queue any more: the buffers are ours again.
            Ok(()) => (0..self.config.depth).for_each(|id| drop(self.end(id, ENDED_BY_RESET))),
            Err(error) => {
                tracing::warn!(%error, queue = self.id(), "deleting an I/O queue: its buffers are lost");
                self.id.lose();
            }
        }
    }
}
