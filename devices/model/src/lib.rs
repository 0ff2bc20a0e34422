//! What every software device needs, so that a model is only its own registers: configuration space, interrupts by pin
//! and by message, DMA through the mappings its driver made, and the [`Backend`] over all of it.
//!
//! A model implements [`DeviceModel`]: a pure state machine. [`ModelBackend`] is the glue: after every access it asks
//! the model for its interrupt output and derives from it what is signalled, so that no access can forget to.
#![forbid(unsafe_code)]

mod config;
mod dma;
mod irq;
mod memory;
mod msix;

pub use config::{Bar, Identity};
pub use dma::{Bus, BusFault};
pub use memory::device_memory;
pub use msix::Msix;

use config::ConfigSpace;
use dma::Mappings;
use irq::Lines;
use msix::Structures;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use udrv_backend::{
    Backend, DeviceInfo, Dma, DmaLimits, DmaMap, Error, IrqFlags, IrqIndex, IrqInfo, MapRegion, RegionFile,
    RegionFlags, RegionIndex, RegionInfo, Reset, Result, SparseArea, Trigger, Width,
};

/// A device's registers and what they do. No I/O, no time, no threads.
///
/// It is asked for [`DeviceModel::line`] and [`DeviceModel::messages`] after every access: both are derived from its
/// state, and it signals nothing by itself.
pub trait DeviceModel: Send {
    /// What the device is. Constant.
    fn identity(&self) -> Identity;

    /// A read of BAR `bar`; bounds and alignment have been checked. Memory and the MSI-X structures are not asked of it.
    fn read(&mut self, bar: u32, offset: u64, width: Width) -> u64;

    /// A write of BAR `bar`. DMA goes through `bus`.
    fn write(&mut self, bar: u32, offset: u64, width: Width, value: u64, bus: &mut Bus<'_>);

    /// Whether the pin is asserted.
    fn line(&self) -> bool;

    /// How many messages each vector has sent since power-on, always for as many vectors as the device uses: what has
    /// been added since the last access is signalled.
    fn messages(&self) -> &[u64];

    /// Power-on state.
    fn reset(&mut self);

    /// The file behind a [`Bar::Memory`], as long as it is. Constant. See [`device_memory`].
    fn memory(&self, bar: u32) -> Option<Arc<File>> {
        let _ = bar;
        None
    }
}

/// A model as a [`Backend`].
pub struct ModelBackend<M: DeviceModel> {
    info: DeviceInfo,
    identity: Identity,
    memory: [Option<Arc<File>>; 6],
    inner: Mutex<Inner<M>>,
}

struct Inner<M> {
    model: M,
    config: ConfigSpace,
    msix: Structures,
    lines: Lines,
    mappings: Mappings,
}

impl<M: DeviceModel> ModelBackend<M> {
    /// The model, as the device `model:NAME`.
    pub fn new(name: &str, model: M) -> Self {
        let identity = model.identity();
        let pins = u32::from(identity.interrupt_pin != 0);
        let msix = identity.msix.map_or(0, |msix| u32::from(msix.vectors));
        let is_memory = |bar: u32| matches!(identity.bars.get(bar as usize), Some(Bar::Memory(_)));
        let memory = std::array::from_fn(|bar| model.memory(bar as u32).filter(|_| is_memory(bar as u32)));
        let inner = Inner {
            config: ConfigSpace::new(&identity),
            msix: Structures::new(identity.msix),
            lines: Lines::new(pins, identity.msi_vectors, msix, model.messages()),
            mappings: Mappings::new(),
            model,
        };
        let info = DeviceInfo { address: format!("model:{name}"), regions: 9, irqs: 5 };
        Self { info, identity, memory, inner: Mutex::new(inner) }
    }

    /// What happens to the device from its other side (a character arrives on its line, a disk is inserted), with its
    /// interrupt output derived afterwards as after an access.
    pub fn from_outside<T>(&self, event: impl FnOnce(&mut M) -> T) -> T {
        let mut inner = self.lock();
        let outcome = event(&mut inner.model);
        inner.sync();
        outcome
    }

    fn memory(&self, region: RegionIndex) -> Option<&File> {
        self.memory.get(region.0 as usize)?.as_deref()
    }

    fn lock(&self) -> MutexGuard<'_, Inner<M>> {
        // A model that panicked has its state as of that access, which is as good as any device's after a fault.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
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
        let line = self.model.line();
        self.config.show_interrupt(line);
        let line = line && self.config.pin_enabled();
        self.lines.update(line, self.model.messages(), self.config.bus_master());
    }
}

impl<M: DeviceModel> Backend for ModelBackend<M> {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn region(&self, region: RegionIndex) -> Result<RegionInfo> {
        let size = match region.0 {
            bar @ 0..=5 => self.identity.bars.get(bar as usize).map_or(0, |bar| bar.size()),
            7 => config::SIZE,
            6 | 8 => 0,
            _ => return Err(Error::NoSuchRegion { region, count: self.info.regions }),
        };
        let mut flags = if size > 0 { RegionFlags::READ | RegionFlags::WRITE } else { RegionFlags::empty() };
        let whole = self.memory(region).map(|_| SparseArea { offset: 0, size });
        flags.set(RegionFlags::MMAP, whole.is_some());
        Ok(RegionInfo { index: region, size, flags, mappable: whole.into_iter().collect() })
    }

    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        if index.0 >= self.info.irqs {
            return Err(Error::NoSuchIrq { index, start: 0, count: 0, available: 0 });
        }
        let flags = match index {
            IrqIndex::INTX => IrqFlags::EVENTFD | IrqFlags::MASKABLE | IrqFlags::AUTOMASKED,
            _ => IrqFlags::EVENTFD,
        };
        Ok(IrqInfo { index, count: self.lock().lines.count(index), flags })
    }

    fn read(&self, region: RegionIndex, offset: u64, width: Width) -> Result<u64> {
        self.region(region)?.check(offset, width)?;
        if let Some(file) = self.memory(region) {
            return memory::load(file, offset, width);
        }
        let mut inner = self.lock();
        let Inner { model, config, msix, .. } = &mut *inner;
        let value = match region {
            RegionIndex::CONFIG => config.read(offset, width),
            RegionIndex(bar) => {
                msix.read(bar, offset, width).unwrap_or_else(|| model.read(bar, offset, width) & width.all_ones())
            }
        };
        inner.sync();
        Ok(value)
    }

    fn write(&self, region: RegionIndex, offset: u64, width: Width, value: u64) -> Result<()> {
        self.region(region)?.check(offset, width)?;
        RegionInfo::check_value(width, value)?;
        if let Some(file) = self.memory(region) {
            return memory::store(file, offset, width, value);
        }
        let mut inner = self.lock();
        let Inner { model, config, msix, mappings, .. } = &mut *inner;
        match region {
            RegionIndex::CONFIG => config.write(offset, width, value),
            RegionIndex(bar) => msix.write(bar, offset, width, value).unwrap_or_else(|| {
                model.write(bar, offset, width, value, &mut Bus::new(mappings, config.bus_master()));
            }),
        }
        inner.sync();
        Ok(())
    }

    fn set_triggers(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        let count = u32::try_from(triggers.len()).unwrap_or(u32::MAX);
        self.check_vectors(index, start, count)?;
        let mut inner = self.lock();
        if let Some(armed) = inner.lines.armed_beside(index).filter(|_| triggers.iter().any(Option::is_some)) {
            return Err(Error::Unavailable {
                device: self.info.address.clone(),
                why: format!("{armed} is armed, and a device uses one kind of interrupt at a time"),
                advice: format!("disable {armed} before {index} is armed"),
            });
        }
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

    fn mappable(&self) -> Option<&dyn MapRegion> {
        self.memory.iter().any(Option::is_some).then_some(self as &dyn MapRegion)
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
        let Inner { model, config, msix, lines, .. } = &mut *inner;
        model.reset();
        *config = ConfigSpace::new(&self.identity);
        *msix = Structures::new(self.identity.msix);
        lines.reset();
        inner.sync();
        Ok(())
    }
}

impl<M: DeviceModel> MapRegion for ModelBackend<M> {
    fn region_file(&self, region: RegionIndex) -> Result<RegionFile<'_>> {
        self.region(region)?;
        let none = Error::NotSupported { what: "mapping this region", by: self.info.address.clone() };
        self.memory(region).map(|file| RegionFile { file: file.as_fd(), offset: 0 }).ok_or(none)
    }
}
