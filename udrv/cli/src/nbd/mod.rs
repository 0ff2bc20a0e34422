//! A block device for other programs: an NBD server on a Unix socket, fixed newstyle, one export whose name is empty.
//!
//! Of the crates there are, the one for servers (`nbd`) allocates what a client says, knows neither Write Zeroes nor FUA, and
//! has no deadlines. So here is a small one: a thread and a [`Disk`] for each connection, requests one after the other,
//! replies in the simple form.

mod negotiate;
mod peer;
mod serve;
mod wire;

pub use serve::{Server, bind};
pub use wire::Geometry;

use udrv_backend::Result;

/// What is exported, as one connection sees it. Offsets and lengths have been checked: whole blocks, all of them there.
pub trait Disk: Send {
    /// Reads from a byte on.
    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<()>;
    /// Writes; if `durable`, it is on the medium when this returns.
    fn write(&mut self, offset: u64, from: &[u8], durable: bool) -> Result<()>;
    /// What has been written, by whomever, is on the medium when this returns.
    fn flush(&mut self) -> Result<()>;
    /// The contents are needed no more.
    fn trim(&mut self, offset: u64, length: u32) -> Result<()>;
    /// Reads as zeros from now on.
    fn zero(&mut self, offset: u64, length: u32) -> Result<()>;
}

#[cfg(test)]
mod tests;
