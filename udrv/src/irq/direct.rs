//! A domain's only descriptor, without the event loop: one system call from the signal to its handler.
//!
//! In thread delivery the domain's thread blocks in a read of the eventfd itself. What must wake it for another reason, a
//! nudge, then comes through the same eventfd: signals count in the low half of the eight bytes, and each nudge adds
//! [`NUDGE`]. How many nudges were written is counted beside it, so that a peer that writes large numbers is not taken for
//! one: whatever is not accounted for by a nudge is a signal.

use super::source::Source;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll, ppoll};
use nix::sys::eventfd::EventFd;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use udrv_backend::{Error, Result};

const NUDGE: u64 = 1 << 32;

pub(super) struct Direct {
    /// A duplicate, so that it stays open as long as a thread sleeps on it.
    fd: OwnedFd,
    source: Arc<Source>,
    /// Of the table of descriptors, when this was the only one.
    version: u64,
    /// Written (or about to be), and not read.
    nudges: AtomicU64,
}

impl Direct {
    /// `None` if the descriptor cannot be duplicated: the event loop will do.
    pub(super) fn new(fd: &OwnedFd, source: &Arc<Source>, version: u64) -> Option<Self> {
        let fd = fd.try_clone().ok()?;
        Some(Self { fd, source: Arc::clone(source), version, nudges: AtomicU64::new(0) })
    }

    pub(super) fn source(&self) -> &Arc<Source> {
        &self.source
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Lets a read block. False if that cannot be.
    pub(super) fn may_block(&self) -> bool {
        fcntl(&self.fd, FcntlArg::F_SETFL(OFlag::empty())).is_ok()
    }

    /// Undoes that, and takes what is left: signals, if any. No nudge may come any more.
    pub(super) fn finish(&self) -> Option<u64> {
        fcntl(&self.fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).ok()?;
        self.read().ok().flatten()
    }

    /// Waits for signals or a nudge: how many signals, if any. `nudge` ends it too where the other side, which shares the
    /// open file, has made it one that does not block.
    pub(super) fn block(&self, nudge: &EventFd) -> Result<Option<u64>> {
        let failed = |errno| Error::os("waiting for an interrupt", errno);
        match self.read() {
            Err(Errno::EAGAIN) => {}
            Err(Errno::EINTR) => return Ok(None),
            read => return read.map_err(failed),
        }
        let mut fds = [self.fd.as_fd(), nudge.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match ppoll(&mut fds, None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let _spurious = nudge.read();
        Ok(None)
    }

    fn read(&self) -> nix::Result<Option<u64>> {
        let mut bytes = [0; 8];
        nix::unistd::read(&self.fd, &mut bytes)?;
        let value = u64::from_ne_bytes(bytes);
        let mut nudges = value / NUDGE;
        if nudges > 0 {
            nudges = nudges.min(self.nudges.load(Ordering::Acquire));
            self.nudges.fetch_sub(nudges, Ordering::AcqRel);
        }
        Ok(Some(value - nudges * NUDGE).filter(|signals| *signals != 0))
    }

    pub(super) fn nudge(&self) {
        let mut writable = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
        // Full, by a peer that wrote as much as goes in: then the reader does not sleep, and this would.
        if poll(&mut writable, 0u8).is_ok_and(|ready| ready > 0) {
            self.nudges.fetch_add(1, Ordering::AcqRel);
            // That 1 has room does not say that this has, and the reader may not be there to make some.
            let flags = fcntl(&self.fd, FcntlArg::F_GETFL).map_or(OFlag::empty(), OFlag::from_bits_truncate);
            let _may_fail = fcntl(&self.fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK));
            if nix::unistd::write(&self.fd, &NUDGE.to_ne_bytes()).is_err() {
                self.nudges.fetch_sub(1, Ordering::AcqRel);
            }
            let _may_fail = fcntl(&self.fd, FcntlArg::F_SETFL(flags));
        }
    }
}

impl AsFd for Direct {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
