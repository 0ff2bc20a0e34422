//! What a region is: sections "`VFIO_USER_DEVICE_GET_REGION_INFO`" and "`VFIO_USER_DEVICE_GET_REGION_IO_FDS`".

use crate::codec::{Reader, Writer, len32, usize_from, wide};
use crate::{Command, Expected, WireError};

bitflags::bitflags! {
    /// Attributes of a region. Bits without a name are kept; `VFIO_REGION_INFO_FLAG_CAPS` (bit 3) never appears here, it follows
    /// from [`RegionInfo::sparse_areas`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RegionFlags: u32 {
        /// The client may read.
        const READ = 1 << 0;
        /// The client may write.
        const WRITE = 1 << 1;
        /// The client may map the file descriptor that comes with the reply.
        const MMAP = 1 << 2;
        const _ = !FLAG_CAPS;
    }
}

const FLAG_CAPS: u32 = 1 << 3;
const INFO_SIZE: u32 = 32;
/// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`
const CAP_SPARSE_MMAP: u16 = 1;
const CAP_HEADER_SIZE: usize = 8;
const COMMAND: Command = Command::DEVICE_GET_REGION_INFO;

/// Asks for [`RegionInfo`]. The other fields, and bytes after the 32 of the structure, are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceGetRegionInfo {
    /// Bytes of reply payload the client has room for; at least 32.
    pub argsz: u32,
    /// The region.
    pub index: u32,
}

/// A part of a region that may be mapped ("VFIO region info cap sparse mmap").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseArea {
    /// Bytes into the region.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// The reply to DEVICE_GET_REGION_INFO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// The region.
    pub index: u32,
    /// Attributes.
    pub flags: RegionFlags,
    /// Bytes; 0 for a region that does not exist.
    pub size: u64,
    /// With MMAP, where the region starts in the file descriptor, in bytes.
    pub offset: u64,
    /// With MMAP, the parts that may be mapped. `None`: all of it. An empty list: nothing.
    pub sparse_areas: Option<Vec<SparseArea>>,
}

/// What a client learns from the reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegionInfoReply {
    /// Everything.
    Full(RegionInfo),
    /// The server left out the capabilities because *argsz* of the request was too small.
    Truncated {
        /// The *argsz* to ask again with.
        needed: u32,
        /// What came; `sparse_areas` is `None` and means nothing.
        info: RegionInfo,
    },
}

/// Asks for [`RegionIoFds`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceGetRegionIoFds {
    /// Bytes of reply payload the client has room for; at least 16.
    pub argsz: u32,
    /// The region.
    pub index: u32,
}

/// The reply to DEVICE_GET_REGION_IO_FDS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionIoFds {
    /// The region.
    pub index: u32,
    /// The parts of it that have a file descriptor.
    pub sub_regions: Vec<IoFdSubRegion>,
}

/// One entry of [`RegionIoFds`] ("Sub-Region IO FD info format").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoFdSubRegion {
    /// Bytes into the region.
    pub offset: u64,
    /// Bytes, or 0 if the width of the access does not matter.
    pub size: u64,
    /// Which of the message's file descriptors.
    pub fd_index: u32,
    /// `VFIO_USER_IO_FD_TYPE_IOEVENTFD` 0 or `VFIO_USER_IO_FD_TYPE_IOREGIONFD` 1.
    pub io_type: u32,
    /// Flags of that type.
    pub flags: u32,
    /// *datamatch* of an ioeventfd, *user_data* of an ioregionfd.
    pub data: u64,
}

const IO_FDS_SIZE: u32 = 16;
const SUB_REGION_SIZE: usize = 40;

impl DeviceGetRegionInfo {
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(COMMAND, payload, 32)?;
        let argsz = r.argsz(INFO_SIZE)?;
        r.u32()?; // flags
        Ok(Self { argsz, index: r.u32()? })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        Writer::default().u32(self.argsz).u32(0).u32(self.index).u32(0).u64(0).u64(0).done()
    }
}

impl RegionInfo {
    /// The *argsz* of the reply: bytes of its full payload.
    pub fn needed(&self) -> u32 {
        let caps = self.sparse_areas.as_ref().map_or(0, |areas| areas.len().saturating_mul(16).saturating_add(16));
        INFO_SIZE.saturating_add(len32(caps))
    }

    /// The payload of the reply to a client that has room for `client_argsz` bytes ("Message sizes").
    ///
    /// If the capabilities do not fit, only the 32 bytes of the structure go out, with the *argsz* to ask again with. The
    /// capabilities flag and *cap_offset* are set nevertheless: the flag is VFIO's convention, and QEMU refuses a reply with the
    /// flag whose *cap_offset* lies inside the structure, even one that it is about to ask for again.
    pub fn encode(&self, client_argsz: u32) -> Vec<u8> {
        let needed = self.needed();
        let (flag, cap_offset) = if self.sparse_areas.is_some() { (FLAG_CAPS, INFO_SIZE) } else { (0, 0) };
        let mut w = Writer::default()
            .u32(needed)
            .u32(self.flags.bits() & !FLAG_CAPS | flag)
            .u32(self.index)
            .u32(cap_offset)
            .u64(self.size)
            .u64(self.offset);
        if let Some(areas) = self.sparse_areas.as_ref().filter(|_| client_argsz >= needed) {
            w = w.u16(CAP_SPARSE_MMAP).u16(1).u32(0).u32(len32(areas.len())).u32(0);
            for area in areas {
                w = w.u64(area.offset).u64(area.size);
            }
        }
        w.done()
    }

    /// Reads the payload of the reply.
    ///
    /// The chain of capabilities must run forward, on multiples of eight bytes, inside the payload; areas must lie inside the
    /// region. Capabilities other than the sparse one are skipped.
    pub fn decode(payload: &[u8]) -> Result<RegionInfoReply, WireError> {
        let mut r = Reader::new(COMMAND, payload, 32)?;
        let argsz = r.argsz(INFO_SIZE)?;
        let (flags, index, cap_offset) = (r.u32()?, r.u32()?, r.u32()?);
        let (size, offset) = (r.u64()?, r.u64()?);
        let has_caps = flags & FLAG_CAPS != 0;
        let flags = RegionFlags::from_bits_retain(flags & !FLAG_CAPS);
        let mut info = Self { index, flags, size, offset, sparse_areas: None };
        if has_caps {
            if u64::from(argsz) > wide(payload.len()) {
                return Ok(RegionInfoReply::Truncated { needed: argsz, info });
            }
            info.sparse_areas = find_sparse_areas(payload, cap_offset, size)?;
        }
        Ok(RegionInfoReply::Full(info))
    }
}

/// Follows the chain of capabilities that starts at `cap_offset`; each offset is from the start of `payload`.
fn find_sparse_areas(payload: &[u8], cap_offset: u32, region_size: u64) -> Result<Option<Vec<SparseArea>>, WireError> {
    let mut found = None;
    let mut field = "cap_offset";
    let mut at = cap_offset;
    // The first byte a capability may start at. It grows with every step, so that the loop ends.
    let mut floor = u64::from(INFO_SIZE);
    loop {
        if u64::from(at) < floor || !at.is_multiple_of(8) {
            let expected = Expected::Rule("a multiple of 8 after the previous structure");
            return Err(WireError::invalid(COMMAND, field, at, expected));
        }
        let body = payload
            .get(usize_from(at)..)
            .filter(|body| body.len() >= CAP_HEADER_SIZE)
            .ok_or_else(|| WireError::invalid(COMMAND, field, at, Expected::Rule("an offset inside the payload")))?;
        let mut r = Reader::new(COMMAND, body, CAP_HEADER_SIZE)?;
        let (id, version, next) = (r.u16()?, r.u16()?, r.u32()?);
        if id == CAP_SPARSE_MMAP {
            if version != 1 {
                return Err(WireError::invalid(COMMAND, "version", version, Expected::Exactly(1)));
            }
            if found.is_some() {
                return Err(WireError::invalid(
                    COMMAND,
                    "id",
                    id,
                    Expected::Rule("one sparse mmap capability at most"),
                ));
            }
            found = Some(read_sparse_areas(r.rest(), region_size)?);
        }
        if next == 0 {
            return Ok(found);
        }
        floor = u64::from(at).saturating_add(wide(CAP_HEADER_SIZE));
        at = next;
        field = "next";
    }
}

fn read_sparse_areas(body: &[u8], region_size: u64) -> Result<Vec<SparseArea>, WireError> {
    let mut r = Reader::new(COMMAND, body, 8)?;
    let nr_areas = r.u32()?;
    r.u32()?; // reserved
    let entries = r.rest().chunks_exact(16);
    let count = usize_from(nr_areas);
    if count > entries.len() {
        return Err(WireError::invalid(COMMAND, "nr_areas", nr_areas, Expected::AtMost(wide(entries.len()))));
    }
    let mut areas = Vec::with_capacity(count);
    for entry in entries.take(count) {
        let mut r = Reader::exact(COMMAND, entry, 16)?;
        let area = SparseArea { offset: r.u64()?, size: r.u64()? };
        if area.offset.checked_add(area.size).is_none_or(|end| end > region_size) {
            let expected = Expected::Rule("a sparse area inside the region");
            return Err(WireError::invalid(COMMAND, "offset", area.offset, expected));
        }
        areas.push(area);
    }
    Ok(areas)
}

impl DeviceGetRegionIoFds {
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(Command::DEVICE_GET_REGION_IO_FDS, payload, 16)?;
        let argsz = r.argsz(IO_FDS_SIZE)?;
        let flags = r.u32()?;
        if flags != 0 {
            return Err(WireError::invalid(r.command, "flags", flags, Expected::Exactly(0)));
        }
        Ok(Self { argsz, index: r.u32()? })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        Writer::default().u32(self.argsz).u32(0).u32(self.index).u32(0).done()
    }
}

impl RegionIoFds {
    /// The payload of the reply to a client that has room for `client_argsz` bytes; without the entries if they do not fit.
    pub fn encode(&self, client_argsz: u32) -> Vec<u8> {
        let needed = IO_FDS_SIZE.saturating_add(len32(self.sub_regions.len().saturating_mul(SUB_REGION_SIZE)));
        let mut w = Writer::default().u32(needed).u32(0).u32(self.index).u32(len32(self.sub_regions.len()));
        for s in self.sub_regions.iter().filter(|_| client_argsz >= needed) {
            w = w.u64(s.offset).u64(s.size).u32(s.fd_index).u32(s.io_type).u32(s.flags).u32(0).u64(s.data);
        }
        w.done()
    }

    /// Reads the payload of the reply; `Err` for one without its entries, whose *argsz* is then in the error.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(Command::DEVICE_GET_REGION_IO_FDS, payload, 16)?;
        let argsz = r.argsz(IO_FDS_SIZE)?;
        r.u32()?; // flags
        let (index, count) = (r.u32()?, r.u32()?);
        if u64::from(argsz) > wide(payload.len()) {
            return Err(WireError::invalid(r.command, "argsz", argsz, Expected::AtMost(wide(payload.len()))));
        }
        let entries = r.rest().chunks_exact(SUB_REGION_SIZE);
        if wide(entries.len()) != u64::from(count) || !entries.remainder().is_empty() {
            return Err(WireError::invalid(r.command, "count", count, Expected::Exactly(wide(entries.len()))));
        }
        let mut sub_regions = Vec::with_capacity(entries.len());
        for entry in entries {
            let mut r = Reader::exact(r.command, entry, SUB_REGION_SIZE)?;
            let (offset, size, fd_index, io_type, flags) = (r.u64()?, r.u64()?, r.u32()?, r.u32()?, r.u32()?);
            r.u32()?; // padding
            sub_regions.push(IoFdSubRegion { offset, size, fd_index, io_type, flags, data: r.u64()? });
        }
        Ok(Self { index, sub_regions })
    }
}
