//! What a device writes into a driver's memory, found by comparing.
//!
//! Nobody tells when a device writes. What has changed since the last look is taken for the device's, unless it is settled
//! first, by who knows that it was the driver: a driver that stores to memory that the device may write is otherwise taken
//! for the device.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use udrv_backend::{DmaAccess, DmaMap, Error, Result};

/// One mapping that the device may write, and its contents when last looked at.
struct Watched {
    iova: u64,
    size: u64,
    file: File,
    offset: u64,
    before: Vec<u8>,
}

/// Bytes that a device wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// Bus address of the first.
    pub(crate) iova: u64,
    /// What was there before.
    pub(crate) before: Vec<u8>,
    /// What is there now.
    pub(crate) after: Vec<u8>,
}

/// The memory of one device.
#[derive(Default)]
pub(crate) struct Watch {
    mappings: Vec<Watched>,
}

impl Watch {
    /// Looks at a mapping from now on, if the device may write it.
    pub(crate) fn map(&mut self, map: &DmaMap<'_>) -> Result<()> {
        if !map.access.contains(DmaAccess::WRITE) {
            return Ok(());
        }
        let file = map.file.try_clone_to_owned().map_err(|error| Error::os("keeping a DMA mapping's file", error))?;
        let &DmaMap { iova, size, offset, .. } = map;
        let mut watched = Watched { iova, size, file: file.into(), offset, before: Vec::new() };
        watched.before = watched.now()?;
        self.mappings.push(watched);
        Ok(())
    }

    pub(crate) fn unmap(&mut self, iova: u64, size: u64) {
        self.mappings.retain(|mapping| (mapping.iova, mapping.size) != (iova, size));
    }

    /// What is there now is the driver's own: in the mapping at this bus address and of this size, or in all.
    pub(crate) fn settle(&mut self, which: Option<(u64, u64)>) {
        let is = |mapping: &&mut Watched| which.is_none_or(|which| which == (mapping.iova, mapping.size));
        for mapping in self.mappings.iter_mut().filter(is) {
            if let Ok(now) = mapping.now() {
                mapping.before = now;
            }
        }
    }

    /// What has changed since, in pieces of one word: 8 bytes, aligned. It is not a change any more afterwards.
    pub(crate) fn changes(&mut self) -> Vec<Change> {
        let mut found = Vec::new();
        for mapping in &mut self.mappings {
            // What has not changed, which is most of it, is compared in no time.
            let Some(now) = mapping.now().ok().filter(|now| *now != mapping.before) else { continue };
            let words = mapping.before.chunks(8).zip(now.chunks(8));
            for (index, (before, after)) in words.enumerate().filter(|(_, (before, after))| before != after) {
                let iova = mapping.iova + 8 * index as u64;
                found.push(Change { iova, before: before.to_vec(), after: after.to_vec() });
            }
            mapping.before = now;
        }
        found
    }

    /// Puts bytes where the device would have.
    pub(crate) fn write(&mut self, iova: u64, bytes: &[u8]) -> Result<()> {
        let wanted = |mapping: &Watched| {
            let start = iova.checked_sub(mapping.iova)?;
            let end = start.checked_add(bytes.len() as u64)?;
            (end <= mapping.size).then_some(start)
        };
        let found = self.mappings.iter_mut().find_map(|mapping| wanted(mapping).map(|start| (mapping, start)));
        let Some((mapping, start)) = found else {
            return Err(Error::DmaNotMapped { iova, size: bytes.len() as u64 });
        };
        mapping
            .file
            .write_all_at(bytes, mapping.offset + start)
            .map_err(|error| Error::os(format!("writing DMA memory at {iova:#x}"), error))?;
        if let Some(kept) = mapping.before.get_mut(start as usize..start as usize + bytes.len()) {
            kept.copy_from_slice(bytes);
        }
        Ok(())
    }
}

impl Watched {
    /// A file that is shorter than its mapping counts as zero beyond its end.
    fn now(&self) -> Result<Vec<u8>> {
        let doing = || format!("reading DMA memory at {:#x}", self.iova);
        let size = usize::try_from(self.size).map_err(|_| Error::os(doing(), nix::errno::Errno::EFBIG))?;
        let mut bytes = vec![0; size];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, self.offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::os(doing(), error)),
            }
        }
        Ok(bytes)
    }
}
