//! The NVMe driver: bring-up, identify, logs and features here; I/O queues, one a thread, in [`IoQueue`].
//!
//! No wait is without a deadline. Admin commands are polled for: they are rare, and so vector 0 needs no handler. A command
//! of an I/O queue that does not end in time is aborted; if that does not help, the controller is reset. Either way every
//! outstanding command is answered, and its buffer comes back.

mod blocking;
mod identify;
mod ids;
mod prp;
mod queue;
mod recover;
mod ring;
mod shadow;
mod shared;
mod submit;
mod task;
mod wait;

pub use blocking::Range;
pub use identify::{ControllerInfo, ErrorEntry, Event, Namespace, Optional, Smart};
pub use queue::{Data, Done, IoQueue, QueueConfig, Wait};
pub use ring::Doorbells;
pub use task::{Job, Task, Work};

use crate::command::{ALL_NAMESPACES, Command, PAGE, admin, cns, log};
use crate::registers::{CAP, CLASS, MAP};
use ids::QueueIds;
use shared::Shared;
use std::sync::Arc;
use udrv::dma::Pool;
use udrv::irq::IrqDomain;
use udrv::mmio::{Io, Window};
use udrv::pci::{Command as PciCommand, Config};
use udrv_backend::{AnyBackend, Error, Result};

/// As much of BAR 0 as the driver touches: registers and one page of doorbells.
pub const REGISTERS: usize = 0x2000;

/// Most namespaces whose list is read: what NN allows, four thousand million, would take a hostile controller's driver hours.
const MOST_NAMESPACES: usize = 1 << 16;

/// Memory for queues, PRP lists and data, in total. Pages that are never used cost nothing.
const POOL: usize = 256 << 20;

/// A controller, brought up.
pub struct Controller<I: Io = Window<REGISTERS>> {
    shared: Arc<Shared<I>>,
    info: ControllerInfo,
    /// How many I/O queue pairs the controller has allocated, and which of them are free.
    queues: u16,
    ids: Arc<QueueIds>,
}

impl<I: Io + 'static> Controller<I> {
    /// Takes the device: checks what it is, turns bus mastering on, resets it, makes its admin queue, identifies it, and
    /// asks for `queues` I/O queue pairs.
    ///
    /// # Errors
    /// [`Error::Protocol`] if it is no NVMe controller, or one that this driver cannot use; [`Error::Timeout`]; what the
    /// backend says otherwise.
    pub fn attach(device: &AnyBackend, io: I, irqs: &IrqDomain, queues: u16) -> Result<Self> {
        let wrong = |found: String, expected: &str| Error::Protocol {
            peer: device.info().address.clone(),
            found,
            expected: expected.into(),
        };
        let config = Config::new(&**device);
        let class = config.class()?;
        if class != CLASS {
            return Err(wrong(format!("class code {class:06x}"), "010802, an NVMe controller"));
        }
        config.change_command(PciCommand::MEMORY_SPACE | PciCommand::BUS_MASTER, PciCommand::empty())?;
        udrv::inspect::describe(&**device, &MAP);
        let capabilities = io.read(CAP)?;
        // A queue of one entry can hold nothing (3.1.1, MQES).
        let usable = capabilities.has_nvm_commands() && capabilities.min_page() == PAGE;
        if !usable || capabilities.queue_entries() < 2 {
            let expected = "the NVM command set, pages of 4 KiB, and queues of two entries or more";
            return Err(wrong(format!("CAP {:#x}", capabilities.0), expected));
        }
        let pool = Pool::new(Arc::clone(device), POOL, 64)?;
        let shared = Arc::new(Shared::bring_up(device, Arc::new(io), irqs.clone(), pool, capabilities)?);
        let identify = Command::new(admin::IDENTIFY, 0).cdw10(cns::CONTROLLER);
        let data = shared.execute_in("Identify (controller)", identify, PAGE as usize)?;
        let info = ControllerInfo::decode(&data, PAGE);
        if info.has_shadow_doorbells {
            shared.use_shadow_doorbells()?;
        }
        let queues = shared.number_of_queues(queues)?;
        Ok(Self { shared, info, queues, ids: QueueIds::new(queues) })
    }

    /// What it says of itself.
    #[must_use]
    pub const fn info(&self) -> &ControllerInfo {
        &self.info
    }

    /// How many I/O queue pairs it gave, of those asked for.
    #[must_use]
    pub const fn queues(&self) -> u16 {
        self.queues
    }

    /// Memory for its transfers.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    /// Most bytes that one command moves.
    #[must_use]
    pub fn max_transfer(&self) -> usize {
        self.info.max_transfer.unwrap_or(prp::REACH).min(prp::REACH) as usize
    }

    /// The identifiers of the active namespaces (5.15.2.3), ascending.
    ///
    /// # Errors
    /// [`Error::Status`] if the command fails; [`Error::Protocol`] if the list is none; [`Error::Timeout`].
    pub fn namespace_ids(&self) -> Result<Vec<u32>> {
        let mut all = Vec::new();
        loop {
            let above = all.last().copied().unwrap_or(0);
            let list = Command::new(admin::IDENTIFY, above).cdw10(cns::NAMESPACE_LIST);
            let data = self.shared.execute_in("Identify (namespace list)", list, PAGE as usize)?;
            let (numbers, _) = data.as_chunks::<4>();
            let before = all.len();
            // Ascending and above what was asked for: a list that is not would have no end.
            let ids = numbers.iter().map(|bytes| u32::from_le_bytes(*bytes));
            for id in ids.take_while(|id| *id != 0) {
                if id <= all.last().copied().unwrap_or(0) || id > self.info.namespaces {
                    return Err(self.shared.protocol(format!("namespace {id} in its list"), "ascending, up to NN"));
                }
                all.push(id);
            }
            if all.len() > MOST_NAMESPACES {
                let expected = format!("{MOST_NAMESPACES} at most");
                return Err(self.shared.protocol(format!("a list of {} namespaces", all.len()), &expected));
            }
            if all.len() - before < numbers.len() || all.last() == Some(&(ALL_NAMESPACES - 2)) {
                return Ok(all);
            }
        }
    }

    /// One namespace (5.15.2.1).
    ///
    /// # Errors
    /// [`Error::Status`] if there is no such namespace; [`Error::Protocol`] if it has a format that this driver cannot use.
    pub fn namespace(&self, id: u32) -> Result<Namespace> {
        let identify = Command::new(admin::IDENTIFY, id).cdw10(cns::NAMESPACE);
        let data = self.shared.execute_in("Identify (namespace)", identify, PAGE as usize)?;
        let usable = |namespace: &Namespace| namespace.block_size <= self.max_transfer() as u64;
        Namespace::decode(id, &data).filter(usable).ok_or_else(|| {
            let found = format!("namespace {id}: inactive, with metadata, or with blocks of an odd size");
            let most = self.max_transfer().min(1 << 16);
            self.shared.protocol(found, &format!("an active one of blocks of 512 to {most} bytes without metadata"))
        })
    }

    /// Health since the controller was made (5.14.1.2).
    ///
    /// # Errors
    /// As [`Controller::namespace_ids`].
    pub fn smart(&self) -> Result<Smart> {
        Ok(Smart::decode(&self.log_page("Get Log Page (SMART)", log::SMART, 512)?))
    }

    /// The error log (5.14.1.1), newest first.
    ///
    /// # Errors
    /// As [`Controller::namespace_ids`].
    pub fn error_log(&self) -> Result<Vec<ErrorEntry>> {
        let length = (self.info.error_entries as usize * ErrorEntry::SIZE).min(PAGE as usize);
        let data = self.log_page("Get Log Page (errors)", log::ERROR, length)?;
        let entries = data.chunks_exact(ErrorEntry::SIZE).map(ErrorEntry::decode);
        Ok(entries.filter(|entry| entry.count != 0).collect())
    }

    /// What the controller has reported of its own accord since it was last asked, without waiting (5.2). Asked for the
    /// first time, it is told to report. It reports no other event of that type before the event's log page has been read.
    ///
    /// # Errors
    /// [`Error::Status`] if it takes no such requests.
    pub fn next_event(&self) -> Result<Option<Event>> {
        Ok(self.shared.next_event()?.map(Event::decode))
    }

    /// Up to a page of a log: NUMD, the dwords less one, is in two halves.
    fn log_page(&self, name: &str, page: u8, length: usize) -> Result<Vec<u8>> {
        let dwords = (length / 4 - 1) as u32;
        let command = Command::new(admin::GET_LOG_PAGE, ALL_NAMESPACES)
            .cdw10(u32::from(page) | (dwords & 0xffff) << 16)
            .cdw11(dwords >> 16);
        self.shared.execute_in(name, command, length)
    }

    /// The current value of a feature without a data structure (5.13).
    ///
    /// # Errors
    /// As [`Controller::namespace_ids`].
    pub fn feature(&self, id: u8) -> Result<u32> {
        let command = Command::new(admin::GET_FEATURES, 0).cdw10(u32::from(id));
        self.shared.execute("Get Features", command)
    }

    /// Sets a feature without a data structure, until the next reset (5.21). What the controller answers.
    ///
    /// # Errors
    /// As [`Controller::namespace_ids`].
    pub fn set_feature(&self, id: u8, value: u32) -> Result<u32> {
        let command = Command::new(admin::SET_FEATURES, 0).cdw10(u32::from(id)).cdw11(value);
        self.shared.execute("Set Features", command)
    }

    /// Makes an I/O queue pair, for one thread. Once it is dropped its place is free for another.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the controller has no more; [`Error::NoSuchIrq`] if it has no vector for it, unless it is
    /// polled.
    pub fn io_queue(&mut self, config: QueueConfig) -> Result<IoQueue<I>> {
        let id = self.ids.take().ok_or_else(|| Error::Unavailable {
            device: self.shared.device.info().address.clone(),
            why: format!("all {} I/O queue pairs that it gave are in use", self.queues),
            advice: "ask for more when it is attached, share one, or drop one first".into(),
        })?;
        IoQueue::new(&self.shared, id, self.max_transfer(), config)
    }

    /// Resets the controller (7.3.2) and enables it again. Commands outstanding in its I/O queues are answered with
    /// [`Outcome::ABORTED_BY_HOST`](crate::command::Outcome::ABORTED_BY_HOST) when each queue next looks, and the queues
    /// are made again.
    ///
    /// # Errors
    /// [`Error::Timeout`] if it does not become ready by CAP.TO.
    pub fn reset(&self) -> Result<()> {
        self.shared.reset(self.shared.generation())
    }

    /// Shuts the controller down in the orderly way (7.6.2). Drop its queues first.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn shut_down(&mut self) -> Result<()> {
        self.shared.shut_down()
    }
}
