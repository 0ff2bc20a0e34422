//! A backend that records what passes through it.

use super::event::Tag;
use super::log::Log;
use super::read::Description;
use crate::relay::{Fate, Relay};
use crate::watch::Watch;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use udrv_backend::{
    Backend, DeviceInfo, Dma, DmaLimits, DmaMap, Error, IrqIndex, IrqInfo, RegionFlags, RegionIndex, RegionInfo, Reset,
    Result, Trigger, Width,
};

/// What is recorded, and how much.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Room for this many events, 32 bytes each. Those that follow are counted, not recorded.
    pub events: u64,
    /// Also what the device writes into memory. Each access then compares all memory that the device may write.
    pub dma_contents: bool,
}

impl Default for Options {
    /// A million events (32 MiB), without memory.
    fn default() -> Self {
        Self { events: 1 << 20, dma_contents: false }
    }
}

/// A backend that records.
pub struct Recorder<B> {
    /// Dropped before the device, so that no signal of a device that is closed is recorded.
    relay: Relay,
    shared: Arc<Shared>,
    inner: B,
}

struct Shared {
    log: Log,
    memory: Option<Mutex<Watch>>,
}

impl Shared {
    fn memory(&self) -> Option<MutexGuard<'_, Watch>> {
        self.memory.as_ref().map(|memory| memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn record_memory(&self) {
        let Some(mut memory) = self.memory() else { return };
        for change in memory.changes() {
            let mut word = [0; 8];
            word.iter_mut().zip(&change.after).for_each(|(to, from)| *to = *from);
            self.log.event(Tag::Data, 0, change.after.len() as u64, change.iova, u64::from_le_bytes(word));
        }
    }
}

impl<B: Backend> Recorder<B> {
    /// Around `inner`, into a new file; one that exists is replaced.
    ///
    /// # Errors
    /// [`Error::Os`] if the file cannot be made, or there is no room for it.
    pub fn new(inner: B, path: &Path, options: Options) -> Result<Self> {
        let log = Log::create(path, &Description::of(&inner)?, options.events)?;
        let shared = Arc::new(Shared { log, memory: options.dma_contents.then(Mutex::default) });
        let arrived = Arc::clone(&shared);
        let relay = Relay::new(Box::new(move |index, vector, count| {
            arrived.record_memory();
            arrived.log.event(Tag::Irq, index.0, 0, vector.into(), count);
            Fate::Pass(1)
        }))?;
        Ok(Self { relay, shared, inner })
    }

    /// How many events there was no room for so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.log.lost()
    }

    /// Records a call that answers nothing.
    fn call(&self, tag: Tag, index: u32, a: u64, b: u64, call: impl FnOnce() -> Result<()>) -> Result<()> {
        let slot = self.shared.log.begin(tag, index, 0, a, b);
        let outcome = call();
        self.shared.log.end(slot, outcome.as_ref().map(|()| None).map_err(Error::errno));
        outcome
    }

    fn inner_dma(&self) -> Result<&dyn Dma> {
        self.inner.dma().ok_or_else(|| Error::NotSupported { what: "DMA", by: self.inner.info().address.clone() })
    }
}

impl<B: Backend> Backend for Recorder<B> {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
    fn region(&self, region: RegionIndex) -> Result<RegionInfo> {
        let info = self.inner.region(region)?;
        Ok(RegionInfo { flags: info.flags - RegionFlags::MMAP, mappable: Vec::new(), ..info })
    }
    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        self.inner.irq(index)
    }
    #[inline]
    fn read(&self, region: RegionIndex, offset: u64, width: Width) -> Result<u64> {
        let log = &self.shared.log;
        if self.shared.memory.is_some() {
            // What the read tells of has been written by then, and comes before it in the trace.
            let value = self.inner.read(region, offset, width);
            self.shared.record_memory();
            let slot = log.begin(Tag::Read, region.0, width.bytes(), offset, 0);
            log.end(slot, value.as_ref().map(|value| Some(*value)).map_err(Error::errno));
            return value;
        }
        let slot = log.begin(Tag::Read, region.0, width.bytes(), offset, 0);
        let value = self.inner.read(region, offset, width);
        log.end(slot, value.as_ref().map(|value| Some(*value)).map_err(Error::errno));
        value
    }
    #[inline]
    fn write(&self, region: RegionIndex, offset: u64, width: Width, value: u64) -> Result<()> {
        if let Some(mut memory) = self.shared.memory() {
            memory.settle();
        }
        let log = &self.shared.log;
        let slot = log.begin(Tag::Write, region.0, width.bytes(), offset, value);
        let outcome = self.inner.write(region, offset, width, value);
        log.end(slot, outcome.as_ref().map(|()| None).map_err(Error::errno));
        outcome
    }
    fn set_triggers(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        let arm = || self.relay.set_triggers(&self.inner, index, start, triggers);
        self.call(Tag::Arm, index.0, start.into(), triggers.len() as u64, arm)
    }
    fn disable_irq(&self, index: IrqIndex) -> Result<()> {
        self.call(Tag::Disarm, index.0, 0, 0, || self.relay.disable(&self.inner, index))
    }
    fn mask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.call(Tag::Mask, index.0, vector.into(), 0, || self.inner.mask_irq(index, vector))?;
        self.relay.flush();
        Ok(())
    }
    fn unmask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.call(Tag::Unmask, index.0, vector.into(), 0, || self.inner.unmask_irq(index, vector))
    }
    fn fire_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.inner.fire_irq(index, vector)?;
        self.relay.flush();
        Ok(())
    }
    fn dma(&self) -> Option<&dyn Dma> {
        self.inner.dma().map(|_| self as &dyn Dma)
    }
    fn resettable(&self) -> Option<&dyn Reset> {
        self.inner.resettable().map(|_| self as &dyn Reset)
    }
}

impl<B: Backend> Dma for Recorder<B> {
    fn limits(&self) -> DmaLimits {
        let none = DmaLimits { iova_ranges: Vec::new(), page_size: 4096, max_mappings: 0 };
        self.inner.dma().map_or(none, Dma::limits)
    }
    fn map(&self, map: &DmaMap<'_>) -> Result<()> {
        self.call(Tag::Map, 0, map.iova, map.size, || self.inner_dma()?.map(map))?;
        match self.shared.memory() {
            Some(mut memory) => memory.map(map),
            None => Ok(()),
        }
    }
    fn unmap(&self, iova: u64, size: u64) -> Result<()> {
        self.shared.record_memory();
        self.call(Tag::Unmap, 0, iova, size, || self.inner_dma()?.unmap(iova, size))?;
        if let Some(mut memory) = self.shared.memory() {
            memory.unmap(iova, size);
        }
        Ok(())
    }
}

impl<B: Backend> Reset for Recorder<B> {
    fn reset(&self) -> Result<()> {
        self.call(Tag::Reset, 0, 0, 0, || match self.inner.resettable() {
            Some(reset) => reset.reset(),
            None => Err(Error::NotSupported { what: "a reset", by: self.inner.info().address.clone() }),
        })
    }
}
