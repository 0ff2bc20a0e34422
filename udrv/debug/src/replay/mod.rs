//! A recording instead of a device.
//!
//! # What a driver may do otherwise than recorded
//! * Read a register that it polls more or fewer times: of reads of one register that follow each other, any number is
//!   taken; one read more gets the last value again. Between them the same thread makes no other access to the region.
//! * Access one region earlier or later than another: order is kept in a region, not between them.
//! * Let another thread do it: order is kept in what each recorded thread did, whichever threads do it now. Where it could
//!   be what either of two recorded threads did next, it is what came before the next interrupt; then, that of which this thread
//!   has done something before.
//! * Run handlers on another thread, or later: what they do is in an order of its own, if the recording says what that is.
//! * Map memory, and arm, mask and disarm interrupts, earlier or later.
//!
//! Everything else is a divergence: the access fails with [`Error::Protocol`], which says what was expected, what came,
//! from which line, and the last ten accesses; and so does every access after it.
//!
//! A recording without DMA contents is one for drivers that let the device write no memory: mapping such memory fails.
//!
//! Interrupts are signalled, and memory is written, once all accesses that were recorded before have been made (or are
//! polls that may be left out). Time does not matter.

mod script;

use crate::trace::{Description, Trace};
use script::{Access, Script};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use udrv_backend::{
    Backend, DeviceInfo, Dma, DmaAccess, DmaLimits, DmaMap, Error, IrqFlags, IrqIndex, IrqInfo, RegionFlags,
    RegionIndex, RegionInfo, Reset, Result, Trigger, Width,
};

/// A device that does what was recorded.
pub struct Replay {
    info: DeviceInfo,
    device: Description,
    has_dma_contents: bool,
    script: Mutex<Script>,
}

impl Replay {
    /// Opens a recording.
    ///
    /// # Errors
    /// As [`Trace::open`].
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self::new(Trace::open(path)?, format!("replay:{}", path.display())))
    }

    /// Of a recording, under an address.
    #[must_use]
    pub fn new(trace: Trace, address: String) -> Self {
        let device = trace.device.clone();
        let info = DeviceInfo {
            address: address.clone(),
            regions: device.regions.len() as u32,
            irqs: device.irqs.len() as u32,
        };
        let has_dma_contents = trace.has_dma_contents();
        Self { info, device, has_dma_contents, script: Mutex::new(Script::new(trace, address)) }
    }

    /// What is left of the recording: accesses that were recorded and have not been made.
    #[must_use]
    pub fn left(&self) -> usize {
        self.script().left()
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_vectors(&self, index: IrqIndex, start: u32, count: usize) -> Result<IrqInfo> {
        let info = self.irq(index)?;
        let end = usize::try_from(start).ok().and_then(|start| start.checked_add(count));
        if end.is_some_and(|end| end <= info.count as usize) {
            return Ok(info);
        }
        Err(Error::NoSuchIrq { index, start, count: count as u32, available: info.count })
    }

    fn check_mask(&self, index: IrqIndex, vector: u32) -> Result<()> {
        if !self.check_vectors(index, vector, 1)?.flags.contains(IrqFlags::MASKABLE) {
            return Err(Error::NotSupported { what: "masking this interrupt", by: self.info.address.clone() });
        }
        Ok(())
    }
}

impl Backend for Replay {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn region(&self, index: RegionIndex) -> Result<RegionInfo> {
        let found = self.device.regions.get(index.0 as usize);
        let &(size, flags) = found.ok_or(Error::NoSuchRegion { region: index, count: self.info.regions })?;
        let flags = RegionFlags::from_bits_truncate(flags) - RegionFlags::MMAP;
        Ok(RegionInfo { index, size, flags, mappable: Vec::new() })
    }
    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        let none = Error::NoSuchIrq { index, start: 0, count: 0, available: 0 };
        let &(count, flags) = self.device.irqs.get(index.0 as usize).ok_or(none)?;
        Ok(IrqInfo { index, count, flags: IrqFlags::from_bits_truncate(flags) })
    }
    fn read(&self, region: RegionIndex, offset: u64, width: Width) -> Result<u64> {
        let sound = self.region(region)?.check(offset, width);
        self.script().access(Access { region, offset, width, written: None }, sound)
    }
    fn write(&self, region: RegionIndex, offset: u64, width: Width, value: u64) -> Result<()> {
        let sound = self.region(region)?.check(offset, width).and(RegionInfo::check_value(width, value));
        self.script().access(Access { region, offset, width, written: Some(value) }, sound).map(drop)
    }
    fn set_triggers(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        self.check_vectors(index, start, triggers.len())?;
        self.script().arm(index, start, triggers)
    }
    fn disable_irq(&self, index: IrqIndex) -> Result<()> {
        self.irq(index)?;
        self.script().disarm(index);
        Ok(())
    }
    fn mask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.check_mask(index, vector)
    }
    fn unmask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.check_mask(index, vector)
    }
    /// Does nothing: the signal that this caused is in the recording.
    fn fire_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.check_vectors(index, vector, 1).map(drop)
    }
    fn dma(&self) -> Option<&dyn Dma> {
        self.device.dma.as_ref().map(|_| self as &dyn Dma)
    }
    fn resettable(&self) -> Option<&dyn Reset> {
        self.device.resettable.then_some(self)
    }
}

impl Dma for Replay {
    fn limits(&self) -> DmaLimits {
        let none = DmaLimits { iova_ranges: Vec::new(), page_size: 4096, max_mappings: 0 };
        self.device.dma.as_ref().map_or(none, |dma| DmaLimits {
            iova_ranges: dma.ranges.iter().map(|(first, last)| *first..=*last).collect(),
            page_size: dma.page_size,
            max_mappings: dma.max_mappings,
        })
    }
    fn map(&self, map: &DmaMap<'_>) -> Result<()> {
        self.limits().check(map)?;
        self.script().map(map)?;
        if self.has_dma_contents || !map.access.contains(DmaAccess::WRITE) {
            return Ok(());
        }
        // Said now: a driver that waits for what the device has written would only find that it does not come.
        Err(Error::Unavailable {
            device: self.info.address.clone(),
            why: "its recording has no DMA contents, and the driver lets the device write into memory".into(),
            advice: "record it again with --record-dma (in a program, trace::Options::dma_contents)".into(),
        })
    }
    fn unmap(&self, iova: u64, size: u64) -> Result<()> {
        self.script().unmap(iova, size);
        Ok(())
    }
}

impl Reset for Replay {
    fn reset(&self) -> Result<()> {
        Ok(())
    }
}
