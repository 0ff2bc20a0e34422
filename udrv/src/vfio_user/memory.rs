//! The memory that the server was given, and its access to it by message.
//!
//! Every mapping is sent with its descriptor, so a server can map it. One that does not (no descriptor was taken over, the
//! file cannot be mapped there) asks by DMA_READ and DMA_WRITE while it works on a request. It then gets what the IOMMU
//! would give the device: the bytes of one mapping, in the direction that the mapping allows, and nothing else.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use udrv_backend::{DmaAccess, DmaLimits, DmaMap, Error, Result};
use udrv_wire::{DmaData, DmaWriteReply, Errno, Request};

struct Mapping {
    size: u64,
    access: DmaAccess,
    file: File,
    offset: u64,
}

#[derive(Default)]
pub(super) struct Memory {
    by_iova: BTreeMap<u64, Mapping>,
}

impl Memory {
    /// Whether a mapping could be added, and itself if so: first checked, then sent to the server, then kept.
    pub(super) fn prepare(&self, map: &DmaMap<'_>, limits: &DmaLimits) -> Result<Prepared> {
        let &DmaMap { iova, size, access, file, offset } = map;
        limits.check(map)?;
        if self.by_iova.len() >= limits.max_mappings as usize {
            return Err(Error::DmaRange { iova, size, why: "the server takes no more mappings" });
        }
        if let Some((start, below)) = self.by_iova.range(..=iova + (size - 1)).next_back()
            && start + (below.size - 1) >= iova
        {
            return Err(Error::DmaOverlap { iova, size });
        }
        let file = file.try_clone_to_owned().map_err(|error| Error::os("keeping a DMA mapping's file", error))?;
        Ok(Prepared(iova, Mapping { size, access, file: file.into(), offset }))
    }

    pub(super) fn keep(&mut self, Prepared(iova, mapping): Prepared) {
        self.by_iova.insert(iova, mapping);
    }

    pub(super) fn has(&self, iova: u64, size: u64) -> bool {
        self.by_iova.get(&iova).is_some_and(|mapping| mapping.size == size)
    }

    pub(super) fn forget(&mut self, iova: u64) {
        self.by_iova.remove(&iova);
    }

    /// Does what the server asks; the payload of the reply.
    pub(super) fn serve(&self, request: &Request<'_>) -> std::result::Result<Vec<u8>, Errno> {
        match request {
            Request::DmaRead(read) => {
                let (file, offset) = self.find(read.address, read.count, DmaAccess::READ)?;
                // The count is within the limits that the decoder was given.
                let mut data = vec![0; usize::try_from(read.count).map_err(|_| Errno::E2BIG)?];
                file.read_exact_at(&mut data, offset).map_err(|_| Errno::EFAULT)?;
                Ok(DmaData { address: read.address, data: &data }.encode())
            }
            Request::DmaWrite(write) => {
                let count = write.data.len() as u64;
                let (file, offset) = self.find(write.address, count, DmaAccess::WRITE)?;
                file.write_all_at(write.data, offset).map_err(|_| Errno::EFAULT)?;
                Ok(DmaWriteReply { address: write.address, count }.encode())
            }
            _ => Err(Errno::ENOTSUP),
        }
    }

    fn find(&self, address: u64, count: u64, access: DmaAccess) -> std::result::Result<(&File, u64), Errno> {
        let (start, mapping) = self.by_iova.range(..=address).next_back().ok_or(Errno::EFAULT)?;
        let inside = address - start;
        if inside.checked_add(count).is_none_or(|end| end > mapping.size) {
            return Err(Errno::EFAULT);
        }
        if !mapping.access.contains(access) {
            return Err(Errno::EACCES);
        }
        Ok((&mapping.file, mapping.offset + inside))
    }
}

/// A mapping that has passed the checks.
pub(super) struct Prepared(u64, Mapping);
