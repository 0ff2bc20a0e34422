//! Reading and writing by one call, and the commands without data of ours.

use super::Io;
use super::identify::Namespace;
use super::queue::{Data, Done, IoQueue};
use super::submit::MOST_RANGES;
use crate::command::{Outcome, nvm};
use udrv_backend::{Error, Result};

/// How often a command is tried that ended only because this side ended it.
const ATTEMPTS: u32 = 3;

/// Blocks of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub lba: u64,
    /// How many.
    pub blocks: u32,
}

impl<I: Io> IoQueue<I> {
    /// Reads whole blocks, of any number, through a buffer of the queue's own.
    ///
    /// # Errors
    /// [`Error::Status`] if a command fails; [`Error::DmaRange`] unless `into` is whole blocks; as
    /// [`IoQueue::wait`].
    pub fn read(&mut self, namespace: &Namespace, lba: u64, into: &mut [u8]) -> Result<()> {
        let chunk = self.chunk(namespace);
        let mut at = lba;
        for part in into.chunks_mut(chunk) {
            let blocks = part.len() as u64 / namespace.block_size;
            self.retry("Read", |queue| {
                let bounce = match queue.read_bounce.take() {
                    Some(bounce) => bounce,
                    None => queue.shared.pool.alloc(chunk)?,
                };
                queue.submit_read(namespace, at, bounce, 0..part.len())?;
                let done = queue.only()?;
                if let Data::Read(bounce) = done.data {
                    if done.outcome.is_success() {
                        bounce.read(0, part)?;
                    }
                    queue.read_bounce = Some(bounce);
                }
                Ok(done.outcome)
            })?;
            at = at.saturating_add(blocks);
        }
        Ok(())
    }

    /// Writes whole blocks, of any number, through a buffer of the queue's own.
    ///
    /// # Errors
    /// As [`IoQueue::read`].
    pub fn write(&mut self, namespace: &Namespace, lba: u64, from: &[u8]) -> Result<()> {
        self.write_with(namespace, lba, from, 0)
    }

    /// As [`IoQueue::write`], and what has been written is on the medium when this returns (Force Unit Access, 6.15).
    ///
    /// # Errors
    /// As [`IoQueue::read`].
    pub fn write_through(&mut self, namespace: &Namespace, lba: u64, from: &[u8]) -> Result<()> {
        self.write_with(namespace, lba, from, nvm::FORCE_UNIT_ACCESS)
    }

    fn write_with(&mut self, namespace: &Namespace, lba: u64, from: &[u8], control: u32) -> Result<()> {
        let chunk = self.chunk(namespace);
        let mut at = lba;
        for part in from.chunks(chunk) {
            let blocks = part.len() as u64 / namespace.block_size;
            self.retry("Write", |queue| {
                let mut bounce = match queue.write_bounce.take() {
                    Some(bounce) => bounce,
                    None => queue.shared.pool.alloc(chunk)?,
                };
                bounce.write(0, part)?;
                queue.submit_write_with(namespace, at, bounce, 0..part.len(), control)?;
                let done = queue.only()?;
                if let Data::Written(bounce) = done.data {
                    queue.write_bounce = Some(bounce);
                }
                Ok(done.outcome)
            })?;
            at = at.saturating_add(blocks);
        }
        Ok(())
    }

    /// What has been written is on the medium when this returns (6.8).
    ///
    /// # Errors
    /// As [`IoQueue::read`].
    pub fn flush(&mut self, namespace: &Namespace) -> Result<()> {
        self.without_data("Flush", |queue| queue.submit_flush(namespace))
    }

    /// Blocks read as zeros from now on, without any being sent (6.16).
    ///
    /// # Errors
    /// As [`IoQueue::read`].
    pub fn write_zeroes(&mut self, namespace: &Namespace, range: Range) -> Result<()> {
        let mut left = range;
        while left.blocks > 0 {
            let blocks = left.blocks.min(1 << 16);
            let some = Range { blocks, ..left };
            self.without_data("Write Zeroes", |queue| queue.submit_write_zeroes(namespace, some))?;
            left = Range { lba: left.lba.saturating_add(blocks.into()), blocks: left.blocks - blocks };
        }
        Ok(())
    }

    /// Dataset Management with Deallocate (6.7): the blocks' contents are needed no more.
    ///
    /// # Errors
    /// As [`IoQueue::read`].
    pub fn trim(&mut self, namespace: &Namespace, ranges: &[Range]) -> Result<()> {
        for some in ranges.chunks(MOST_RANGES) {
            self.without_data("Dataset Management", |queue| queue.submit_trim(namespace, some))?;
        }
        Ok(())
    }

    /// A command that moves nothing of the caller's.
    fn without_data(&mut self, name: &str, submit: impl Fn(&mut Self) -> Result<u16>) -> Result<()> {
        self.retry(name, |queue| {
            submit(queue)?;
            Ok(queue.only()?.outcome)
        })
    }

    /// Most bytes at a time, in whole blocks.
    fn chunk(&self, namespace: &Namespace) -> usize {
        let block = namespace.block_size as usize;
        (self.max_transfer / block).clamp(1, 1 << 16) * block
    }

    /// Waits for the one command that is outstanding.
    fn only(&mut self) -> Result<Done> {
        let mut found = None;
        self.wait(|done| found = Some(done))?;
        found.ok_or_else(|| self.shared.protocol("no completion".into(), "the one that was waited for"))
    }

    fn retry(&mut self, name: &str, mut attempt: impl FnMut(&mut Self) -> Result<Outcome>) -> Result<()> {
        if self.outstanding() > 0 {
            return Err(Error::Unavailable {
                device: self.shared.device.info().address.clone(),
                why: format!("{} submitted commands are outstanding in I/O queue {}", self.outstanding(), self.id()),
                advice: "wait for them before a blocking call".into(),
            });
        }
        let mut last = Outcome::SUCCESS;
        for _ in 0..ATTEMPTS {
            last = attempt(self)?;
            if last.is_success() {
                return Ok(());
            }
            if !last.is_ended_by_host() {
                break;
            }
        }
        Err(self.shared.failed(name, last))
    }
}
