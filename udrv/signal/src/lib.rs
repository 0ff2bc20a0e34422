//! The trigger of an interrupt, kept by whoever signals it: [`Sink`].
//!
//! A trigger is somebody else's descriptor, perhaps a hostile client's, who can fill it, and change its flags, at any moment.
//! What lives here is how to write to one without ever waiting, and nothing else: which descriptors are let in is decided by
//! whoever takes them from a stranger.
//!
//! A sink that was made before a fork(2) signals from the child as from the parent, without waiting for a lock or for room, also
//! if other threads of the parent were signalling at that moment.

mod aio;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, getsockopt, send, sockopt::SockType};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use udrv_backend::{Error, Result, Trigger};

/// The most signals that one call adds to an eventfd, each of which costs. A device may claim any number.
pub const MOST: u64 = 1024;

/// Where one vector is signalled.
pub struct Sink(Kind);

enum Kind {
    Socket(OwnedFd),
    /// Opened by ourselves, so as not to wait.
    Pipe(File),
    /// Of which only the kernel itself can be sure not to wait.
    EventFd(File),
}

impl Sink {
    /// Keeps a duplicate of a trigger.
    ///
    /// # Errors
    /// [`Error::Os`] if it cannot be duplicated, or is a pipe that cannot be opened for writing.
    pub fn new(trigger: Trigger<'_>) -> Result<Self> {
        let fd = trigger.try_clone_to_owned().map_err(|error| Error::os("keeping an interrupt's descriptor", error))?;
        if getsockopt(&fd, SockType).is_ok() {
            return Ok(Self(Kind::Socket(fd)));
        }
        // Only a pipe has this, and asking does not reach a file system.
        if fcntl(&fd, FcntlArg::F_GETPIPE_SZ).is_ok() {
            // Opened anew, since O_NONBLOCK on its owner's own description would be seen by the owner.
            let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let pipe = OpenOptions::new().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(link);
            return pipe
                .map(|pipe| Self(Kind::Pipe(pipe)))
                .map_err(|error| Error::os("opening an interrupt's pipe for writing", error));
        }
        Ok(Self(Kind::EventFd(fd.into())))
    }

    /// Signals `count` interrupts, at most [`MOST`] through an eventfd, and never waits, whatever the other side does meanwhile.
    /// Whether that is done with: not if a socket or pipe has no room, which has signals waiting already. What is closed has
    /// nobody to tell.
    pub fn signal(&self, count: u64) -> bool {
        let bytes = count.to_ne_bytes();
        match &self.0 {
            Kind::Socket(socket) => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                send(socket.as_raw_fd(), &bytes, flags) != Err(Errno::EAGAIN)
            }
            Kind::Pipe(pipe) => {
                let mut pipe = pipe;
                !pipe.write(&bytes).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
            }
            Kind::EventFd(event) => {
                let count = count.min(MOST);
                let left = count - aio::signal(event.as_fd(), count);
                // A kernel without asynchronous I/O: as well as can be had.
                if left > 0 && poll(&mut [PollFd::new(event.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO) == Ok(1) {
                    let mut event = event;
                    let _full = event.write(&left.to_ne_bytes());
                }
                true
            }
        }
    }
}

/// To wait for room.
impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Kind::Socket(socket) => socket.as_fd(),
            Kind::Pipe(file) | Kind::EventFd(file) => file.as_fd(),
        }
    }
}
