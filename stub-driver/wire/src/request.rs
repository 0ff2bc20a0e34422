//! Every request in one type.

use crate::{
    Command, DeviceFeature, DeviceGetInfo, DeviceGetIrqInfo, DeviceGetRegionInfo, DeviceGetRegionIoFds, DeviceSetIrqs,
    DmaMap, DmaRead, DmaUnmap, DmaWrite, Header, Limits, RegionRead, RegionWrite, RegionWriteMulti, Version, WireError,
};

/// The payload of a command; each variant is the command of its name ("Commands").
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request<'a> {
    /// VERSION
    Version(Version),
    /// DMA_MAP
    DmaMap(DmaMap),
    /// DMA_UNMAP
    DmaUnmap(DmaUnmap),
    /// DEVICE_GET_INFO
    DeviceGetInfo(DeviceGetInfo),
    /// DEVICE_GET_REGION_INFO
    DeviceGetRegionInfo(DeviceGetRegionInfo),
    /// DEVICE_GET_REGION_IO_FDS
    DeviceGetRegionIoFds(DeviceGetRegionIoFds),
    /// DEVICE_GET_IRQ_INFO
    DeviceGetIrqInfo(DeviceGetIrqInfo),
    /// DEVICE_SET_IRQS
    DeviceSetIrqs(DeviceSetIrqs<'a>),
    /// REGION_READ
    RegionRead(RegionRead),
    /// REGION_WRITE
    RegionWrite(RegionWrite<'a>),
    /// DMA_READ, from server to client
    DmaRead(DmaRead),
    /// DMA_WRITE, from server to client
    DmaWrite(DmaWrite<'a>),
    /// DEVICE_RESET
    DeviceReset,
    /// REGION_WRITE_MULTI
    RegionWriteMulti(RegionWriteMulti),
    /// DEVICE_FEATURE
    DeviceFeature(DeviceFeature<'a>),
    /// Any other command, migration included; its payload is not looked at.
    Unknown(Command),
}

impl<'a> Request<'a> {
    /// Reads the payload of a command.
    pub fn decode(command: Command, payload: &'a [u8], limits: &Limits) -> Result<Self, WireError> {
        Ok(match command {
            Command::VERSION => Self::Version(Version::decode(payload)?),
            Command::DMA_MAP => Self::DmaMap(DmaMap::decode(payload)?),
            Command::DMA_UNMAP => Self::DmaUnmap(DmaUnmap::decode(payload)?),
            Command::DEVICE_GET_INFO => Self::DeviceGetInfo(DeviceGetInfo::decode(payload)?),
            Command::DEVICE_GET_REGION_INFO => Self::DeviceGetRegionInfo(DeviceGetRegionInfo::decode(payload)?),
            Command::DEVICE_GET_REGION_IO_FDS => Self::DeviceGetRegionIoFds(DeviceGetRegionIoFds::decode(payload)?),
            Command::DEVICE_GET_IRQ_INFO => Self::DeviceGetIrqInfo(DeviceGetIrqInfo::decode(payload)?),
            Command::DEVICE_SET_IRQS => Self::DeviceSetIrqs(DeviceSetIrqs::decode(payload)?),
            Command::REGION_READ => Self::RegionRead(RegionRead::decode(payload, limits)?),
            Command::REGION_WRITE => Self::RegionWrite(RegionWrite::decode(payload, limits)?),
            Command::DMA_READ => Self::DmaRead(DmaRead::decode(payload, limits)?),
            Command::DMA_WRITE => Self::DmaWrite(DmaWrite::decode(payload, limits)?),
            Command::DEVICE_RESET => {
                Header::expect_empty(command, payload)?;
                Self::DeviceReset
            }
            Command::REGION_WRITE_MULTI => Self::RegionWriteMulti(RegionWriteMulti::decode(payload)?),
            Command::DEVICE_FEATURE => Self::DeviceFeature(DeviceFeature::decode(payload)?),
            other => Self::Unknown(other),
        })
    }

    /// The payload, without header. Does not judge it: the receiver does.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Version(m) => m.encode(),
            Self::DmaMap(m) => m.encode(),
            Self::DmaUnmap(m) => m.encode(),
            Self::DeviceGetInfo(m) => m.encode(),
            Self::DeviceGetRegionInfo(m) => m.encode(),
            Self::DeviceGetRegionIoFds(m) => m.encode(),
            Self::DeviceGetIrqInfo(m) => m.encode(),
            Self::DeviceSetIrqs(m) => m.encode(),
            Self::RegionRead(m) => m.encode(),
            Self::RegionWrite(m) => m.encode(),
            Self::DmaRead(m) => m.encode(),
            Self::DmaWrite(m) => m.encode(),
            Self::RegionWriteMulti(m) => m.encode(),
            Self::DeviceFeature(m) => m.encode(),
            Self::DeviceReset | Self::Unknown(_) => Vec::new(),
        }
    }

    /// The command that this is the payload of.
    pub const fn command(&self) -> Command {
        match self {
            Self::Version(_) => Command::VERSION,
            Self::DmaMap(_) => Command::DMA_MAP,
            Self::DmaUnmap(_) => Command::DMA_UNMAP,
            Self::DeviceGetInfo(_) => Command::DEVICE_GET_INFO,
            Self::DeviceGetRegionInfo(_) => Command::DEVICE_GET_REGION_INFO,
            Self::DeviceGetRegionIoFds(_) => Command::DEVICE_GET_REGION_IO_FDS,
            Self::DeviceGetIrqInfo(_) => Command::DEVICE_GET_IRQ_INFO,
            Self::DeviceSetIrqs(_) => Command::DEVICE_SET_IRQS,
            Self::RegionRead(_) => Command::REGION_READ,
            Self::RegionWrite(_) => Command::REGION_WRITE,
            Self::DmaRead(_) => Command::DMA_READ,
            Self::DmaWrite(_) => Command::DMA_WRITE,
            Self::DeviceReset => Command::DEVICE_RESET,
            Self::RegionWriteMulti(_) => Command::REGION_WRITE_MULTI,
            Self::DeviceFeature(_) => Command::DEVICE_FEATURE,
            Self::Unknown(command) => *command,
        }
    }
}
