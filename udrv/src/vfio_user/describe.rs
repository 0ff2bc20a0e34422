//! What the server says of its device, asked once and checked.

use super::connection::Connection;
use std::os::fd::OwnedFd;
use udrv_backend::{IrqFlags, IrqIndex, IrqInfo, RegionFlags, RegionIndex, RegionInfo, Result, SparseArea};
use udrv_wire::{self as wire, Limits, Request};

/// More indices than any PCI device has; a server that claims more is not believed.
const MAX_INDICES: u32 = 64;

/// Room for 250 mappable areas; a server that needs more says so, and is asked again.
const FIRST_ARGSZ: u32 = 4096;

/// A region, and where its mappable areas are.
pub(super) struct Region {
    pub(super) info: RegionInfo,
    pub(super) file: Option<(OwnedFd, u64)>,
}

/// Largest page that a server may ask for as its smallest: a huge page of x86; 64 KiB is the largest base page.
const LARGEST_PAGE: u64 = 2 << 20;

pub(super) struct Description {
    pub(super) capabilities: wire::Capabilities,
    pub(super) resettable: bool,
    pub(super) regions: Vec<Region>,
    pub(super) irqs: Vec<IrqInfo>,
}

impl Description {
    /// Agrees on a version and asks for everything.
    pub(super) fn ask(connection: &mut Connection) -> Result<Self> {
        let proposal = wire::Version { major: 0, minor: 2, capabilities: wire::Capabilities::default() };
        let reply = connection.call(&Request::Version(proposal), &[])?;
        let version = connection.decoded(wire::Version::decode(&reply.payload), "a version")?;
        if version.major != 0 || version.minor > 2 {
            let found = format!("protocol version {}.{}", version.major, version.minor);
            return Err(connection.broke(&found, "version 0.2, or 0.1"));
        }
        // A buffer takes a whole page at least, and is zeroed.
        let pgsizes = version.capabilities.pgsizes;
        if pgsizes != 0 && pgsizes.trailing_zeros() > LARGEST_PAGE.trailing_zeros() {
            return Err(connection.broke(&format!("page sizes {pgsizes:#x}"), "one of 2 MiB or less"));
        }
        let reply = connection.call(&Request::DeviceGetInfo(wire::DeviceGetInfo { argsz: 16 }), &[])?;
        let device = connection.decoded(wire::DeviceInfo::decode(&reply.payload), "device info")?;
        if device.num_regions > MAX_INDICES || device.num_irqs > MAX_INDICES {
            let found = format!("{} regions and {} irqs", device.num_regions, device.num_irqs);
            return Err(connection.broke(&found, "at most 64 of each"));
        }
        Ok(Self {
            capabilities: version.capabilities,
            resettable: device.flags.contains(wire::DeviceFlags::RESET),
            regions: (0..device.num_regions).map(|index| region(connection, index)).collect::<Result<_>>()?,
            irqs: (0..device.num_irqs).map(|index| irq(connection, index)).collect::<Result<_>>()?,
        })
    }
}

fn region(connection: &mut Connection, index: u32) -> Result<Region> {
    let (mut info, mut fds) = match region_info(connection, index, FIRST_ARGSZ)? {
        (wire::RegionInfoReply::Full(info), fds) => (info, fds),
        (wire::RegionInfoReply::Truncated { needed, .. }, _) if needed <= Limits::default().max_data_xfer_size => {
            match region_info(connection, index, needed)? {
                (wire::RegionInfoReply::Full(info), fds) => (info, fds),
                _ => {
                    return Err(connection.broke(&"region info cut short twice", "all of it, as there was room for it"));
                }
            }
        }
        (wire::RegionInfoReply::Truncated { needed, .. }, _) => {
            return Err(connection.broke(&format!("region info of {needed} bytes"), "at most 1 MiB"));
        }
    };
    if info.index != index {
        return Err(connection.broke(&format!("info of region {}", info.index), &format!("that of region {index}")));
    }
    if fds.len() > 1 {
        return Err(connection.broke(&format!("{} descriptors", fds.len()), "at most one, as was agreed"));
    }
    let mut flags = RegionFlags::empty();
    flags.set(RegionFlags::READ, info.flags.contains(wire::RegionFlags::READ));
    flags.set(RegionFlags::WRITE, info.flags.contains(wire::RegionFlags::WRITE));
    // Some servers set the flag and send no file: such a region is reached by message, as every region can be.
    let file = fds.pop().filter(|_| info.flags.contains(wire::RegionFlags::MMAP) && info.size > 0);
    let mut mappable = Vec::new();
    if file.is_some() {
        flags |= RegionFlags::MMAP;
        mappable = areas(connection, &mut info)?;
    }
    let offset = info.offset;
    let info = RegionInfo { index: RegionIndex(index), size: info.size, flags, mappable };
    Ok(Region { info, file: file.map(|file| (file, offset)) })
}

fn region_info(connection: &mut Connection, index: u32, argsz: u32) -> Result<(wire::RegionInfoReply, Vec<OwnedFd>)> {
    let request = Request::DeviceGetRegionInfo(wire::DeviceGetRegionInfo { argsz, index });
    let reply = connection.call(&request, &[])?;
    Ok((connection.decoded(wire::RegionInfo::decode(&reply.payload), "region info")?, reply.fds))
}

/// The areas, in ascending order. Each lies in the region (the decoder has checked that); here: none is empty or overlaps
/// the one before, and all lie where a file can be mapped.
fn areas(connection: &mut Connection, info: &mut wire::RegionInfo) -> Result<Vec<SparseArea>> {
    let whole = vec![wire::SparseArea { offset: 0, size: info.size }];
    let mut areas = info.sparse_areas.take().unwrap_or(whole);
    areas.sort_by_key(|area| area.offset);
    let mut free = 0;
    for area in &areas {
        let end = area.offset.checked_add(area.size).filter(|end| *end <= info.size);
        let in_file = info.offset.checked_add(info.size).is_some_and(|end| i64::try_from(end).is_ok());
        match end {
            Some(end) if area.size > 0 && area.offset >= free && in_file => free = end,
            _ => {
                let found = format!("a mappable area at {:#x} of {:#x} bytes", area.offset, area.size);
                return Err(connection.broke(&found, "areas in the region and its file that do not overlap"));
            }
        }
    }
    Ok(areas.into_iter().map(|area| SparseArea { offset: area.offset, size: area.size }).collect())
}

fn irq(connection: &mut Connection, index: u32) -> Result<IrqInfo> {
    let request = Request::DeviceGetIrqInfo(wire::DeviceGetIrqInfo { argsz: 16, index });
    let reply = connection.call(&request, &[])?;
    let info = connection.decoded(wire::IrqInfo::decode(&reply.payload), "irq info")?;
    if info.index != index {
        return Err(connection.broke(&format!("info of irq {}", info.index), &format!("that of irq {index}")));
    }
    let flags = IrqFlags::from_bits_truncate(info.flags.bits());
    Ok(IrqInfo { index: IrqIndex(index), count: info.count, flags })
}
