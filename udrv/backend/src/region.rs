//! Regions: a device's registers and memory, by VFIO index.

use crate::{Error, Result};
use std::fmt;
use std::os::fd::BorrowedFd;

/// Index of a region, in VFIO's numbering (`VFIO_PCI_BAR0_REGION_INDEX` and after).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionIndex(pub u32);

impl RegionIndex {
    /// BAR 0; BARs 1 to 5 follow.
    pub const BAR0: Self = Self(0);
    /// The expansion ROM.
    pub const ROM: Self = Self(6);
    /// PCI configuration space.
    pub const CONFIG: Self = Self(7);
    /// Legacy VGA ranges.
    pub const VGA: Self = Self(8);
}

impl fmt::Display for RegionIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bar @ 0..=5 => write!(f, "BAR{bar}"),
            6 => f.write_str("ROM"),
            7 => f.write_str("config"),
            8 => f.write_str("VGA"),
            other => write!(f, "{other}"),
        }
    }
}

/// Width of one access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Width {
    /// 8 bits.
    Bits8,
    /// 16 bits.
    Bits16,
    /// 32 bits.
    Bits32,
    /// 64 bits.
    Bits64,
}

impl Width {
    /// Every width, narrowest first.
    pub const ALL: [Self; 4] = [Self::Bits8, Self::Bits16, Self::Bits32, Self::Bits64];

    /// Width in bytes: 1, 2, 4 or 8.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Bits8 => 1,
            Self::Bits16 => 2,
            Self::Bits32 => 4,
            Self::Bits64 => 8,
        }
    }

    /// The width of that many bytes, if there is one.
    #[must_use]
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Bits8),
            2 => Some(Self::Bits16),
            4 => Some(Self::Bits32),
            8 => Some(Self::Bits64),
            _ => None,
        }
    }

    /// All bits that fit; what a read of a vanished device returns.
    #[must_use]
    pub const fn all_ones(self) -> u64 {
        match self {
            Self::Bits64 => u64::MAX,
            narrower => (1 << (narrower.bytes() * 8)) - 1,
        }
    }
}

impl fmt::Display for Width {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-bit", self.bytes() * 8)
    }
}

bitflags::bitflags! {
    /// What can be done with a region (`VFIO_REGION_INFO_FLAG_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct RegionFlags: u32 {
        /// Reads are possible.
        const READ = 1;
        /// Writes are possible.
        const WRITE = 2;
        /// Some of it can be mapped; see [`RegionInfo::mappable`].
        const MMAP = 4;
    }
}

/// One mappable part of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SparseArea {
    /// First byte, from the start of the region.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
}

/// What a region is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionInfo {
    /// Its index.
    pub index: RegionIndex,
    /// Its size in bytes; 0 if it is not implemented.
    pub size: u64,
    /// What can be done with it.
    pub flags: RegionFlags,
    /// The parts that can be mapped; the whole region as one area where nothing is left out. Empty without
    /// [`RegionFlags::MMAP`].
    pub mappable: Vec<SparseArea>,
}

impl RegionInfo {
    /// Checks one access against the region: natural alignment, then bounds.
    ///
    /// # Errors
    /// [`Error::Unaligned`], [`Error::OutOfRegion`].
    pub fn check(&self, offset: u64, width: Width) -> Result<()> {
        if !offset.is_multiple_of(width.bytes()) {
            return Err(Error::Unaligned { region: self.index, offset, width });
        }
        self.check_range(offset, width.bytes())
    }

    /// Checks that `length` bytes at `offset` lie in the region; sums that overflow do not.
    ///
    /// # Errors
    /// [`Error::OutOfRegion`].
    pub fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(Error::OutOfRegion { region: self.index, offset, length, size: self.size }),
        }
    }

    /// Checks that a value fits its width.
    ///
    /// # Errors
    /// [`Error::ValueTooWide`].
    pub fn check_value(width: Width, value: u64) -> Result<()> {
        if value > width.all_ones() { Err(Error::ValueTooWide { value, width }) } else { Ok(()) }
    }
}

/// The file behind a region's mappable areas: what `mmap` takes, and what a server hands to its client.
///
/// Region byte 0 is at `offset` of `file`; only the ranges of [`RegionInfo::mappable`] may be mapped.
#[derive(Debug, Clone, Copy)]
pub struct RegionFile<'fd> {
    /// The file. For kernel VFIO the device's own descriptor, which grants far more than this region: whoever passes it
    /// on decides so (`stub-driver serve --mmap`).
    pub file: BorrowedFd<'fd>,
    /// Where the region starts in it, bytes.
    pub offset: u64,
}

/// A backend whose regions can be mapped.
///
/// It names the file and maps nothing itself: the runtime maps (`udrv::mmio`), so that there is one place where device
/// memory becomes pointers, and a server passes the file on.
pub trait MapRegion {
    /// The file behind one region.
    ///
    /// # Errors
    /// [`Error::NoSuchRegion`]; [`Error::NotSupported`] if this region has no [`RegionInfo::mappable`] area.
    fn region_file(&self, region: RegionIndex) -> Result<RegionFile<'_>>;
}
