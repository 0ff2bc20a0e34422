//! What the kernel's replies say: region information and IOMMU information, with the capability chains behind them.
//!
//! A chain is offsets into the reply (`struct vfio_info_cap_header`: id, version, offset of the next). Nothing here
//! indexes by what a reply says: a reply that is cut short or points nowhere yields less, never a panic.

use std::mem::offset_of;
use std::ops::RangeInclusive;
use udrv_backend::{DmaLimits, RegionFlags, RegionIndex, RegionInfo, SparseArea};
use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS,
    vfio_info_cap_header, vfio_iommu_type1_info, vfio_region_info,
};

/// Entries of a list capability begin behind its header, their number and a reserved word.
const LIST: usize = size_of::<vfio_info_cap_header>() + 8;

/// The kernel's limit before it reported one (`dma_entry_limit` of vfio_iommu_type1).
const MAPPINGS_UNLESS_TOLD: u32 = u16::MAX as u32;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
}

/// The capabilities of a reply from the one at `first`: id, and the bytes from its header on.
fn capabilities(reply: &[u8], first: u32) -> impl Iterator<Item = (u32, &[u8])> {
    let mut at = first as usize;
    std::iter::from_fn(move || {
        let bytes = reply.get(at..).filter(|_| at != 0)?;
        let id = u16_at(bytes, offset_of!(vfio_info_cap_header, id))?;
        let next = u32_at(bytes, offset_of!(vfio_info_cap_header, next))? as usize;
        // The kernel appends each behind the last; what does not go forward is the end, or a loop.
        at = if next > at { next } else { 0 };
        Some((u32::from(id), bytes))
    })
}

/// The pairs of 64-bit numbers that a list capability holds.
fn pairs(capability: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    let count = u32_at(capability, size_of::<vfio_info_cap_header>()).unwrap_or(0) as usize;
    let entries = capability.get(LIST..).unwrap_or_default().chunks_exact(16).take(count);
    entries.filter_map(|entry| Some((u64_at(entry, 0)?, u64_at(entry, 8)?)))
}

/// What a region is, and where it begins in the device's descriptor. `None` if the reply is shorter than its structure.
pub(crate) fn region(index: RegionIndex, reply: &[u8]) -> Option<(RegionInfo, u64)> {
    let raw = u32_at(reply, offset_of!(vfio_region_info, flags))?;
    let size = u64_at(reply, offset_of!(vfio_region_info, size))?;
    let offset = u64_at(reply, offset_of!(vfio_region_info, offset))?;
    let flags = RegionFlags::from_bits_truncate(raw);
    let mut mappable = Vec::new();
    if flags.contains(RegionFlags::MMAP) && size > 0 {
        mappable.push(SparseArea { offset: 0, size });
    }
    if raw & VFIO_REGION_INFO_FLAG_CAPS != 0 {
        let first = u32_at(reply, offset_of!(vfio_region_info, cap_offset))?;
        let sparse = capabilities(reply, first).find(|(id, _)| *id == VFIO_REGION_INFO_CAP_SPARSE_MMAP);
        if let Some((_, sparse)) = sparse {
            let inside =
                |area: &SparseArea| area.size > 0 && area.offset.checked_add(area.size).is_some_and(|end| end <= size);
            mappable.clear();
            mappable.extend(pairs(sparse).map(|(offset, size)| SparseArea { offset, size }).filter(inside));
        }
    }
    Some((RegionInfo { index, size, flags, mappable }, offset))
}

/// What can be mapped for DMA. `None` if the reply is shorter than its structure, or names no page size.
pub(crate) fn dma_limits(reply: &[u8]) -> Option<DmaLimits> {
    let flags = u32_at(reply, offset_of!(vfio_iommu_type1_info, flags))?;
    let page_sizes = u64_at(reply, offset_of!(vfio_iommu_type1_info, iova_pgsizes))?;
    if flags & VFIO_IOMMU_INFO_PGSIZES == 0 || page_sizes == 0 {
        return None;
    }
    let mut limits = DmaLimits {
        // Without the capability nothing is known to be reserved.
        iova_ranges: vec![0..=u64::MAX],
        page_size: 1 << page_sizes.trailing_zeros(),
        max_mappings: MAPPINGS_UNLESS_TOLD,
    };
    if flags & VFIO_IOMMU_INFO_CAPS == 0 {
        return Some(limits);
    }
    let first = u32_at(reply, offset_of!(vfio_iommu_type1_info, cap_offset))?;
    for (id, capability) in capabilities(reply, first) {
        match id {
            VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => limits.iova_ranges = iova_ranges(capability),
            VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => {
                let available = u32_at(capability, size_of::<vfio_info_cap_header>());
                limits.max_mappings = available.unwrap_or(limits.max_mappings);
            }
            _ => {}
        }
    }
    Some(limits)
}

fn iova_ranges(capability: &[u8]) -> Vec<RangeInclusive<u64>> {
    let mut ranges: Vec<_> = pairs(capability).filter(|(start, last)| start <= last).collect();
    ranges.sort_unstable();
    ranges.into_iter().map(|(start, last)| start..=last).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAR0: RegionIndex = RegionIndex::BAR0;

    /// argsz, flags, index, cap_offset, size, offset, as `linux/vfio.h` lays them out; then `behind`.
    fn region_reply(flags: u32, cap_offset: u32, size: u64, behind: &[u8]) -> Vec<u8> {
        let words = [32 + behind.len() as u32, flags, 0, cap_offset];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend(size.to_ne_bytes());
        bytes.extend(0x100_0000_0000u64.to_ne_bytes());
        bytes.extend(behind);
        bytes
    }

    /// argsz, flags, iova_pgsizes, cap_offset, padding; then `behind`.
    fn iommu_reply(flags: u32, page_sizes: u64, cap_offset: u32, behind: &[u8]) -> Vec<u8> {
        let mut bytes =
            [24 + behind.len() as u32, flags].iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
        bytes.extend(page_sizes.to_ne_bytes());
        bytes.extend(cap_offset.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(behind);
        bytes
    }

    fn list(id: u16, next: u32, count: u32, entries: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = [id, 1].iter().flat_map(|half| half.to_ne_bytes()).collect::<Vec<_>>();
        bytes.extend([next, count, 0].iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(entries.iter().flat_map(|(a, b)| [a.to_ne_bytes(), b.to_ne_bytes()].concat()));
        bytes
    }

    #[test]
    fn region_without_sparse_capability_is_mappable_as_a_whole() {
        let (info, offset) = region(BAR0, &region_reply(0x7, 0, 0x4000, &[])).expect("whole");
        assert_eq!(offset, 0x100_0000_0000);
        assert_eq!(info.flags, RegionFlags::READ | RegionFlags::WRITE | RegionFlags::MMAP);
        assert_eq!(info.mappable, [SparseArea { offset: 0, size: 0x4000 }]);
        let (config, _) = region(RegionIndex::CONFIG, &region_reply(0x3, 0, 256, &[])).expect("whole");
        assert_eq!(config.mappable, []);
    }

    #[test]
    fn region_with_sparse_capability_is_mappable_where_it_says() {
        // An MSI-X table's BAR: first the capability that says nothing of areas (3), then the sparse one (1).
        let mut behind = list(3, 48, 0, &[]);
        behind.extend(list(1, 0, 2, &[(0, 0x1000), (0x2000, 0x2000)]));
        let (info, _) = region(BAR0, &region_reply(0xf, 32, 0x4000, &behind)).expect("whole");
        let areas = [SparseArea { offset: 0, size: 0x1000 }, SparseArea { offset: 0x2000, size: 0x2000 }];
        assert_eq!(info.mappable, areas);
    }

    #[test]
    fn sparse_areas_beyond_the_region_are_left_out() {
        let areas = [(0x3000, 0x2000), (u64::MAX, 2), (0x1000, 0), (0x1000, 0x1000)];
        let behind = list(1, 0, u32::MAX, &areas);
        let (info, _) = region(BAR0, &region_reply(0xf, 32, 0x4000, &behind)).expect("whole");
        assert_eq!(info.mappable, [SparseArea { offset: 0x1000, size: 0x1000 }]);
    }

    #[test]
    fn capability_chain_that_loops_or_leaves_the_reply_ends() {
        let to_itself = region_reply(0xf, 32, 0x4000, &list(9, 32, 0, &[]));
        assert_eq!(capabilities(&to_itself, 32).count(), 1);
        let mut back = list(9, 48, 0, &[]);
        back.extend(list(8, 32, 0, &[]));
        assert_eq!(capabilities(&region_reply(0xf, 32, 0, &back), 32).count(), 2);
        assert_eq!(capabilities(&to_itself, u32::MAX).count(), 0);
        assert_eq!(capabilities(&to_itself, 0).count(), 0);
    }

    #[test]
    fn reply_cut_anywhere_yields_less_and_never_panics() {
        let mut behind = list(1, 64, 1, &[(0, 0x1000)]);
        behind.extend(list(3, 0, 0, &[]));
        let reply = region_reply(0xf, 32, 0x4000, &behind);
        for length in 0..reply.len() {
            let cut = &reply[..length];
            assert_eq!(region(BAR0, cut).is_some(), length >= 32, "{length}");
        }
        let reply = iommu_reply(0x3, 0x1000, 24, &list(1, 0, 1, &[(0, 0xffff)]));
        for length in 0..reply.len() {
            assert_eq!(dma_limits(&reply[..length]).is_some(), length >= 20, "{length}");
        }
    }

    proptest::proptest! {
        #[test]
        fn garbage_of_any_kind_never_panics(
            // Small numbers are the likelier offsets.
            bytes in proptest::collection::vec(proptest::prop_oneof![0..64u8, proptest::num::u8::ANY], 0..160),
        ) {
            let _ = dma_limits(&bytes);
            if let Some((info, _)) = region(BAR0, &bytes) {
                proptest::prop_assert!(info.mappable.iter().all(|area| area.offset + area.size <= info.size));
            }
        }
    }

    #[test]
    fn iommu_reply_names_ranges_page_size_and_mappings() {
        let mut behind = list(1, 72, 2, &[(0xfef0_0000, 0x7f_ffff_ffff), (0, 0xfedf_ffff)]);
        behind.extend([3u16, 1].iter().flat_map(|half| half.to_ne_bytes()));
        behind.extend([0u32, 1234].iter().flat_map(|word| word.to_ne_bytes()));
        let limits = dma_limits(&iommu_reply(0x3, 0x4020_1000, 24, &behind)).expect("whole");
        assert_eq!(limits.page_size, 4096);
        assert_eq!(limits.iova_ranges, [0..=0xfedf_ffff, 0xfef0_0000..=0x7f_ffff_ffff]);
        assert_eq!(limits.max_mappings, 1234);
    }

    #[test]
    fn iommu_reply_without_page_sizes_is_refused() {
        assert!(dma_limits(&iommu_reply(0x1, 0, 0, &[])).is_none());
        assert!(dma_limits(&iommu_reply(0x0, 0x1000, 0, &[])).is_none());
    }
}
