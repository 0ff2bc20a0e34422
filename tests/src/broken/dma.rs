//! The faults of memory and reset.

use super::{Broken, Fault};
use std::fs::File;
use udrv_backend::{
    Backend as _, Dma, DmaAccess, DmaLimits, DmaMap, Error, IrqIndex, RegionIndex, Reset, Result, Width,
};

impl Dma for Broken {
    fn limits(&self) -> DmaLimits {
        let mut limits = self.inner_dma().limits();
        if self.is(Fault::NoMappingIsPossible) {
            limits.max_mappings = 0;
        }
        limits
    }

    fn map(&self, map: &DmaMap<'_>) -> Result<()> {
        const PAGE: u64 = 4096;
        let top = self.inner_dma().limits().iova_ranges.last().map_or(0, |range| *range.end());
        let wanted = *map;
        let refused = Err(Error::DmaRange { iova: map.iova, size: map.size, why: "a fault" });
        let mut map = wanted;
        match self.fault {
            Fault::ReadOnlyMappingIsRefused if map.access == DmaAccess::READ => return refused,
            Fault::OverflowingMappingIsAccepted if map.iova.checked_add(map.size).is_none() => return Ok(()),
            Fault::MappingOutOfReachIsAccepted if map.iova == top + 1 => return Ok(()),
            Fault::LastPageIsRefused if map.iova + (PAGE - 1) == top && map.size == PAGE => return refused,
            Fault::MappingsAreFew if self.book().mapped.len() >= 100 => return refused,
            Fault::FileOffsetIsIgnored if map.offset.is_multiple_of(PAGE) && map.offset < 1 << 32 => map.offset = 0,
            Fault::AccessIsIgnored => map.access = DmaAccess::READ | DmaAccess::WRITE,
            Fault::UnmapIsForgotten => {
                // Only now, when its place may be wanted.
                let forgotten = std::mem::take(&mut self.book().forgotten);
                forgotten.into_iter().try_for_each(|(iova, size)| self.inner_dma().unmap(iova, size))?;
            }
            _ => {}
        }
        let outcome = self.inner_dma().map(&map);
        match (&outcome, self.fault) {
            (Err(Error::DmaOverlap { .. }), Fault::DoubleMappingIsAccepted) => return Ok(()),
            (Err(Error::DmaOverlap { .. }), Fault::EnclosingMappingIsAccepted) if map.size == 8 * PAGE => return Ok(()),
            (Ok(()), Fault::ShortFileIsRefusedTooLate) => {
                let file = File::from(map.file.try_clone_to_owned().expect("a descriptor to spare"));
                if file.metadata().is_ok_and(|data| data.len() < map.offset + map.size) {
                    return refused;
                }
            }
            _ => {}
        }
        outcome?;
        self.book().mapped.insert(map.iova, map.size);
        Ok(())
    }

    fn unmap(&self, iova: u64, size: u64) -> Result<()> {
        match self.fault {
            Fault::LongUnmapIsAccepted if size == 3 * 4096 => Ok(()),
            Fault::UnmapIsForgotten => {
                let mut book = self.book();
                if book.mapped.get(&iova) != Some(&size) {
                    return Err(Error::DmaNotMapped { iova, size });
                }
                book.mapped.remove(&iova);
                book.forgotten.push((iova, size));
                Ok(())
            }
            _ => {
                self.inner_dma().unmap(iova, size)?;
                self.book().mapped.remove(&iova);
                Ok(())
            }
        }
    }
}

impl Reset for Broken {
    fn reset(&self) -> Result<()> {
        let kept = self.inner.read(RegionIndex::BAR0, 8, Width::Bits32)?;
        self.inner.resettable().expect("the sound backend can be reset").reset()?;
        match self.fault {
            Fault::ResetKeepsARegister => self.inner.write(RegionIndex::BAR0, 8, Width::Bits32, kept),
            Fault::ResetDisarmsMessages => {
                self.inner.disable_irq(IrqIndex::MSI)?;
                self.inner.disable_irq(IrqIndex::MSIX)
            }
            Fault::ResetLeavesTheLineMasked => self.inner.mask_irq(IrqIndex::INTX, 0),
            Fault::ResetUnmaps => {
                let mapped = std::mem::take(&mut self.book().mapped);
                mapped.into_iter().try_for_each(|(iova, size)| self.inner_dma().unmap(iova, size))
            }
            _ => Ok(()),
        }
    }
}
