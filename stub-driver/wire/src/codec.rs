//! Taking integers off the front of a payload, and putting them on its end.

use crate::{Command, Expected, WireError};

/// `usize` to the width that errors carry.
pub(crate) fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// A length that this side produced, in a 32-bit field. Saturates: the receiver's size check then refuses the message.
pub(crate) fn len32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Reads a payload from front to back; every read past the end is an error that names the length needed.
pub(crate) struct Reader<'a> {
    pub(crate) command: Command,
    /// Bytes that the fixed part needs, for the error.
    needed: usize,
    /// Length of the whole payload, for the error.
    pub(crate) len: usize,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A payload whose fixed part is `needed` bytes; more may follow.
    pub(crate) fn new(command: Command, payload: &'a [u8], needed: usize) -> Result<Self, WireError> {
        let reader = Self { command, needed, len: payload.len(), rest: payload };
        if payload.len() < needed { Err(reader.short()) } else { Ok(reader) }
    }

    /// A payload of exactly `len` bytes.
    pub(crate) fn exact(command: Command, payload: &'a [u8], len: usize) -> Result<Self, WireError> {
        let reader = Self::new(command, payload, len)?;
        if payload.len() > len { Err(reader.bad_len(len)) } else { Ok(reader) }
    }

    fn short(&self) -> WireError {
        WireError::invalid(self.command, "payload length", wide(self.len), Expected::AtLeast(wide(self.needed)))
    }

    /// The payload should have been `expected` bytes long.
    pub(crate) fn bad_len(&self, expected: usize) -> WireError {
        WireError::invalid(self.command, "payload length", wide(self.len), Expected::Exactly(wide(expected)))
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.short())?;
        self.rest = tail;
        Ok(*head)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_ne_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_ne_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_ne_bytes)
    }

    /// *argsz*, which must be at least `least`.
    pub(crate) fn argsz(&mut self, least: u32) -> Result<u32, WireError> {
        let argsz = self.u32()?;
        if argsz < least {
            return Err(WireError::invalid(self.command, "argsz", argsz, Expected::AtLeast(least.into())));
        }
        Ok(argsz)
    }

    /// What is left.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

/// Builds a payload front to back.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn u16(mut self, v: u16) -> Self {
        self.0.extend_from_slice(&v.to_ne_bytes());
        self
    }

    pub(crate) fn u32(mut self, v: u32) -> Self {
        self.0.extend_from_slice(&v.to_ne_bytes());
        self
    }

    pub(crate) fn u64(mut self, v: u64) -> Self {
        self.0.extend_from_slice(&v.to_ne_bytes());
        self
    }

    pub(crate) fn bytes(mut self, v: &[u8]) -> Self {
        self.0.extend_from_slice(v);
        self
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }
}

/// A 32-bit field as an index. Saturates where `usize` is narrower, which every slice then refuses.
pub(crate) fn usize_from(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
