//! How the stub passes an open device to a driver: one message over a Unix socket, and the connection is the lease.
//!
//! The stub sends, once, a line of text: `usb ADDRESS` with the node's descriptor, or `busy WHY` (another driver has it) or
//! `cannot WHY` without one. Nothing else is ever sent. When the connection ends, so does the lease.

use crate::{Error, Result};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long the stub may take to answer: the lease before ends with a reset, and a kernel driver that has only just found the
/// device lets go of it when its commands have ended.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longest line believed, bytes.
const LINE: usize = 1024;

/// What a driver was given.
pub(crate) struct Lease {
    pub(crate) address: String,
    pub(crate) node: OwnedFd,
    /// Held for as long as the device is used.
    _connection: UnixStream,
}

/// Asks the stub behind a socket for its device.
pub(crate) fn ask(path: &Path) -> Result<Lease> {
    let socket = path.display().to_string();
    let connection = udrv_channel::connect(path, PATIENCE)
        .map_err(|error| Error::os(format!("connecting to the stub at {socket}"), error))?;
    let os = |error: std::io::Error| Error::os(format!("asking the stub at {socket}"), error);
    connection.set_read_timeout(Some(PATIENCE)).map_err(os)?;
    let mut line = [0; LINE];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let (length, fds) = {
        let mut buffers = [IoSliceMut::new(&mut line)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(connection.as_raw_fd(), &mut buffers, Some(&mut space), flags);
        let message = match message {
            Err(nix::errno::Errno::EAGAIN) => {
                return Err(Error::Timeout { what: format!("the stub's answer at {socket}"), after: PATIENCE });
            }
            other => other.map_err(|error| os(error.into()))?,
        };
        let fds: Vec<RawFd> = message
            .cmsgs()
            .map_err(|error| os(error.into()))?
            .flat_map(|one| if let ControlMessageOwned::ScmRights(fds) = one { fds } else { Vec::new() })
            .collect();
        (message.bytes, fds)
    };
    let mut fds: Vec<OwnedFd> = fds.into_iter().map(own).collect();
    let text = String::from_utf8_lossy(line.get(..length).unwrap_or_default()).trim().to_owned();
    match (text.split_once(' '), fds.pop()) {
        (Some(("usb", address)), Some(node)) => {
            Ok(Lease { address: address.to_owned(), node, _connection: connection })
        }
        (Some(("busy", why)), _) => Err(Error::Unavailable {
            device: socket,
            why: why.to_owned(),
            advice: "end the driver that has it, or wait for its end".into(),
        }),
        (Some(("cannot", why)), _) => Err(Error::Unavailable {
            device: socket,
            why: format!("the stub cannot take it: {why}"),
            advice: "its log says the same".into(),
        }),
        _ => Err(Error::Protocol {
            peer: format!("whatever listens at {socket}"),
            found: format!("{text:?}"),
            expected: "a stub that serves a USB device (stub-driver serve)".into(),
        }),
    }
}

/// Sends a driver its device.
///
/// # Errors
/// [`Error::Os`] if the driver has gone.
pub fn give(connection: &UnixStream, address: &str, node: BorrowedFd<'_>) -> Result<()> {
    let fds = [node.as_raw_fd()];
    send(connection, &format!("usb {address}\n"), &[ControlMessage::ScmRights(&fds)])
}

/// Why a driver cannot have the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Another driver has it.
    Busy,
    /// The stub cannot take it from the kernel.
    Cannot,
}

/// Tells a driver that it cannot have the device.
///
/// # Errors
/// [`Error::Os`] if the driver has gone.
pub fn refuse(connection: &UnixStream, refusal: Refusal, why: &str) -> Result<()> {
    let word = match refusal {
        Refusal::Busy => "busy",
        Refusal::Cannot => "cannot",
    };
    // A character has four bytes at most.
    let why: String = why.chars().take(LINE / 4 - 8).map(|c| if c == '\n' { ' ' } else { c }).collect();
    send(connection, &format!("{word} {why}\n"), &[])
}

fn send(connection: &UnixStream, line: &str, control: &[ControlMessage<'_>]) -> Result<()> {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let sent = sendmsg::<()>(connection.as_raw_fd(), &[IoSlice::new(line.as_bytes())], control, flags, None);
    sent.map(drop).map_err(|error| Error::os("answering a driver", error))
}

/// Takes a descriptor that the kernel has just installed for us.
fn own(fd: RawFd) -> OwnedFd {
    #![expect(unsafe_code, reason = "a received descriptor comes as a number")]
    use std::os::fd::FromRawFd as _;
    // SAFETY: the kernel has just installed it for this process, and recvmsg gave it to nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
