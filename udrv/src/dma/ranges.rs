//! Which parts of an address space are free.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// Free ranges, found by size and by place: allocating and freeing take a search, not a scan.
#[derive(Default)]
pub(super) struct Ranges {
    /// First to last address of each free range; no two touch.
    by_start: BTreeMap<u64, u64>,
    /// Length less one (so that a whole address space has one) and first address.
    by_size: BTreeSet<(u64, u64)>,
}

impl Ranges {
    /// Frees `range`, which is not free.
    pub(super) fn free(&mut self, range: RangeInclusive<u64>) {
        let (mut first, mut last) = range.into_inner();
        if let Some((&below, &end)) = self.by_start.range(..first).next_back()
            && end.checked_add(1) == Some(first)
        {
            self.remove(below, end);
            first = below;
        }
        if let Some(above) = last.checked_add(1)
            && let Some(&end) = self.by_start.get(&above)
        {
            self.remove(above, end);
            last = end;
        }
        self.insert(first, last);
    }

    /// Takes `size` addresses (not 0) that start at a multiple of `align`, a power of two, out of the smallest range
    /// that has them.
    pub(super) fn take(&mut self, size: u64, align: u64) -> Option<u64> {
        let fits = |&(span, first): &(u64, u64)| {
            let start = first.checked_next_multiple_of(align)?;
            let last = start.checked_add(size - 1)?;
            (last <= first + span).then_some((first, first + span, start, last))
        };
        let (first, end, start, last) = self.by_size.range((size - 1, 0)..).find_map(fits)?;
        self.remove(first, end);
        if start > first {
            self.insert(first, start - 1);
        }
        if last < end {
            self.insert(last + 1, end);
        }
        Some(start)
    }

    fn insert(&mut self, first: u64, last: u64) {
        self.by_start.insert(first, last);
        self.by_size.insert((last - first, first));
    }

    fn remove(&mut self, first: u64, last: u64) {
        self.by_start.remove(&first);
        self.by_size.remove(&(last - first, first));
    }
}

#[cfg(test)]
mod tests {
    use super::Ranges;

    fn with(ranges: &[std::ops::RangeInclusive<u64>]) -> Ranges {
        let mut free = Ranges::default();
        ranges.iter().for_each(|range| free.free(range.clone()));
        free
    }

    #[test]
    fn smallest_range_that_fits_is_used_first() {
        let mut free = with(&[0x10_0000..=0x1f_ffff, 0x1000..=0x2fff]);
        assert_eq!(free.take(0x2000, 0x1000), Some(0x1000));
        assert_eq!(free.take(0x1000, 0x1000), Some(0x10_0000));
    }

    #[test]
    fn alignment_is_honoured_and_its_gap_stays_free() {
        let mut free = with(&[0x1000..=0x4fff]);
        assert_eq!(free.take(0x1000, 0x4000), Some(0x4000));
        assert_eq!(free.take(0x3000, 0x1000), Some(0x1000));
        assert_eq!(free.take(1, 1), None);
    }

    #[test]
    fn freed_neighbours_become_one_range() {
        let mut free = with(&[0..=0x2fff]);
        let taken: Vec<_> = (0..3).map(|_| free.take(0x1000, 0x1000).expect("room")).collect();
        for start in [taken[0], taken[2], taken[1]] {
            free.free(start..=start + 0xfff);
        }
        assert_eq!(free.take(0x3000, 0x1000), Some(0));
    }

    #[test]
    fn whole_address_space_does_not_overflow() {
        let mut free = with(&[0..=u64::MAX]);
        assert_eq!(free.take(u64::MAX, 1), Some(0));
        assert_eq!(free.take(1, 1), Some(u64::MAX));
        assert_eq!(free.take(1, 1), None);
        free.free(u64::MAX..=u64::MAX);
        assert_eq!(free.take(1, 1 << 63), None);
        assert_eq!(free.take(1, 1), Some(u64::MAX));
    }

    #[test]
    fn thousands_of_blocks_never_overlap() {
        let mut free = with(&[0..=0x3fff_ffff]);
        let mut taken = std::collections::BTreeMap::new();
        for n in 0..20_000u64 {
            let size = (n % 7 + 1) * 0x1000;
            let start = free.take(size, 0x1000 << (n % 3)).expect("room");
            let below = taken.range(..=start).next_back().map_or(0, |(at, size)| at + size);
            assert!(below <= start && taken.range(start..).next().is_none_or(|(at, _)| start + size <= *at));
            taken.insert(start, size);
            if n % 3 == 0 {
                let (at, size) = taken.pop_first().expect("one");
                free.free(at..=at + size - 1);
            }
        }
    }
}
