//! Descriptors to be signalled through, and memory to be mapped.

use super::{Step, Stop};
use crate::{Error, Result, Trigger};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{setsockopt, sockopt};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The longest wait for a signal that must come.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a signal that must not come is given to come all the same.
const QUIET: Duration = Duration::from_millis(60);

fn os(doing: &str, error: impl Into<std::io::Error>) -> Error {
    Error::os(doing, error)
}

/// A descriptor to arm a vector with, and its reading end.
pub(super) enum Signal {
    Event(EventFd),
    Socket { read: UnixStream, trigger: Option<OwnedFd> },
}

impl Signal {
    pub(super) fn eventfd() -> Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        EventFd::from_flags(flags).map(Self::Event).map_err(|errno| os("creating an eventfd", errno))
    }

    pub(super) fn eventfds(count: u32) -> Result<Vec<Self>> {
        (0..count).map(|_| Self::eventfd()).collect()
    }

    pub(super) fn socket() -> Result<Self> {
        let (read, write) = UnixStream::pair().map_err(|error| os("creating a socketpair", error))?;
        read.set_nonblocking(true).map_err(|error| os("setting up a socketpair", error))?;
        Ok(Self::Socket { read, trigger: Some(write.into()) })
    }

    /// As [`Signal::socket`], with room for few signals.
    pub(super) fn narrow_socket() -> Result<Self> {
        let signal = Self::socket()?;
        if let Self::Socket { trigger: Some(trigger), .. } = &signal {
            setsockopt(trigger, sockopt::SndBuf, &1).map_err(|errno| os("narrowing a socketpair", errno))?;
        }
        Ok(signal)
    }

    /// What a vector is armed with.
    pub(super) fn trigger(&self) -> Option<Trigger<'_>> {
        match self {
            Self::Event(event) => Some(event.as_fd()),
            Self::Socket { trigger, .. } => trigger.as_ref().map(|fd| fd.as_fd()),
        }
    }

    /// Closes this side's copy of the trigger, so that only the backend's is left.
    pub(super) fn close_trigger(&mut self) {
        if let Self::Socket { trigger, .. } = self {
            *trigger = None;
        }
    }

    fn read_end(&self) -> BorrowedFd<'_> {
        match self {
            Self::Event(event) => event.as_fd(),
            Self::Socket { read, .. } => read.as_fd(),
        }
    }

    /// Waits until it is readable; whether it was.
    fn readable(&self, limit: Duration) -> Step<bool> {
        let until = crate::clock::now() + limit;
        loop {
            let left = until.saturating_duration_since(crate::clock::now());
            let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.read_end(), PollFlags::POLLIN)], timeout) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(os("waiting for a signal", errno).into()),
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) => {}
                Ok(_) => return Ok(true),
            }
        }
    }

    /// The signals that are there, without waiting: the sum of what was written.
    pub(super) fn taken(&self) -> Step<u64> {
        match self {
            Self::Event(event) => match event.read() {
                Ok(count) => Ok(count),
                Err(Errno::EAGAIN) => Ok(0),
                Err(errno) => Err(os("reading an eventfd", errno).into()),
            },
            Self::Socket { read, .. } => {
                let mut total = 0u64;
                let mut record = [0; 8];
                loop {
                    match (&*read).read(&mut record) {
                        Ok(8) => total = total.saturating_add(u64::from_ne_bytes(record)),
                        Ok(0) => return Ok(total),
                        Ok(other) => return Err(Stop::Failed(format!("a signal of {other} bytes: expected 8"))),
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(total),
                        Err(error) => return Err(os("reading a socketpair", error).into()),
                    }
                }
            }
        }
    }

    /// Waits for a signal and takes what is there.
    pub(super) fn comes(&self, what: &str) -> Step<u64> {
        if !self.readable(PATIENCE)? {
            return Err(Stop::Failed(format!("{what}: no signal within {PATIENCE:?}")));
        }
        match self.taken()? {
            0 => Err(Stop::Failed(format!("{what}: the descriptor was readable, but held no signal"))),
            count => Ok(count),
        }
    }

    /// Takes what comes until nothing more does.
    pub(super) fn settles(&self) -> Step<u64> {
        let mut total = 0u64;
        while self.readable(QUIET)? {
            total = total.saturating_add(self.taken()?);
        }
        Ok(total)
    }

    /// Gives an unwanted signal time to come.
    pub(super) fn stays_quiet(&self, what: &str) -> Step {
        if self.readable(QUIET)? {
            let count = self.taken()?;
            return Err(Stop::Failed(format!("{what}: {count} signals came, expected none")));
        }
        Ok(())
    }

    /// Waits until no writer is left.
    pub(super) fn ends(&self, what: &str) -> Step {
        let Self::Socket { read, .. } = self else { return Err(Stop::Failed("an eventfd has no end".into())) };
        while self.readable(PATIENCE)? {
            match (&*read).read(&mut [0; 64]) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(os("reading a socketpair", error).into()),
            }
        }
        Err(Stop::Failed(format!("{what}: the trigger is still open after {PATIENCE:?}")))
    }
}

/// Triggers for [`crate::Backend::set_triggers`].
pub(super) fn triggers(signals: &[Signal]) -> Vec<Option<Trigger<'_>>> {
    signals.iter().map(Signal::trigger).collect()
}

/// A file of `size` zero bytes that can be mapped.
pub(super) fn memory(size: u64) -> Result<File> {
    let fd = memfd_create(c"udrv-conformance", MFdFlags::MFD_CLOEXEC).map_err(|errno| os("creating a memfd", errno))?;
    let file = File::from(fd);
    file.set_len(size).map_err(|error| os("sizing a memfd", error))?;
    Ok(file)
}
