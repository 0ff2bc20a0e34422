//! Memory a device may read and write.

use crate::Result;
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
    /// Bus addresses that can be mapped, ascending, with the reserved ranges (the MSI window) left out.
    pub iova_ranges: Vec<RangeInclusive<u64>>,
    /// Granularity of mappings in bytes, a power of two.
    pub page_size: u64,
    /// How many mappings may exist at once.
    pub max_mappings: u32,
}

/// A device that can be given memory.
pub trait Dma {
    /// What mappings are possible.
    fn limits(&self) -> DmaLimits;

    /// Gives the device a range of memory. The backend keeps what it needs of the descriptor.
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
