//! vfio-user messages: the bytes of each message as a Rust type, and back.
//!
//! **What lives here.** The 16-byte [`Header`], one struct for each command's payload gathered in [`Request`], the payload of
//! each reply, and the rules that can be judged from one message alone: lengths, flag combinations, ranges that wrap. The
//! specification is QEMU's `docs/interop/vfio-user.rst`; the documentation of each item names the section it implements.
//!
//! **What may not live here.** Sockets, file descriptors, memory, knowledge of a device (its number of regions, its interrupt
//! counts, its mappings), and any memory between two messages. Rules that need those belong to the server or the client.
//!
//! **What a caller may rely on.**
//! - No input makes a decoder panic. Indexing, unchecked arithmetic and `unwrap` are compile errors in this crate.
//! - A decoder allocates in proportion to the bytes it was handed, never to a count found in them. A receiver therefore bounds
//!   memory by passing [`Limits::max_message_size`] to [`Header::decode`] before it reads a payload.
//! - Every [`WireError`] has an [`Errno`] to answer with, and says which field of which command was wrong.
//!
//! All integers are in the byte order of the host ("Protocol Specification"), all sizes in bytes.
#![forbid(unsafe_code)]
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable
)]

mod codec;
mod device;
mod dma;
mod errno;
mod error;
mod header;
mod irq;
pub mod pci;
mod region;
mod region_io;
mod request;
mod version;

pub use device::{DeviceFeature, DeviceFlags, DeviceGetInfo, DeviceInfo};
pub use dma::{DmaData, DmaFlags, DmaMap, DmaRead, DmaUnmap, DmaWrite, DmaWriteReply};
pub use errno::Errno;
pub use error::{Expected, WireError};
pub use header::{Command, HEADER_SIZE, Header, HeaderError, MessageKind};
pub use irq::{DeviceGetIrqInfo, DeviceSetIrqs, IrqAction, IrqData, IrqFlags, IrqInfo};
pub use region::{
    DeviceGetRegionInfo, DeviceGetRegionIoFds, IoFdSubRegion, RegionFlags, RegionInfo, RegionInfoReply, RegionIoFds,
    SparseArea,
};
pub use region_io::{
    MultiWrite, RegionData, RegionRead, RegionWrite, RegionWriteMulti, RegionWriteMultiReply, RegionWriteReply,
};
pub use request::Request;
pub use version::{Capabilities, TwinSocket, Version};

/// What the receiver of a message accepts; its own limits, not the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that one REGION_READ, REGION_WRITE, DMA_READ or DMA_WRITE may carry ("Read and Write Operations").
    pub max_data_xfer_size: u32,
    /// Bytes of a whole message, the header included.
    pub max_message_size: u32,
    /// File descriptors accepted with one message.
    pub max_msg_fds: u32,
}

impl Default for Limits {
    /// The defaults of the capabilities table ("`VFIO_USER_VERSION`"): 1 MiB of data, one file descriptor; a message is as long as
    /// the header, the 16 bytes of a REGION_WRITE and that data.
    fn default() -> Self {
        Self { max_data_xfer_size: 0x10_0000, max_message_size: 0x10_0020, max_msg_fds: 1 }
    }
}
