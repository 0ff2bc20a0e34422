//! A block device for other programs: an NBD server on a Unix socket, fixed newstyle, one export whose name is empty.
//!
//! Of the crates there are, the one for servers (`nbd`) allocates what a client says, knows neither Write Zeroes nor FUA, and
//! has no deadlines. So here is a small one. A connection has a [`Disk`] and two threads: one takes requests in, the other hands
//! them to the disk, many at a time, and answers each when it has ended, in whatever order that is; replies are in the
//! simple form, which has the request's handle and nothing of order.

mod budget;
mod mailbox;
mod negotiate;
mod peer;
mod serve;
mod wire;

pub use mailbox::Job;
pub use serve::{Server, bind};
pub use wire::{Command, Geometry, Request, errno};

use udrv_backend::Result;

/// What is exported, as one connection sees it. Offsets and lengths have been checked: whole blocks, all of them there.
///
/// A flush, and what a request is to be durable for, concern what was answered before it was begun; requests that are under
/// way at the same time are in no order.
pub trait Disk: Send {
    /// Whether another request can be begun now.
    fn has_room(&self) -> bool;

    /// Begins a read, a write, a flush, a trim or a write of zeros. What becomes of it is said by [`Disk::wait`].
    fn begin(&mut self, job: Job);

    /// Waits until at least one request has ended, or `more` says that there is something else to do: looked at when woken
    /// ([`Disk::waker`]). Hands over all that have ended.
    ///
    /// # Errors
    /// What ends the disk. All that was begun has been handed over.
    fn wait(&mut self, more: &dyn Fn() -> bool, ended: &mut dyn FnMut(Ended)) -> Result<()>;

    /// Lets [`Disk::wait`] in another thread look at its `more` again.
    fn waker(&self) -> Box<dyn Fn() + Send + Sync>;
}

/// A request that has ended.
pub struct Ended {
    pub request: Request,
    /// 0, or one of [`errno`].
    pub error: u32,
    /// What was read.
    pub data: Vec<u8>,
}

#[cfg(test)]
mod tests;
