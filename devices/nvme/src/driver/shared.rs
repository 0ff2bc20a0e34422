//! What the controller and its I/O queues share: the registers, and the admin queue, through which queues are made, commands
//! aborted, and the controller is reset.

use super::ring::{Ring, Size};
use super::shadow::Shadow;
use crate::command::{Command, Completion, Outcome, PAGE, admin, feature};
use crate::registers::{ACQ, AQA, ASQ, CC, CSTS, Capabilities, Configuration, Status};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::dma::{FromDevice, Pool};
use udrv::irq::IrqDomain;
use udrv::mmio::Io;
use udrv_backend::{AnyBackend, Error, Result};

/// The admin queues. One command is outstanding at a time.
const ADMIN: Size = Size { entries: 32, slack: 0 };
/// The identifier of Asynchronous Event Requests, which no other command has.
const EVENT: u16 = u16::MAX;
/// Longest wait for an admin command. None that is used here takes a controller long.
const ADMIN_PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait for a shutdown, where the controller does not say (RTD3E is 0): flash has to be written first.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Shared<I: Io> {
    pub(super) device: AnyBackend,
    pub(super) io: Arc<I>,
    pub(super) irqs: IrqDomain,
    pub(super) pool: Pool,
    pub(super) capabilities: Capabilities,
    admin: Mutex<Admin<I>>,
    /// Doorbells in memory, once the controller has been told of them.
    pub(super) shadow: OnceLock<Arc<Shadow>>,
    /// How often the controller has been reset: a queue made before the last time exists no more.
    generation: AtomicU64,
}

struct Admin<I> {
    ring: Ring<I>,
    next: u16,
    /// Commands that were given up, and may still have an entry of the queue.
    given_up: u16,
    /// Whether an Asynchronous Event Request is outstanding.
    listens: bool,
    /// Dword 0 and status of those that have been answered.
    events: VecDeque<(u32, Outcome)>,
    /// I/O queue pairs that are asked for, after each reset.
    queues: u16,
}

impl<I: Io> Admin<I> {
    /// The next completion that is none of an event.
    fn pop(&mut self) -> Result<Option<Completion>> {
        let completion = self.ring.pop()?;
        self.ring.release()?;
        match completion {
            Some(Completion { id: EVENT, result, outcome, .. }) => {
                // One that was not asked for is none.
                if std::mem::take(&mut self.listens) {
                    self.events.push_back((result, outcome));
                }
                Ok(None)
            }
            other => Ok(other),
        }
    }
}

impl<I: Io> Shared<I> {
    /// Resets the controller and enables it with an admin queue (7.6.1).
    pub(super) fn bring_up(
        device: &AnyBackend,
        io: Arc<I>,
        irqs: IrqDomain,
        pool: Pool,
        capabilities: Capabilities,
    ) -> Result<Self> {
        // A driver before us may have left it running on memory that is now ours.
        disable(&*io, capabilities)?;
        let ring = Ring::new(&io, &pool, 0, ADMIN, capabilities.doorbell_stride())?;
        enable(&*io, capabilities, &ring)?;
        let admin = Admin { ring, next: 0, given_up: 0, listens: false, events: VecDeque::new(), queues: 1 };
        let admin = Mutex::new(admin);
        let device = Arc::clone(device);
        let (shadow, generation) = (OnceLock::new(), AtomicU64::new(0));
        Ok(Self { device, io, irqs, pool, capabilities, admin, shadow, generation })
    }

    fn admin(&self) -> MutexGuard<'_, Admin<I>> {
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The error for an answer that is none.
    pub(super) fn protocol(&self, found: String, expected: &str) -> Error {
        Error::Protocol { peer: self.device.info().address.clone(), found, expected: expected.into() }
    }

    /// An admin command without data. Its Dword 0.
    pub(super) fn execute(&self, name: &str, command: Command) -> Result<u32> {
        let completion = self.complete(name, command)?;
        self.succeeded(name, completion)
    }

    /// An admin command that answers with `length` bytes, up to a page.
    pub(super) fn execute_in(&self, name: &str, command: Command, length: usize) -> Result<Vec<u8>> {
        let buffer = self.pool.alloc::<FromDevice>(PAGE as usize)?.submit();
        // If it does not end in time the buffer stays the controller's.
        let completion = self.complete(name, command.data([buffer.iova(), 0]))?;
        let buffer = buffer.complete();
        self.succeeded(name, completion)?;
        let mut data = vec![0; length.min(PAGE as usize)];
        buffer.read(0, &mut data)?;
        Ok(data)
    }

    fn succeeded(&self, name: &str, completion: Completion) -> Result<u32> {
        if completion.outcome.is_success() {
            return Ok(completion.result);
        }
        Err(self.failed(name, completion.outcome))
    }

    /// The error for a command that the controller ended without success.
    pub(super) fn failed(&self, name: &str, outcome: Outcome) -> Error {
        Error::Status {
            device: self.device.info().address.clone(),
            command: name.into(),
            status: outcome.code().into(),
            meaning: outcome.to_string(),
        }
    }

    /// [`Shared::execute`], unless the controller has been reset since `generation`: `false` if it has.
    pub(super) fn execute_in_generation(&self, generation: u64, name: &str, command: Command) -> Result<bool> {
        let mut admin = self.admin();
        if self.generation() != generation {
            return Ok(false);
        }
        let completion = self.complete_by(&mut admin, name, command)?;
        self.succeeded(name, completion).map(|_| true)
    }

    fn complete(&self, name: &str, command: Command) -> Result<Completion> {
        self.complete_by(&mut self.admin(), name, command)
    }

    fn complete_by(&self, admin: &mut Admin<I>, name: &str, command: Command) -> Result<Completion> {
        if admin.given_up > ADMIN.entries / 2 {
            return Err(Error::Unavailable {
                device: self.device.info().address.clone(),
                why: format!("{} admin commands have not ended", admin.given_up),
                advice: "reset the controller".into(),
            });
        }
        let id = admin.next;
        admin.next = if id + 1 == EVENT { 0 } else { id + 1 };
        admin.ring.push(&command.identified(id))?;
        admin.ring.ring()?;
        let mut found = None;
        let ended = Deadline::after(ADMIN_PATIENCE).poll(&format!("the completion of {name}"), || {
            // One of a command that was given up is passed over.
            found = admin.pop()?.filter(|completion| completion.id == id);
            Ok(found.is_some())
        });
        if let Err(error) = ended {
            admin.given_up += 1;
            self.check_alive()?;
            return Err(error);
        }
        found.ok_or_else(|| self.protocol("nothing".into(), "a completion"))
    }

    /// What an Asynchronous Event Request (5.2) was answered with, if one was; Dword 0. One is outstanding from the first
    /// call on.
    pub(super) fn next_event(&self) -> Result<Option<u32>> {
        let mut admin = self.admin();
        while admin.listens && admin.ring.has_completion()? {
            admin.pop()?;
        }
        if !admin.listens {
            admin.ring.push(&Command::new(admin::ASYNCHRONOUS_EVENT_REQUEST, 0).identified(EVENT))?;
            admin.ring.ring()?;
            admin.listens = true;
        }
        match admin.events.pop_front() {
            None => Ok(None),
            Some((event, outcome)) if outcome.is_success() => Ok(Some(event)),
            Some((_, outcome)) => Err(self.failed("Asynchronous Event Request", outcome)),
        }
    }

    /// Whether the device is there: one that is not reads as all ones.
    pub(super) fn check_alive(&self) -> Result<Status> {
        let status = self.io.read(CSTS)?;
        self.io.alive()?;
        if status.bits() == u32::MAX {
            let why = "CSTS reads as all ones".into();
            return Err(Error::Gone { device: self.device.info().address.clone(), why });
        }
        Ok(status)
    }

    /// Abort (5.1). Whether the controller says that it did; the command then ends, in its own queue, as aborted.
    pub(super) fn abort(&self, queue: u16, command: u16) -> Result<bool> {
        let abort = Command::new(admin::ABORT, 0).cdw10(u32::from(queue) | u32::from(command) << 16);
        Ok(self.execute("Abort", abort)? & 1 == 0)
    }

    /// Resets the controller (7.3.2), unless somebody has since `seen`. All queues are gone after it, and all commands
    /// that were outstanding will never complete: each queue answers its own when it next looks.
    pub(super) fn reset(&self, seen: u64) -> Result<()> {
        let mut admin = self.admin();
        if self.generation() != seen {
            return Ok(());
        }
        disable(&*self.io, self.capabilities)?;
        // Only now is the controller done with everybody's memory.
        self.generation.store(seen + 1, Ordering::Release);
        admin.ring.clear()?;
        (admin.given_up, admin.listens) = (0, false);
        enable(&*self.io, self.capabilities, &admin.ring)?;
        if let Some(shadow) = self.shadow.get() {
            self.configure_doorbells(&mut admin, shadow)?;
        }
        self.allocate_queues(&mut admin).map(drop)
    }

    /// I/O queues that are made from now on have their doorbells in memory.
    pub(super) fn use_shadow_doorbells(&self) -> Result<()> {
        let shadow = Shadow::new(&self.pool)?;
        self.configure_doorbells(&mut self.admin(), &shadow)?;
        self.shadow.get_or_init(|| Arc::new(shadow));
        Ok(())
    }

    /// Doorbell Buffer Config (5.7), which a reset undoes.
    fn configure_doorbells(&self, admin: &mut Admin<I>, shadow: &Shadow) -> Result<()> {
        let name = "Doorbell Buffer Config";
        let command = Command::new(admin::DOORBELL_BUFFER_CONFIG, 0).data(shadow.addresses());
        let completion = self.complete_by(admin, name, command)?;
        self.succeeded(name, completion).map(drop)
    }

    /// Number of Queues (5.21.1.7): how many of `wanted` I/O queue pairs the controller gives, now and after each reset.
    pub(super) fn number_of_queues(&self, wanted: u16) -> Result<u16> {
        let mut admin = self.admin();
        admin.queues = wanted.max(1);
        self.allocate_queues(&mut admin)
    }

    fn allocate_queues(&self, admin: &mut Admin<I>) -> Result<u16> {
        let name = "Set Features (Number of Queues)";
        let last = u32::from(admin.queues - 1);
        let command = Command::new(admin::SET_FEATURES, 0).cdw10(u32::from(feature::NUMBER_OF_QUEUES));
        let completion = self.complete_by(admin, name, command.cdw11(last << 16 | last))?;
        let given = self.succeeded(name, completion)?;
        Ok((given as u16).min((given >> 16) as u16).saturating_add(1).min(admin.queues))
    }

    /// Shuts the controller down (7.6.2).
    pub(super) fn shut_down(&self) -> Result<()> {
        let _admin = self.admin();
        let configuration = self.io.read(CC)? - Configuration::SHUTDOWN_MASK;
        self.io.write(CC, configuration | Configuration::SHUTDOWN_NORMAL)?;
        let done = || Ok(self.check_alive()? & Status::SHUTDOWN_MASK == Status::SHUTDOWN_COMPLETE);
        Deadline::after(SHUTDOWN_PATIENCE).poll("the end of the shutdown (CSTS.SHST 10b)", done)?;
        disable(&*self.io, self.capabilities)
    }
}

impl<I: Io> Drop for Shared<I> {
    fn drop(&mut self) {
        // Before the queues' memory is taken away. A controller that does not listen is stopped by its IOMMU.
        let _ = disable(&*self.io, self.capabilities);
    }
}

/// CC.EN to 0, and the wait for CSTS.RDY, bounded by CAP.TO (3.1.5).
fn disable(io: &impl Io, capabilities: Capabilities) -> Result<()> {
    io.write(CC, Configuration::empty())?;
    wait_for_ready(io, capabilities, false)
}

/// CC.EN to 1, with the admin queue.
fn enable<I: Io>(io: &I, capabilities: Capabilities, ring: &Ring<I>) -> Result<()> {
    let last = u32::from(ring.entries() - 1);
    let [commands, completions] = ring.addresses();
    io.write(AQA, last << 16 | last)?;
    io.write(ASQ, commands)?;
    io.write(ACQ, completions)?;
    let sizes = Configuration::COMMANDS_OF_64 | Configuration::COMPLETIONS_OF_16;
    io.write(CC, sizes | Configuration::ENABLE)?;
    wait_for_ready(io, capabilities, true)
}

fn wait_for_ready(io: &impl Io, capabilities: Capabilities, ready: bool) -> Result<()> {
    let what = format!("CSTS.RDY going to {}, by CAP.TO,", u8::from(ready));
    Deadline::after(capabilities.timeout()).poll(&what, || {
        let status = io.read(CSTS)?;
        // A device that has vanished reads as all ones, which would be ready.
        Ok(status.bits() != u32::MAX && status.contains(Status::READY) == ready)
    })
}

/// What a queue answers for a command that a reset ended.
pub(super) const ENDED_BY_RESET: Outcome = Outcome::ABORTED_BY_HOST;
