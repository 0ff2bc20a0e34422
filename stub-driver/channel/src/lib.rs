//! vfio-user messages with their descriptors over a Unix stream socket: what client and server share.
//!
//! A message is read whole or not at all: once its first byte has come, the rest must within the deadline. Descriptors
//! beyond what the receiver allows are closed. Nothing is allocated beyond the limit on a message's size.

use nix::errno::Errno as OsErrno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use udrv_wire::{Header, HeaderError, Limits};

/// Most descriptors that any message may carry here.
pub const MAX_FDS: usize = 16;

/// Why no message came or went.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The peer closed the connection between two messages.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer closed it, or stopped sending, within one.
    #[error("the peer stopped in the middle of a message")]
    Cut,
    /// The deadline passed.
    #[error("nothing came within {0:?}")]
    Timeout(Duration),
    /// Whoever holds the other end of the stop descriptor wants this one to end.
    #[error("asked to stop")]
    Stopped,
    /// The header is malformed. The stream cannot be followed after it.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The operating system refused.
    #[error(transparent)]
    Os(#[from] std::io::Error),
}

/// One message as it came.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// What followed.
    pub payload: Vec<u8>,
    /// The descriptors that came along.
    pub fds: Vec<OwnedFd>,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    limits: Limits,
    patience: Duration,
}

/// Takes what the kernel has just installed for us.
#[expect(unsafe_code, reason = "nix hands received descriptors over as bare integers")]
fn own(raw: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: SCM_RIGHTS installed this descriptor in this process a moment ago, and nobody else has been told of it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

impl Channel {
    /// Over a connected socket. `patience` bounds each message once begun, and each reply.
    ///
    /// # Errors
    /// What setting the socket to non-blocking gave.
    pub fn new(stream: UnixStream, limits: Limits, patience: Duration) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, limits, patience })
    }

    /// The socket.
    #[must_use]
    pub const fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// How long a begun message or a reply may take.
    #[must_use]
    pub const fn patience(&self) -> Duration {
        self.patience
    }

    /// Waits without a deadline until a message begins, the peer goes, or `stop` becomes readable.
    ///
    /// # Errors
    /// [`ChannelError::Stopped`], [`ChannelError::Os`].
    pub fn wait(&self, stop: BorrowedFd<'_>) -> Result<(), ChannelError> {
        loop {
            let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN), PollFd::new(stop, PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(OsErrno::EINTR) => continue,
                Err(errno) => return Err(std::io::Error::from(errno).into()),
                Ok(_) => {}
            }
            if fds[1].any().unwrap_or(true) {
                return Err(ChannelError::Stopped);
            }
            if fds[0].any().unwrap_or(true) {
                return Ok(());
            }
        }
    }

    /// Receives one message, which must be there whole within the deadline.
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub fn receive(&self) -> Result<Message, ChannelError> {
        self.receive_by(Instant::now() + self.patience)
    }

    /// As [`Channel::receive`], with a deadline that several messages may share. (A [`ChannelError::Timeout`] names the
    /// patience of the channel nevertheless.)
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub fn receive_by(&self, until: Instant) -> Result<Message, ChannelError> {
        let mut fds = Vec::new();
        let mut head = [0; 16];
        self.fill(&mut head, &mut fds, until, true)?;
        let header = Header::decode(&head, self.limits.max_message_size)?;
        let mut payload = vec![0; header.payload_len() as usize];
        self.fill(&mut payload, &mut fds, until, false)?;
        Ok(Message { header, payload, fds })
    }

    fn fill(&self, into: &mut [u8], fds: &mut Vec<OwnedFd>, until: Instant, first: bool) -> Result<(), ChannelError> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.receive_some(rest, fds) {
                Ok(0) if first && done == 0 => return Err(ChannelError::Closed),
                Ok(0) => return Err(ChannelError::Cut),
                Ok(read) => done += read,
                Err(OsErrno::EINTR) => {}
                Err(OsErrno::EAGAIN) => self.ready(PollFlags::POLLIN, until)?,
                Err(OsErrno::ECONNRESET) => return Err(ChannelError::Closed),
                Err(errno) => return Err(std::io::Error::from(errno).into()),
            }
        }
        Ok(())
    }

    fn receive_some(&self, into: &mut [u8], fds: &mut Vec<OwnedFd>) -> nix::Result<usize> {
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; MAX_FDS]);
        let mut parts = [IoSliceMut::new(into)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let came = recvmsg::<UnixAddr>(self.stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        for message in came.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = message {
                for fd in raw.into_iter().map(own) {
                    if fds.len() < MAX_FDS {
                        fds.push(fd);
                    }
                }
            }
        }
        Ok(came.bytes)
    }

    fn ready(&self, wanted: PollFlags, until: Instant) -> Result<(), ChannelError> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ChannelError::Timeout(self.patience));
        }
        let timeout = PollTimeout::try_from(left.as_millis().max(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.stream.as_fd(), wanted)], timeout) {
            Ok(_) | Err(OsErrno::EINTR) => Ok(()),
            Err(errno) => Err(std::io::Error::from(errno).into()),
        }
    }

    /// Sends one message with its descriptors.
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub fn send(&self, header: &Header, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let until = Instant::now() + self.patience;
        let mut bytes = Vec::with_capacity(16 + payload.len());
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(payload);
        let raw: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let mut control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            match sendmsg::<UnixAddr>(self.stream.as_raw_fd(), &[IoSlice::new(rest)], control, flags, None) {
                Ok(sent) => {
                    done += sent;
                    // They went with the first bytes.
                    control = &[];
                }
                Err(OsErrno::EINTR) => {}
                Err(OsErrno::EAGAIN) => self.ready(PollFlags::POLLOUT, until)?,
                Err(OsErrno::EPIPE | OsErrno::ECONNRESET) => return Err(ChannelError::Closed),
                Err(errno) => return Err(std::io::Error::from(errno).into()),
            }
        }
        Ok(())
    }
}
