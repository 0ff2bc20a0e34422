//! One I/O queue pair, for one thread: commands with their buffers go in, and come out answered.
//!
//! Submitting, ringing and polling allocate nothing and, where the registers are mapped, call nothing of the system.

use super::identify::Namespace;
use super::prp;
use super::ring::Ring;
use super::shared::{ENDED_BY_RESET, Shared};
use super::{Io, REGISTERS};
use crate::command::{Command, Completion, Outcome, PAGE, admin, nvm};
use crate::registers::Status;
use std::ops::Range as Bytes;
use std::sync::Arc;
use std::time::Duration;
use udrv::clock::Deadline;
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

/// How long an aborted command has to end before the controller is reset.
const ABORT_PATIENCE: Duration = Duration::from_secs(1);
/// How often a queue is made again that a reset takes away as soon as it is made.
const JOINS: u32 = 8;
/// How many looks at memory between two at the clock.
const SPINS: u32 = 1024;

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
enum Flight {
    Free,
    NoData,
    Read(InFlight<FromDevice>),
    Write(InFlight<ToDevice>),
}

/// An I/O queue pair. Dropping it deletes it from the controller.
pub struct IoQueue<I: Io = Window<REGISTERS>> {
    pub(super) shared: Arc<Shared<I>>,
    id: u16,
    ring: Ring<I>,
    /// A page of PRP entries for each command that may be outstanding.
    lists: Coherent,
    slots: Box<[Flight]>,
    free: Vec<u16>,
    config: QueueConfig,
    pub(super) max_transfer: usize,
    generation: u64,
    irq: Option<Arc<Registration>>,
    /// Made with the first future: raises the vector when a command takes too long.
    alarm: Option<Timer>,
    pub(super) read_bounce: Option<Buffer<FromDevice>>,
    pub(super) write_bounce: Option<Buffer<ToDevice>>,
}

impl<I: Io> IoQueue<I> {
    pub(super) fn new(shared: &Arc<Shared<I>>, id: u16, max_transfer: usize, config: QueueConfig) -> Result<Self> {
        let most = shared.capabilities.queue_entries().min(1024) as u16 - 1;
        let depth = config.depth.clamp(1, most);
        let ring = Ring::new(&shared.io, &shared.pool, id, depth + 1, shared.capabilities.doorbell_stride())?;
        let ring = ring.shadowed(shared.shadow.get());
        let irq = match config.wait {
            Wait::Polled => None,
            // What has come is in memory: the handler has only to be run, for whoever waits to look there.
            _ => {
                let handler = |_| IrqReturn::Handled;
                Some(Arc::new(shared.irqs.register(&shared.device, IrqIndex::MSIX, id.into(), handler)?))
            }
        };
        let mut queue = Self {
            lists: shared.pool.alloc_coherent(usize::from(depth) * PAGE as usize)?,
            shared: Arc::clone(shared),
            id,
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
        };
        queue.join()?;
        Ok(queue)
    }

    /// Makes the queue, also if another thread resets the controller meanwhile.
    fn join(&mut self) -> Result<()> {
        for _ in 0..JOINS {
            self.generation = self.shared.generation();
            self.ring.clear()?;
            if self.create()? {
                return Ok(());
            }
        }
        Err(Error::Unavailable {
            device: self.shared.device.info().address.clone(),
            why: format!("it was reset {JOINS} times while I/O queue {} was made", self.id),
            advice: "see which of its other queues does so, and why".into(),
        })
    }

    /// Create I/O Completion Queue (5.3), then the submission queue that uses it (5.4). `false` if a reset came between.
    fn create(&self) -> Result<bool> {
        const CONTIGUOUS: u32 = 1;
        const INTERRUPTS: u32 = 1 << 1;
        let [commands, completions] = self.ring.addresses();
        let which = u32::from(self.id) | u32::from(self.ring.entries() - 1) << 16;
        let interrupts = if self.irq.is_some() { INTERRUPTS | u32::from(self.id) << 16 } else { 0 };
        let completion = Command::new(admin::CREATE_COMPLETION_QUEUE, 0).cdw10(which).cdw11(CONTIGUOUS | interrupts);
        let create = |name, command| self.shared.execute_in_generation(self.generation, name, command);
        if !create("Create I/O Completion Queue", completion.data([completions, 0]))? {
            return Ok(false);
        }
        let submission = Command::new(admin::CREATE_SUBMISSION_QUEUE, 0).cdw10(which);
        let submission = submission.cdw11(CONTIGUOUS | u32::from(self.id) << 16).data([commands, 0]);
        create("Create I/O Submission Queue", submission)
    }

    /// Its identifier in the controller; its MSI-X vector has the same number.
    #[must_use]
    pub const fn id(&self) -> u16 {
        self.id
    }

    /// Most commands that may be outstanding.
    #[must_use]
    pub const fn depth(&self) -> u16 {
        self.config.depth
    }

    /// Commands that are outstanding, those not yet rung for included.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether a command can be submitted.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Most bytes that one command moves.
    #[must_use]
    pub const fn max_transfer(&self) -> usize {
        self.max_transfer
    }

    /// Interrupts of its vector.
    #[must_use]
    pub fn interrupts(&self) -> u64 {
        self.irq.as_ref().map_or(0, |irq| irq.stats().raised)
    }

    /// Reads blocks from `lba` on into a part of `buffer`, whole blocks from a multiple of 4 bytes on. The controller is
    /// told by [`IoQueue::ring`]. The command's identifier.
    ///
    /// # Errors
    /// [`Error::DmaRange`] if the part is not in the buffer, is not whole blocks, or is more than
    /// [`IoQueue::max_transfer`]; [`Error::Unavailable`] without [`IoQueue::has_room`]. The buffer is then freed.
    #[inline]
    pub fn submit_read(
        &mut self,
        namespace: &Namespace,
        lba: u64,
        buffer: Buffer<FromDevice>,
        part: Bytes<usize>,
    ) -> Result<u16> {
        let blocks = self.check(namespace, buffer.len(), &part)?;
        let at = buffer.iova() + part.start as u64;
        let command = Command::new(nvm::READ, namespace.id).lba(lba).cdw12(blocks - 1);
        self.submit(command, Some((at, part.len() as u64)), Flight::Read(buffer.submit()))
    }

    /// Writes a part of `buffer` to the blocks from `lba` on; as [`IoQueue::submit_read`].
    ///
    /// # Errors
    /// As [`IoQueue::submit_read`].
    #[inline]
    pub fn submit_write(
        &mut self,
        namespace: &Namespace,
        lba: u64,
        buffer: Buffer<ToDevice>,
        part: Bytes<usize>,
    ) -> Result<u16> {
        self.submit_write_with(namespace, lba, buffer, part, 0)
    }

    /// With bits of Command Dword 12 beside the number of blocks.
    #[inline]
    pub(super) fn submit_write_with(
        &mut self,
        namespace: &Namespace,
        lba: u64,
        buffer: Buffer<ToDevice>,
        part: Bytes<usize>,
        control: u32,
    ) -> Result<u16> {
        let blocks = self.check(namespace, buffer.len(), &part)?;
        let at = buffer.iova() + part.start as u64;
        let command = Command::new(nvm::WRITE, namespace.id).lba(lba).cdw12(control | (blocks - 1));
        self.submit(command, Some((at, part.len() as u64)), Flight::Write(buffer.submit()))
    }

    fn check(&self, namespace: &Namespace, length: usize, part: &Bytes<usize>) -> Result<u32> {
        let refused = |why| Error::DmaRange { iova: part.start as u64, size: part.len() as u64, why };
        if part.start > part.end || part.end > length {
            return Err(refused("the part is not in its buffer"));
        }
        let blocks = part.len() as u64 / namespace.block_size;
        if part.is_empty() || !(part.len() as u64).is_multiple_of(namespace.block_size) || !part.start.is_multiple_of(4)
        {
            return Err(refused("whole blocks are moved, from a multiple of 4 bytes on"));
        }
        // Number of Logical Blocks has 16 bits.
        if part.len() > self.max_transfer || blocks > 1 << 16 {
            return Err(refused("it is more than one command moves (MDTS)"));
        }
        if self.free.is_empty() { Err(self.full()) } else { Ok(blocks as u32) }
    }

    fn full(&self) -> Error {
        Error::Unavailable {
            device: self.shared.device.info().address.clone(),
            why: format!("all {} commands of I/O queue {} are outstanding", self.config.depth, self.id),
            advice: "wait for one first".into(),
        }
    }

    /// Submits a command without data.
    pub(super) fn submit_plain(&mut self, command: Command) -> Result<u16> {
        self.submit(command, None, Flight::NoData)
    }

    /// Submits a command whose data, without alignment to blocks, is all of `buffer`.
    pub(super) fn submit_list(&mut self, command: Command, buffer: Buffer<ToDevice>) -> Result<u16> {
        let data = (buffer.iova(), buffer.len() as u64);
        self.submit(command, Some(data), Flight::Write(buffer.submit()))
    }

    #[inline]
    fn submit(&mut self, command: Command, data: Option<(u64, u64)>, flight: Flight) -> Result<u16> {
        let Some(&id) = self.free.last() else { return Err(self.full()) };
        let command = match data {
            Some((at, length)) => command.data(prp::describe(at, length, &self.lists, id)?),
            None => command,
        };
        self.ring.push(&command.identified(id))?;
        self.free.pop();
        if let Some(slot) = self.slots.get_mut(usize::from(id)) {
            *slot = flight;
        }
        Ok(id)
    }

    /// Tells the controller of all that was submitted, by one write to its doorbell.
    ///
    /// # Errors
    /// As [`udrv_backend::Backend::write`].
    #[inline]
    pub fn ring(&mut self) -> Result<()> {
        self.ring.ring()
    }

    /// Hands over all commands that have ended, without waiting; how many. One write to the doorbell for all of them.
    ///
    /// # Errors
    /// [`Error::Protocol`] if the controller ends a command that it does not have. It has then been reset, and all that was
    /// outstanding has been handed over. As [`IoQueue::wait`] after a reset.
    #[inline]
    pub fn poll(&mut self, mut take: impl FnMut(Done)) -> Result<usize> {
        if self.generation != self.shared.generation() {
            return self.rejoin(&mut take);
        }
        let mut count = 0;
        while let Some(Completion { id, queue, outcome, .. }) = self.ring.pop()? {
            let done = if queue == self.id { self.end(id, outcome) } else { None };
            let Some(done) = done else { return Err(self.distrust(id, queue, &mut take)) };
            take(done);
            count += 1;
        }
        self.ring.release()?;
        Ok(count)
    }

    /// The controller says things that cannot be: which commands it still has, only a reset can tell.
    #[cold]
    fn distrust(&mut self, id: u16, queue: u16, take: &mut impl FnMut(Done)) -> Error {
        let reset = self.shared.reset(self.generation).and_then(|()| self.rejoin(take));
        let found = format!("a completion of command {id} of queue {queue}");
        reset.err().unwrap_or_else(|| self.shared.protocol(found, &format!("one outstanding in queue {}", self.id)))
    }

    #[inline]
    fn end(&mut self, id: u16, outcome: Outcome) -> Option<Done> {
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

    /// Rings, waits until at least one command has ended, and hands over all that have; how many, 0 only if none was
    /// outstanding. If none ends by the queue's timeout, all are aborted, and, if one still does not end, the controller is
    /// reset: each is then answered with a status that [`Outcome::is_ended_by_host`].
    ///
    /// # Errors
    /// [`Error::Gone`]; [`Error::Timeout`] if not even a reset ends within CAP.TO; as [`IoQueue::poll`].
    pub fn wait(&mut self, mut take: impl FnMut(Done)) -> Result<usize> {
        self.ring()?;
        if self.outstanding() == 0 {
            return Ok(0);
        }
        // What has come already is taken without a look at the clock.
        let ended = if self.ring.has_completion()? { self.poll(&mut take)? } else { 0 };
        if ended > 0 {
            return Ok(ended);
        }
        let deadline = Deadline::after(self.config.timeout);
        while let Some(left) = deadline.remaining()
            && self.await_completion(left)?
        {
            let ended = self.poll(&mut take)?;
            // A phase tag that turns back again is a completion of nothing.
            if ended > 0 {
                return Ok(ended);
            }
        }
        // Its interrupt may have been lost, and it not.
        match self.poll(&mut take)? {
            0 => self.recover(&mut take),
            ended => Ok(ended),
        }
    }

    /// As [`IoQueue::wait`], for a task: by its vector, whatever [`QueueConfig::wait`] says of looking at memory first. Only
    /// when a command does not end in time does it block, as long as its abort or the reset takes.
    ///
    /// # Errors
    /// [`Error::NotSupported`] for a polled queue; as [`IoQueue::wait`].
    pub async fn completed(&mut self, mut take: impl FnMut(Done)) -> Result<usize> {
        self.ring()?;
        if self.outstanding() == 0 {
            return Ok(0);
        }
        let irq = self.alarmed()?;
        let deadline = Deadline::after(self.config.timeout);
        loop {
            // Made before the look, so that what comes after it is not missed.
            let next = irq.next_delivery();
            let ended = self.poll(&mut take)?;
            if ended > 0 {
                self.alarm.as_ref().map_or(Ok(()), Timer::cancel)?;
                return Ok(ended);
            }
            if deadline.remaining().is_none() {
                return self.recover(&mut take);
            }
            next.await?;
        }
    }

    /// The vector, which will be raised when the queue's timeout is over.
    fn alarmed(&mut self) -> Result<Arc<Registration>> {
        let Some(irq) = self.irq.clone() else {
            return Err(Error::NotSupported {
                what: "a future",
                by: format!("I/O queue {}, which is polled", self.id),
            });
        };
        if self.alarm.is_none() {
            let raiser = irq.raiser();
            self.alarm = Some(self.shared.irqs.timer(move |_| raiser.raise())?);
        }
        self.alarm.as_ref().map_or(Ok(()), |alarm| alarm.arm(self.config.timeout))?;
        Ok(irq)
    }

    /// Whether one came in time, or a reset has ended all.
    fn await_completion(&self, patience: Duration) -> Result<bool> {
        let came = || self.ring.has_completion().unwrap_or(true) || self.generation != self.shared.generation();
        let spin = match self.config.wait {
            Wait::Interrupt => Duration::ZERO,
            Wait::Polled => patience,
            Wait::Hybrid(spin) => spin.min(patience),
        };
        if look(spin, &came) {
            return Ok(true);
        }
        if self.irq.is_none() {
            return Ok(false);
        }
        match self.shared.irqs.wait("a completion", Deadline::after(patience), came) {
            Ok(()) => Ok(true),
            Err(Error::Timeout { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Aborts what is outstanding, then resets (5.1, 7.3.2). A controller that is gone ends nothing.
    fn recover(&mut self, take: &mut impl FnMut(Done)) -> Result<usize> {
        // A controller that has failed (CSTS.CFS), or does not answer an Abort, is not asked again.
        let mut listens = !self.shared.check_alive()?.contains(Status::FATAL);
        let mut ended = 0;
        for id in 0..self.config.depth {
            if matches!(self.slots.get(usize::from(id)), None | Some(Flight::Free)) {
                continue;
            }
            // One that cannot be aborted, or not in time, is left to the reset.
            let answer = listens.then(|| self.shared.abort(self.id, id));
            let aborted = matches!(answer, Some(Ok(true)));
            listens &= !matches!(answer, Some(Err(Error::Timeout { .. } | Error::Gone { .. })));
            tracing::warn!(queue = self.id, command = id, aborted, "a command did not end in time");
        }
        let deadline = Deadline::after(ABORT_PATIENCE);
        while listens
            && self.outstanding() > 0
            && let Some(left) = deadline.remaining()
            && self.await_completion(left)?
        {
            ended += self.poll(&mut *take)?;
        }
        if self.outstanding() > 0 {
            tracing::warn!(queue = self.id, outstanding = self.outstanding(), "resetting the controller");
            self.shared.reset(self.generation)?;
            ended += self.rejoin(take)?;
        }
        Ok(ended)
    }

    /// After a reset: answers what was outstanding, and makes the queue again.
    fn rejoin(&mut self, take: &mut impl FnMut(Done)) -> Result<usize> {
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

    /// Delete I/O Submission Queue (5.6), which ends its commands, then its completion queue (5.5).
    fn delete(&mut self) -> Result<()> {
        if self.generation != self.shared.generation() {
            return Ok(());
        }
        let which = u32::from(self.id);
        let submission = Command::new(admin::DELETE_SUBMISSION_QUEUE, 0).cdw10(which);
        self.shared.execute("Delete I/O Submission Queue", submission)?;
        let completion = Command::new(admin::DELETE_COMPLETION_QUEUE, 0).cdw10(which);
        self.shared.execute("Delete I/O Completion Queue", completion).map(drop)
    }
}

/// Looks for as long as `limit`; whether it came.
#[inline]
fn look(limit: Duration, came: &impl Fn() -> bool) -> bool {
    if limit.is_zero() {
        return came();
    }
    let deadline = Deadline::after(limit);
    loop {
        for _ in 0..SPINS {
            if came() {
                return true;
            }
            std::hint::spin_loop();
        }
        if deadline.remaining().is_none() {
            return false;
        }
    }
}

impl<I: Io> Drop for IoQueue<I> {
    fn drop(&mut self) {
        let quiet = self.delete().or_else(|_| self.shared.reset(self.generation));
        match quiet {
            // The controller has no command of this queue any more: the buffers are ours again.
            Ok(()) => (0..self.config.depth).for_each(|id| drop(self.end(id, ENDED_BY_RESET))),
            Err(error) => tracing::warn!(%error, queue = self.id, "deleting an I/O queue: its buffers are lost"),
        }
    }
}
