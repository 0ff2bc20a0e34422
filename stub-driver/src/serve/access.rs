//! Reads and writes of regions: a message carries any number of bytes at any offset, a device takes naturally aligned
//! accesses.

use super::refusal::Refusal;
use udrv_backend::{Backend, Error, RegionIndex, RegionInfo, Width};

/// The accesses that a range becomes: at each step the widest that is aligned and fits.
fn split(offset: u64, length: u64) -> impl Iterator<Item = (u64, Width)> {
    let end = offset.saturating_add(length);
    let mut at = offset;
    std::iter::from_fn(move || {
        let fits = |width: &&Width| at.is_multiple_of(width.bytes()) && width.bytes() <= end - at;
        let width = *Width::ALL.iter().rev().find(fits)?;
        let here = at;
        at += width.bytes();
        Some((here, width))
    })
}

/// The region, if the range lies in it.
fn find(regions: &[RegionInfo], region: u32, offset: u64, length: usize) -> Result<&RegionInfo, Refusal> {
    let none = Error::NoSuchRegion { region: RegionIndex(region), count: regions.len() as u32 };
    let info = regions.get(region as usize).ok_or(none)?;
    info.check_range(offset, length as u64)?;
    Ok(info)
}

/// Reads `length` bytes, which the protocol's limit on transfers bounds.
pub(super) fn read(
    device: &dyn Backend,
    regions: &[RegionInfo],
    region: u32,
    offset: u64,
    length: usize,
) -> Result<Vec<u8>, Refusal> {
    let index = find(regions, region, offset, length)?.index;
    let mut data = Vec::with_capacity(length);
    for (at, width) in split(offset, length as u64) {
        let value = device.read(index, at, width)?.to_le_bytes();
        data.extend(value.into_iter().take(width.bytes() as usize));
    }
    Ok(data)
}

/// Writes all of `data`. What was written before an access failed stays written.
pub(super) fn write(
    device: &dyn Backend,
    regions: &[RegionInfo],
    region: u32,
    offset: u64,
    data: &[u8],
) -> Result<(), Refusal> {
    let index = find(regions, region, offset, data.len())?.index;
    let mut rest = data;
    for (at, width) in split(offset, data.len() as u64) {
        let (head, tail) = rest.split_at(width.bytes() as usize);
        let mut raw = [0; 8];
        raw[..head.len()].copy_from_slice(head);
        device.write(index, at, width, u64::from_le_bytes(raw))?;
        rest = tail;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_of_any_alignment_is_split_into_widest_aligned_accesses() {
        let widths = |offset, length| split(offset, length).map(|(at, width)| (at, width.bytes())).collect::<Vec<_>>();
        assert_eq!(widths(0, 4), [(0, 4)]);
        assert_eq!(widths(3, 14), [(3, 1), (4, 4), (8, 8), (16, 1)]);
        assert_eq!(widths(6, 4), [(6, 2), (8, 2)]);
        assert_eq!(widths(5, 0), []);
    }
}
