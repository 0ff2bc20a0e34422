//! A client's socket, with a deadline on everything but the wait for its next request.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{MsgFlags, recv, sendmsg};
use std::io::IoSlice;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use udrv::clock::{Deadline, now};
use udrv_backend::{Error, Result};

/// How long a message that has begun may take, either way.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// For how long a client is waited for, either way, once the server is to end: for all messages together.
pub const GRACE: Duration = Duration::from_secs(2);
/// How often somebody who waits for a client looks whether to stop.
pub const LOOK: Duration = Duration::from_millis(200);

pub struct Peer<'a> {
    stream: UnixStream,
    patience: Duration,
    /// Whether the server is to end.
    ends: &'a (dyn Fn() -> bool + Sync),
    /// What is left of [`GRACE`].
    grace: Duration,
}

impl<'a> Peer<'a> {
    /// `patience` is for each message that has begun, either way, and `ends` says that the server is to end.
    pub const fn new(stream: UnixStream, patience: Duration, ends: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self { stream, patience, ends, grace: GRACE }
    }

    /// The same client, for another thread.
    pub fn another(&self) -> Result<Self> {
        let stream = self.stream.try_clone().map_err(|error| Error::os("sharing an NBD client's socket", error))?;
        Ok(Self { stream, ..*self })
    }

    /// Leaves the client: whoever waits for it has its end.
    pub fn leave(&self) {
        // It may have left first.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Whether the server is to end.
    pub fn ends(&self) -> bool {
        (self.ends)()
    }

    /// The first bytes of a message, however long they take to begin: `false` if the client has left, or the server is to end.
    pub fn begin(&mut self, into: &mut [u8]) -> Result<bool> {
        while !self.ends() {
            match self.some(into)? {
                Some(0) => return Ok(false),
                Some(count) => {
                    self.receive(into.get_mut(count..).unwrap_or_default())?;
                    return Ok(true);
                }
                None => self.ready(PollFlags::POLLIN, LOOK)?,
            }
        }
        Ok(false)
    }

    /// All of `into`.
    pub fn receive(&mut self, into: &mut [u8]) -> Result<()> {
        let deadline = Deadline::after(self.patience);
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let left = deadline.remaining().ok_or_else(|| deadline.missed("the rest of a message of an NBD client"))?;
            match self.some(rest)? {
                Some(0) => return Err(left_early()),
                Some(count) => done += count,
                None => self.wait(PollFlags::POLLIN, left)?,
            }
        }
        Ok(())
    }

    /// What there is, 0 bytes at the end of the stream; `None` if there is nothing yet.
    fn some(&self, into: &mut [u8]) -> Result<Option<usize>> {
        match recv(self.stream.as_raw_fd(), into, MsgFlags::MSG_DONTWAIT) {
            Ok(count) => Ok(Some(count)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(Errno::ECONNRESET) => Ok(Some(0)),
            Err(errno) => Err(Error::os("reading from an NBD client", errno)),
        }
    }

    /// Sends a message: its head, and the data behind it.
    pub fn send(&mut self, head: &[u8], data: &[u8]) -> Result<()> {
        let deadline = Deadline::after(self.patience);
        let mut parts = [IoSlice::new(head), IoSlice::new(data)];
        let mut rest = &mut parts[..];
        // A call that waits would wait as long for each piece that the kernel makes of it (SO_SNDTIMEO): hours, for a client
        // that takes one now and then.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while !rest.is_empty() {
            let left = deadline.remaining().ok_or_else(|| deadline.missed("an NBD client's taking of a reply"))?;
            match sendmsg::<()>(self.stream.as_raw_fd(), rest, &[], flags, None) {
                Ok(0) => return Err(left_early()),
                Ok(count) => IoSlice::advance_slices(&mut rest, count),
                Err(Errno::EAGAIN | Errno::EINTR) => self.wait(PollFlags::POLLOUT, left)?,
                Err(errno) => return Err(Error::os("writing to an NBD client", errno)),
            }
        }
        Ok(())
    }

    /// Waits a little for the client within a message that has `left`, or [`GRACE`] if the server is to end.
    fn wait(&mut self, events: PollFlags, left: Duration) -> Result<()> {
        let most = left.min(LOOK);
        if !self.ends() {
            return self.ready(events, most);
        }
        if self.grace.is_zero() {
            return Err(Error::Timeout {
                what: "an NBD client, which the server's end waits for".into(),
                after: GRACE,
            });
        }
        // What the disk takes meanwhile is not the client's.
        let begun = now();
        let ready = self.ready(events, most.min(self.grace));
        self.grace = self.grace.saturating_sub(now().saturating_duration_since(begun));
        ready
    }

    /// Until it may be ready, or somebody has left, or `most` has passed.
    fn ready(&self, events: PollFlags, most: Duration) -> Result<()> {
        match ppoll(&mut [PollFd::new(self.stream.as_fd(), events)], Some(most.into()), None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(Error::os("waiting for an NBD client", errno)),
        }
    }
}

fn left_early() -> Error {
    wrong("a message without its end", "all of it")
}

/// A client that does not keep to the protocol.
pub fn wrong(found: impl Into<String>, expected: &str) -> Error {
    Error::Protocol { peer: "the NBD client".into(), found: found.into(), expected: expected.into() }
}
