//! What a recording says of its device.

use serde::{Deserialize, Serialize};
use udrv_backend::{Backend, DmaLimits, IrqIndex, RegionIndex, Result, Width};

/// What the device said of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Its address.
    pub address: String,
    /// Size and flags (VFIO's) of each region.
    pub regions: Vec<(u64, u32)>,
    /// Vectors and flags (VFIO's) of each interrupt index.
    pub irqs: Vec<(u32, u32)>,
    /// If it has DMA, what can be mapped.
    pub dma: Option<DmaDescription>,
    /// Whether it can be reset.
    pub resettable: bool,
    /// Which it is, if it is a PCI device. Recordings of version 1 do not say.
    #[serde(default)]
    pub identity: Option<Identity>,
    /// Whether what it writes into memory was recorded. Recordings before version 3 do not say.
    #[serde(default)]
    pub dma_contents: Option<bool>,
}

/// What a PCI device is, of its configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Base class, subclass, programming interface, highest first.
    pub class: u32,
}

impl Identity {
    fn of(device: &(impl Backend + ?Sized)) -> Option<Self> {
        let read = |offset, width| device.read(RegionIndex::CONFIG, offset, width).ok();
        Some(Self {
            vendor: read(0, Width::Bits16)? as u16,
            device: read(2, Width::Bits16)? as u16,
            class: (read(8, Width::Bits32)? >> 8) as u32,
        })
    }
}

/// [`DmaLimits`] in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmaDescription {
    /// First and last bus address of each range.
    pub ranges: Vec<(u64, u64)>,
    /// Bytes.
    pub page_size: u64,
    /// At once.
    pub max_mappings: u32,
}

impl Description {
    /// Of a device.
    ///
    /// # Errors
    /// As [`Backend::region`] and [`Backend::irq`].
    pub fn of(device: &(impl Backend + ?Sized)) -> Result<Self> {
        let info = device.info();
        let region = |index| device.region(RegionIndex(index)).map(|region| (region.size, region.flags.bits()));
        let irq = |index| device.irq(IrqIndex(index)).map(|irq| (irq.count, irq.flags.bits()));
        let dma = device.dma().map(|dma| {
            let DmaLimits { iova_ranges, page_size, max_mappings } = dma.limits();
            let ranges = iova_ranges.into_iter().map(std::ops::RangeInclusive::into_inner).collect();
            DmaDescription { ranges, page_size, max_mappings }
        });
        Ok(Self {
            address: info.address.clone(),
            regions: (0..info.regions).map(region).collect::<Result<_>>()?,
            irqs: (0..info.irqs).map(irq).collect::<Result<_>>()?,
            dma,
            resettable: device.resettable().is_some(),
            identity: Identity::of(device),
            dma_contents: None,
        })
    }

    /// What is wrong with one that no device can have.
    pub(super) fn check(&self) -> std::result::Result<(), String> {
        let Some(dma) = &self.dma else { return Ok(()) };
        if !dma.page_size.is_power_of_two() || dma.page_size > 1 << 30 {
            return Err(format!("DMA pages of {:#x} bytes", dma.page_size));
        }
        match dma.ranges.iter().find(|(first, last)| first > last) {
            Some((first, last)) => Err(format!("bus addresses from {first:#x} to {last:#x}")),
            None => Ok(()),
        }
    }
}
