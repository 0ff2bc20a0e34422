//! The client's memory: what it mapped, and taking that back.

use super::refusal::Refusal;
use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use udrv_backend::{Backend, DmaAccess, Error};
use udrv_vfio::descriptor::is_memory;
use udrv_wire::{DmaMap, DmaUnmap, Errno};

/// One mapping of the client.
#[derive(Debug, Clone, Copy)]
struct Mapping {
    size: u64,
    /// Whether the device has it. Memory that came without a descriptor is only remembered: the client keeps it to
    /// itself (QEMU does so with its ROMs), and the device cannot reach it.
    reachable: bool,
}

/// What the client of one lease has mapped.
#[derive(Debug)]
pub(super) struct Mappings {
    most: u32,
    most_bytes: u64,
    by_iova: BTreeMap<u64, Mapping>,
}

impl Mappings {
    /// At most `most` of them at a time, of `most_bytes` together that the device can reach.
    pub(super) const fn new(most: u32, most_bytes: u64) -> Self {
        Self { most, most_bytes, by_iova: BTreeMap::new() }
    }

    /// No more than the device's backend can keep.
    pub(super) fn limited_to(mut self, most: u32) -> Self {
        self.most = self.most.min(most);
        self
    }

    /// How many there may be.
    pub(super) const fn most(&self) -> u32 {
        self.most
    }

    /// Bytes that the device can reach.
    pub(super) fn bytes(&self) -> u64 {
        let reachable = self.by_iova.values().filter(|mapping| mapping.reachable);
        reachable.fold(0, |sum, mapping| sum.saturating_add(mapping.size))
    }

    pub(super) fn map(&mut self, device: &dyn Backend, request: &DmaMap, fds: &[OwnedFd]) -> Result<(), Refusal> {
        let &DmaMap { flags, offset, iova, size } = request;
        if self.overlaps(iova, size) {
            return Err(Error::DmaOverlap { iova, size }.into());
        }
        if self.by_iova.len() >= self.most as usize {
            return Err(Refusal::new(Errno::ENOSPC, format!("more than {} DMA mappings", self.most)));
        }
        match fds {
            [] => {}
            [_] if self.bytes().saturating_add(size) > self.most_bytes => {
                let why = format!("more than {} bytes of DMA memory (serve --dma-limit)", self.most_bytes);
                return Err(Refusal::new(Errno::ENOMEM, why));
            }
            // Whatever the device, software included: what else it asks of a file, the client may answer (FUSE), or it may
            // be what only the stub's user may read and write (/proc).
            [file] if !is_memory(file.as_fd()) => {
                let why =
                    "the file for a DMA mapping is not memory: it must be a memfd, or a file of tmpfs or hugetlbfs";
                return Err(Refusal::invalid(why));
            }
            [file] => {
                let dma = device.dma().ok_or_else(|| no_dma(device))?;
                let access = DmaAccess::from_bits_truncate(flags.bits());
                dma.map(&udrv_backend::DmaMap { iova, size, access, file: file.as_fd(), offset })?;
            }
            more => return Err(Refusal::invalid(format!("{} descriptors for one DMA mapping", more.len()))),
        }
        self.by_iova.insert(iova, Mapping { size, reachable: !fds.is_empty() });
        Ok(())
    }

    fn overlaps(&self, iova: u64, size: u64) -> bool {
        let last = iova.saturating_add(size.saturating_sub(1));
        let below = self.by_iova.range(..=last).next_back();
        below.is_some_and(|(start, mapping)| start.saturating_add(mapping.size - 1) >= iova)
    }

    pub(super) fn unmap(&mut self, device: &dyn Backend, request: &DmaUnmap) -> Result<(), Refusal> {
        if request.all {
            return Ok(self.unmap_all(device)?);
        }
        let &DmaUnmap { iova, size, .. } = request;
        let Some(mapping) = self.by_iova.get(&iova).filter(|mapping| mapping.size == size) else {
            return Err(Error::DmaNotMapped { iova, size }.into());
        };
        if mapping.reachable {
            device.dma().ok_or_else(|| no_dma(device))?.unmap(iova, size)?;
        }
        self.by_iova.remove(&iova);
        Ok(())
    }

    /// Takes everything back; each is tried, the first error is returned.
    pub(super) fn unmap_all(&mut self, device: &dyn Backend) -> Result<(), Error> {
        let mut outcome = Ok(());
        for (iova, mapping) in std::mem::take(&mut self.by_iova) {
            if mapping.reachable
                && let Some(dma) = device.dma()
            {
                outcome = outcome.and(dma.unmap(iova, mapping.size));
            }
        }
        outcome
    }
}

fn no_dma(device: &dyn Backend) -> Error {
    Error::NotSupported { what: "DMA", by: device.info().address.clone() }
}
