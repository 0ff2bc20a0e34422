//! A backend around another: what all wrappers of this crate have in common, written once.
//!
//! A wrapper is a [`Layer`]: what it does to a register access, to any other call, to a signal. Everything else goes to the
//! device as it is, except that regions are not mapped.

use crate::relay::{Fate, Relay};
use std::sync::Arc;
use udrv_backend::{
    Backend, DeviceInfo, Dma, DmaLimits, DmaMap, Error, IrqIndex, IrqInfo, Moment, Observe, RegionFlags, RegionIndex,
    RegionInfo, Reset, Result, Trigger, Width,
};

/// A call other than a register access.
#[derive(Debug, Clone, Copy)]
pub enum Call<'a> {
    /// Triggers are set: the first vector, how many.
    Arm(IrqIndex, u32, u64),
    /// An index is disarmed.
    Disarm(IrqIndex),
    /// A vector is masked.
    Mask(IrqIndex, u32),
    /// A vector is unmasked.
    Unmask(IrqIndex, u32),
    /// A vector is signalled on request.
    Fire,
    /// The device is given memory.
    Map(&'a DmaMap<'a>),
    /// Memory is taken back: bus address and bytes.
    Unmap(u64, u64),
    /// The device is reset.
    Reset,
}

/// What a wrapper does.
pub trait Layer: Send + Sync + 'static {
    /// A register is read.
    ///
    /// # Errors
    /// As [`Backend::read`].
    fn read<B: Backend>(&self, device: &Device<'_, B>, at: (RegionIndex, u64, Width)) -> Result<u64>;

    /// A register is written.
    ///
    /// # Errors
    /// As [`Backend::write`].
    fn write<B: Backend>(&self, device: &Device<'_, B>, at: (RegionIndex, u64, Width), value: u64) -> Result<()>;

    /// Any other call; `make` makes it. One that is given memory other than what `call` has makes it itself.
    ///
    /// # Errors
    /// What `make` gave, or why it was not called.
    fn call<B: Backend>(&self, device: &Device<'_, B>, call: Call<'_>, make: impl FnOnce() -> Result<()>)
    -> Result<()>;

    /// The device signalled a vector, so many times. Called with the relay locked.
    fn signalled(&self, index: IrqIndex, vector: u32, count: u64) -> Signal;

    /// What the runtime tells, where the layer is one that listens.
    fn observe(&self, moment: Moment) {
        let _ = moment;
    }

    /// The device is about to be closed.
    fn closed(&self) {}

    /// Whether it is told what the runtime does.
    const LISTENS: bool = false;
}

/// What becomes of a signal; see [`Layer::signalled`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(pub(crate) Fate);

impl Signal {
    /// Passed on, once.
    pub const PASS: Self = Self(Fate::Pass(1));
}

/// The wrapped device, for a layer.
pub struct Device<'a, B> {
    /// As it is.
    pub inner: &'a B,
    pub(crate) relay: &'a Relay,
}

/// A device with a layer around it.
pub struct Around<B, L: Layer> {
    /// Dropped before the device, so that no signal of a device that is closed is passed on.
    relay: Relay,
    pub(crate) layer: Arc<L>,
    observer: Option<Arc<dyn Observe>>,
    inner: B,
}

/// Tells a layer, then the one below it.
struct Listening<L> {
    layer: Arc<L>,
    below: Option<Arc<dyn Observe>>,
}

impl<L: Layer> Observe for Listening<L> {
    fn observe(&self, moment: Moment) {
        self.layer.observe(moment);
        if let Some(below) = &self.below {
            below.observe(moment);
        }
    }
}

impl<B, L: Layer> Drop for Around<B, L> {
    fn drop(&mut self) {
        self.layer.closed();
    }
}

impl<B: Backend, L: Layer> Around<B, L> {
    /// Puts a layer around a device.
    ///
    /// # Errors
    /// [`Error::Os`] if the thread that passes interrupts on cannot be started.
    pub fn wrap(inner: B, layer: L) -> Result<Self> {
        let layer = Arc::new(layer);
        let judge = Arc::clone(&layer);
        let relay = Relay::new(Box::new(move |index, vector, count| judge.signalled(index, vector, count).0))?;
        let below = inner.observer();
        let observer: Option<Arc<dyn Observe>> =
            if L::LISTENS { Some(Arc::new(Listening { layer: Arc::clone(&layer), below })) } else { below };
        Ok(Self { relay, layer, observer, inner })
    }

    fn device(&self) -> Device<'_, B> {
        Device { inner: &self.inner, relay: &self.relay }
    }

    fn call(&self, call: Call<'_>, make: impl FnOnce() -> Result<()>) -> Result<()> {
        self.layer.call(&self.device(), call, make)
    }

    fn lacks(&self, what: &'static str) -> Error {
        Error::NotSupported { what, by: self.inner.info().address.clone() }
    }

    fn inner_dma(&self) -> Result<&dyn Dma> {
        self.inner.dma().ok_or_else(|| self.lacks("DMA"))
    }
}

impl<B: Backend, L: Layer> Backend for Around<B, L> {
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
        self.layer.read(&self.device(), (region, offset, width))
    }
    #[inline]
    fn write(&self, region: RegionIndex, offset: u64, width: Width, value: u64) -> Result<()> {
        self.layer.write(&self.device(), (region, offset, width), value)
    }
    fn set_triggers(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        let arm = || self.relay.set_triggers(&self.inner, index, start, triggers);
        self.call(Call::Arm(index, start, triggers.len() as u64), arm)
    }
    fn disable_irq(&self, index: IrqIndex) -> Result<()> {
        self.call(Call::Disarm(index), || self.relay.disable(&self.inner, index))
    }
    fn mask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.call(Call::Mask(index, vector), || self.inner.mask_irq(index, vector))?;
        self.relay.flush();
        Ok(())
    }
    fn unmask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.call(Call::Unmask(index, vector), || self.inner.unmask_irq(index, vector))
    }
    fn fire_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.call(Call::Fire, || self.inner.fire_irq(index, vector))?;
        self.relay.flush();
        Ok(())
    }
    fn dma(&self) -> Option<&dyn Dma> {
        self.inner.dma().map(|_| self as &dyn Dma)
    }
    fn resettable(&self) -> Option<&dyn Reset> {
        self.inner.resettable().map(|_| self as &dyn Reset)
    }
    fn observer(&self) -> Option<Arc<dyn Observe>> {
        self.observer.clone()
    }
}

impl<B: Backend, L: Layer> Dma for Around<B, L> {
    fn limits(&self) -> DmaLimits {
        let none = DmaLimits { iova_ranges: Vec::new(), page_size: 4096, max_mappings: 0 };
        self.inner.dma().map_or(none, Dma::limits)
    }
    fn map(&self, map: &DmaMap<'_>) -> Result<()> {
        self.call(Call::Map(map), || self.inner_dma()?.map(map))
    }
    fn unmap(&self, iova: u64, size: u64) -> Result<()> {
        self.call(Call::Unmap(iova, size), || self.inner_dma()?.unmap(iova, size))
    }
}

impl<B: Backend, L: Layer> Reset for Around<B, L> {
    fn reset(&self) -> Result<()> {
        self.call(Call::Reset, || self.inner.resettable().ok_or_else(|| self.lacks("a reset"))?.reset())
    }
}
