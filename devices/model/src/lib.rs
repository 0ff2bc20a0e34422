//! What every software device needs, so that a model is only its own registers: configuration space, interrupts by pin
//! and by message, DMA through the mappings its driver made, and the [`Backend`] over all of it.
//!
//! A model implements [`DeviceModel`]: a pure state machine. [`ModelBackend`] is the glue: after every access it asks
//! the model for its interrupt output and derives from it what is signalled, so that no access can forget to.
#![forbid(unsafe_code)]

mod config;
mod dma;
mod irq;

pub use config::Identity;
pub use dma::{Bus, BusFault};

use config::ConfigSpace;
use dma::Mappings;
use irq::Lines;
use std::sync::{Mutex, MutexGuard, PoisonError};
use udrv_backend::{
    Backend, DeviceInfo, Dma, DmaLimits, DmaMap, Error, IrqFlags, IrqIndex, IrqInfo, RegionFlags, RegionIndex,
    RegionInfo, Reset, Result, Trigger, Width,
};

/// A device's registers and what they do. No I/O, no time, no threads.
pub trait DeviceModel: Send {
    /// What the device is. Constant.
    fn identity(&self) -> Identity;

    /// A read of BAR `bar`; bounds and alignment have been checked.
    fn read(&mut self, bar: u32, offset: u64, width: Width) -> u64;

    /// A write of BAR `bar`. DMA goes through `bus`.
    fn write(&mut self, bar: u32, offset: u64, width: Width, value: u64, bus: &mut Bus<'_>);

    /// Whether the device wants attention: the pin's level, and, on its rising, the message.
    fn interrupt(&self) -> bool;

    /// Power-on state.
    fn reset(&mut self);
}

/// A model as a [`Backend`].
pub struct ModelBackend<M: DeviceModel> {
    info: DeviceInfo,
    identity: Identity,
    inner: Mutex<Inner<M>>,
}

struct Inner<M> {
    model: M,
    config: ConfigSpace,
    lines: Lines,
    mappings: Mappings,
}

impl<M: DeviceModel> ModelBackend<M> {
    /// The model, as the device `model:NAME`.
    pub fn new(name: &str, model: M) -> Self {
        let identity = model.identity();
        let inner = Inner {
            config: ConfigSpace::new(&identity),
            lines: Lines::new(identity.msi_vectors),
            mappings: Mappings::new(identity.dma_address_bits),
            model,
        };
        let info = DeviceInfo { address: format!("model:{name}"), regions: 9, irqs: 5 };
        Self { info, identity, inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<M>> {
        // A model that panicked has its state as of that access, which is as good as any device's after a fault.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vectors(&self, index: IrqIndex) -> u32 {
        match index {
            IrqIndex::INTX => u32::from(self.identity.interrupt_pin != 0),
            IrqIndex::MSI => self.identity.msi_vectors,
            _ => 0,
        }
    }

    fn check_vectors(&self, index: IrqIndex, start: u32, count: u32) -> Result<()> {
        let available = self.irq(index)?.count;
        match start.checked_add(count) {
            Some(end) if end <= available => Ok(()),
            _ => Err(Error::NoSuchIrq { index, start, count, available }),
        }
    }

    fn check_maskable(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.check_vectors(index, vector, 1)?;
        if self.irq(index)?.flags.contains(IrqFlags::MASKABLE) {
            return Ok(());
        }
        Err(Error::NotSupported { what: "masking a message-signalled interrupt", by: self.info.address.clone() })
    }
}

impl<M: DeviceModel> Inner<M> {
    /// The one place where interrupts come from: derived from state after every access.
    fn sync(&mut self) {
        let asserted = self.model.interrupt();
        self.config.show_interrupt(asserted);
        self.lines.update(asserted && self.config.pin_enabled(), asserted && self.config.bus_master());
    }
}

impl<M: DeviceModel> Backend for ModelBackend<M> {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn region(&self, region: RegionIndex) -> Result<RegionInfo> {
        let size = match region.0 {
            bar @ 0..=5 => self.identity.bars[bar as usize],
            7 => config::SIZE,
            6 | 8 => 0,
            _ => return Err(Error::NoSuchRegion { region, count: self.info.regions }),
        };
        let flags = if size > 0 { RegionFlags::READ | RegionFlags::WRITE } else { RegionFlags::empty() };
        Ok(RegionInfo { index: region, size, flags, mappable: Vec::new() })
    }

    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        if index.0 >= self.info.irqs {
            return Err(Error::NoSuchIrq { index, start: 0, count: 0, available: 0 });
        }
        let flags = match index {
            IrqIndex::INTX => IrqFlags::EVENTFD | IrqFlags::MASKABLE | IrqFlags::AUTOMASKED,
            _ => IrqFlags::EVENTFD,
        };
        Ok(IrqInfo { index, count: self.vectors(index), flags })
    }

    fn read(&self, region: RegionIndex, offset: u64, width: Width) -> Result<u64> {
        self.region(region)?.check(offset, width)?;
        let mut inner = self.lock();
        let value = match region {
            RegionIndex::CONFIG => inner.config.read(offset, width),
            bar => inner.model.read(bar.0, offset, width) & width.all_ones(),
        };
        inner.sync();
        Ok(value)
    }

    fn write(&self, region: RegionIndex, offset: u64, width: Width, value: u64) -> Result<()> {
        self.region(region)?.check(offset, width)?;
        RegionInfo::check_value(width, value)?;
        let mut inner = self.lock();
        let Inner { model, config, mappings, .. } = &mut *inner;
        match region {
            RegionIndex::CONFIG => config.write(offset, width, value),
            bar => model.write(bar.0, offset, width, value, &mut Bus::new(mappings, config.bus_master())),
        }
        inner.sync();
        Ok(())
    }

    fn set_triggers(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        let count = u32::try_from(triggers.len()).unwrap_or(u32::MAX);
        self.check_vectors(index, start, count)?;
        let mut inner = self.lock();
        inner.lines.set(index, start, triggers)?;
        inner.sync();
        Ok(())
    }

    fn disable_irq(&self, index: IrqIndex) -> Result<()> {
        self.irq(index)?;
        self.lock().lines.disable(index);
        Ok(())
    }

    fn mask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.check_maskable(index, vector)?;
        self.lock().lines.mask_pin(true);
        Ok(())
    }

    fn unmask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.check_maskable(index, vector)?;
        self.lock().lines.mask_pin(false);
        Ok(())
    }

    fn fire_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.check_vectors(index, vector, 1)?;
        self.lock().lines.fire(index, vector);
        Ok(())
    }

    fn dma(&self) -> Option<&dyn Dma> {
        Some(self)
    }

    fn resettable(&self) -> Option<&dyn Reset> {
        self.identity.resettable.then_some(self as &dyn Reset)
    }
}

impl<M: DeviceModel> Dma for ModelBackend<M> {
    fn limits(&self) -> DmaLimits {
        self.lock().mappings.limits()
    }

    fn map(&self, map: &DmaMap<'_>) -> Result<()> {
        self.lock().mappings.map(map)
    }

    fn unmap(&self, iova: u64, size: u64) -> Result<()> {
        self.lock().mappings.unmap(iova, size)
    }
}

impl<M: DeviceModel> Reset for ModelBackend<M> {
    fn reset(&self) -> Result<()> {
        let mut inner = self.lock();
        inner.model.reset();
        inner.config = ConfigSpace::new(&self.identity);
        inner.lines.mask_pin(false);
        inner.sync();
        Ok(())
    }
}
