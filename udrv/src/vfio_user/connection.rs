//! One socket to one server: a request, its reply, and what the server asks in between.

use super::memory::Memory;
use std::fmt::Display;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::Duration;
use udrv_backend::{Error, Result};
use udrv_channel::{Channel, ChannelError, Message};
use udrv_wire::{self as wire, Header, Limits, MessageKind, Request};

pub(super) struct Connection {
    address: String,
    channel: Channel,
    next_id: u16,
    /// Why it was given up.
    broken: Option<String>,
    /// What the server may ask for.
    pub(super) memory: Memory,
}

impl Connection {
    /// Connects, and says nothing yet.
    pub(super) fn open(path: &Path, patience: Duration) -> Result<Self> {
        let address = format!("unix:{}", path.display());
        let stream = udrv_channel::connect(path, patience).map_err(|error| unreachable(&address, path, error))?;
        let channel = Channel::new(stream, Limits::default(), patience)
            .map_err(|error| Error::os(format!("setting up {address}"), error))?;
        Ok(Self { address, channel, next_id: 0, broken: None, memory: Memory::default() })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Gives the server up: it is told at once, and every later request is [`Error::Gone`].
    fn give_up(&mut self, why: String) {
        self.broken = Some(why);
        // It may be gone already.
        let _closed = self.channel.stream().shutdown(Shutdown::Both);
    }

    /// Gives the server up for what it sent.
    pub(super) fn broke(&mut self, found: &dyn Display, expected: &str) -> Error {
        let found = found.to_string();
        self.give_up(format!("its server broke the protocol ({found})"));
        Error::Protocol { peer: self.address.clone(), found, expected: expected.into() }
    }

    fn lost(&mut self, error: &ChannelError, doing: &str) -> Error {
        match error {
            ChannelError::Header(error) => {
                // The outer error names the message, the inner one what is wrong with it.
                let found = format!("a malformed header ({})", error.source);
                self.broke(&found, &format!("the reply to {doing}"))
            }
            ChannelError::Timeout(_) => {
                let after = self.channel.patience();
                self.give_up(format!("its server did not answer {doing} within {after:?}"));
                let what = format!("an answer of {} to {doing}", self.address);
                Error::Timeout { what, after }
            }
            other => {
                self.give_up(other.to_string());
                Error::Gone { device: self.address.clone(), why: format!("{other}, at {doing}") }
            }
        }
    }

    /// One request and its reply, which comes in time or never.
    pub(super) fn call(&mut self, request: &Request<'_>, fds: &[BorrowedFd<'_>]) -> Result<Message> {
        if let Some(why) = &self.broken {
            return Err(Error::Gone { device: self.address.clone(), why: why.clone() });
        }
        let command = request.command();
        let doing = command.to_string();
        let payload = request.encode();
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        // One deadline for all that the server sends until it has answered: it may not put us off by asking.
        let until = crate::clock::now() + self.channel.patience();
        let header = Header::command(id, command, payload.len());
        self.channel.send(&header, &payload, fds).map_err(|error| self.lost(&error, &doing))?;
        loop {
            let message = self.channel.receive_by(until).map_err(|error| self.lost(&error, &doing))?;
            let came = message.header;
            if came.kind == MessageKind::Command {
                self.serve(&message).map_err(|error| self.lost(&error, &doing))?;
                continue;
            }
            if came.msg_id != id || came.command != command {
                let found = format!("a reply to {} number {}", came.command, came.msg_id);
                return Err(self.broke(&found, &format!("one to {command} number {id}")));
            }
            // Before the payload is looked at: an error has none.
            if let Some(errno) = came.error {
                let source = std::io::Error::from_raw_os_error(i32::try_from(errno.0).unwrap_or(5));
                if command == wire::Command::VERSION && source.raw_os_error() == Some(libc::EBUSY) {
                    return Err(Error::Unavailable {
                        device: self.address.clone(),
                        why: "another client has it".into(),
                        advice: "`stub-driver status` shows which".into(),
                    });
                }
                return Err(Error::os(format!("{} refused {doing}", self.address), source));
            }
            return Ok(message);
        }
    }

    /// Answers what the server asks while we wait: its DMA, if it could not map our memory.
    fn serve(&mut self, message: &Message) -> std::result::Result<(), ChannelError> {
        let Header { msg_id, command, no_reply, .. } = message.header;
        let answer = Request::decode(command, &message.payload, &Limits::default())
            .map_err(|error| error.errno())
            .and_then(|request| self.memory.serve(&request));
        match answer {
            _ if no_reply => Ok(()),
            Ok(payload) => self.channel.send(&message.header.reply(payload.len()), &payload, &[]),
            Err(errno) => self.channel.send(&Header::error_reply(msg_id, command, errno), &[], &[]),
        }
    }

    /// The payload of a reply, decoded, or the server given up.
    pub(super) fn decoded<T>(&mut self, decoded: std::result::Result<T, wire::WireError>, expected: &str) -> Result<T> {
        decoded.map_err(|error| self.broke(&error, expected))
    }
}

/// Why no connection came about, and what to do.
fn unreachable(address: &str, path: &Path, error: std::io::Error) -> Error {
    use std::io::ErrorKind;
    let kind = std::fs::metadata(path).map(|metadata| metadata.file_type());
    let advice = match (error.kind(), kind) {
        (ErrorKind::NotFound, _) => "no such socket; start a server: stub-driver serve DEVICE",
        (ErrorKind::PermissionDenied, _) => "the socket is not yours; serve it with --owner USER",
        (ErrorKind::WouldBlock, _) => "the server accepts nobody; is another driver using it?",
        (_, Ok(kind)) if kind.is_dir() => "expected a socket, this is a directory; name the socket in it",
        (_, Ok(kind)) if !kind.is_socket() => "expected a socket, this is another kind of file",
        (ErrorKind::ConnectionRefused, _) => "no server behind the socket; start one: stub-driver serve DEVICE",
        _ => "expected the socket of a vfio-user server",
    };
    Error::os(format!("connecting to {address}: {advice}"), error)
}
