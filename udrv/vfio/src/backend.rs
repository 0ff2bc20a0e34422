//! The backend itself.

use crate::Bdf;
use udrv_backend::{
    Backend, DeviceInfo, Dma, Error, IrqIndex, IrqInfo, RegionIndex, RegionInfo, Result, Trigger, Width,
};

/// One PCI device, opened through its VFIO group.
pub struct VfioBackend {
    info: DeviceInfo,
}

impl VfioBackend {
    /// Opens the device at a PCI address such as `0000:03:00.0`, which must be bound to vfio-pci.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn open(bdf: Bdf) -> Result<Self> {
        Err(Error::NotSupported { what: "kernel VFIO", by: format!("pci:{bdf}") })
    }

    fn none<T>(&self) -> Result<T> {
        Err(Error::NotSupported { what: "kernel VFIO", by: self.info.address.clone() })
    }
}

impl Backend for VfioBackend {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn region(&self, _: RegionIndex) -> Result<RegionInfo> {
        self.none()
    }
    fn irq(&self, _: IrqIndex) -> Result<IrqInfo> {
        self.none()
    }
    fn read(&self, _: RegionIndex, _: u64, _: Width) -> Result<u64> {
        self.none()
    }
    fn write(&self, _: RegionIndex, _: u64, _: Width, _: u64) -> Result<()> {
        self.none()
    }
    fn set_triggers(&self, _: IrqIndex, _: u32, _: &[Option<Trigger<'_>>]) -> Result<()> {
        self.none()
    }
    fn disable_irq(&self, _: IrqIndex) -> Result<()> {
        self.none()
    }
    fn mask_irq(&self, _: IrqIndex, _: u32) -> Result<()> {
        self.none()
    }
    fn unmask_irq(&self, _: IrqIndex, _: u32) -> Result<()> {
        self.none()
    }
    fn fire_irq(&self, _: IrqIndex, _: u32) -> Result<()> {
        self.none()
    }
    fn dma(&self) -> Option<&dyn Dma> {
        None
    }
}
