//! What goes over the socket, as in "The NBD protocol" (github.com/NetworkBlockDevice/nbd, doc/proto.md), section numbers in words.
//! Bytes to types and back: no I/O, and nothing here panics, whatever comes. All numbers are big-endian.

/// First 8 bytes of the server (Newstyle negotiation).
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// The next 8, and before each option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before each reply to an option.
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Handshake flags, of the server and of the client alike.
pub mod handshake {
    /// Options that are not understood are answered, not fatal.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// No 124 zeros after `NBD_OPT_EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 2;
}

/// Option types.
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
}

/// Option reply types.
pub mod reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const UNSUPPORTED: u32 = 1 << 31 | 1;
    pub const INVALID: u32 = 1 << 31 | 3;
    pub const UNKNOWN_EXPORT: u32 = 1 << 31 | 6;
}

/// Information types.
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flags.
mod transmission {
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Command flag: what is written is on the medium before the reply.
const COMMAND_FUA: u16 = 1;
/// Command flag: zeros are to be provisioned. They may be here, always.
const COMMAND_NO_HOLE: u16 = 2;

/// Error values.
pub mod errno {
    pub const EPERM: u32 = 1;
    pub const EIO: u32 = 5;
    pub const EINVAL: u32 = 22;
    pub const ENOSPC: u32 = 28;
    pub const ESHUTDOWN: u32 = 108;
}

/// Most bytes of a request's data, as the protocol recommends.
pub const MAX_DATA: u32 = 32 << 20;
/// Most bytes of an option's data: an export's name has 4096 at most.
pub const MAX_OPTION: u32 = 8192;
/// Bytes of a request's head.
pub const REQUEST_SIZE: usize = 28;
/// Bytes of an option's head.
pub const OPTION_SIZE: usize = 16;

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes, whole blocks.
    pub bytes: u64,
    /// Bytes of a block: requests are whole ones.
    pub block_size: u32,
    pub read_only: bool,
    pub can_trim: bool,
    pub can_zero: bool,
}

impl Geometry {
    /// Flushing on one connection is for what was written on all: a disk's cache is one.
    fn flags(&self) -> u16 {
        use transmission::{CAN_MULTI_CONN, HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES};
        let optional = |has: bool, flag: u16| if has { flag } else { 0 };
        HAS_FLAGS
            | SEND_FLUSH
            | SEND_FUA
            | CAN_MULTI_CONN
            | optional(self.read_only, READ_ONLY)
            | optional(self.can_trim && !self.read_only, SEND_TRIM)
            | optional(self.can_zero && !self.read_only, SEND_WRITE_ZEROES)
    }

    /// The answer to `NBD_OPT_EXPORT_NAME`.
    pub fn export(&self, no_zeroes: bool) -> Vec<u8> {
        let mut bytes = [&self.bytes.to_be_bytes()[..], &self.flags().to_be_bytes()].concat();
        bytes.resize(if no_zeroes { 10 } else { 134 }, 0);
        bytes
    }

    /// The answers to `NBD_OPT_INFO` and `NBD_OPT_GO`, before the acknowledgement.
    pub fn information(&self) -> [Vec<u8>; 2] {
        let export = [&INFO_EXPORT.to_be_bytes()[..], &self.bytes.to_be_bytes(), &self.flags().to_be_bytes()].concat();
        let sizes = [self.block_size, self.block_size.max(4096), MAX_DATA].map(u32::to_be_bytes).concat();
        [export, [&INFO_BLOCK_SIZE.to_be_bytes()[..], &sizes].concat()]
    }
}

/// Type and length of the option whose head this is; `None` if it is none.
pub fn option_head(head: [u8; OPTION_SIZE]) -> Option<(u32, u32)> {
    let (magic, rest) = head.split_first_chunk::<8>()?;
    let (kind, length) = rest.split_first_chunk::<4>()?;
    let length = length.first_chunk::<4>()?;
    (u64::from_be_bytes(*magic) == OPTION_MAGIC).then(|| (u32::from_be_bytes(*kind), u32::from_be_bytes(*length)))
}

/// A reply to an option.
pub fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let length = data.len() as u32;
    let head = [option, kind, length].map(u32::to_be_bytes).concat();
    [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &head, data].concat()
}

/// One entry of a list of exports.
pub fn listed(name: &str) -> Vec<u8> {
    [&(name.len() as u32).to_be_bytes()[..], name.as_bytes()].concat()
}

/// The export that `NBD_OPT_INFO` or `NBD_OPT_GO` names: length and name, then a count and so many information types, which
/// are all answered in any case. `None` if the lengths are not those of the data.
pub fn wanted_export(data: &[u8]) -> Option<&[u8]> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    let (count, types) = rest.split_first_chunk::<2>()?;
    (types.len() == 2 * usize::from(u16::from_be_bytes(*count))).then_some(name)
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    WriteZeroes,
    /// Of another type, or with flags that it does not have.
    Other,
}

/// One request, without the data that follows a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub command: Command,
    /// Force Unit Access.
    pub durable: bool,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
    /// Data follows, of this length.
    pub payload: u32,
}

impl Request {
    /// `None` without the magic number: the stream is out of step.
    pub fn decode(head: [u8; REQUEST_SIZE]) -> Option<Self> {
        let (magic, rest) = head.split_first_chunk::<4>()?;
        let (flags, rest) = rest.split_first_chunk::<2>()?;
        let (kind, rest) = rest.split_first_chunk::<2>()?;
        let (cookie, rest) = rest.split_first_chunk::<8>()?;
        let (offset, rest) = rest.split_first_chunk::<8>()?;
        let length = u32::from_be_bytes(*rest.first_chunk::<4>()?);
        if u32::from_be_bytes(*magic) != REQUEST_MAGIC {
            return None;
        }
        let (flags, kind) = (u16::from_be_bytes(*flags), u16::from_be_bytes(*kind));
        let (command, allowed) = match kind {
            0 => (Command::Read, COMMAND_FUA),
            1 => (Command::Write, COMMAND_FUA),
            2 => (Command::Disconnect, !0),
            3 => (Command::Flush, COMMAND_FUA),
            4 => (Command::Trim, COMMAND_FUA),
            6 => (Command::WriteZeroes, COMMAND_FUA | COMMAND_NO_HOLE),
            _ => (Command::Other, 0),
        };
        Some(Self {
            command: if flags & !allowed == 0 { command } else { Command::Other },
            durable: flags & COMMAND_FUA != 0,
            cookie: u64::from_be_bytes(*cookie),
            offset: u64::from_be_bytes(*offset),
            length,
            payload: if kind == 1 { length } else { 0 },
        })
    }
}

/// The head of a reply; after it comes what was read.
pub fn reply_head(cookie: u64, error: u32) -> [u8; 16] {
    let mut head = [0; 16];
    head[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
    head[4..8].copy_from_slice(&error.to_be_bytes());
    head[8..].copy_from_slice(&cookie.to_be_bytes());
    head
}
