//! DMA_MAP, DMA_UNMAP, DMA_READ and DMA_WRITE: the sections of those names.

use crate::codec::{Reader, Writer, wide};
use crate::{Command, Errno, Expected, Limits, WireError};

bitflags::bitflags! {
    /// What the device may do to a mapping. No bit at all is well-formed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DmaFlags: u32 {
        /// The device may read.
        const READ = 1 << 0;
        /// The device may write.
        const WRITE = 1 << 1;
    }
}

const MAP_SIZE: u32 = 32;
const UNMAP_SIZE: u32 = 24;
/// `VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP`
const UNMAP_DIRTY: u32 = 1 << 0;
/// `VFIO_DMA_UNMAP_FLAG_ALL`
const UNMAP_ALL: u32 = 1 << 1;

/// A range of the client's memory that the device may access ("`VFIO_USER_DMA_MAP`"). With a file descriptor the server may map
/// it, without one it uses DMA_READ and DMA_WRITE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaMap {
    /// Allowed directions.
    pub flags: DmaFlags,
    /// Bytes into the file of the file descriptor; `offset + size` does not wrap.
    pub offset: u64,
    /// First address as the device sees it (*address*); the last byte of the range is at most `u64::MAX`.
    pub iova: u64,
    /// Bytes; not 0.
    pub size: u64,
}

/// The end of a mapping ("`VFIO_USER_DMA_UNMAP`"); the reply has the same payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaUnmap {
    /// All mappings at once (`VFIO_DMA_UNMAP_FLAG_ALL`, of libvfio-user and the kernel); `iova` and `size` are then 0.
    pub all: bool,
    /// First address of the mapping (*address*).
    pub iova: u64,
    /// Bytes of the mapping; not 0 unless `all`.
    pub size: u64,
}

/// The server reads the client's memory ("`VFIO_USER_DMA_READ`").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaRead {
    /// First address, of a mapping.
    pub address: u64,
    /// Bytes wanted; not 0, at most the receiver's `max_data_xfer_size`.
    pub count: u64,
}

/// The server writes the client's memory ("`VFIO_USER_DMA_WRITE`"); *count* is the length of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaWrite<'a> {
    /// First address, of a mapping.
    pub address: u64,
    /// What to write.
    pub data: &'a [u8],
}

/// The reply to DMA_READ, of the same layout as the DMA_WRITE request.
pub type DmaData<'a> = DmaWrite<'a>;

/// The reply to DMA_WRITE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaWriteReply {
    /// The address written to.
    pub address: u64,
    /// Bytes written.
    pub count: u64,
}

/// Refuses a range whose last byte lies beyond `u64::MAX`. A range that ends exactly there is one a device can address.
fn check_range(command: Command, field: &'static str, start: u64, size: u64) -> Result<(), WireError> {
    match size.checked_sub(1).and_then(|last| start.checked_add(last)) {
        Some(_) => Ok(()),
        None => {
            Err(WireError::invalid(command, field, size, Expected::Rule("not 0, and no wrap past the last address")))
        }
    }
}

impl DmaMap {
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::exact(Command::DMA_MAP, payload, 32)?;
        r.argsz(MAP_SIZE)?;
        let flags = r.u32()?;
        let (offset, iova, size) = (r.u64()?, r.u64()?, r.u64()?);
        let flags = DmaFlags::from_bits(flags)
            .ok_or_else(|| WireError::invalid(r.command, "flags", flags, Expected::Rule("bits 0 and 1 only")))?;
        check_range(r.command, "size", iova, size)?;
        if offset.checked_add(size).is_none() {
            return Err(WireError::invalid(r.command, "offset", offset, Expected::Rule("offset + size below 2^64")));
        }
        Ok(Self { flags, offset, iova, size })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        Writer::default().u32(MAP_SIZE).u32(self.flags.bits()).u64(self.offset).u64(self.iova).u64(self.size).done()
    }
}

impl DmaUnmap {
    /// Reads the payload of a DMA_UNMAP request or reply. Asking for the dirty bitmap is well-formed and not supported.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(Command::DMA_UNMAP, payload, 24)?;
        r.argsz(UNMAP_SIZE)?;
        let flags = r.u32()?;
        let all = match flags {
            0 => false,
            UNMAP_ALL => true,
            UNMAP_DIRTY => {
                let expected = Expected::Rule("no dirty bitmap");
                let errno = Errno::ENOTSUP;
                return Err(WireError::Field {
                    command: r.command,
                    field: "flags",
                    found: flags.into(),
                    expected,
                    errno,
                });
            }
            _ => {
                return Err(WireError::invalid(r.command, "flags", flags, Expected::Rule("0 or bit 1 (all)")));
            }
        };
        if r.len != 24 {
            return Err(r.bad_len(24));
        }
        let (iova, size) = (r.u64()?, r.u64()?);
        if all {
            for (field, found) in [("address", iova), ("size", size)] {
                if found != 0 {
                    return Err(WireError::invalid(r.command, field, found, Expected::Rule("0 with the flag all")));
                }
            }
        } else {
            check_range(r.command, "size", iova, size)?;
        }
        Ok(Self { all, iova, size })
    }

    /// The payload of a DMA_UNMAP request or reply.
    pub fn encode(&self) -> Vec<u8> {
        let flags = if self.all { UNMAP_ALL } else { 0 };
        Writer::default().u32(UNMAP_SIZE).u32(flags).u64(self.iova).u64(self.size).done()
    }
}

impl DmaRead {
    pub(crate) fn decode(payload: &[u8], limits: &Limits) -> Result<Self, WireError> {
        let mut r = Reader::exact(Command::DMA_READ, payload, 16)?;
        let (address, count) = (r.u64()?, r.u64()?);
        if count > limits.max_data_xfer_size.into() {
            return Err(WireError::invalid(
                r.command,
                "count",
                count,
                Expected::AtMost(limits.max_data_xfer_size.into()),
            ));
        }
        check_range(r.command, "count", address, count)?;
        Ok(Self { address, count })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        Writer::default().u64(self.address).u64(self.count).done()
    }
}

impl<'a> DmaWrite<'a> {
    pub(crate) fn decode(payload: &'a [u8], limits: &Limits) -> Result<Self, WireError> {
        Self::read(Command::DMA_WRITE, payload, limits)
    }

    /// Reads the payload of a DMA_READ reply.
    pub fn decode_read_reply(payload: &'a [u8], limits: &Limits) -> Result<Self, WireError> {
        Self::read(Command::DMA_READ, payload, limits)
    }

    fn read(command: Command, payload: &'a [u8], limits: &Limits) -> Result<Self, WireError> {
        let mut r = Reader::new(command, payload, 16)?;
        let (address, count) = (r.u64()?, r.u64()?);
        let data = r.rest();
        if count > limits.max_data_xfer_size.into() {
            return Err(WireError::invalid(
                command,
                "count",
                count,
                Expected::AtMost(limits.max_data_xfer_size.into()),
            ));
        }
        if count != wide(data.len()) {
            return Err(WireError::invalid(command, "count", count, Expected::Exactly(wide(data.len()))));
        }
        check_range(command, "count", address, count)?;
        Ok(Self { address, data })
    }

    /// The payload of a DMA_WRITE request or a DMA_READ reply.
    pub fn encode(&self) -> Vec<u8> {
        Writer::default().u64(self.address).u64(wide(self.data.len())).bytes(self.data).done()
    }
}

impl DmaWriteReply {
    /// Reads the payload of a DMA_WRITE reply. The specification's table gives *count* four bytes, libvfio-user's structure eight;
    /// both are accepted.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(Command::DMA_WRITE, payload, 12)?;
        let address = r.u64()?;
        let count = match r.len {
            12 => r.u32()?.into(),
            16 => r.u64()?,
            _ => return Err(r.bad_len(16)),
        };
        Ok(Self { address, count })
    }

    /// The payload of a DMA_WRITE reply, with the eight-byte *count* that libvfio-user reads.
    pub fn encode(&self) -> Vec<u8> {
        Writer::default().u64(self.address).u64(self.count).done()
    }
}
