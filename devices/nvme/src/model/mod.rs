//! The controller in software: registers here, queues in `queues`, commands in `admin` and `nvm`.
//!
//! No time passes in it: what a doorbell starts is done when the write returns, unless a fault holds it. A driver must not
//! rely on that.

mod admin;
mod events;
mod faults;
mod namespace;
mod nvm;
mod prp;
mod queues;

pub use faults::{Faults, Hold};
pub use namespace::Backing;

use crate::command::Outcome;
use crate::registers::{ACQ, AQA, ASQ, CAP, CC, CLASS, CSTS, Configuration, DOORBELLS, INTMC, INTMS, Status, VS};
use events::Events;
use queues::Queues;
use std::sync::Arc;
use udrv_backend::{Result, Width};
use udrv_model::{Bar, Bus, DeviceModel, Identity, ModelBackend, Msix};

/// I/O queue pairs, each with an MSI-X vector; the admin queues have vector 0.
const IO_QUEUES: u16 = 16;
/// CAP.MQES: entries of an I/O queue, less one.
const LAST_ENTRY: u64 = 1023;
const REVISION_1_4: u64 = 0x0001_0400;
const BAR0_SIZE: u64 = 0x4000;
const MSIX_TABLE: u32 = 0x2000;
const MSIX_PENDING: u32 = 0x3000;

/// Figures that survive a reset of the controller.
#[derive(Debug, Default, Clone, Copy)]
struct Counters {
    /// Blocks of 512 bytes.
    read: u64,
    written: u64,
    reads: u64,
    writes: u64,
    errors: u64,
}

/// An entry of the error log.
#[derive(Debug, Clone, Copy)]
struct Failure {
    count: u64,
    queue: u16,
    command: u16,
    outcome: Outcome,
    lba: u64,
    namespace: u32,
}

/// An NVMe controller.
pub struct NvmeModel {
    // configuration
    namespaces: Vec<Backing>,
    faults: Arc<Faults>,
    /// Whether it takes Doorbell Buffer Config.
    shadow_doorbells: bool,
    // registers
    mask: u32,
    configuration: Configuration,
    status: Status,
    attributes: u32,
    submission_base: u64,
    completion_base: u64,
    // state
    queues: Queues,
    events: Events,
    write_cache: bool,
    counters: Counters,
    failures: Vec<Failure>,
}

/// The device as `model:nvme`: one namespace of 64 MiB in blocks of 512 bytes, one of 16 MiB in blocks of 4096 bytes, both
/// in memory.
///
/// # Errors
/// [`udrv_backend::Error::Os`] if there is no memory for it.
pub fn nvme() -> Result<ModelBackend<NvmeModel>> {
    let namespaces = vec![Backing::memory(64 << 20, 512)?, Backing::memory(16 << 20, 4096)?];
    Ok(ModelBackend::new("nvme", NvmeModel::new(namespaces, Arc::default())))
}

impl NvmeModel {
    /// In power-on state, with namespaces 1, 2 and so on, and faults to be set while it runs.
    #[must_use]
    pub fn new(namespaces: Vec<Backing>, faults: Arc<Faults>) -> Self {
        Self {
            namespaces,
            faults,
            shadow_doorbells: true,
            mask: 0,
            configuration: Configuration::empty(),
            status: Status::empty(),
            attributes: 0,
            submission_base: 0,
            completion_base: 0,
            queues: Queues::new(usize::from(IO_QUEUES) + 1),
            events: Events::default(),
            write_cache: true,
            counters: Counters::default(),
            failures: Vec::new(),
        }
    }

    /// One whose doorbells are only registers, as most of those made of silicon.
    #[must_use]
    pub fn without_shadow_doorbells(self) -> Self {
        Self { shadow_doorbells: false, ..self }
    }

    /// Writes CC: enabling, disabling, which resets (7.3.2), and shutting down.
    fn configure(&mut self, value: Configuration) {
        let was = self.configuration.contains(Configuration::ENABLE);
        let is = value.contains(Configuration::ENABLE);
        self.configuration = value;
        match (was, is) {
            (false, true) => {
                let (submission, completion) = (self.attributes & 0xfff, self.attributes >> 16 & 0xfff);
                self.queues.open_admin(self.submission_base, submission + 1, self.completion_base, completion + 1);
                self.status = Status::READY;
            }
            (true, false) => {
                self.queues.clear();
                self.events = Events::default();
                self.faults.forget_all();
                self.write_cache = true;
                self.status = Status::empty();
            }
            _ => {}
        }
        if value.intersects(Configuration::SHUTDOWN_MASK) {
            self.status |= Status::SHUTDOWN_COMPLETE;
        }
    }

    /// A register as 8 bytes from its offset on.
    fn register(&self, offset: u64) -> u64 {
        match offset {
            // CQR, 10 s of TO, doorbells of 4 bytes, the NVM command set, pages of 4 KiB only.
            at if at == CAP.offset => LAST_ENTRY | 1 << 16 | 20 << 24 | 1 << 37,
            at if at == VS.offset => REVISION_1_4 | u64::from(self.mask) << 32,
            at if at == INTMC.offset => u64::from(self.mask) | u64::from(self.configuration.bits()) << 32,
            at if at == CSTS.offset - 4 => u64::from(self.status.bits()) << 32,
            at if at == AQA.offset - 4 => u64::from(self.attributes) << 32,
            at if at == ASQ.offset => self.submission_base,
            at if at == ACQ.offset => self.completion_base,
            _ => 0,
        }
    }

    fn write_word(&mut self, offset: u64, value: u32) {
        let half = |register: u64, upper: bool| {
            if upper {
                register & 0xffff_ffff | u64::from(value) << 32
            } else {
                register & !0xffff_ffff | u64::from(value)
            }
        };
        match offset {
            at if at == INTMS.offset => self.mask |= value,
            at if at == INTMC.offset => self.mask &= !value,
            at if at == CC.offset => self.configure(Configuration::from_bits_retain(value)),
            at if at == AQA.offset => self.attributes = value,
            // Bits below a page are reserved.
            at if at & !4 == ASQ.offset => {
                self.submission_base = half(self.submission_base, at & 4 != 0) & !0xfff;
            }
            at if at & !4 == ACQ.offset => {
                self.completion_base = half(self.completion_base, at & 4 != 0) & !0xfff;
            }
            _ => {}
        }
    }

    /// Writes a doorbell (3.1.24, 3.1.25). One of no queue, or with a value beyond it, is reported and changes nothing.
    fn ring(&mut self, index: u64, value: u32, bus: &Bus<'_>) {
        let queue = (index / 2) as u16;
        let entries = if index.is_multiple_of(2) {
            self.queues.set_tail(queue, value)
        } else {
            self.queues.set_head(queue, value)
        };
        match entries {
            None => self.events.add(events::INVALID_DOORBELL),
            Some(entries) if value >= entries => self.events.add(events::INVALID_DOORBELL_VALUE),
            Some(_) => {}
        }
        self.queues.look(queue, bus);
        self.work(bus);
        if self.status == Status::READY {
            self.report(bus);
        }
    }

    /// Processes commands until there are none, or their completion queues are full. Each ends in one completion, or is held.
    fn work(&mut self, bus: &Bus<'_>) {
        while self.status == Status::READY {
            let Some((queue, command)) = self.queues.fetch(bus) else { return };
            let Some(command) = command else {
                // The queue itself cannot be read.
                self.status |= Status::FATAL;
                return;
            };
            if queue != 0 && self.faults.hold(queue, command.id()) {
                continue;
            }
            let ended = if queue == 0 { self.administer(&command, bus) } else { self.transfer(queue, &command, bus) };
            // An Asynchronous Event Request waits for an event.
            let Some((outcome, result)) = ended else { continue };
            if !self.queues.complete(queue, command.id(), outcome, result, bus) {
                self.status |= Status::FATAL;
            }
        }
    }

    fn fail(&mut self, queue: u16, command: u16, outcome: Outcome, lba: u64, namespace: u32) {
        self.counters.errors += 1;
        let count = self.counters.errors;
        self.failures.insert(0, Failure { count, queue, command, outcome, lba, namespace });
        self.failures.truncate(admin::ERROR_ENTRIES);
    }
}

impl DeviceModel for NvmeModel {
    fn identity(&self) -> Identity {
        Identity {
            // Those of QEMU's controller, which other people's drivers know; by its model number it is told apart.
            vendor: 0x1b36,
            device: 0x0010,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            revision: 1,
            class: CLASS,
            bars: [Bar::Registers(BAR0_SIZE), Bar::None, Bar::None, Bar::None, Bar::None, Bar::None],
            interrupt_pin: 1,
            msi_vectors: 0,
            msix: Some(Msix { vectors: IO_QUEUES + 1, bar: 0, table: MSIX_TABLE, pending: MSIX_PENDING }),
            resettable: true,
        }
    }

    fn read(&mut self, _bar: u32, offset: u64, width: Width) -> u64 {
        let within = offset % 8;
        let value = self.register(offset - within) >> (8 * within);
        value & width.all_ones()
    }

    fn write(&mut self, _bar: u32, offset: u64, width: Width, value: u64, bus: &mut Bus<'_>) {
        match width {
            Width::Bits32 if offset >= DOORBELLS => {
                self.ring((offset - DOORBELLS) / 4, value as u32, bus);
            }
            Width::Bits32 => self.write_word(offset, value as u32),
            Width::Bits64 if offset < DOORBELLS => {
                self.write_word(offset, value as u32);
                self.write_word(offset + 4, (value >> 32) as u32);
            }
            // Not specified (3).
            _ => {}
        }
    }

    fn line(&self) -> bool {
        // The pin is all vectors at once; INTMS has a bit for each of the first 32 (3.1.3).
        self.queues.pending().any(|vector| self.mask.checked_shr(vector.into()).is_none_or(|mask| mask & 1 == 0))
    }

    fn messages(&self) -> &[u64] {
        self.queues.messages()
    }

    fn reset(&mut self) {
        self.queues.clear();
        self.events = Events::default();
        self.faults.forget_all();
        self.mask = 0;
        self.configuration = Configuration::empty();
        self.status = Status::empty();
        (self.attributes, self.submission_base, self.completion_base) = (0, 0, 0);
        self.write_cache = true;
    }
}
