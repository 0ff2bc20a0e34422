//! The device contract: [`Backend`].
//!
//! Whatever *is* a device implements [`Backend`]; whatever *uses* a device takes one. Kernel VFIO, a software model
//! and a vfio-user socket are backends, so a driver written against this crate runs on all of them unchanged.
//!
//! What lives here: the trait, the values it speaks in, its errors, and, behind the feature `conformance`, the suite that
//! states each promise as a check. What must not: any operating-system call (outside that suite), any device, any
//! runtime policy. The vocabulary is the kernel's (`linux/vfio.h`): region and interrupt indices are VFIO's, so that nothing is renumbered
//! between a driver and its device.
#![forbid(unsafe_code)]

pub mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
mod dma;
mod error;
mod irq;
mod observe;
pub mod pci;
mod region;
pub mod register;

pub use dma::{Dma, DmaAccess, DmaLimits, DmaMap};
pub use error::{Error, Result};
pub use irq::{IrqFlags, IrqIndex, IrqInfo, Trigger};
pub use observe::{Moment, Observe};
pub use region::{MapRegion, RegionFile, RegionFlags, RegionIndex, RegionInfo, SparseArea, Width};

/// What a device says of itself (`struct vfio_device_info`, without the sizes).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The address it was opened by, such as `pci:0000:03:00.0`, `unix:/run/udrv/edu.sock` or `model:edu`.
    pub address: String,
    /// How many region indices exist; a PCI device has nine, some of size 0.
    pub regions: u32,
    /// How many interrupt indices exist; a PCI device has five, some with no vector.
    pub irqs: u32,
}

/// One device: its regions and interrupts, and by type what it can do beyond them.
///
/// # Promises
/// Every implementation is checked by the suite in the module `conformance`:
/// * an access beyond a region, or one that is not naturally aligned, is an [`Error`], never a crash and never an
///   access to something else;
/// * accesses made by one thread reach the device in program order;
/// * interrupts are delivered by writing 8 bytes to the trigger of the vector; none is lost, several may be merged;
/// * after [`Reset::reset`] the triggers are armed as before;
/// * dropping the backend leaves the device quiet: interrupts disarmed, the triggers closed, DMA unmapped. A device that
///   is opened again right after is as good as one opened first.
pub trait Backend: Send + Sync {
    /// What the device says of itself.
    fn info(&self) -> &DeviceInfo;

    /// Size, flags and mappable areas of one region. An index that exists but is not implemented has size 0.
    ///
    /// # Errors
    /// [`Error::NoSuchRegion`] for an index beyond [`DeviceInfo::regions`].
    fn region(&self, region: RegionIndex) -> Result<RegionInfo>;

    /// How many vectors one interrupt index has, and what can be done with them.
    ///
    /// # Errors
    /// [`Error::NoSuchIrq`] for an index beyond [`DeviceInfo::irqs`].
    fn irq(&self, index: IrqIndex) -> Result<IrqInfo>;

    /// Reads one naturally aligned value of `width` at byte `offset` of `region`.
    ///
    /// It reaches the device as one access, except that kernel VFIO may make two of a 64-bit one, the lower half first.
    /// A BAR whose space the command register does not enable answers with an error or with all ones.
    ///
    /// # Errors
    /// [`Error::OutOfRegion`], [`Error::Unaligned`], [`Error::NoSuchRegion`], [`Error::Gone`], [`Error::Os`].
    fn read(&self, region: RegionIndex, offset: u64, width: Width) -> Result<u64>;

    /// Writes one naturally aligned value; bits of `value` beyond `width` are an error, not truncated.
    ///
    /// # Errors
    /// As [`Backend::read`], and [`Error::ValueTooWide`].
    fn write(&self, region: RegionIndex, offset: u64, width: Width, value: u64) -> Result<()>;

    /// Sets the triggers of vectors `start..start + triggers.len()` of `index`; `None` leaves a hole that never fires.
    /// Vectors outside the range keep their trigger; an empty range changes nothing. Any range may be set at any time,
    /// whatever [`IrqFlags::NORESIZE`] says: the backend does what that takes. It keeps its own duplicate of each
    /// descriptor, and closes it when the trigger is replaced, taken away or disarmed.
    ///
    /// A vector is unmasked when it gets a trigger and had none, and keeps its mask when its trigger is replaced. A line
    /// that is asserted at that moment is signalled. Arming some vectors of an index may signal others of it that were
    /// armed before, once: where the kernel has to disarm them meanwhile, what they would have missed is made up for.
    ///
    /// # Errors
    /// [`Error::NoSuchIrq`] if the range does not fit; [`Error::Unavailable`] or [`Error::Os`] if the range holds a
    /// trigger while another of INTx, MSI and MSI-X is armed, since a device uses one of them at a time. With nothing
    /// changed in either case.
    fn set_triggers(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()>;

    /// Disarms every vector of `index`. Not an error when none is armed.
    ///
    /// # Errors
    /// [`Error::NoSuchIrq`], [`Error::Gone`], [`Error::Os`].
    fn disable_irq(&self, index: IrqIndex) -> Result<()>;

    /// Masks one vector: until [`Backend::unmask_irq`] its interrupts are kept back as one. A vector without a trigger has
    /// no mask: masking or unmasking it changes nothing and is no error.
    ///
    /// # Errors
    /// [`Error::NotSupported`] unless [`IrqFlags::MASKABLE`]; [`Error::NoSuchIrq`].
    fn mask_irq(&self, index: IrqIndex, vector: u32) -> Result<()>;

    /// Unmasks one vector. A level interrupt that is still asserted is signalled again.
    ///
    /// # Errors
    /// As [`Backend::mask_irq`].
    fn unmask_irq(&self, index: IrqIndex, vector: u32) -> Result<()>;

    /// Signals the trigger of one vector as if the device had raised it (VFIO's `DATA_NONE | TRIGGER`). The trigger is
    /// signalled once, whatever the vector's mask and the line's level are, and neither is changed.
    ///
    /// # Errors
    /// [`Error::NoSuchIrq`] if the vector does not exist; a vector without a trigger is not an error.
    fn fire_irq(&self, index: IrqIndex, vector: u32) -> Result<()>;

    /// DMA, if the device can be given memory.
    fn dma(&self) -> Option<&dyn Dma>;

    /// Function-level reset, if the device has any reset method.
    fn resettable(&self) -> Option<&dyn Reset> {
        None
    }

    /// Direct mapping of regions, if the backend can map any.
    fn mappable(&self) -> Option<&dyn MapRegion> {
        None
    }

    /// Whom a runtime tells what the device does not see, if anybody looks on. Asked once, when the runtime takes the
    /// device, so that nobody looking on costs nothing.
    fn observer(&self) -> Option<std::sync::Arc<dyn Observe>> {
        None
    }
}

/// A device that can be reset.
pub trait Reset {
    /// Resets the device to its power-on state. Registers take their reset values; triggers stay armed, holes stay holes;
    /// DMA mappings stay mapped; INTx is unmasked. Configuration space may have been restored (the kernel does so) or be
    /// as at power-on (a model): a driver sets up the command register again.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::Os`].
    fn reset(&self) -> Result<()>;
}

macro_rules! forward {
    ($($wrapper:ty),*) => {$(
        impl<B: Backend + ?Sized> Backend for $wrapper {
            fn info(&self) -> &DeviceInfo { (**self).info() }
            fn region(&self, region: RegionIndex) -> Result<RegionInfo> { (**self).region(region) }
            fn irq(&self, index: IrqIndex) -> Result<IrqInfo> { (**self).irq(index) }
            fn read(&self, region: RegionIndex, offset: u64, width: Width) -> Result<u64> {
                (**self).read(region, offset, width)
            }
            fn write(&self, region: RegionIndex, offset: u64, width: Width, value: u64) -> Result<()> {
                (**self).write(region, offset, width, value)
            }
            fn set_triggers(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
                (**self).set_triggers(index, start, triggers)
            }
            fn disable_irq(&self, index: IrqIndex) -> Result<()> { (**self).disable_irq(index) }
            fn mask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> { (**self).mask_irq(index, vector) }
            fn unmask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> { (**self).unmask_irq(index, vector) }
            fn fire_irq(&self, index: IrqIndex, vector: u32) -> Result<()> { (**self).fire_irq(index, vector) }
            fn dma(&self) -> Option<&dyn Dma> { (**self).dma() }
            fn resettable(&self) -> Option<&dyn Reset> { (**self).resettable() }
            fn mappable(&self) -> Option<&dyn MapRegion> { (**self).mappable() }
            fn observer(&self) -> Option<std::sync::Arc<dyn Observe>> { (**self).observer() }
        }
    )*};
}
forward!(Box<B>, std::sync::Arc<B>, &B);

/// A backend whose kind is chosen at run time, by its address.
pub type AnyBackend = std::sync::Arc<dyn Backend>;
