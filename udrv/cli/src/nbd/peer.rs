//! A client's socket, with a deadline on everything but the wait for its next request.

use std::io::{ErrorKind, IoSlice, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use udrv::clock::Deadline;
use udrv_backend::{Error, Result};

/// How long a message that has begun may take, either way.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How often somebody who waits for a request looks whether to stop.
pub const LOOK: Duration = Duration::from_millis(200);

pub struct Peer {
    stream: UnixStream,
    patience: Duration,
}

impl Peer {
    /// `patience` is for each message that has begun, either way.
    pub const fn new(stream: UnixStream, patience: Duration) -> Self {
        Self { stream, patience }
    }

    /// The same client, for another thread.
    pub fn another(&self) -> Result<Self> {
        let stream = self.stream.try_clone().map_err(|error| Error::os("sharing an NBD client's socket", error))?;
        Ok(Self { stream, patience: self.patience })
    }

    /// Leaves the client: whoever waits for it has its end.
    pub fn leave(&self) {
        // It may have left first.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// The first bytes of a message, however long they take to begin: `false` if the client has left, or `stop` says so.
    pub fn begin(&mut self, into: &mut [u8], stop: impl Fn() -> bool) -> Result<bool> {
        loop {
            if stop() {
                return Ok(false);
            }
            match self.some(into, LOOK)? {
                Some(0) => return Ok(false),
                Some(count) => {
                    self.receive(into.get_mut(count..).unwrap_or_default())?;
                    return Ok(true);
                }
                None => {}
            }
        }
    }

    /// All of `into`.
    pub fn receive(&mut self, into: &mut [u8]) -> Result<()> {
        let deadline = Deadline::after(self.patience);
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let left = deadline.remaining().ok_or_else(|| deadline.missed("the rest of a message of an NBD client"))?;
            match self.some(rest, left)? {
                Some(0) => return Err(left_early()),
                Some(count) => done += count,
                None => {}
            }
        }
        Ok(())
    }

    /// What there is, 0 bytes at the end of the stream; `None` if nothing comes in time.
    fn some(&mut self, into: &mut [u8], patience: Duration) -> Result<Option<usize>> {
        self.stream
            .set_read_timeout(Some(patience))
            .map_err(|error| Error::os("bounding the wait for a client", error))?;
        match self.stream.read(into) {
            Ok(count) => Ok(Some(count)),
            Err(error) if is_early(&error) => Ok(None),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(Some(0)),
            Err(error) => Err(Error::os("reading from an NBD client", error)),
        }
    }

    /// Sends a message: its head, and the data behind it.
    pub fn send(&mut self, head: &[u8], data: &[u8]) -> Result<()> {
        let deadline = Deadline::after(self.patience);
        let mut parts = [IoSlice::new(head), IoSlice::new(data)];
        let mut rest = &mut parts[..];
        while !rest.is_empty() {
            let left = deadline.remaining().ok_or_else(|| deadline.missed("an NBD client's taking of a reply"))?;
            let bounded = self.stream.set_write_timeout(Some(left));
            bounded.map_err(|error| Error::os("bounding the wait for a client", error))?;
            match self.stream.write_vectored(rest) {
                Ok(0) => return Err(left_early()),
                Ok(count) => IoSlice::advance_slices(&mut rest, count),
                Err(error) if is_early(&error) => {}
                Err(error) => return Err(Error::os("writing to an NBD client", error)),
            }
        }
        Ok(())
    }
}

fn is_early(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn left_early() -> Error {
    wrong("a message without its end", "all of it")
}

/// A client that does not keep to the protocol.
pub fn wrong(found: impl Into<String>, expected: &str) -> Error {
    Error::Protocol { peer: "the NBD client".into(), found: found.into(), expected: expected.into() }
}
