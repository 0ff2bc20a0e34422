//! vfio-user messages with their descriptors over a Unix stream socket: what client and server share.
//!
//! A message is read whole or not at all: once its first byte has come, the rest must within the deadline. Descriptors
//! beyond what the receiver allows are closed. Nothing is allocated beyond the limit on a message's size.
#![forbid(unsafe_code)]

mod connect;

pub use connect::connect;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno as OsErrno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use udrv_backend::clock::now;
use udrv_wire::{Header, HeaderError, Limits};

/// Most descriptors that any message may carry here; also the most that QEMU's client accepts as a server's limit.
pub const MAX_FDS: usize = 16;

/// Most descriptors that the kernel passes at once (`SCM_MAX_FD`, net/scm.h): room for all, so that every one is received,
/// and closed if it is too many.
const KERNEL_MAX_FDS: usize = 253;

/// Between two questions whether a peer that keeps us waiting is excused.
pub const EXCUSE_PERIOD: Duration = Duration::from_millis(100);

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
    /// The descriptors that came along, [`MAX_FDS`] at most.
    pub fds: Vec<OwnedFd>,
    /// How many more came and were closed.
    pub surplus_fds: usize,
}

/// Descriptors received so far.
#[derive(Default)]
struct Received {
    kept: Vec<OwnedFd>,
    surplus: usize,
}

/// One end of a connection.
pub struct Channel {
    stream: UnixStream,
    limits: Limits,
    patience: Duration,
    excused: Option<Box<dyn Fn() -> bool + Send + Sync>>,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel")
            .field("stream", &self.stream)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

impl Channel {
    /// Over a connected socket. `patience` bounds each message once begun, and each reply.
    ///
    /// # Errors
    /// What setting the socket to non-blocking gave.
    pub fn new(stream: UnixStream, limits: Limits, patience: Duration) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, limits, patience, excused: None })
    }

    /// While `is_excused` says so, the peer is not late, and afterwards it has the whole patience again. It is asked
    /// every [`EXCUSE_PERIOD`] of a wait.
    #[must_use]
    pub fn excused_while(self, is_excused: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { excused: Some(Box::new(is_excused)), ..self }
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

    /// Waits without a deadline until a message begins or the peer goes. Shutting the socket down, through a clone of
    /// it on another thread, ends this wait and every other.
    ///
    /// # Errors
    /// [`ChannelError::Os`].
    pub fn wait(&self) -> Result<(), ChannelError> {
        loop {
            match poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], None) {
                Ok(_) => return Ok(()),
                Err(OsErrno::INTR) => {}
                Err(errno) => return Err(std::io::Error::from(errno).into()),
            }
        }
    }

    /// Receives one message, which must be there whole within the deadline.
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub fn receive(&self) -> Result<Message, ChannelError> {
        self.receive_by(now() + self.patience)
    }

    /// As [`Channel::receive`], with a deadline that several messages may share. (A [`ChannelError::Timeout`] names the
    /// patience of the channel nevertheless.)
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub fn receive_by(&self, until: Instant) -> Result<Message, ChannelError> {
        let mut fds = Received::default();
        let mut head = [0; 16];
        let mut until = until;
        self.fill(&mut head, &mut fds, &mut until, true)?;
        let header = Header::decode(&head, self.limits.max_message_size)?;
        let mut payload = vec![0; header.payload_len() as usize];
        self.fill(&mut payload, &mut fds, &mut until, false)?;
        Ok(Message { header, payload, fds: fds.kept, surplus_fds: fds.surplus })
    }

    fn fill(&self, into: &mut [u8], fds: &mut Received, until: &mut Instant, first: bool) -> Result<(), ChannelError> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.receive_some(rest, fds) {
                Ok(0) if first && done == 0 => return Err(ChannelError::Closed),
                Ok(0) => return Err(ChannelError::Cut),
                Ok(read) => done += read,
                Err(OsErrno::INTR) => {}
                Err(OsErrno::AGAIN) => self.ready(PollFlags::IN, until)?,
                Err(OsErrno::CONNRESET) => return Err(ChannelError::Closed),
                Err(errno) => return Err(std::io::Error::from(errno).into()),
            }
        }
        Ok(())
    }

    fn receive_some(&self, into: &mut [u8], fds: &mut Received) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(KERNEL_MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let came = recvmsg(&self.stream, &mut [IoSliceMut::new(into)], &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                for fd in rights {
                    if fds.kept.len() < MAX_FDS { fds.kept.push(fd) } else { fds.surplus += 1 }
                }
            }
        }
        Ok(came.bytes)
    }

    /// Waits until the socket is ready; for a peer that may be excused, until it is or it is time to ask whether it is.
    fn ready(&self, wanted: PollFlags, until: &mut Instant) -> Result<(), ChannelError> {
        let mut left = until.saturating_duration_since(now());
        if let Some(is_excused) = &self.excused {
            if is_excused() {
                *until = now() + self.patience;
                left = self.patience;
            }
            // Zero stays: it has passed.
            left = left.min(EXCUSE_PERIOD);
        }
        if left.is_zero() {
            return Err(ChannelError::Timeout(self.patience));
        }
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&self.stream, wanted)], timeout.as_ref()) {
            Ok(_) | Err(OsErrno::INTR) => Ok(()),
            Err(errno) => Err(std::io::Error::from(errno).into()),
        }
    }

    /// Sends one message with its descriptors.
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub fn send(&self, header: &Header, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let mut until = now() + self.patience;
        let mut bytes = Vec::with_capacity(16 + payload.len());
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(payload);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(KERNEL_MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(std::io::Error::from(OsErrno::TOOMANYREFS).into());
        }
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.stream, &[IoSlice::new(rest)], &mut control, flags) {
                Ok(sent) => {
                    done += sent;
                    // They went with the first bytes.
                    control.clear();
                }
                Err(OsErrno::INTR) => {}
                Err(OsErrno::AGAIN) => self.ready(PollFlags::OUT, &mut until)?,
                Err(OsErrno::PIPE | OsErrno::CONNRESET) => return Err(ChannelError::Closed),
                Err(errno) => return Err(std::io::Error::from(errno).into()),
            }
        }
        Ok(())
    }
}
