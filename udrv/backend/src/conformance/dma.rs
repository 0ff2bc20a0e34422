//! Memory for the device: what can be mapped, and what the device reaches.

use super::signal::memory;
use super::{Check, Step, Stop, Subject, Transfer, ensure, not_applicable, refuses};
use crate::{AnyBackend, Backend, Dma, DmaAccess, DmaLimits, DmaMap, Error, Result};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "dma_limits_are_sane",
        promise: "reachable ranges are ascending, apart and not empty; the page size is a power of two",
        body: limits,
    },
    Check {
        name: "dma_range_can_be_mapped_again_after_unmap",
        promise: "unmap takes back exactly what map gave",
        body: map_again,
    },
    Check {
        name: "dma_overlap_is_refused",
        promise: "a mapping of which any byte is mapped already is DmaOverlap, and the one there stays",
        body: overlap,
    },
    Check {
        name: "dma_unmap_of_another_range_is_refused",
        promise: "unmap of anything but one whole mapping is DmaNotMapped, and what is mapped stays",
        body: unmap_other,
    },
    Check {
        name: "dma_malformed_range_is_refused",
        promise: "a range that is empty, misaligned or overflows is DmaRange",
        body: malformed,
    },
    Check {
        name: "dma_range_out_of_reach_is_refused",
        promise: "a range outside DmaLimits::iova_ranges is DmaRange",
        body: out_of_reach,
    },
    Check {
        name: "dma_first_and_last_page_can_be_mapped",
        promise: "every page inside DmaLimits::iova_ranges can be mapped",
        body: edges,
    },
    Check {
        name: "dma_file_shorter_than_its_mapping_does_no_harm",
        promise: "a file shorter than its mapping is mapped or refused; refused, nothing is mapped",
        body: short_file,
    },
    Check {
        name: "dma_many_mappings_can_exist_at_once",
        promise: "DmaLimits::max_mappings may exist at once (tried up to 128)",
        body: many,
    },
    Check {
        name: "dma_reaches_mapped_memory",
        promise: "the device reads and writes the file's bytes, at the offset given, across neighbouring mappings too",
        body: reaches,
    },
    Check {
        name: "dma_does_not_reach_unmapped_memory",
        promise: "after unmap the device reaches the memory no more",
        body: unreachable,
    },
    Check {
        name: "dma_access_is_limited_to_what_was_given",
        promise: "the device does not write what is mapped for it to read",
        body: read_only,
    },
];

const BOTH: DmaAccess = DmaAccess::READ.union(DmaAccess::WRITE);

/// A device's DMA with a file to map and a place for it.
pub(super) struct Bench {
    pub(super) device: AnyBackend,
    pub(super) page: u64,
    /// A bus address with 8 pages around it that can be mapped, in the device's reach.
    pub(super) base: u64,
    file: File,
}

impl Bench {
    pub(super) fn new(subject: &Subject<'_>) -> Step<Self> {
        Self::over(subject, &subject.opened()?)
    }

    pub(super) fn over(subject: &Subject<'_>, device: &AnyBackend) -> Step<Self> {
        let device = AnyBackend::clone(device);
        let Some(limits) = device.dma().map(Dma::limits) else { return not_applicable("the device has no DMA") };
        let page = limits.page_size.max(4096);
        let mask = subject.knowledge.transfer.map_or(u64::MAX, |transfer| transfer.mask);
        let base = place(&limits, page, mask).ok_or(Stop::Failed(format!("no 16 pages to map in {limits:x?}")))?;
        Ok(Self { device, page, base, file: memory(16 * page)? })
    }

    pub(super) fn dma(&self) -> Step<&dyn Dma> {
        self.device.dma().ok_or(Stop::Failed("dma() is None the second time".into()))
    }

    /// Maps `pages` pages at page `at` from the base, from page `offset` of the file.
    fn map_as(&self, at: u64, pages: u64, offset: u64, access: DmaAccess) -> Step<Result<()>> {
        let (iova, size) = (self.base + at * self.page, pages * self.page);
        let offset = offset * self.page;
        Ok(self.dma()?.map(&DmaMap { iova, size, access, file: self.file.as_fd(), offset }))
    }

    pub(super) fn map(&self, at: u64, pages: u64) -> Step<Result<()>> {
        self.map_as(at, pages, 0, BOTH)
    }

    pub(super) fn unmap(&self, at: u64, pages: u64) -> Step<Result<()>> {
        Ok(self.dma()?.unmap(self.base + at * self.page, pages * self.page))
    }

    pub(super) fn fill(&self, at: u64, bytes: &[u8]) -> Step {
        self.file.write_all_at(bytes, at).map_err(|error| Error::os("filling memory", error).into())
    }

    pub(super) fn bytes(&self, at: u64) -> Step<[u8; Transfer::LENGTH]> {
        bytes_of(&self.file, at)
    }

    /// Closes the device; its memory is kept.
    pub(super) fn close(self) -> File {
        self.file
    }
}

/// What is in a file that was mapped.
pub(super) fn bytes_of(file: &File, at: u64) -> Step<[u8; Transfer::LENGTH]> {
    let mut bytes = [0; Transfer::LENGTH];
    file.read_exact_at(&mut bytes, at).map_err(|error| Error::os("reading memory", error))?;
    Ok(bytes)
}

/// Room for 16 pages somewhere in reach, a page apart from either end.
fn place(limits: &DmaLimits, page: u64, mask: u64) -> Option<u64> {
    limits.iova_ranges.iter().find_map(|range| {
        let start = (*range.start()).max(page).checked_next_multiple_of(page)?;
        let last = start.checked_add(18 * page)?;
        (last <= (*range.end()).min(mask)).then_some(start + page)
    })
}

/// Bytes that differ from each other and from another seed's.
pub(super) fn pattern(seed: u8) -> [u8; Transfer::LENGTH] {
    std::array::from_fn(|at| (at as u8).wrapping_mul(37).wrapping_add(seed))
}

fn limits(subject: &Subject<'_>) -> Step {
    let bench = Bench::new(subject)?;
    let limits = bench.dma()?.limits();
    ensure!(limits.page_size.is_power_of_two(), "a page size of {}", limits.page_size);
    ensure!(limits.max_mappings > 0, "no mapping is possible");
    let mut before: Option<u64> = None;
    for range in &limits.iova_ranges {
        ensure!(range.start() <= range.end(), "an empty range in {limits:x?}");
        ensure!(before.is_none_or(|end| end < *range.start()), "ranges out of order in {limits:x?}");
        before = Some(*range.end());
    }
    ensure!(bench.dma()?.limits() == limits, "other limits the second time");
    Ok(())
}

fn map_again(subject: &Subject<'_>) -> Step {
    let bench = Bench::new(subject)?;
    for pages in [1, 2, 1] {
        bench.map(0, pages)??;
        bench.unmap(0, pages)??;
    }
    for access in [DmaAccess::READ, DmaAccess::WRITE] {
        bench.map_as(0, 1, 3, access)??;
        bench.unmap(0, 1)??;
    }
    Ok(())
}

fn overlap(subject: &Subject<'_>) -> Step {
    let bench = Bench::new(subject)?;
    bench.map(4, 4)??;
    let cases =
        [(4, 4, "the same"), (3, 2, "over its start"), (7, 2, "over its end"), (2, 8, "around it"), (5, 1, "inside")];
    for (at, pages, what) in cases {
        refuses!(bench.map(at, pages)?, Error::DmaOverlap { .. }, "a second mapping, {what}");
    }
    // Touching is not overlapping.
    bench.map(3, 1)??;
    bench.map(8, 1)??;
    for (at, pages) in [(4, 4), (3, 1), (8, 1)] {
        bench.unmap(at, pages)??;
    }
    bench.map(2, 8)??;
    Ok(bench.unmap(2, 8)??)
}

fn unmap_other(subject: &Subject<'_>) -> Step {
    let bench = Bench::new(subject)?;
    refuses!(bench.unmap(0, 1)?, Error::DmaNotMapped { .. }, "unmap of nothing");
    bench.map(4, 2)??;
    bench.map(6, 2)??;
    let cases = [
        (4, 1, "the first half"),
        (5, 1, "the second half"),
        (4, 3, "more than it"),
        (3, 3, "from before it"),
        (4, 4, "two mappings at once"),
        (3, 6, "around both"),
        (0, 1, "beside them"),
    ];
    for (at, pages, what) in cases {
        refuses!(bench.unmap(at, pages)?, Error::DmaNotMapped { .. }, "unmap of {what}");
    }
    refuses!(bench.dma()?.unmap(bench.base + 4 * bench.page, 0), Error::DmaNotMapped { .. }, "unmap of no bytes");
    refuses!(bench.dma()?.unmap(0, u64::MAX), Error::DmaNotMapped { .. }, "unmap of everything");
    bench.unmap(4, 2)??;
    refuses!(bench.unmap(4, 2)?, Error::DmaNotMapped { .. }, "a second unmap");
    Ok(bench.unmap(6, 2)??)
}

fn malformed(subject: &Subject<'_>) -> Step {
    let bench = Bench::new(subject)?;
    let (page, base) = (bench.page, bench.base);
    let cases = [
        (base, 0, 0, "empty"),
        (base + 1, page, 0, "a misaligned address"),
        (base + page / 2, page, 0, "half a page's address"),
        (base, page - 1, 0, "a misaligned size"),
        (base, page, 1, "a misaligned offset"),
        (!(page - 1), 2 * page, 0, "an end that overflows"),
        (base, !(page - 1), 0, "a size that overflows"),
        (base, page, !(page - 1), "an offset that overflows"),
    ];
    for (iova, size, offset, what) in cases {
        let outcome = bench.dma()?.map(&DmaMap { iova, size, access: BOTH, file: bench.file.as_fd(), offset });
        refuses!(outcome, Error::DmaRange { .. }, "a mapping with {what}");
    }
    bench.map(0, 1)??;
    Ok(bench.unmap(0, 1)??)
}

fn out_of_reach(subject: &Subject<'_>) -> Step {
    let bench = Bench::new(subject)?;
    let ranges = bench.dma()?.limits().iova_ranges;
    let mut tried = false;
    for (range, next) in ranges.iter().zip(ranges.iter().skip(1).map(Some).chain([None])) {
        let Some(iova) = range.end().checked_add(1).and_then(|end| end.checked_next_multiple_of(bench.page)) else {
            continue;
        };
        let page = DmaMap { iova, size: bench.page, access: BOTH, file: bench.file.as_fd(), offset: 0 };
        if next.is_none_or(|next| iova < *next.start()) {
            refuses!(bench.dma()?.map(&page), Error::DmaRange { .. }, "a mapping at {iova:#x}, beyond {range:x?}");
            let straddling = DmaMap { iova: iova - bench.page, size: 2 * bench.page, ..page };
            refuses!(bench.dma()?.map(&straddling), Error::DmaRange { .. }, "a mapping over the end of {range:x?}");
            tried = true;
        }
    }
    if tried { Ok(()) } else { not_applicable("every bus address is in reach") }
}

fn edges(subject: &Subject<'_>) -> Step {
    let bench = Bench::new(subject)?;
    for range in bench.dma()?.limits().iova_ranges {
        let first = range.start().checked_next_multiple_of(bench.page).unwrap_or(u64::MAX);
        let last = (range.end() & !(bench.page - 1))
            .wrapping_sub(if range.end() & (bench.page - 1) == bench.page - 1 { 0 } else { bench.page });
        for iova in [first, last].into_iter().filter(|iova| range.contains(iova)) {
            bench.dma()?.map(&DmaMap { iova, size: bench.page, access: BOTH, file: bench.file.as_fd(), offset: 0 })?;
            bench.dma()?.unmap(iova, bench.page)?;
        }
    }
    Ok(())
}

fn short_file(subject: &Subject<'_>) -> Step {
    let bench = Bench::new(subject)?;
    for size in [0, bench.page] {
        let short = memory(size)?;
        let map = DmaMap { iova: bench.base, size: 2 * bench.page, access: BOTH, file: short.as_fd(), offset: 0 };
        match bench.dma()?.map(&map) {
            Ok(()) => bench.unmap(0, 2)??,
            Err(_) => refuses!(bench.unmap(0, 2)?, Error::DmaNotMapped { .. }, "unmap of what was refused"),
        }
    }
    bench.map(0, 2)??;
    Ok(bench.unmap(0, 2)??)
}

fn many(subject: &Subject<'_>) -> Step {
    let bench = Bench::new(subject)?;
    let limits = bench.dma()?.limits();
    let count = u64::from(limits.max_mappings).min(128);
    let room = |range: &&std::ops::RangeInclusive<u64>| {
        range.contains(&bench.base) && (range.end() - bench.base) / bench.page > 2 * count
    };
    ensure!(limits.iova_ranges.iter().any(|range| room(&range)), "no room for {count} pages in {limits:x?}");
    for at in 0..count {
        bench.map(2 * at, 1)??;
    }
    for at in 0..count {
        refuses!(bench.map(2 * at, 1)?, Error::DmaOverlap { .. }, "mapping number {at} again");
    }
    for at in (0..count).rev() {
        bench.unmap(2 * at, 1)??;
    }
    Ok(())
}

/// Has the device fetch bytes at `from` and store them at `to`, both in bytes from the base.
pub(super) fn relay(bench: &Bench, transfer: Transfer, from: u64, to: u64) -> Step {
    (transfer.to_device)(&*bench.device, bench.base + from)?;
    Ok((transfer.to_memory)(&*bench.device, bench.base + to)?)
}

fn reaches(subject: &Subject<'_>) -> Step {
    let transfer = subject.transfer()?;
    let bench = Bench::new(subject)?;
    let page = bench.page;
    // Two neighbours whose pages are not neighbours in the file.
    bench.map_as(0, 1, 5, BOTH)??;
    bench.map_as(1, 1, 2, BOTH)??;
    bench.fill(5 * page, &pattern(1))?;
    relay(&bench, transfer, 0, page)?;
    ensure!(bench.bytes(2 * page)? == pattern(1), "the bytes did not come through the device");
    let half = Transfer::LENGTH as u64 / 2;
    relay(&bench, transfer, page, page - half)?;
    let (whole, start, end) = (pattern(1), bench.bytes(6 * page - half - half)?, bench.bytes(2 * page)?);
    let halves = whole.split_at(half as usize);
    ensure!(start.ends_with(halves.0), "the first half did not end up in the first mapping");
    ensure!(end.starts_with(halves.1), "the second half did not end up in the second mapping");
    bench.unmap(0, 1)??;
    Ok(bench.unmap(1, 1)??)
}

fn unreachable(subject: &Subject<'_>) -> Step {
    let transfer = subject.transfer()?;
    let bench = Bench::new(subject)?;
    bench.map(0, 1)??;
    bench.fill(0, &pattern(3))?;
    (transfer.to_device)(&*bench.device, bench.base)?;
    bench.fill(0, &pattern(4))?;
    bench.unmap(0, 1)??;
    (transfer.to_memory)(&*bench.device, bench.base)?;
    ensure!(bench.bytes(0)? == pattern(4), "the device wrote to memory after it was unmapped");
    // Nor is it reached under an address that was never mapped.
    (transfer.to_memory)(&*bench.device, bench.base + 8 * bench.page)?;
    ensure!(bench.bytes(0)? == pattern(4), "the device wrote to memory that was not mapped");
    bench.map(0, 1)??;
    (transfer.to_memory)(&*bench.device, bench.base)?;
    ensure!(bench.bytes(0)? == pattern(3), "the device did not reach memory that was mapped again");
    Ok(())
}

fn read_only(subject: &Subject<'_>) -> Step {
    let transfer = subject.transfer()?;
    let bench = Bench::new(subject)?;
    bench.map_as(0, 1, 0, DmaAccess::READ)??;
    bench.map_as(1, 1, 1, DmaAccess::WRITE)??;
    bench.fill(0, &pattern(5))?;
    relay(&bench, transfer, 0, bench.page)?;
    ensure!(bench.bytes(bench.page)? == pattern(5), "the device did not use what it was given");
    bench.fill(0, &pattern(6))?;
    (transfer.to_memory)(&*bench.device, bench.base)?;
    ensure!(bench.bytes(0)? == pattern(6), "the device wrote to what was mapped for reading only");
    Ok(())
}
