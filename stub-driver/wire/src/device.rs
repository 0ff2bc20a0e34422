//! DEVICE_GET_INFO and DEVICE_FEATURE: the sections of those names.

use crate::codec::{Reader, Writer};
use crate::{Command, WireError};

bitflags::bitflags! {
    /// Attributes of a device. Bits without a name are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DeviceFlags: u32 {
        /// DEVICE_RESET is supported.
        const RESET = 1 << 0;
        /// The device is a PCI device.
        const PCI = 1 << 1;
        const _ = !0;
    }
}

const INFO_SIZE: u32 = 16;

/// Asks for [`DeviceInfo`]. Fields beside *argsz*, and bytes after the 16 of the structure (newer kernels' `struct
/// vfio_device_info` is longer), are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceGetInfo {
    /// Bytes of reply payload the client has room for; at least 16.
    pub argsz: u32,
}

/// The reply to DEVICE_GET_INFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Attributes.
    pub flags: DeviceFlags,
    /// Number of regions; for PCI at least [`crate::pci::NUM_REGIONS`].
    pub num_regions: u32,
    /// Number of interrupt types, not of interrupts.
    pub num_irqs: u32,
}

/// Gets, sets or probes a feature ("`VFIO_USER_DEVICE_FEATURE`"); the reply has the same layout. Not interpreted here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceFeature<'a> {
    /// Bytes of reply payload the client has room for; at least 8.
    pub argsz: u32,
    /// Bits 0 to 15 the feature, 16 get, 17 set, 18 probe.
    pub flags: u32,
    /// Specific to the feature.
    pub data: &'a [u8],
}

impl DeviceGetInfo {
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(Command::DEVICE_GET_INFO, payload, 16)?;
        Ok(Self { argsz: r.argsz(INFO_SIZE)? })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        Writer::default().u32(self.argsz).u32(0).u32(0).u32(0).done()
    }
}

impl DeviceInfo {
    /// Reads the payload of a DEVICE_GET_INFO reply; a longer one is legal and its end ignored.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(Command::DEVICE_GET_INFO, payload, 16)?;
        r.argsz(INFO_SIZE)?;
        Ok(Self { flags: DeviceFlags::from_bits_retain(r.u32()?), num_regions: r.u32()?, num_irqs: r.u32()? })
    }

    /// The payload of a DEVICE_GET_INFO reply.
    pub fn encode(&self) -> Vec<u8> {
        Writer::default().u32(INFO_SIZE).u32(self.flags.bits()).u32(self.num_regions).u32(self.num_irqs).done()
    }
}

impl<'a> DeviceFeature<'a> {
    /// Reads the payload of a DEVICE_FEATURE request or reply.
    pub fn decode(payload: &'a [u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(Command::DEVICE_FEATURE, payload, 8)?;
        Ok(Self { argsz: r.argsz(8)?, flags: r.u32()?, data: r.rest() })
    }

    /// The payload of a DEVICE_FEATURE request or reply.
    pub fn encode(&self) -> Vec<u8> {
        Writer::default().u32(self.argsz).u32(self.flags).bytes(self.data).done()
    }
}
