//! Admin commands (5).

use super::{IO_QUEUES, LAST_ENTRY, NvmeModel, REVISION_1_4, prp};
use crate::command::{ALL_NAMESPACES, Command, Outcome, PAGE, admin, cns, feature, log};
use udrv_model::Bus;

/// Entries of the error log.
pub(super) const ERROR_ENTRIES: usize = 16;
/// MDTS: 2⁷ pages, 512 KiB.
const MAX_TRANSFER_POWER: u8 = 7;
/// Asynchronous Event Requests that wait at a time, less one (AERL).
pub(super) const LAST_EVENT: u8 = 3;

/// How a command ended, with its Dword 0.
type Ended = Result<u32, Outcome>;

impl NvmeModel {
    /// `None` for a command that waits.
    pub(super) fn administer(&mut self, command: &Command, bus: &Bus<'_>) -> Option<(Outcome, u32)> {
        let ended = match command.opcode() {
            admin::IDENTIFY => self.identify(command, bus),
            admin::GET_LOG_PAGE => self.log_page(command, bus),
            admin::CREATE_COMPLETION_QUEUE => self.create_completion_queue(command),
            admin::CREATE_SUBMISSION_QUEUE => self.create_submission_queue(command),
            admin::DELETE_SUBMISSION_QUEUE => self.delete_submission_queue(command),
            admin::DELETE_COMPLETION_QUEUE => self.delete_completion_queue(command),
            admin::SET_FEATURES => self.set_feature(command),
            admin::GET_FEATURES => self.feature(command),
            admin::ABORT => Ok(self.abort(command, bus)),
            admin::DOORBELL_BUFFER_CONFIG if self.shadow_doorbells => self.configure_doorbells(command),
            admin::ASYNCHRONOUS_EVENT_REQUEST => match self.events.request(command.id()) {
                Ok(()) => return None,
                Err(outcome) => Err(outcome),
            },
            _ => Err(Outcome::INVALID_OPCODE),
        };
        Some(match ended {
            Ok(result) => (Outcome::SUCCESS, result),
            Err(outcome) => {
                self.fail(0, command.id(), outcome, 0, command.namespace());
                (outcome, 0)
            }
        })
    }

    fn identify(&self, command: &Command, bus: &Bus<'_>) -> Ended {
        let mut page = vec![0; PAGE as usize];
        match command.0[10] & 0xff {
            cns::CONTROLLER => self.describe_controller(&mut page),
            cns::NAMESPACE if command.namespace() == ALL_NAMESPACES => describe_namespace(&mut page, 0, 9),
            cns::NAMESPACE => match self.namespace(command.namespace()) {
                Some(backing) => describe_namespace(&mut page, backing.blocks, backing.block_size.ilog2() as u8),
                None => return Err(Outcome::INVALID_NAMESPACE),
            },
            cns::NAMESPACE_LIST if command.namespace() >= ALL_NAMESPACES - 1 => return Err(Outcome::INVALID_NAMESPACE),
            cns::NAMESPACE_LIST => {
                let ids = (1..=self.namespaces.len() as u32).filter(|id| *id > command.namespace());
                for (at, id) in page.chunks_exact_mut(4).zip(ids) {
                    at.copy_from_slice(&id.to_le_bytes());
                }
            }
            cns::NAMESPACE_DESCRIPTORS if self.namespace(command.namespace()).is_none() => {
                return Err(Outcome::INVALID_NAMESPACE);
            }
            cns::NAMESPACE_DESCRIPTORS => name_namespace(&mut page, command.namespace()),
            _ => return Err(Outcome::INVALID_FIELD),
        }
        prp::send(command.prps(), &page, bus).map(|()| 0)
    }

    /// Figure 247.
    fn describe_controller(&self, page: &mut [u8]) {
        put(page, 0, &[0x36, 0x1b, 0xf4, 0x1a]);
        put(page, 4, b"udrv-model          ");
        put(page, 24, b"udrv NVMe model                         ");
        put(page, 64, b"1       ");
        put(page, 77, &[MAX_TRANSFER_POWER]);
        put(page, 78, &1u16.to_le_bytes());
        put(page, 80, &(REVISION_1_4 as u32).to_le_bytes());
        // CNTRLTYPE: an I/O controller.
        put(page, 111, &[1]);
        // OACS: Doorbell Buffer Config.
        put(page, 256, &(u16::from(self.shadow_doorbells) << 8).to_le_bytes());
        // ACL, AERL; FRMW: one slot that is read only; ELPE.
        put(page, 258, &[3, LAST_EVENT, 0b0011, 0, ERROR_ENTRIES as u8 - 1]);
        // WCTEMP and CCTEMP, kelvin.
        put(page, 266, &343u16.to_le_bytes());
        put(page, 268, &353u16.to_le_bytes());
        // SQES and CQES: 64 and 16 bytes, no others.
        put(page, 512, &[0x66, 0x44]);
        put(page, 516, &(self.namespaces.len() as u32).to_le_bytes());
        // ONCS: Dataset Management and Write Zeroes.
        put(page, 520, &0x0cu16.to_le_bytes());
        // VWC: present; Flush of all namespaces is done.
        put(page, 525, &[0b111]);
        put(page, 768, b"nqn.2014-08.org.nvmexpress:uuid:6f1d1d1d-0000-4000-8000-756472760001");
    }

    fn log_page(&mut self, command: &Command, bus: &Bus<'_>) -> Ended {
        let length = 4 * (u64::from(command.0[10] >> 16) | u64::from(command.0[11] & 0xffff) << 16) + 4;
        let offset = u64::from(command.0[12]) | u64::from(command.0[13]) << 32;
        let page = match command.0[10] as u8 {
            log::ERROR => self.error_page(),
            log::SMART => self.smart_page(),
            // Firmware Slot Information (5.14.1.3): the one slot.
            0x03 => firmware_page(),
            _ => return Err(Outcome::INVALID_LOG_PAGE),
        };
        // Beyond a page's end there is nothing; a driver that asks for more than a transfer may have asks wrongly.
        let part = page.get(usize::try_from(offset).unwrap_or(usize::MAX)..).ok_or(Outcome::INVALID_FIELD)?;
        if length > PAGE << MAX_TRANSFER_POWER {
            return Err(Outcome::INVALID_FIELD);
        }
        let mut answer = vec![0; length as usize];
        let known = part.len().min(answer.len());
        put(&mut answer, 0, part.get(..known).unwrap_or_default());
        prp::send(command.prps(), &answer, bus)?;
        // Retain Asynchronous Event.
        if command.0[10] & 1 << 15 == 0 {
            self.events.read(command.0[10] as u8);
        }
        Ok(0)
    }

    /// Figure 193.
    fn error_page(&self) -> Vec<u8> {
        let mut page = vec![0; 64 * ERROR_ENTRIES];
        for (entry, failure) in page.chunks_exact_mut(64).zip(&self.failures) {
            put(entry, 0, &failure.count.to_le_bytes());
            put(entry, 8, &failure.queue.to_le_bytes());
            put(entry, 10, &failure.command.to_le_bytes());
            put(entry, 12, &(failure.outcome.0 << 1).to_le_bytes());
            put(entry, 16, &failure.lba.to_le_bytes());
            put(entry, 24, &failure.namespace.to_le_bytes());
        }
        page
    }

    /// Figure 194.
    fn smart_page(&self) -> Vec<u8> {
        let mut page = vec![0; 512];
        let counters = &self.counters;
        put(&mut page, 1, &300u16.to_le_bytes());
        put(&mut page, 3, &[100, 10, 0]);
        // In thousands of 512 bytes, rounded up.
        put(&mut page, 32, &counters.read.div_ceil(1000).to_le_bytes());
        put(&mut page, 48, &counters.written.div_ceil(1000).to_le_bytes());
        put(&mut page, 64, &counters.reads.to_le_bytes());
        put(&mut page, 80, &counters.writes.to_le_bytes());
        put(&mut page, 112, &1u64.to_le_bytes());
        put(&mut page, 176, &counters.errors.to_le_bytes());
        page
    }

    fn create_completion_queue(&mut self, command: &Command) -> Ended {
        let (id, entries, base) = queue_of(command)?;
        if self.queues.has_completion(id) {
            return Err(Outcome::INVALID_QUEUE_IDENTIFIER);
        }
        let vector = (command.0[11] >> 16) as u16;
        if vector > IO_QUEUES {
            return Err(Outcome::INVALID_VECTOR);
        }
        let interrupts = command.0[11] & 0b10 != 0;
        self.queues.add_completion(id, base, entries, interrupts.then_some(vector));
        Ok(0)
    }

    fn create_submission_queue(&mut self, command: &Command) -> Ended {
        let (id, entries, base) = queue_of(command)?;
        let completion = (command.0[11] >> 16) as u16;
        if completion == 0 || !self.queues.has_completion(completion) {
            return Err(Outcome::COMPLETION_QUEUE_INVALID);
        }
        if self.queues.has_submission(id) {
            return Err(Outcome::INVALID_QUEUE_IDENTIFIER);
        }
        self.queues.add_submission(id, base, entries, completion);
        Ok(0)
    }

    fn delete_submission_queue(&mut self, command: &Command) -> Ended {
        let id = command.0[10] as u16;
        if id == 0 || !self.queues.remove_submission(id) {
            return Err(Outcome::INVALID_QUEUE_IDENTIFIER);
        }
        self.faults.forget(id);
        Ok(0)
    }

    fn delete_completion_queue(&mut self, command: &Command) -> Ended {
        let id = command.0[10] as u16;
        if id == 0 {
            return Err(Outcome::INVALID_QUEUE_IDENTIFIER);
        }
        self.queues.remove_completion(id).map(|()| 0)
    }

    /// Both buffers are a page.
    fn configure_doorbells(&mut self, command: &Command) -> Ended {
        let [doorbells, events] = command.prps();
        if doorbells == 0 || events == 0 || !doorbells.is_multiple_of(PAGE) || !events.is_multiple_of(PAGE) {
            return Err(Outcome::INVALID_FIELD);
        }
        self.queues.shadow = Some((doorbells, events));
        Ok(0)
    }

    fn set_feature(&mut self, command: &Command) -> Ended {
        match command.0[10] as u8 {
            feature::VOLATILE_WRITE_CACHE => self.write_cache = command.0[11] & 1 != 0,
            feature::NUMBER_OF_QUEUES if command.0[11] & 0xffff == 0xffff => return Err(Outcome::INVALID_FIELD),
            feature::NUMBER_OF_QUEUES => {}
            // Arbitration, power, temperature, coalescing, events: taken, and without effect.
            0x01 | 0x02 | 0x04 | 0x08 | 0x09 | 0x0b => return Ok(0),
            _ => return Err(Outcome::INVALID_FIELD),
        }
        self.feature(command)
    }

    fn feature(&self, command: &Command) -> Ended {
        let last = u32::from(IO_QUEUES - 1);
        match command.0[10] as u8 {
            feature::VOLATILE_WRITE_CACHE => Ok(self.write_cache.into()),
            feature::NUMBER_OF_QUEUES => Ok(last << 16 | last),
            0x01 | 0x02 | 0x04 | 0x08 | 0x09 | 0x0b => Ok(0),
            _ => Err(Outcome::INVALID_FIELD),
        }
    }

    /// Bit 0 of Dword 0 is clear if the command was aborted (5.1).
    fn abort(&mut self, command: &Command, bus: &Bus<'_>) -> u32 {
        let (queue, id) = (command.0[10] as u16, (command.0[10] >> 16) as u16);
        let aborted = self.faults.abort(queue, id);
        if aborted {
            self.queues.complete(queue, id, Outcome::ABORT_REQUESTED, 0, bus);
        }
        u32::from(!aborted)
    }
}

/// Identifier, entries and address of a queue to be made (5.3, 5.4).
fn queue_of(command: &Command) -> Result<(u16, u32, u64), Outcome> {
    let (id, last) = (command.0[10] as u16, command.0[10] >> 16);
    if id == 0 || id > IO_QUEUES {
        return Err(Outcome::INVALID_QUEUE_IDENTIFIER);
    }
    if last == 0 || u64::from(last) > LAST_ENTRY {
        return Err(Outcome::INVALID_QUEUE_SIZE);
    }
    let [base, _] = command.prps();
    // CAP.CQR: queues are contiguous.
    if command.0[11] & 1 == 0 {
        return Err(Outcome::INVALID_FIELD);
    }
    if !base.is_multiple_of(PAGE) {
        return Err(Outcome::PRP_OFFSET_INVALID);
    }
    Ok((id, last + 1, base))
}

/// Figure 245.
fn describe_namespace(page: &mut [u8], blocks: u64, block_power: u8) {
    for size in [0, 8, 16] {
        put(page, size, &blocks.to_le_bytes());
    }
    // DLFEAT: what is deallocated reads as zeros.
    put(page, 33, &[0b001]);
    put(page, 128, &[0, 0, block_power, 0]);
}

/// A list of one descriptor: type UUID, 16 bytes (5.15.2.4, figure 249). Since revision 1.3 every namespace has a name that stays.
fn name_namespace(page: &mut [u8], id: u32) {
    put(page, 0, &[0x03, 16]);
    put(page, 4, &[0x6f, 0x1d, 0x1d, 0x1d, 0, 0, 0x40, 0, 0x80, 0, 0x75, 0x64]);
    put(page, 16, &id.to_be_bytes());
}

fn firmware_page() -> Vec<u8> {
    let mut page = vec![0; 512];
    put(&mut page, 0, &[1]);
    put(&mut page, 8, b"1       ");
    page
}

fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = page.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}
