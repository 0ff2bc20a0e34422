//! A device that is nothing but the triggers it was given, so that a raise is one write and nothing else.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex};
use udrv_backend::{
    AnyBackend, Backend, DeviceInfo, Dma, Error, IrqFlags, IrqIndex, IrqInfo, RegionIndex, RegionInfo, Result, Trigger,
    Width,
};

pub struct Triggers {
    info: DeviceInfo,
    armed: Mutex<Vec<Option<OwnedFd>>>,
}

impl Triggers {
    pub fn new() -> Arc<Self> {
        let info = DeviceInfo { address: "model:triggers".into(), regions: 0, irqs: 3 };
        // Never grows: what it allocates is not to be counted as the runtime's.
        let armed = std::iter::repeat_with(|| None).take(2048).collect();
        Arc::new(Self { info, armed: Mutex::new(armed) })
    }

    pub fn backend(self: &Arc<Self>) -> AnyBackend {
        Arc::clone(self) as AnyBackend
    }

    /// A duplicate of one vector's trigger.
    pub fn trigger(&self, vector: u32) -> OwnedFd {
        let armed = self.armed.lock().expect("no panic inside");
        armed[vector as usize].as_ref().expect("armed").try_clone().expect("a descriptor")
    }
}

impl Backend for Triggers {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn region(&self, region: RegionIndex) -> Result<RegionInfo> {
        Err(Error::NoSuchRegion { region, count: 0 })
    }
    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        Ok(IrqInfo { index, count: 2048, flags: IrqFlags::EVENTFD })
    }
    fn read(&self, region: RegionIndex, _offset: u64, _width: Width) -> Result<u64> {
        Err(Error::NoSuchRegion { region, count: 0 })
    }
    fn write(&self, region: RegionIndex, _offset: u64, _width: Width, _value: u64) -> Result<()> {
        Err(Error::NoSuchRegion { region, count: 0 })
    }
    fn set_triggers(&self, _index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        let mut armed = self.armed.lock().expect("no panic inside");
        for (slot, trigger) in armed[start as usize..].iter_mut().zip(triggers) {
            *slot = trigger.map(|fd| fd.as_fd().try_clone_to_owned().expect("a descriptor"));
        }
        Ok(())
    }
    fn disable_irq(&self, _index: IrqIndex) -> Result<()> {
        self.armed.lock().expect("no panic inside").fill_with(|| None);
        Ok(())
    }
    fn mask_irq(&self, _index: IrqIndex, _vector: u32) -> Result<()> {
        Ok(())
    }
    fn unmask_irq(&self, _index: IrqIndex, _vector: u32) -> Result<()> {
        Ok(())
    }
    fn fire_irq(&self, _index: IrqIndex, _vector: u32) -> Result<()> {
        Ok(())
    }
    fn dma(&self) -> Option<&dyn Dma> {
        None
    }
}
