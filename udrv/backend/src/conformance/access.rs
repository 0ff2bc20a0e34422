//! Regions and the accesses to them.

use super::{Check, Scratch, Step, Stop, Subject, ensure, not_applicable, refuses};
use crate::{Backend, Error, IrqIndex, RegionFlags, RegionIndex, RegionInfo, Result, Width};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "device_info_is_sane",
        promise: "a device has an address and some regions, and says the same each time",
        body: device_info,
    },
    Check {
        name: "region_info_of_every_index_is_consistent",
        promise: "every index below DeviceInfo::regions has an info that names it; a region of size 0 has no flag",
        body: region_info,
    },
    Check {
        name: "region_beyond_the_last_is_refused",
        promise: "an index beyond DeviceInfo::regions is NoSuchRegion in every call",
        body: region_beyond,
    },
    Check {
        name: "irq_info_of_every_index_is_consistent",
        promise: "every index below DeviceInfo::irqs has an info that names it; AUTOMASKED implies MASKABLE",
        body: irq_info,
    },
    Check {
        name: "read_inside_its_region_succeeds",
        promise: "the first and the last aligned access of every width lie in the region",
        body: read_inside,
    },
    Check {
        name: "read_beyond_its_region_is_refused",
        promise: "a read that does not lie in its region is OutOfRegion, sums that overflow included",
        body: read_beyond,
    },
    Check {
        name: "write_beyond_its_region_is_refused",
        promise: "a write that does not lie in its region is OutOfRegion, sums that overflow included",
        body: write_beyond,
    },
    Check {
        name: "unaligned_access_is_refused",
        promise: "an offset that is no multiple of the width is Unaligned",
        body: unaligned,
    },
    Check {
        name: "value_wider_than_its_access_is_refused",
        promise: "bits beyond the width are ValueTooWide, never truncated",
        body: wide_value,
    },
    Check {
        name: "config_space_identifies_the_device",
        promise: "config space reads the same at every width, and names a vendor",
        body: config_identifies,
    },
    Check {
        name: "scratch_register_keeps_what_was_written",
        promise: "accesses of one thread reach the device in program order, with every bit of their value",
        body: scratch_keeps,
    },
    Check {
        name: "mappable_areas_lie_in_their_region",
        promise: "mappable areas are whole pages, ascending, inside their region; MapRegion exists iff there is one",
        body: mappable_areas,
    },
    Check {
        name: "region_file_holds_the_region",
        promise: "byte 0 of a mappable region is at RegionFile::offset of RegionFile::file",
        body: region_file,
    },
];

fn regions(device: &dyn Backend) -> Result<Vec<RegionInfo>> {
    (0..device.info().regions).map(|index| device.region(RegionIndex(index))).collect()
}

fn device_info(subject: &Subject<'_>) -> Step {
    let device = (subject.open)()?;
    let info = device.info().clone();
    ensure!(!info.address.is_empty(), "its address is empty");
    ensure!((1..=64).contains(&info.regions), "{} regions: expected 1 to 64", info.regions);
    ensure!(info.irqs <= 64, "{} interrupt indices: expected at most 64", info.irqs);
    ensure!(*device.info() == info, "it says something else the second time: {:?}", device.info());
    Ok(())
}

fn region_info(subject: &Subject<'_>) -> Step {
    let device = subject.opened()?;
    for (index, info) in regions(&*device)?.into_iter().enumerate() {
        let index = RegionIndex(index as u32);
        ensure!(info.index == index, "info of region {index} names region {}", info.index);
        ensure!(device.region(index)? == info, "region {index} is something else the second time");
        if info.size == 0 {
            ensure!(info.flags.is_empty() && info.mappable.is_empty(), "region {index} has no bytes, but {info:?}");
        } else {
            ensure!(
                info.flags.intersects(RegionFlags::READ | RegionFlags::WRITE),
                "region {index} has no use: {info:?}"
            );
        }
    }
    Ok(())
}

fn region_beyond(subject: &Subject<'_>) -> Step {
    let device = subject.opened()?;
    for index in [device.info().regions, device.info().regions + 1, 1 << 24, u32::MAX].map(RegionIndex) {
        refuses!(device.region(index), Error::NoSuchRegion { .. }, "info of region {index}");
        refuses!(device.read(index, 0, Width::Bits32), Error::NoSuchRegion { .. }, "a read of region {index}");
        refuses!(device.write(index, 0, Width::Bits32, 0), Error::NoSuchRegion { .. }, "a write of region {index}");
        if let Some(mapper) = device.mappable() {
            refuses!(mapper.region_file(index), Error::NoSuchRegion { .. }, "the file of region {index}");
        }
    }
    Ok(())
}

fn irq_info(subject: &Subject<'_>) -> Step {
    use crate::IrqFlags;
    let device = subject.opened()?;
    for index in (0..device.info().irqs).map(IrqIndex) {
        let info = device.irq(index)?;
        ensure!(info.index == index, "info of {index} names {}", info.index);
        ensure!(device.irq(index)? == info, "{index} is something else the second time");
        let automasked = info.flags.contains(IrqFlags::AUTOMASKED);
        ensure!(!automasked || info.flags.contains(IrqFlags::MASKABLE), "{index} could never be unmasked: {info:?}");
        ensure!(info.count == 0 || info.flags.contains(IrqFlags::EVENTFD), "{index} cannot be signalled: {info:?}");
    }
    Ok(())
}

fn read_inside(subject: &Subject<'_>) -> Step {
    let device = subject.opened()?;
    let readable = |info: &RegionInfo| info.size > 0 && info.flags.contains(RegionFlags::READ);
    for info in regions(&*device)?.into_iter().filter(readable) {
        for width in Width::ALL.into_iter().filter(|width| width.bytes() <= info.size) {
            let last = (info.size - width.bytes()) & !(width.bytes() - 1);
            for offset in [0, last] {
                let value = device.read(info.index, offset, width)?;
                ensure!(value <= width.all_ones(), "a {width} read of {} at {offset:#x} gave {value:#x}", info.index);
            }
        }
    }
    Ok(())
}

/// Offsets, all aligned to 8, at which nothing of a region of `size` bytes can be: just beyond it, and where a sum
/// overflows or an offset that is cut to 32 bits, or to the 40 of the kernel's VFIO, would come back into some region.
fn offsets_beyond(size: u64) -> impl Iterator<Item = u64> {
    let next = size.next_multiple_of(8);
    [next, next + 8, next + 4096, 1 << 32, 1 << 40, 7 << 40, 1 << 63, !7].into_iter().filter(move |at| *at >= size)
}

fn beyond(subject: &Subject<'_>, access: impl Fn(&dyn Backend, RegionIndex, u64, Width) -> Result<()>) -> Step {
    let device = subject.opened()?;
    for info in regions(&*device)? {
        for width in Width::ALL {
            for offset in offsets_beyond(info.size) {
                let (index, outcome) = (info.index, access(&*device, info.index, offset, width));
                refuses!(
                    outcome,
                    Error::OutOfRegion { .. },
                    "{width} at {offset:#x} of {index} ({:#x} bytes)",
                    info.size
                );
            }
            // What straddles the end is not aligned, unless the region is of an odd size.
            let straddling = info.size.saturating_sub(width.bytes() / 2);
            let (index, outcome) = (info.index, access(&*device, info.index, straddling, width));
            refuses!(
                outcome,
                Error::OutOfRegion { .. } | Error::Unaligned { .. },
                "{width} at {straddling:#x} of {index}"
            );
        }
    }
    Ok(())
}

fn read_beyond(subject: &Subject<'_>) -> Step {
    beyond(subject, |device, region, offset, width| device.read(region, offset, width).map(drop))
}

fn write_beyond(subject: &Subject<'_>) -> Step {
    beyond(subject, |device, region, offset, width| device.write(region, offset, width, 0))
}

fn unaligned(subject: &Subject<'_>) -> Step {
    let device = subject.opened()?;
    for info in regions(&*device)?.into_iter().filter(|info| info.size >= 16) {
        for width in [Width::Bits16, Width::Bits32, Width::Bits64] {
            for offset in [1, width.bytes() / 2, width.bytes() - 1, width.bytes() + 1] {
                let (index, read) = (info.index, device.read(info.index, offset, width));
                refuses!(read, Error::Unaligned { .. }, "a {width} read at {offset:#x} of {index}");
                // Of a register that is read only everywhere: the vendor ID.
                if index == RegionIndex::CONFIG && offset + width.bytes() <= 4 {
                    let written = device.write(index, offset, width, 0);
                    refuses!(written, Error::Unaligned { .. }, "a {width} write at {offset:#x} of {index}");
                }
            }
        }
    }
    for scratch in subject.knowledge.scratch.iter().filter(|scratch| scratch.width > Width::Bits8) {
        let &Scratch { region, offset, width, .. } = scratch;
        let written = device.write(region, offset + 1, width, 0);
        refuses!(written, Error::Unaligned { .. }, "a {width} write at {:#x} of {region}", offset + 1);
    }
    Ok(())
}

fn wide_value(subject: &Subject<'_>) -> Step {
    let device = subject.opened()?;
    // The vendor and device IDs are read only, so that a backend that fails does no harm.
    for width in [Width::Bits8, Width::Bits16, Width::Bits32] {
        for value in [width.all_ones() + 1, u64::MAX] {
            let written = device.write(RegionIndex::CONFIG, 0, width, value);
            refuses!(written, Error::ValueTooWide { .. }, "a {width} write of {value:#x} to config space");
        }
    }
    for &Scratch { region, offset, width, .. } in subject.knowledge.scratch {
        if width < Width::Bits64 {
            let written = device.write(region, offset, width, width.all_ones() + 1);
            refuses!(written, Error::ValueTooWide { .. }, "a {width} write to {region}");
        }
    }
    Ok(())
}

fn config_identifies(subject: &Subject<'_>) -> Step {
    let device = subject.opened()?;
    let read = |offset, width| device.read(RegionIndex::CONFIG, offset, width);
    ensure!(device.region(RegionIndex::CONFIG)?.size >= 256, "config space has less than 256 bytes");
    let whole = read(0, Width::Bits32)?;
    ensure!(!matches!(whole & 0xffff, 0 | 0xffff), "the vendor ID is {:#06x}", whole & 0xffff);
    let halves = read(0, Width::Bits16)? | (read(2, Width::Bits16)? << 16);
    ensure!(halves == whole, "by 16 bits {halves:#x}, by 32 {whole:#x}");
    let mut bytes = 0;
    for at in 0..4 {
        bytes |= read(at, Width::Bits8)? << (8 * at);
    }
    ensure!(bytes == whole, "by 8 bits {bytes:#x}, by 32 {whole:#x}");
    let header = read(0x0c, Width::Bits32)?;
    let wide = read(0x08, Width::Bits64)?;
    ensure!(wide == read(0x08, Width::Bits32)? | (header << 32), "by 64 bits {wide:#x} at 0x8 is not the two halves");
    Ok(())
}

fn scratch_keeps(subject: &Subject<'_>) -> Step {
    if subject.knowledge.scratch.is_empty() {
        return not_applicable("no scratch register is known");
    }
    let device = subject.opened()?;
    for &Scratch { region, offset, width, .. } in subject.knowledge.scratch {
        for value in [0x0123_4567_89ab_cdef, 0, u64::MAX, 0xfedc_ba98_7654_3210].map(|value| value & width.all_ones()) {
            device.write(region, offset, width, !value & width.all_ones())?;
            device.write(region, offset, width, value)?;
            for _ in 0..2 {
                let came = device.read(region, offset, width)?;
                ensure!(came == value, "{region} at {offset:#x}: wrote {value:#x}, read {came:#x}");
            }
        }
    }
    Ok(())
}

fn mappable_areas(subject: &Subject<'_>) -> Step {
    let device = subject.opened()?;
    let mut any = false;
    for info in regions(&*device)? {
        let index = info.index;
        let flagged = info.flags.contains(RegionFlags::MMAP);
        ensure!(flagged != info.mappable.is_empty(), "{index}: flags {:?}, areas {:?}", info.flags, info.mappable);
        let mut end = 0;
        for area in &info.mappable {
            ensure!(area.size > 0, "{index}: an empty area");
            ensure!((area.offset | area.size).is_multiple_of(4096), "{index}: {area:x?} is not whole pages");
            ensure!(area.offset >= end, "{index}: {area:x?} overlaps the area before it");
            info.check_range(area.offset, area.size)?;
            end = area.offset + area.size;
        }
        any |= flagged;
        if let Some(mapper) = device.mappable() {
            let file = mapper.region_file(index);
            if flagged {
                let file = file?;
                ensure!(file.offset.is_multiple_of(4096), "{index}: its file offset {:#x} is odd", file.offset);
            } else {
                refuses!(file, Error::NotSupported { .. }, "the file of {index}, which cannot be mapped");
            }
        }
    }
    ensure!(!any || device.mappable().is_some(), "a region is flagged MMAP, but mappable() is None");
    Ok(())
}

fn region_file(subject: &Subject<'_>) -> Step {
    let device = subject.opened()?;
    let inside = |info: &RegionInfo, scratch: &Scratch| {
        let end = scratch.offset + scratch.width.bytes();
        info.mappable.iter().any(|area| scratch.offset >= area.offset && end <= area.offset + area.size)
    };
    let mut tried = false;
    for scratch in subject.knowledge.scratch {
        let &Scratch { region, offset, width, .. } = scratch;
        let (info, Some(mapper)) = (device.region(region)?, device.mappable()) else { continue };
        if !inside(&info, scratch) {
            continue;
        }
        let place = mapper.region_file(region)?;
        let file: File = place.file.try_clone_to_owned().map_err(|error| Error::os("a region's file", error))?.into();
        for value in [0x1122_3344_5566_7788 & width.all_ones(), 0] {
            device.write(region, offset, width, value)?;
            let mut raw = [0; 8];
            let bytes = raw.get_mut(..width.bytes() as usize).unwrap_or_default();
            file.read_exact_at(bytes, place.offset + offset)
                .map_err(|error| Stop::from(Error::os(format!("reading the file of {region}"), error)))?;
            let came = u64::from_le_bytes(raw);
            ensure!(came == value, "{region} at {offset:#x}: wrote {value:#x}, its file holds {came:#x}");
        }
        tried = true;
    }
    if tried { Ok(()) } else { not_applicable("no scratch register lies in a mappable area") }
}
