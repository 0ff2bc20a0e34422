//! Commands into an I/O queue pair: what may be submitted, and where its data is.

use super::Io;
use super::blocking::Range;
use super::identify::Namespace;
use super::prp;
use super::queue::{Flight, IoQueue};
use crate::command::{Command, nvm};
use std::ops::Range as Bytes;
use udrv::dma::{Buffer, FromDevice, ToDevice};
use udrv_backend::{Error, Result};

/// Most ranges of one Dataset Management (6.7, NR).
pub(super) const MOST_RANGES: usize = 256;

impl<I: Io> IoQueue<I> {
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

    /// As [`IoQueue::submit_write`], and once it has ended the blocks are on the medium (Force Unit Access, 6.15).
    ///
    /// # Errors
    /// As [`IoQueue::submit_read`].
    pub fn submit_write_through(
        &mut self,
        namespace: &Namespace,
        lba: u64,
        buffer: Buffer<ToDevice>,
        part: Bytes<usize>,
    ) -> Result<u16> {
        self.submit_write_with(namespace, lba, buffer, part, nvm::FORCE_UNIT_ACCESS)
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

    /// Puts what has been written, by commands that have ended, on the medium (6.8).
    ///
    /// # Errors
    /// [`Error::Unavailable`] without [`IoQueue::has_room`].
    pub fn submit_flush(&mut self, namespace: &Namespace) -> Result<u16> {
        self.submit(Command::new(nvm::FLUSH, namespace.id), None, Flight::NoData)
    }

    /// Lets blocks read as zeros, without any being sent (6.16): 65536 at most.
    ///
    /// # Errors
    /// [`Error::DmaRange`] for none, or more; as [`IoQueue::submit_flush`].
    pub fn submit_write_zeroes(&mut self, namespace: &Namespace, range: Range) -> Result<u16> {
        if !(1..=1 << 16).contains(&range.blocks) {
            let why = "one Write Zeroes is for 1 to 65536 blocks";
            return Err(Error::DmaRange { iova: range.lba, size: range.blocks.into(), why });
        }
        let command = Command::new(nvm::WRITE_ZEROES, namespace.id).lba(range.lba).cdw12(range.blocks - 1);
        self.submit(command, None, Flight::NoData)
    }

    /// Dataset Management with Deallocate (6.7): the blocks' contents are needed no more. 256 ranges at most, for which it
    /// takes memory of the pool's.
    ///
    /// # Errors
    /// [`Error::DmaRange`] for none, or more, or if the pool is used up; as [`IoQueue::submit_flush`].
    pub fn submit_trim(&mut self, namespace: &Namespace, ranges: &[Range]) -> Result<u16> {
        const DEALLOCATE: u32 = 1 << 2;
        if !(1..=MOST_RANGES).contains(&ranges.len()) {
            let why = "one Dataset Management is for 1 to 256 ranges";
            return Err(Error::DmaRange { iova: 0, size: ranges.len() as u64, why });
        }
        let mut list = Vec::with_capacity(16 * ranges.len());
        for range in ranges {
            list.extend([0; 4]);
            list.extend(range.blocks.to_le_bytes());
            list.extend(range.lba.to_le_bytes());
        }
        let mut buffer = self.shared.pool.alloc::<ToDevice>(list.len())?;
        buffer.write(0, &list)?;
        let command = Command::new(nvm::DATASET_MANAGEMENT, namespace.id);
        let command = command.cdw10(ranges.len() as u32 - 1).cdw11(DEALLOCATE);
        let data = (buffer.iova(), buffer.len() as u64);
        self.submit(command, Some(data), Flight::Write(buffer.submit()))
    }

    /// Whether a part of a buffer can be a command's data; how many blocks it is.
    #[inline]
    fn check(&self, namespace: &Namespace, length: usize, part: &Bytes<usize>) -> Result<u32> {
        // A power of two: a shift takes a cycle, a division many.
        let shift = namespace.block_size.trailing_zeros();
        let blocks = part.len() as u64 >> shift;
        let is_whole = blocks << shift == part.len() as u64 && part.start.is_multiple_of(4);
        // Number of Logical Blocks has 16 bits.
        let fits = part.len() <= self.max_transfer && blocks <= 1 << 16;
        if part.start >= part.end || part.end > length || !is_whole || !fits {
            return Err(self.misfit(length, part, is_whole));
        }
        if self.has_room() { Ok(blocks as u32) } else { Err(self.full()) }
    }

    #[cold]
    fn misfit(&self, length: usize, part: &Bytes<usize>, is_whole: bool) -> Error {
        let why = if part.start > part.end || part.end > length {
            "the part is not in its buffer"
        } else if part.is_empty() || !is_whole {
            "whole blocks are moved, from a multiple of 4 bytes on"
        } else {
            "it is more than one command moves (MDTS)"
        };
        Error::DmaRange { iova: part.start as u64, size: part.len() as u64, why }
    }

    #[inline]
    fn submit(&mut self, command: Command, data: Option<(u64, u64)>, flight: Flight) -> Result<u16> {
        let Some(id) = self.next_id() else { return Err(self.full()) };
        let command = match data {
            Some((at, length)) => command.data(prp::describe(at, length, &self.lists, id)?),
            None => command,
        };
        self.push(&command.identified(id), flight)?;
        Ok(id)
    }
}
