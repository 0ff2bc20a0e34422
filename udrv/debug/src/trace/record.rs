//! A backend that records what passes through it.

use super::describe::Description;
use super::event::{Tag, word};
use super::log::Log;
use crate::around::{Around, Call, Device, Layer, Signal};
use crate::watch::Watch;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use udrv_backend::{Backend, Error, IrqIndex, Moment, RegionIndex, Result, Width};

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
pub type Recorder<B> = Around<B, Recording>;

/// What a [`Recorder`] does to what passes through it: it writes it down.
pub struct Recording {
    log: Log,
    memory: Option<Mutex<Watch>>,
}

impl<B: Backend> Recorder<B> {
    /// Around `inner`, into a new file; one that exists is replaced.
    ///
    /// # Errors
    /// [`Error::Os`] if the file cannot be made, or there is no room for it.
    pub fn new(inner: B, path: &Path, options: Options) -> Result<Self> {
        let description = Description { dma_contents: Some(options.dma_contents), ..Description::of(&inner)? };
        let log = Log::create(path, &description, options.events)?;
        Self::wrap(inner, Recording { log, memory: options.dma_contents.then(Mutex::default) })
    }

    /// How many events there was no room for so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.layer.log.lost()
    }
}

impl Recording {
    fn memory(&self) -> Option<MutexGuard<'_, Watch>> {
        self.memory.as_ref().map(|memory| memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn record_memory(&self) {
        let Some(mut memory) = self.memory() else { return };
        for change in memory.changes() {
            self.log.event(Tag::Data, 0, change.after.len() as u64, change.iova, word(&change.after));
        }
    }
}

impl Layer for Recording {
    const LISTENS: bool = true;

    #[inline]
    fn read<B: Backend>(&self, device: &Device<'_, B>, at: (RegionIndex, u64, Width)) -> Result<u64> {
        let (region, offset, width) = at;
        let log = &self.log;
        if self.memory.is_some() {
            // What the read tells of has been written by then, and comes before it in the trace.
            let value = device.inner.read(region, offset, width);
            self.record_memory();
            let slot = log.begin(Tag::Read, region.0, width.bytes(), offset, 0);
            log.end(slot, value.as_ref().map(|value| Some(*value)).map_err(Error::errno));
            return value;
        }
        let slot = log.begin(Tag::Read, region.0, width.bytes(), offset, 0);
        let value = device.inner.read(region, offset, width);
        log.end(slot, value.as_ref().map(|value| Some(*value)).map_err(Error::errno));
        value
    }

    #[inline]
    fn write<B: Backend>(&self, device: &Device<'_, B>, at: (RegionIndex, u64, Width), value: u64) -> Result<()> {
        let (region, offset, width) = at;
        // A driver that looks at memory for a transfer's end tells nobody when it found it, and goes on to the next.
        self.record_memory();
        let slot = self.log.begin(Tag::Write, region.0, width.bytes(), offset, value);
        let outcome = device.inner.write(region, offset, width, value);
        self.log.end(slot, outcome.as_ref().map(|()| None).map_err(Error::errno));
        outcome
    }

    fn call<B: Backend>(
        &self,
        _device: &Device<'_, B>,
        call: Call<'_>,
        make: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let (tag, index, a, b) = match call {
            Call::Arm(index, start, count) => (Tag::Arm, index.0, start.into(), count),
            Call::Disarm(index) => (Tag::Disarm, index.0, 0, 0),
            Call::Mask(index, vector) => (Tag::Mask, index.0, vector.into(), 0),
            Call::Unmask(index, vector) => (Tag::Unmask, index.0, vector.into(), 0),
            Call::Map(map) => (Tag::Map, 0, map.iova, map.size),
            Call::Unmap(iova, size) => (Tag::Unmap, 0, iova, size),
            Call::Reset => (Tag::Reset, 0, 0, 0),
            // The signal that it causes is recorded.
            Call::Fire => return make(),
        };
        if matches!(call, Call::Unmap(..)) {
            self.record_memory();
        }
        let slot = self.log.begin(tag, index, 0, a, b);
        let outcome = make();
        self.log.end(slot, outcome.as_ref().map(|()| None).map_err(Error::errno));
        outcome?;
        match (self.memory(), call) {
            (Some(mut memory), Call::Map(map)) => memory.map(map)?,
            (Some(mut memory), Call::Unmap(iova, size)) => memory.unmap(iova, size),
            _ => {}
        }
        Ok(())
    }

    fn signalled(&self, index: IrqIndex, vector: u32, count: u64) -> Signal {
        self.record_memory();
        self.log.event(Tag::Irq, index.0, 0, vector.into(), count);
        Signal::PASS
    }

    fn observe(&self, moment: Moment) {
        let log = &self.log;
        match moment {
            Moment::SectionBegins { domain, at } => log.event(Tag::SectionBegin, 0, 0, domain, log.place(at).pack()),
            Moment::SectionEnds { domain } => log.event(Tag::SectionEnd, 0, 0, domain, 0),
            Moment::HandlerBegins { index, vector } => log.event(Tag::HandlerBegin, index.0, 0, vector.into(), 0),
            Moment::HandlerEnds { index, vector, handled } => {
                log.event(Tag::HandlerEnd, index.0, 0, vector.into(), handled.into());
            }
            Moment::ThreadedBegins { index, vector } => log.event(Tag::ThreadedBegin, index.0, 0, vector.into(), 0),
            Moment::ThreadedEnds { index, vector } => log.event(Tag::ThreadedEnd, index.0, 0, vector.into(), 0),
            Moment::BottomHalfBegins { domain, at } => {
                log.event(Tag::BottomHalfBegin, 0, 0, domain, log.place(at).pack());
            }
            Moment::BottomHalfEnds { domain } => log.event(Tag::BottomHalfEnd, 0, 0, domain, 0),
            Moment::Streams { .. } => {}
            Moment::Lent { iova, size } => {
                // What is in it until now is the driver's.
                if let Some(mut memory) = self.memory() {
                    memory.settle(Some((iova, size)));
                }
                log.event(Tag::Lend, 0, 0, iova, size);
            }
            Moment::Returned { iova, size } => {
                // Before the driver takes it for its own.
                self.record_memory();
                log.event(Tag::Return, 0, 0, iova, size);
            }
        }
    }
}
