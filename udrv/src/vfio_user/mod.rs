//! Client of any vfio-user server: the stub, libvfio-user, SPDK.
//!
//! The server is not trusted: every request has a deadline, every reply is checked, and a server that breaks the protocol
//! or falls silent is given up: from then on the device is [`Error::Gone`]. Regions are reached by message.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use udrv_backend::{
    Backend, DeviceInfo, Dma, DmaLimits, DmaMap, Error, IrqFlags, IrqIndex, IrqInfo, RegionFlags, RegionIndex,
    RegionInfo, Reset, Result, Trigger, Width,
};
use udrv_channel::{Channel, Message};
use udrv_wire::{self as wire, DeviceFlags, Header, IrqAction, IrqData, Limits, MessageKind, Request};

/// How long any one request may take, unless said otherwise. A device reset may take 100 ms and more.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// More indices than any PCI device has; a server that claims more is not believed.
const MAX_INDICES: u32 = 64;

/// A device behind a vfio-user socket.
pub struct Client {
    info: DeviceInfo,
    regions: Vec<RegionInfo>,
    irqs: Vec<IrqInfo>,
    resettable: bool,
    capabilities: wire::Capabilities,
    connection: Mutex<Connection>,
    mapped: Mutex<BTreeMap<u64, u64>>,
}

struct Connection {
    address: String,
    channel: Channel,
    next_id: u16,
    /// Why it was given up.
    broken: Option<String>,
}

impl Client {
    /// Connects and asks for everything the device says of itself.
    ///
    /// # Errors
    /// [`Error::Os`] if there is no such socket or it may not be opened; [`Error::Timeout`], [`Error::Protocol`] or
    /// [`Error::Gone`] if what answers is no vfio-user server.
    pub fn connect(path: &Path) -> Result<Self> {
        Self::connect_with(path, PATIENCE)
    }

    /// As [`Client::connect`], with another limit for each request.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_with(path: &Path, patience: Duration) -> Result<Self> {
        let address = format!("unix:{}", path.display());
        let stream = UnixStream::connect(path).map_err(|error| {
            let advice = match error.kind() {
                std::io::ErrorKind::NotFound => ": no such socket; start a server: stub-driver serve DEVICE",
                std::io::ErrorKind::PermissionDenied => ": not yours; serve it with --owner USER",
                std::io::ErrorKind::ConnectionRefused => {
                    ": no server behind it (or no socket); start stub-driver serve"
                }
                _ => "",
            };
            Error::os(format!("connecting to {address}{advice}"), error)
        })?;
        let channel = Channel::new(stream, Limits::default(), patience)
            .map_err(|error| Error::os(format!("setting up {address}"), error))?;
        let mut connection = Connection { address: address.clone(), channel, next_id: 0, broken: None };

        let proposal = wire::Version { major: 0, minor: 2, capabilities: wire::Capabilities::default() };
        let reply = connection.call(&Request::Version(proposal), &[])?;
        let version = wire::Version::decode(&reply.payload).map_err(|error| connection.broke(&error, "a version"))?;
        if version.major != 0 || version.minor > 2 {
            let found = format!("protocol version {}.{}", version.major, version.minor);
            return Err(connection.broke(&found, "0.2 or 0.1"));
        }
        let reply = connection.call(&Request::DeviceGetInfo(wire::DeviceGetInfo { argsz: 16 }), &[])?;
        let device =
            wire::DeviceInfo::decode(&reply.payload).map_err(|error| connection.broke(&error, "device info"))?;
        if device.num_regions > MAX_INDICES || device.num_irqs > MAX_INDICES {
            let found = format!("{} regions and {} irqs", device.num_regions, device.num_irqs);
            return Err(connection.broke(&found, "at most 64 of each"));
        }
        let regions = (0..device.num_regions).map(|index| connection.region(index)).collect::<Result<_>>()?;
        let irqs = (0..device.num_irqs).map(|index| connection.irq(index)).collect::<Result<_>>()?;
        Ok(Self {
            info: DeviceInfo { address, regions: device.num_regions, irqs: device.num_irqs },
            regions,
            irqs,
            resettable: device.flags.contains(DeviceFlags::RESET),
            capabilities: version.capabilities,
            connection: Mutex::new(connection),
            mapped: Mutex::default(),
        })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_vectors(&self, index: IrqIndex, start: u32, count: u32) -> Result<IrqInfo> {
        let info = self.irq(index)?;
        match start.checked_add(count) {
            Some(end) if end <= info.count => Ok(info),
            _ => Err(Error::NoSuchIrq { index, start, count, available: info.count }),
        }
    }

    fn set_irqs(
        &self,
        (action, data): (IrqAction, IrqData<'_>),
        index: IrqIndex,
        start: u32,
        count: u32,
        fds: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let request = wire::DeviceSetIrqs { action, data, index: index.0, start, count };
        self.connection().call(&Request::DeviceSetIrqs(request), fds).map(drop)
    }

    fn mask(&self, action: IrqAction, index: IrqIndex, vector: u32) -> Result<()> {
        if !self.check_vectors(index, vector, 1)?.flags.contains(IrqFlags::MASKABLE) {
            return Err(Error::NotSupported { what: "masking this interrupt", by: self.info.address.clone() });
        }
        self.set_irqs((action, IrqData::None), index, vector, 1, &[])
    }
}

impl Connection {
    /// Gives the server up.
    fn broke(&mut self, found: &dyn std::fmt::Display, expected: &str) -> Error {
        let found = found.to_string();
        self.broken = Some(format!("it broke the protocol ({found})"));
        Error::Protocol { peer: self.address.clone(), found, expected: expected.into() }
    }

    fn lost(&mut self, error: &udrv_channel::ChannelError, doing: &str) -> Error {
        self.broken = Some(error.to_string());
        match error {
            udrv_channel::ChannelError::Timeout(after) => {
                Error::Timeout { what: format!("an answer of {} to {doing}", self.address), after: *after }
            }
            udrv_channel::ChannelError::Header(error) => self.broke(error, "a vfio-user header"),
            other => Error::Gone { device: self.address.clone(), why: format!("{other}, at {doing}") },
        }
    }

    /// One request and its reply.
    fn call(&mut self, request: &Request<'_>, fds: &[BorrowedFd<'_>]) -> Result<Message> {
        if let Some(why) = &self.broken {
            return Err(Error::Gone { device: self.address.clone(), why: why.clone() });
        }
        let command = request.command();
        let doing = command.to_string();
        let payload = request.encode();
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let header = Header::command(id, command, payload.len());
        self.channel.send(&header, &payload, fds).map_err(|error| self.lost(&error, &doing))?;
        // A server may ask for memory before it answers, but not for ever.
        for _ in 0..1024 {
            let message = self.channel.receive().map_err(|error| self.lost(&error, &doing))?;
            let came = message.header;
            if came.kind == MessageKind::Command {
                let refusal = Header::error_reply(came.msg_id, came.command, wire::Errno::ENOTSUP);
                if !came.no_reply {
                    self.channel.send(&refusal, &[], &[]).map_err(|error| self.lost(&error, &doing))?;
                }
                continue;
            }
            if came.msg_id != id || came.command != command {
                let found = format!("a reply to {} number {}", came.command, came.msg_id);
                return Err(self.broke(&found, &format!("one to {command} number {id}")));
            }
            if let Some(errno) = came.error {
                let source = std::io::Error::from_raw_os_error(i32::try_from(errno.0).unwrap_or(5));
                return Err(Error::os(format!("{} refused {doing}", self.address), source));
            }
            return Ok(message);
        }
        Err(self.broke(&"1024 commands instead of a reply", "the reply"))
    }

    fn region(&mut self, index: u32) -> Result<RegionInfo> {
        let request = wire::DeviceGetRegionInfo { argsz: 4096, index };
        let reply = self.call(&Request::DeviceGetRegionInfo(request), &[])?;
        let info = match wire::RegionInfo::decode(&reply.payload) {
            Ok(wire::RegionInfoReply::Full(info) | wire::RegionInfoReply::Truncated { info, .. }) => info,
            Err(error) => return Err(self.broke(&error, "region info")),
        };
        if info.index != index {
            return Err(self.broke(&format!("info of region {}", info.index), &format!("of region {index}")));
        }
        let mut flags = RegionFlags::empty();
        flags.set(RegionFlags::READ, info.flags.contains(wire::RegionFlags::READ));
        flags.set(RegionFlags::WRITE, info.flags.contains(wire::RegionFlags::WRITE));
        Ok(RegionInfo { index: RegionIndex(index), size: info.size, flags, mappable: Vec::new() })
    }

    fn irq(&mut self, index: u32) -> Result<IrqInfo> {
        let reply = self.call(&Request::DeviceGetIrqInfo(wire::DeviceGetIrqInfo { argsz: 16, index }), &[])?;
        let info = wire::IrqInfo::decode(&reply.payload).map_err(|error| self.broke(&error, "irq info"))?;
        let flags = IrqFlags::from_bits_truncate(info.flags.bits());
        Ok(IrqInfo { index: IrqIndex(index), count: info.count, flags })
    }
}

impl Backend for Client {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn region(&self, region: RegionIndex) -> Result<RegionInfo> {
        let none = Error::NoSuchRegion { region, count: self.info.regions };
        self.regions.get(region.0 as usize).cloned().ok_or(none)
    }

    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        let none = Error::NoSuchIrq { index, start: 0, count: 0, available: 0 };
        self.irqs.get(index.0 as usize).copied().ok_or(none)
    }

    fn read(&self, region: RegionIndex, offset: u64, width: Width) -> Result<u64> {
        self.region(region)?.check(offset, width)?;
        let count = width.bytes() as u32;
        let mut connection = self.connection();
        let request = wire::RegionRead { offset, region: region.0, count };
        let reply = connection.call(&Request::RegionRead(request), &[])?;
        let data = wire::RegionData::decode_read_reply(&reply.payload, &Limits::default())
            .map_err(|error| connection.broke(&error, "register contents"))?;
        let mut raw = [0; 8];
        match raw.get_mut(..count as usize) {
            Some(into) if data.data.len() == into.len() => into.copy_from_slice(data.data),
            _ => return Err(connection.broke(&format!("{} bytes", data.data.len()), &format!("{count}"))),
        }
        Ok(u64::from_le_bytes(raw))
    }

    fn write(&self, region: RegionIndex, offset: u64, width: Width, value: u64) -> Result<()> {
        self.region(region)?.check(offset, width)?;
        RegionInfo::check_value(width, value)?;
        let raw = value.to_le_bytes();
        let data = raw.get(..width.bytes() as usize).unwrap_or(&raw);
        let request = wire::RegionWrite { offset, region: region.0, data };
        self.connection().call(&Request::RegionWrite(request), &[]).map(drop)
    }

    fn set_triggers(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        let count = u32::try_from(triggers.len()).unwrap_or(u32::MAX);
        self.check_vectors(index, start, count)?;
        // As many descriptors a message as the server takes; a hole ends a message.
        let most = (self.capabilities.max_msg_fds as usize).clamp(1, udrv_channel::MAX_FDS);
        let mut vector = start;
        for run in triggers.chunk_by(|a, b| a.is_some() == b.is_some()) {
            for part in run.chunks(most) {
                let fds: Vec<_> = part.iter().flatten().copied().collect();
                let length = part.len() as u32;
                self.set_irqs((IrqAction::Trigger, IrqData::Eventfd), index, vector, length, &fds)?;
                vector += length;
            }
        }
        Ok(())
    }

    fn disable_irq(&self, index: IrqIndex) -> Result<()> {
        if self.irq(index)?.count == 0 {
            return Ok(());
        }
        self.set_irqs((IrqAction::Trigger, IrqData::None), index, 0, 0, &[])
    }

    fn mask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.mask(IrqAction::Mask, index, vector)
    }

    fn unmask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.mask(IrqAction::Unmask, index, vector)
    }

    fn fire_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.check_vectors(index, vector, 1)?;
        self.set_irqs((IrqAction::Trigger, IrqData::None), index, vector, 1, &[])
    }

    fn dma(&self) -> Option<&dyn Dma> {
        Some(self)
    }

    fn resettable(&self) -> Option<&dyn Reset> {
        self.resettable.then_some(self as &dyn Reset)
    }
}

impl Dma for Client {
    /// The protocol has no word for reserved ranges or address widths: 39 bits, the narrowest IOMMU in use, without the
    /// interrupt window of x86.
    fn limits(&self) -> DmaLimits {
        let page_size = (self.capabilities.pgsizes & self.capabilities.pgsizes.wrapping_neg()).max(4096);
        DmaLimits {
            iova_ranges: vec![0..=0xfedf_ffff, 0xfef0_0000..=(1 << 39) - 1],
            page_size,
            max_mappings: u32::try_from(self.capabilities.max_dma_maps).unwrap_or(u32::MAX),
        }
    }

    fn map(&self, map: &DmaMap<'_>) -> Result<()> {
        let &DmaMap { iova, size, access, file, offset } = map;
        let page = self.limits().page_size;
        let refused = |why| Err(Error::DmaRange { iova, size, why });
        if size == 0 || [iova, size, offset].iter().any(|value| !value.is_multiple_of(page)) {
            return refused("address, size and offset must be multiples of the page size, and size not 0");
        }
        let Some(last) = iova.checked_add(size - 1) else { return refused("its end overflows") };
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((start, length)) = mapped.range(..=last).next_back()
            && start + (length - 1) >= iova
        {
            return Err(Error::DmaOverlap { iova, size });
        }
        let flags = wire::DmaFlags::from_bits_truncate(access.bits());
        let request = Request::DmaMap(wire::DmaMap { flags, offset, iova, size });
        self.connection().call(&request, &[file])?;
        mapped.insert(iova, size);
        Ok(())
    }

    fn unmap(&self, iova: u64, size: u64) -> Result<()> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        if mapped.get(&iova) != Some(&size) {
            return Err(Error::DmaNotMapped { iova, size });
        }
        self.connection().call(&Request::DmaUnmap(wire::DmaUnmap { all: false, iova, size }), &[])?;
        mapped.remove(&iova);
        Ok(())
    }
}

impl Reset for Client {
    fn reset(&self) -> Result<()> {
        self.connection().call(&Request::DeviceReset, &[]).map(drop)
    }
}
