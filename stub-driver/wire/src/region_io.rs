//! REGION_READ, REGION_WRITE and REGION_WRITE_MULTI: the sections of those names.

use crate::codec::{Reader, Writer, len32, wide};
use crate::{Command, Expected, Limits, WireError};

/// Reads from a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionRead {
    /// Bytes into the region; `offset + count` does not wrap.
    pub offset: u64,
    /// The region.
    pub region: u32,
    /// Bytes wanted; not 0, at most the receiver's `max_data_xfer_size`.
    pub count: u32,
}

/// Writes to a region; *count* is the length of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionWrite<'a> {
    /// Bytes into the region; the end of the write does not wrap.
    pub offset: u64,
    /// The region.
    pub region: u32,
    /// What to write; at most the receiver's `max_data_xfer_size`. May be empty, which libvfio-user accepts too.
    pub data: &'a [u8],
}

/// The reply to REGION_READ, of the same layout as the REGION_WRITE request.
pub type RegionData<'a> = RegionWrite<'a>;

/// The reply to REGION_WRITE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionWriteReply {
    /// As in the request.
    pub offset: u64,
    /// As in the request.
    pub region: u32,
    /// Bytes written.
    pub count: u32,
}

/// Several small writes, to be done in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionWriteMulti {
    /// The writes.
    pub writes: Vec<MultiWrite>,
}

/// One write of [`RegionWriteMulti`] ("Single Device Write Format").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultiWrite {
    /// Bytes into the region; `offset + count` does not wrap.
    pub offset: u64,
    /// The region.
    pub region: u32,
    /// How many bytes of `data` count: 1 to 8.
    pub count: u32,
    /// What to write, from its first byte on.
    pub data: [u8; 8],
}

/// The reply to REGION_WRITE_MULTI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionWriteMultiReply {
    /// Number of writes done.
    pub wr_cnt: u64,
}

const WRITE_SIZE: usize = 24;

/// Refuses an access whose end lies beyond `u64::MAX`.
fn check_end(command: Command, offset: u64, count: u32) -> Result<(), WireError> {
    match offset.checked_add(count.into()) {
        Some(_) => Ok(()),
        None => Err(WireError::invalid(command, "offset", offset, Expected::Rule("offset + count below 2^64"))),
    }
}

fn check_max(command: Command, count: u32, limits: &Limits) -> Result<(), WireError> {
    if count > limits.max_data_xfer_size {
        return Err(WireError::invalid(command, "count", count, Expected::AtMost(limits.max_data_xfer_size.into())));
    }
    Ok(())
}

impl RegionRead {
    pub(crate) fn decode(payload: &[u8], limits: &Limits) -> Result<Self, WireError> {
        let mut r = Reader::exact(Command::REGION_READ, payload, 16)?;
        let (offset, region, count) = (r.u64()?, r.u32()?, r.u32()?);
        if count == 0 {
            return Err(WireError::invalid(r.command, "count", count, Expected::AtLeast(1)));
        }
        check_max(r.command, count, limits)?;
        check_end(r.command, offset, count)?;
        Ok(Self { offset, region, count })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        Writer::default().u64(self.offset).u32(self.region).u32(self.count).done()
    }
}

impl<'a> RegionWrite<'a> {
    pub(crate) fn decode(payload: &'a [u8], limits: &Limits) -> Result<Self, WireError> {
        Self::read(Command::REGION_WRITE, payload, limits)
    }

    /// Reads the payload of a REGION_READ reply.
    pub fn decode_read_reply(payload: &'a [u8], limits: &Limits) -> Result<Self, WireError> {
        Self::read(Command::REGION_READ, payload, limits)
    }

    fn read(command: Command, payload: &'a [u8], limits: &Limits) -> Result<Self, WireError> {
        let mut r = Reader::new(command, payload, 16)?;
        let (offset, region, count) = (r.u64()?, r.u32()?, r.u32()?);
        let data = r.rest();
        check_max(command, count, limits)?;
        if u64::from(count) != wide(data.len()) {
            return Err(WireError::invalid(command, "count", count, Expected::Exactly(wide(data.len()))));
        }
        check_end(command, offset, count)?;
        Ok(Self { offset, region, data })
    }

    /// The payload of a REGION_WRITE request or a REGION_READ reply.
    pub fn encode(&self) -> Vec<u8> {
        Writer::default().u64(self.offset).u32(self.region).u32(len32(self.data.len())).bytes(self.data).done()
    }
}

impl RegionWriteReply {
    /// Reads the payload of a REGION_WRITE reply.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::exact(Command::REGION_WRITE, payload, 16)?;
        Ok(Self { offset: r.u64()?, region: r.u32()?, count: r.u32()? })
    }

    /// The payload of a REGION_WRITE reply.
    pub fn encode(&self) -> Vec<u8> {
        Writer::default().u64(self.offset).u32(self.region).u32(self.count).done()
    }
}

impl MultiWrite {
    /// The bytes to write.
    pub fn bytes(&self) -> &[u8] {
        self.data.get(..crate::codec::usize_from(self.count)).unwrap_or(&self.data)
    }
}

impl RegionWriteMulti {
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(Command::REGION_WRITE_MULTI, payload, 8)?;
        let wr_cnt = r.u64()?;
        let entries = r.rest().chunks_exact(WRITE_SIZE);
        if wr_cnt != wide(entries.len()) || !entries.remainder().is_empty() {
            return Err(WireError::invalid(
                r.command,
                "wr_cnt",
                wr_cnt,
                Expected::Rule("the number of whole writes that follow"),
            ));
        }
        let mut writes = Vec::with_capacity(entries.len());
        for entry in entries {
            let mut r = Reader::exact(r.command, entry, WRITE_SIZE)?;
            let write = MultiWrite { offset: r.u64()?, region: r.u32()?, count: r.u32()?, data: r.array()? };
            if !(1..=8).contains(&write.count) {
                return Err(WireError::invalid(r.command, "count", write.count, Expected::Rule("1 to 8")));
            }
            check_end(r.command, write.offset, write.count)?;
            writes.push(write);
        }
        Ok(Self { writes })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default().u64(wide(self.writes.len()));
        for write in &self.writes {
            w = w.u64(write.offset).u32(write.region).u32(write.count).bytes(&write.data);
        }
        w.done()
    }
}

impl RegionWriteMultiReply {
    /// Reads the payload of a REGION_WRITE_MULTI reply.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        Ok(Self { wr_cnt: Reader::exact(Command::REGION_WRITE_MULTI, payload, 8)?.u64()? })
    }

    /// The payload of a REGION_WRITE_MULTI reply.
    pub fn encode(&self) -> Vec<u8> {
        Writer::default().u64(self.wr_cnt).done()
    }
}
