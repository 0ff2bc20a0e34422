//! The backend itself: regions, and where everything else is handed on to.

use crate::attach::{Attached, attach};
use crate::dma::Space;
use crate::irq::Irqs;
use crate::{Bdf, reply, uapi};
use nix::sys::uio::{pread, pwrite};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use udrv_backend::pci::{CLASS_REVISION, COMMAND, Command};
use udrv_backend::{
    Backend, DeviceInfo, Dma, DmaLimits, DmaMap, Error, IrqIndex, IrqInfo, MapRegion, RegionFile, RegionIndex,
    RegionInfo, Reset, Result, Trigger, Width,
};
use vfio_bindings::bindings::vfio::{VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET};

/// One PCI device, opened through its VFIO group.
///
/// Threads may access registers at the same time; each access is one system call. An access of 64 bits is one transfer on
/// the bus where the kernel can do that, and two of 32 bits, low half first, in older kernels (6.1 is one): map the
/// region ([`MapRegion`]) where that matters.
///
/// A trigger may be an eventfd, which the kernel signals itself, or a socket or a pipe, which a thread of the backend
/// writes to. One of INTx, MSI and MSI-X can be armed at a time. Arming a vector beyond those that the kernel has
/// enabled (32 are at first), and arming INTx while its line is asserted, may signal what is armed once more than the
/// device did; none is lost.
pub struct VfioBackend {
    info: DeviceInfo,
    /// Each with where it begins in the device's descriptor.
    regions: Vec<(RegionInfo, u64)>,
    irqs: Mutex<Irqs>,
    dma: Space,
    can_reset: bool,
    attached: Attached,
}

/// The device's descriptor, and its name for errors.
#[derive(Clone, Copy)]
pub(crate) struct Device<'a> {
    pub(crate) fd: BorrowedFd<'a>,
    pub(crate) address: &'a str,
}

impl Device<'_> {
    /// The error for a call on this device.
    pub(crate) fn failed(self, doing: &str, error: io::Error) -> Error {
        match error.raw_os_error() {
            Some(libc::ENODEV) => Error::Gone { device: self.address.into(), why: format!("{doing}: {error}") },
            _ => Error::os(format!("{}: {doing}", self.address), error),
        }
    }
}

impl VfioBackend {
    /// Opens the device at a PCI address such as `0000:03:00.0`, which must be bound to vfio-pci.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with what to do about it: there is no such device, no IOMMU behind it, it is not bound to
    /// vfio-pci, its group is not viable (naming who is in the way), no permission, in use (naming by whom), or VFIO's
    /// modules are not loaded. [`Error::Os`] for what the kernel refuses otherwise.
    pub fn open(bdf: Bdf) -> Result<Self> {
        let attached = attach(bdf)?;
        let address = format!("pci:{bdf}");
        let device = Device { fd: attached.device.as_fd(), address: &address };
        let raw = uapi::device_info(device.fd).map_err(|error| device.failed("asking what it is", error))?;
        if raw.flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(Error::NotSupported { what: "a VFIO device that is no PCI device", by: address });
        }
        let regions = (0..raw.num_regions).map(|index| region(device, RegionIndex(index))).collect::<Result<_>>()?;
        let irqs = Mutex::new(Irqs::query(device, raw.num_irqs)?);
        let dma = Space::query(&attached)?;
        // The flag says that a reset worked when the device was opened; the list, that it is one of this function.
        let can_reset = raw.flags & VFIO_DEVICE_FLAGS_RESET != 0 && !attached.pci.reset_methods.is_empty();
        let info = DeviceInfo { address, regions: raw.num_regions, irqs: raw.num_irqs };
        Ok(Self { info, regions, irqs, dma, can_reset, attached })
    }

    fn device(&self) -> Device<'_> {
        Device { fd: self.attached.device.as_fd(), address: &self.info.address }
    }

    fn irqs(&self) -> MutexGuard<'_, Irqs> {
        // Triggers and kernel are brought to agree before a lock is released; nothing in between panics.
        self.irqs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at(&self, region: RegionIndex) -> Result<&(RegionInfo, u64)> {
        let found = self.regions.get(region.0 as usize);
        found.ok_or(Error::NoSuchRegion { region, count: self.info.regions })
    }

    /// Checks an access; returns where it is in the device's descriptor.
    fn place(&self, region: RegionIndex, offset: u64, width: Width) -> Result<i64> {
        let (info, base) = self.at(region)?;
        info.check(offset, width)?;
        let place = base.checked_add(offset).and_then(|place| i64::try_from(place).ok());
        place.ok_or(Error::OutOfRegion { region, offset, length: width.bytes(), size: info.size })
    }

    /// The error for an access that the kernel refused, or did only in part.
    fn access_failed(&self, doing: &str, outcome: nix::Result<usize>) -> Error {
        let device = self.device();
        let errno = match outcome {
            Ok(done) => {
                let expected = "all of the access's bytes".into();
                return Error::Protocol {
                    peer: device.address.into(),
                    found: format!("{done} when {doing}"),
                    expected,
                };
            }
            Err(errno) => errno,
        };
        if errno == nix::errno::Errno::EIO {
            // The kernel says EIO for a device that does not answer, and for one whose memory decoding is off.
            match self.config(CLASS_REVISION.offset) {
                Some(class) if class != u32::MAX => {}
                _ => return Error::Gone { device: device.address.into(), why: format!("EIO when {doing}") },
            }
            let command = self.config(COMMAND.offset).unwrap_or(u32::MAX);
            if command & u32::from(Command::MEMORY_SPACE.bits()) == 0 {
                let hint = format!("{doing} (its memory decoding is off: set MEMORY_SPACE in the command register)");
                return device.failed(&hint, errno.into());
            }
        }
        device.failed(doing, errno.into())
    }

    /// 32 bits of configuration space, if it can be read.
    fn config(&self, offset: u64) -> Option<u32> {
        let place = self.place(RegionIndex::CONFIG, offset, Width::Bits32).ok()?;
        let mut bytes = [0; 4];
        let read = pread(self.attached.device.as_fd(), &mut bytes, place);
        (read == Ok(bytes.len())).then(|| u32::from_le_bytes(bytes))
    }
}

/// One region. An index that the device does not have (VGA, mostly) is one of size 0.
fn region(device: Device<'_>, index: RegionIndex) -> Result<(RegionInfo, u64)> {
    let bytes = match uapi::region_info(device.fd, index.0) {
        Ok(bytes) => bytes,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let flags = udrv_backend::RegionFlags::empty();
            return Ok((RegionInfo { index, size: 0, flags, mappable: Vec::new() }, 0));
        }
        Err(error) => return Err(device.failed(&format!("asking for region {index}"), error)),
    };
    reply::region(index, &bytes).ok_or_else(|| Error::Protocol {
        peer: format!("the kernel's driver of {}", device.address),
        found: format!("{} bytes for region {index}", bytes.len()),
        expected: "a vfio_region_info".into(),
    })
}

impl Backend for VfioBackend {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn region(&self, region: RegionIndex) -> Result<RegionInfo> {
        Ok(self.at(region)?.0.clone())
    }

    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        self.irqs().info(index)
    }

    fn read(&self, region: RegionIndex, offset: u64, width: Width) -> Result<u64> {
        let place = self.place(region, offset, width)?;
        // PCI is little-endian, and so are the bytes that the kernel gives.
        let mut bytes = [0; 8];
        let (wanted, _) = bytes.split_at_mut(width.bytes() as usize);
        match pread(self.attached.device.as_fd(), wanted, place) {
            Ok(read) if read == wanted.len() => Ok(u64::from_le_bytes(bytes)),
            other => Err(self.access_failed(&format!("reading {width} at {offset:#x} of {region}"), other)),
        }
    }

    fn write(&self, region: RegionIndex, offset: u64, width: Width, value: u64) -> Result<()> {
        RegionInfo::check_value(width, value)?;
        let place = self.place(region, offset, width)?;
        let bytes = value.to_le_bytes();
        let (wanted, _) = bytes.split_at(width.bytes() as usize);
        match pwrite(self.attached.device.as_fd(), wanted, place) {
            Ok(written) if written == wanted.len() => Ok(()),
            other => Err(self.access_failed(&format!("writing {width} at {offset:#x} of {region}"), other)),
        }
    }

    fn set_triggers(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        self.irqs().set(self.device(), index, start, triggers)
    }

    fn disable_irq(&self, index: IrqIndex) -> Result<()> {
        self.irqs().disable(self.device(), index)
    }

    fn mask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.irqs().mask(self.device(), index, vector, true)
    }

    fn unmask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.irqs().mask(self.device(), index, vector, false)
    }

    fn fire_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.irqs().fire(self.device(), index, vector)
    }

    fn dma(&self) -> Option<&dyn Dma> {
        Some(self)
    }

    fn resettable(&self) -> Option<&dyn Reset> {
        self.can_reset.then_some(self)
    }

    fn mappable(&self) -> Option<&dyn MapRegion> {
        let any = self.regions.iter().any(|(info, _)| !info.mappable.is_empty());
        any.then_some(self)
    }
}

impl Dma for VfioBackend {
    fn limits(&self) -> DmaLimits {
        self.dma.limits.clone()
    }

    fn map(&self, map: &DmaMap<'_>) -> Result<()> {
        self.dma.map(&self.attached, map)
    }

    fn unmap(&self, iova: u64, size: u64) -> Result<()> {
        self.dma.unmap(&self.attached, iova, size)
    }
}

impl Reset for VfioBackend {
    fn reset(&self) -> Result<()> {
        // Held throughout: no trigger is set between the reset and the re-arming.
        let mut irqs = self.irqs();
        uapi::reset(self.attached.device.as_fd()).map_err(|error| self.device().failed("resetting it", error))?;
        irqs.rearm_all(self.device())
    }
}

impl MapRegion for VfioBackend {
    fn region_file(&self, region: RegionIndex) -> Result<RegionFile<'_>> {
        let (info, offset) = self.at(region)?;
        if info.mappable.is_empty() {
            return Err(Error::NotSupported {
                what: "mapping this region",
                by: format!("{} ({region})", self.info.address),
            });
        }
        Ok(RegionFile { file: self.attached.device.as_fd(), offset: *offset })
    }
}

impl Drop for VfioBackend {
    /// Closing the descriptors would do both, and clears bus mastering; but only once the last mapping of a region is
    /// gone, too, which is the runtime's.
    fn drop(&mut self) {
        let disarmed = self.irqs().disable_all(self.device());
        let unmapped = self.dma.unmap_all(&self.attached);
        if let Err(error) = disarmed.and(unmapped) {
            tracing::warn!(%error, "closing a device");
        }
    }
}
