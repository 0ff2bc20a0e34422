//! The 16 bytes before every payload: section "Header".

use crate::codec::{Reader, len32};
use crate::{Errno, Expected, WireError};
use std::fmt;

/// Bytes of a header.
pub const HEADER_SIZE: u32 = 16;

const TYPE_MASK: u32 = 0xf;
const TYPE_COMMAND: u32 = 0;
const TYPE_REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// A command number ("Commands"). Unknown numbers are kept as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Command(pub u16);

macro_rules! commands {
    ($($name:ident = $value:literal, $doc:literal;)*) => {
        impl Command {
            $(#[doc = $doc] pub const $name: Self = Self($value);)*

            /// The name in the specification without `VFIO_USER_`, if the number is one of its table.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

commands! {
    VERSION = 1, "Client to server: proposes version and capabilities; the first message.";
    DMA_MAP = 2, "Client to server: a range of memory the device may access.";
    DMA_UNMAP = 3, "Client to server: the end of such a range.";
    DEVICE_GET_INFO = 4, "Client to server: number of regions and of interrupt types.";
    DEVICE_GET_REGION_INFO = 5, "Client to server: size and flags of a region.";
    DEVICE_GET_REGION_IO_FDS = 6, "Client to server: file descriptors that stand for parts of a region.";
    DEVICE_GET_IRQ_INFO = 7, "Client to server: flags and count of an interrupt type.";
    DEVICE_SET_IRQS = 8, "Client to server: assigns, masks, unmasks or triggers interrupts.";
    REGION_READ = 9, "Client to server: reads from a region.";
    REGION_WRITE = 10, "Client to server: writes to a region.";
    DMA_READ = 11, "Server to client: reads the client's memory.";
    DMA_WRITE = 12, "Server to client: writes the client's memory.";
    DEVICE_RESET = 13, "Client to server: resets the device.";
    REGION_WRITE_MULTI = 15, "Client to server: several small region writes in one message.";
    DEVICE_FEATURE = 16, "Client to server: gets, sets or probes a feature.";
    MIG_DATA_READ = 17, "Client to server: reads migration data.";
    MIG_DATA_WRITE = 18, "Client to server: writes migration data.";
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "command {}", self.0),
        }
    }
}

/// The *Type* bits of the header's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// A command (type 0).
    Command,
    /// The reply to a command (type 1).
    Reply,
}

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Chosen by the sender of the command, echoed by the reply.
    pub msg_id: u16,
    /// The command, also in its reply.
    pub command: Command,
    /// Bytes of the whole message, this header included.
    pub size: u32,
    /// Command or reply.
    pub kind: MessageKind,
    /// In a command: the sender wants no reply.
    pub no_reply: bool,
    /// In a reply: the command failed with this errno, which may be 0. Always `None` in a command, where the bit and the field
    /// are reserved.
    pub error: Option<Errno>,
}

/// A header that cannot be accepted, with what is needed to answer it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("header of message {msg_id} is malformed")]
pub struct HeaderError {
    /// The message id, for the answer.
    pub msg_id: u16,
    /// The command, for the answer.
    pub command: Command,
    /// Whether an answer may be sent: the type bits do not say reply, and *No_reply* is clear. A reply is never answered, lest
    /// two peers answer each other forever.
    pub answerable: bool,
    /// Bytes of payload to skip to reach the next message; `None` if the size itself is wrong, after which the stream has no
    /// known message boundary and the connection must end.
    pub skip: Option<u32>,
    /// What is wrong.
    pub source: WireError,
}

impl HeaderError {
    /// The errno to answer with.
    pub const fn errno(&self) -> Errno {
        self.source.errno()
    }
}

impl Header {
    /// The header of a command with `payload_len` bytes of payload.
    pub fn command(msg_id: u16, command: Command, payload_len: usize) -> Self {
        let size = HEADER_SIZE.saturating_add(len32(payload_len));
        Self { msg_id, command, size, kind: MessageKind::Command, no_reply: false, error: None }
    }

    /// The header of the successful reply to `self`, with `payload_len` bytes of payload.
    pub fn reply(&self, payload_len: usize) -> Self {
        Self { kind: MessageKind::Reply, ..Self::command(self.msg_id, self.command, payload_len) }
    }

    /// The whole message that fails command `command` with `errno`: such a reply is only a header.
    pub const fn error_reply(msg_id: u16, command: Command, errno: Errno) -> Self {
        Self { msg_id, command, size: HEADER_SIZE, kind: MessageKind::Reply, no_reply: false, error: Some(errno) }
    }

    /// Bytes that follow the header.
    pub const fn payload_len(&self) -> u32 {
        self.size.saturating_sub(HEADER_SIZE)
    }

    /// The header's 16 bytes. `error` is not sent in a command, where it is reserved.
    pub fn encode(&self) -> [u8; 16] {
        let (kind, error) = match self.kind {
            MessageKind::Command => (TYPE_COMMAND, None),
            MessageKind::Reply => (TYPE_REPLY, self.error),
        };
        let mut flags = kind;
        if self.no_reply {
            flags |= NO_REPLY;
        }
        if error.is_some() {
            flags |= ERROR;
        }
        let [a, b] = self.msg_id.to_ne_bytes();
        let [c, d] = self.command.0.to_ne_bytes();
        let [e, f, g, h] = self.size.to_ne_bytes();
        let [i, j, k, l] = flags.to_ne_bytes();
        let [m, n, o, p] = error.map_or(0, |e| e.0).to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// Reads a header; the whole message may have at most `limit` bytes.
    ///
    /// Flag bits 6 to 31 have no meaning yet and are ignored.
    pub fn decode(bytes: &[u8; 16], limit: u32) -> Result<Self, HeaderError> {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *bytes;
        let msg_id = u16::from_ne_bytes([a, b]);
        let command = Command(u16::from_ne_bytes([c, d]));
        let size = u32::from_ne_bytes([e, f, g, h]);
        let flags = u32::from_ne_bytes([i, j, k, l]);
        let errno = u32::from_ne_bytes([m, n, o, p]);

        let no_reply = flags & NO_REPLY != 0;
        let type_bits = flags & TYPE_MASK;
        let answerable = type_bits != TYPE_REPLY && !no_reply;
        let fail = |field, found: u32, expected, skip| HeaderError {
            msg_id,
            command,
            answerable,
            skip,
            source: WireError::invalid(command, field, found, expected),
        };

        let payload = size
            .checked_sub(HEADER_SIZE)
            .ok_or_else(|| fail("message size", size, Expected::AtLeast(HEADER_SIZE.into()), None))?;
        if size > limit {
            return Err(fail("message size", size, Expected::AtMost(limit.into()), None));
        }
        let kind = match type_bits {
            TYPE_COMMAND => MessageKind::Command,
            TYPE_REPLY => MessageKind::Reply,
            other => {
                return Err(fail("type", other, Expected::Rule("0 (command) or 1 (reply)"), Some(payload)));
            }
        };
        let error = (kind == MessageKind::Reply && flags & ERROR != 0).then_some(Errno(errno));
        Ok(Self { msg_id, command, size, kind, no_reply, error })
    }

    /// Checks that `payload`, which belongs to a command or reply without payload, is empty.
    pub fn expect_empty(command: Command, payload: &[u8]) -> Result<(), WireError> {
        Reader::exact(command, payload, 0).map(|_| ())
    }
}
