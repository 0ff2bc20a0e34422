//! NVM commands (6).

use super::{Backing, NvmeModel, prp};
use crate::command::{ALL_NAMESPACES, Command, Outcome, nvm};
use udrv_model::Bus;

impl NvmeModel {
    pub(super) fn namespace(&self, id: u32) -> Option<&Backing> {
        self.namespaces.get((id as usize).checked_sub(1)?)
    }

    pub(super) fn transfer(&mut self, queue: u16, command: &Command, bus: &Bus<'_>) -> Option<(Outcome, u32)> {
        let outcome = match self.perform(command, bus) {
            Ok(()) => Outcome::SUCCESS,
            Err(outcome) => {
                self.fail(queue, command.id(), outcome, command.starting_lba(), command.namespace());
                outcome
            }
        };
        Some((outcome, 0))
    }

    fn perform(&mut self, command: &Command, bus: &Bus<'_>) -> Result<(), Outcome> {
        if command.opcode() == nvm::FLUSH {
            return self.flush(command.namespace());
        }
        let backing = self.namespace(command.namespace()).ok_or(Outcome::INVALID_NAMESPACE)?;
        match command.opcode() {
            nvm::READ => {
                let (offset, length) = place(backing, command)?;
                let mut data = vec![0; length as usize];
                backing.read(offset, &mut data).map_err(|_| Outcome::UNRECOVERED_READ_ERROR)?;
                prp::send(command.prps(), &data, bus)?;
                self.counters.read += length / 512;
                self.counters.reads += 1;
            }
            nvm::WRITE => {
                let (offset, length) = place(backing, command)?;
                let data = prp::fetch(command.prps(), length, bus)?;
                backing.write(offset, &data).map_err(|_| Outcome::INTERNAL_ERROR)?;
                if command.0[12] & nvm::FORCE_UNIT_ACCESS != 0 {
                    backing.flush().map_err(|_| Outcome::INTERNAL_ERROR)?;
                }
                self.counters.written += length / 512;
                self.counters.writes += 1;
            }
            nvm::WRITE_ZEROES => zero(backing, command.starting_lba(), command.block_count())?,
            nvm::DATASET_MANAGEMENT => deallocate(backing, command, bus)?,
            _ => return Err(Outcome::INVALID_OPCODE),
        }
        Ok(())
    }

    fn flush(&self, namespace: u32) -> Result<(), Outcome> {
        let all = namespace == ALL_NAMESPACES;
        if !all && self.namespace(namespace).is_none() {
            return Err(Outcome::INVALID_NAMESPACE);
        }
        let mut wanted = self.namespaces.iter().zip(1..).filter(|(_, id)| all || *id == namespace);
        wanted.try_for_each(|(backing, _)| backing.flush().map_err(|_| Outcome::INTERNAL_ERROR))
    }
}

/// First byte and length of a transfer, no longer than MDTS.
fn place(backing: &Backing, command: &Command) -> Result<(u64, u64), Outcome> {
    const MAX_TRANSFER: u64 = 512 << 10;
    let length = command.block_count() * backing.block_size;
    if length > MAX_TRANSFER {
        return Err(Outcome::INVALID_FIELD);
    }
    let offset = backing.offset(command.starting_lba(), command.block_count());
    Ok((offset.ok_or(Outcome::LBA_OUT_OF_RANGE)?, length))
}

fn zero(backing: &Backing, lba: u64, blocks: u64) -> Result<(), Outcome> {
    let at = backing.offset(lba, blocks).ok_or(Outcome::LBA_OUT_OF_RANGE)?;
    backing.zero(at, blocks * backing.block_size).map_err(|_| Outcome::INTERNAL_ERROR)
}

/// Dataset Management: what may be deallocated is (6.7.1), and reads as zeros from then on.
fn deallocate(backing: &Backing, command: &Command, bus: &Bus<'_>) -> Result<(), Outcome> {
    let ranges = u64::from(command.0[10] & 0xff) + 1;
    let list = prp::fetch(command.prps(), 16 * ranges, bus)?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
    if command.0[11] & 1 << 2 == 0 {
        return Ok(());
    }
    for range in list.as_chunks::<16>().0 {
        // A range of no blocks is none.
        if number(&range[4..8]) == 0 {
            continue;
        }
        zero(backing, number(&range[8..]), number(&range[4..8]))?;
    }
    Ok(())
}
