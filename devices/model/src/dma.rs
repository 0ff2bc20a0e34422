//! What the driver mapped, and the device's way to it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use udrv_backend::{DmaAccess, DmaLimits, DmaMap, Error, Result};

const PAGE: u64 = 4096;

struct Mapping {
    size: u64,
    access: DmaAccess,
    file: File,
    offset: u64,
}

pub(crate) struct Mappings {
    limits: DmaLimits,
    by_iova: BTreeMap<u64, Mapping>,
}

impl Mappings {
    /// What an IOMMU of 48 bits can map. A device that emits narrower addresses knows so itself.
    pub(crate) fn new() -> Self {
        let limits = DmaLimits { iova_ranges: vec![0..=(1 << 48) - 1], page_size: PAGE, max_mappings: 65_535 };
        Self { limits, by_iova: BTreeMap::new() }
    }

    pub(crate) fn limits(&self) -> DmaLimits {
        self.limits.clone()
    }

    pub(crate) fn map(&mut self, map: &DmaMap<'_>) -> Result<()> {
        let &DmaMap { iova, size, access, file, offset } = map;
        self.limits.check(map)?;
        if self.by_iova.len() >= self.limits.max_mappings as usize {
            return Err(Error::DmaRange { iova, size, why: "no more mappings are possible" });
        }
        if let Some((start, below)) = self.by_iova.range(..=iova + (size - 1)).next_back()
            && start + (below.size - 1) >= iova
        {
            return Err(Error::DmaOverlap { iova, size });
        }
        let file = file.try_clone_to_owned().map_err(|error| Error::os("keeping a DMA mapping's file", error))?;
        self.by_iova.insert(iova, Mapping { size, access, file: file.into(), offset });
        Ok(())
    }

    pub(crate) fn unmap(&mut self, iova: u64, size: u64) -> Result<()> {
        match self.by_iova.get(&iova) {
            Some(mapping) if mapping.size == size => {
                self.by_iova.remove(&iova);
                Ok(())
            }
            _ => Err(Error::DmaNotMapped { iova, size }),
        }
    }
}

/// A transfer that did not reach memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("DMA at {iova:#x} was stopped")]
pub struct BusFault {
    /// Where.
    pub iova: u64,
}

/// The device's way to memory during one access.
pub struct Bus<'a> {
    mappings: &'a Mappings,
    master: bool,
}

impl<'a> Bus<'a> {
    pub(crate) const fn new(mappings: &'a Mappings, master: bool) -> Self {
        Self { mappings, master }
    }

    /// Reads memory.
    ///
    /// # Errors
    /// [`BusFault`] where nothing is mapped for reading, or if bus mastering is off.
    pub fn read(&self, iova: u64, into: &mut [u8]) -> std::result::Result<(), BusFault> {
        let mut at = iova;
        for chunk in split_at_pages(iova, into.len()) {
            let (file, offset) = self.find(at, chunk.len() as u64, DmaAccess::READ)?;
            file.read_exact_at(&mut into[chunk.clone()], offset).map_err(|_| BusFault { iova: at })?;
            at = at.wrapping_add(chunk.len() as u64);
        }
        Ok(())
    }

    /// Writes memory.
    ///
    /// # Errors
    /// [`BusFault`] where nothing is mapped for writing, or if bus mastering is off.
    pub fn write(&self, iova: u64, data: &[u8]) -> std::result::Result<(), BusFault> {
        let mut at = iova;
        for chunk in split_at_pages(iova, data.len()) {
            let (file, offset) = self.find(at, chunk.len() as u64, DmaAccess::WRITE)?;
            file.write_all_at(&data[chunk.clone()], offset).map_err(|_| BusFault { iova: at })?;
            at = at.wrapping_add(chunk.len() as u64);
        }
        Ok(())
    }

    fn find(&self, iova: u64, length: u64, access: DmaAccess) -> std::result::Result<(&File, u64), BusFault> {
        let fault = BusFault { iova };
        let (start, mapping) = self.mappings.by_iova.range(..=iova).next_back().ok_or(fault)?;
        let inside = iova - start;
        if !self.master || inside.checked_add(length).is_none_or(|end| end > mapping.size) {
            return Err(fault);
        }
        if !mapping.access.contains(access) {
            return Err(fault);
        }
        Ok((&mapping.file, mapping.offset + inside))
    }
}

/// The index ranges of a transfer cut at page boundaries: neighbouring pages may be different mappings.
fn split_at_pages(iova: u64, length: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= length {
            return None;
        }
        let in_page = iova.wrapping_add(done as u64) % PAGE;
        let end = length.min(done + (PAGE - in_page) as usize);
        let chunk = done..end;
        done = end;
        Some(chunk)
    })
}
