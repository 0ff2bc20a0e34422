//! What can go wrong with a device, with the values that explain it.

use crate::{IrqIndex, RegionIndex, Width};
use std::time::Duration;

/// The result of a device operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a device operation failed: what was asked, what was expected, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The region index does not exist.
    #[error("region {region} does not exist: this device has regions 0 to {}", .count.saturating_sub(1))]
    NoSuchRegion {
        /// The index asked for.
        region: RegionIndex,
        /// How many there are.
        count: u32,
    },
    /// The access does not fit into its region.
    #[error("{length} bytes at offset {offset:#x} do not fit into region {region}, which has {size:#x} bytes")]
    OutOfRegion {
        /// The region.
        region: RegionIndex,
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// The region's size in bytes.
        size: u64,
    },
    /// The offset is not a multiple of the width.
    #[error("offset {offset:#x} of region {region} is not aligned to a {width} access")]
    Unaligned {
        /// The region.
        region: RegionIndex,
        /// The offset asked for.
        offset: u64,
        /// The width asked for.
        width: Width,
    },
    /// The value has bits beyond the access's width.
    #[error("value {value:#x} has more bits than a {width} write carries")]
    ValueTooWide {
        /// The value.
        value: u64,
        /// The width asked for.
        width: Width,
    },
    /// A device address that names no device that could exist.
    #[error("`{given}` is no device address: expected {expected}")]
    BadAddress {
        /// As given.
        given: String,
        /// The form expected.
        expected: &'static str,
    },
    /// The device exists, or may, but cannot be used now.
    #[error("{device}: {why}; {advice}")]
    Unavailable {
        /// Its address.
        device: String,
        /// What stands in the way.
        why: String,
        /// What to do about it.
        advice: String,
    },
    /// The vectors asked for do not exist.
    #[error("{index} vectors {start}..{} do not exist: this device has {available}", u64::from(*.start) + u64::from(*.count))]
    NoSuchIrq {
        /// The interrupt index.
        index: IrqIndex,
        /// The first vector asked for.
        start: u32,
        /// How many were asked for.
        count: u32,
        /// How many vectors the index has.
        available: u32,
    },
    /// The device or its backend cannot do this at all.
    #[error("{what} is not supported by {by}")]
    NotSupported {
        /// What was asked for.
        what: &'static str,
        /// Who cannot do it.
        by: String,
    },
    /// A DMA mapping that overlaps one that exists.
    #[error("iova {iova:#x}+{size:#x} overlaps a DMA mapping that exists: unmap it first")]
    DmaOverlap {
        /// Bus address, bytes.
        iova: u64,
        /// Length, bytes.
        size: u64,
    },
    /// A DMA range that is not mapped as given.
    #[error("iova {iova:#x}+{size:#x} is not mapped: unmap takes exactly what map was given")]
    DmaNotMapped {
        /// Bus address, bytes.
        iova: u64,
        /// Length, bytes.
        size: u64,
    },
    /// A DMA range that the device or its IOMMU cannot reach.
    #[error("iova {iova:#x}+{size:#x} cannot be used: {why}")]
    DmaRange {
        /// Bus address, bytes.
        iova: u64,
        /// Length, bytes.
        size: u64,
        /// Which limit it breaks.
        why: &'static str,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {after:?}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// The deadline, from the start of the wait.
        after: Duration,
    },
    /// The device has vanished, or its server has gone.
    #[error("{device} is gone: {why}")]
    Gone {
        /// Its address.
        device: String,
        /// How it was noticed.
        why: String,
    },
    /// A peer sent something that its protocol does not allow.
    #[error("{peer} sent {found}: expected {expected}")]
    Protocol {
        /// Who.
        peer: String,
        /// What came.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// The device carried a command out, or refused to, and said how that ended: not with success.
    #[error("{device} sent {meaning} to {command}: expected success")]
    Status {
        /// Its address.
        device: String,
        /// The command, in the words of the device's specification.
        command: String,
        /// The status, as the device's specification numbers it.
        status: u32,
        /// Its name there.
        meaning: String,
    },
    /// The operating system refused.
    #[error("{doing}: {cause}")]
    Os {
        /// What was being done, naming the thing it was done to.
        doing: String,
        /// The operating system's word. Part of the text, and therefore not the error's `source`, which a chain would
        /// print again.
        cause: std::io::Error,
    },
}

impl Error {
    /// An operating-system error with what was being done.
    pub fn os(doing: impl Into<String>, cause: impl Into<std::io::Error>) -> Self {
        Self::Os { doing: doing.into(), cause: cause.into() }
    }

    /// The errno (Linux numbering) that a vfio-user server answers with for this error.
    #[must_use]
    pub fn errno(&self) -> i32 {
        const EIO: i32 = 5;
        const EEXIST: i32 = 17;
        const ENODEV: i32 = 19;
        const EBUSY: i32 = 16;
        const EINVAL: i32 = 22;
        const ENOENT: i32 = 2;
        const EPROTO: i32 = 71;
        const EOPNOTSUPP: i32 = 95;
        const ETIMEDOUT: i32 = 110;
        match self {
            Self::NoSuchRegion { .. }
            | Self::OutOfRegion { .. }
            | Self::Unaligned { .. }
            | Self::ValueTooWide { .. }
            | Self::NoSuchIrq { .. }
            | Self::BadAddress { .. }
            | Self::DmaRange { .. } => EINVAL,
            Self::Unavailable { .. } => EBUSY,
            Self::NotSupported { .. } => EOPNOTSUPP,
            Self::DmaOverlap { .. } => EEXIST,
            Self::DmaNotMapped { .. } => ENOENT,
            Self::Timeout { .. } => ETIMEDOUT,
            Self::Gone { .. } => ENODEV,
            Self::Protocol { .. } => EPROTO,
            Self::Status { .. } => EIO,
            Self::Os { cause, .. } => cause.raw_os_error().unwrap_or(EIO),
        }
    }
}
