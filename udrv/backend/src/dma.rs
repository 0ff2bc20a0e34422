//! Memory a device may read and write.

use crate::{Error, Result};
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;

bitflags::bitflags! {
    /// What the *device* may do with memory (as in VFIO, seen from the device).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct DmaAccess: u32 {
        /// The device reads it.
        const READ = 1;
        /// The device writes it.
        const WRITE = 2;
    }
}

/// One mapping: a range of bus addresses backed by a range of a file that can be mapped shared (a memfd).
///
/// Memory is named by a descriptor rather than by a pointer, so that the same request serves the kernel (which pins the
/// pages of a mapping the backend makes), a server in another process (which is sent the descriptor) and a model.
#[derive(Debug, Clone, Copy)]
pub struct DmaMap<'fd> {
    /// First bus address; a multiple of [`DmaLimits::page_size`].
    pub iova: u64,
    /// Length in bytes; a multiple of [`DmaLimits::page_size`], not 0.
    pub size: u64,
    /// What the device may do.
    pub access: DmaAccess,
    /// The file behind it.
    pub file: BorrowedFd<'fd>,
    /// First byte in the file; a multiple of the page size.
    pub offset: u64,
}

/// What mappings are possible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DmaLimits {
    /// Bus addresses that can be mapped, ascending, with the reserved ranges (the MSI window) left out. What the device
    /// itself can emit may be less: that is for its driver to know.
    pub iova_ranges: Vec<RangeInclusive<u64>>,
    /// Granularity of mappings in bytes, a power of two.
    pub page_size: u64,
    /// How many mappings may exist at once.
    pub max_mappings: u32,
}

impl DmaLimits {
    /// Checks one mapping against the limits, as far as that can be done without knowing the others.
    ///
    /// # Errors
    /// [`Error::DmaRange`].
    pub fn check(&self, map: &DmaMap<'_>) -> Result<()> {
        let &DmaMap { iova, size, offset, .. } = map;
        let refused = |why| Err(Error::DmaRange { iova, size, why });
        if size == 0 {
            return refused("it is empty");
        }
        if [iova, size, offset].iter().any(|value| !value.is_multiple_of(self.page_size)) {
            return refused("address, size and offset must be multiples of the page size");
        }
        let Some(last) = iova.checked_add(size - 1) else { return refused("its end overflows") };
        if offset.checked_add(size).is_none_or(|end| i64::try_from(end).is_err()) {
            return refused("its end in the file overflows");
        }
        if !self.iova_ranges.iter().any(|range| range.contains(&iova) && range.contains(&last)) {
            return refused("it does not lie in one range of bus addresses that can be mapped");
        }
        Ok(())
    }
}

/// A device that can be given memory.
pub trait Dma {
    /// What mappings are possible.
    fn limits(&self) -> DmaLimits;

    /// Gives the device a range of memory. The backend keeps what it needs of the descriptor. A file that is shorter than
    /// the range is refused, or mapped with a part that no transfer may touch.
    ///
    /// # Errors
    /// [`Error::DmaOverlap`](crate::Error::DmaOverlap) if any byte is mapped already,
    /// [`Error::DmaRange`](crate::Error::DmaRange) if the range is empty, misaligned, overflows or cannot be reached;
    /// [`Error::Os`](crate::Error::Os) with ENOMEM when RLIMIT_MEMLOCK is too low.
    fn map(&self, map: &DmaMap<'_>) -> Result<()>;

    /// Takes back exactly what one [`Dma::map`] gave.
    ///
    /// # Errors
    /// [`Error::DmaNotMapped`](crate::Error::DmaNotMapped) unless `iova` and `size` are those of a mapping.
    fn unmap(&self, iova: u64, size: u64) -> Result<()>;
}
