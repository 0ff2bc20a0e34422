//! Client of any vfio-user server: the stub, libvfio-user, SPDK.
//!
//! The server is not trusted: every request has a deadline, every reply is checked, and a server that breaks the protocol
//! or falls silent is given up: from then on the device is [`Error::Gone`]. Regions are reached by message, and mapped
//! where the server sends a file for it.
//!
//! `connection` is the socket with requests and replies, `describe` asks what the device is, `memory` is what the server
//! may ask for in return; here is the [`Backend`] over them.
//!
//! A server's DMA by message is answered while one of our requests is under way, which is when servers that work through
//! their requests one by one ask. One that asks between requests has its answer with our next request.

mod connection;
mod describe;
mod memory;

use connection::Connection;
use describe::{Description, Region};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use udrv_backend::{
    Backend, DeviceInfo, Dma, DmaLimits, DmaMap, Error, IrqFlags, IrqIndex, IrqInfo, MapRegion, RegionFile,
    RegionIndex, RegionInfo, Reset, Result, Trigger, Width,
};
use udrv_wire::{self as wire, IrqAction, IrqData, Limits, Request};

/// How long any one request may take, unless said otherwise. A device reset may take 100 ms and more.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A device behind a vfio-user socket.
pub struct Client {
    info: DeviceInfo,
    regions: Vec<Region>,
    irqs: Vec<IrqInfo>,
    resettable: bool,
    capabilities: wire::Capabilities,
    connection: Mutex<Connection>,
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
        // The stub looks for it as soon as we come.
        udrv_inspect::page();
        let mut connection = Connection::open(path, patience)?;
        let Description { capabilities, resettable, regions, irqs } = Description::ask(&mut connection)?;
        let address = connection.address().to_owned();
        let info = DeviceInfo { address, regions: regions.len() as u32, irqs: irqs.len() as u32 };
        Ok(Self { info, regions, irqs, resettable, capabilities, connection: Mutex::new(connection) })
    }

    fn region_of(&self, region: RegionIndex) -> Result<&Region> {
        let none = Error::NoSuchRegion { region, count: self.info.regions };
        self.regions.get(region.0 as usize).ok_or(none)
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

impl Backend for Client {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn region(&self, region: RegionIndex) -> Result<RegionInfo> {
        Ok(self.region_of(region)?.info.clone())
    }

    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        let none = Error::NoSuchIrq { index, start: 0, count: 0, available: 0 };
        self.irqs.get(index.0 as usize).copied().ok_or(none)
    }

    fn read(&self, region: RegionIndex, offset: u64, width: Width) -> Result<u64> {
        self.region_of(region)?.info.check(offset, width)?;
        let count = width.bytes() as u32;
        let mut connection = self.connection();
        let request = wire::RegionRead { offset, region: region.0, count };
        let reply = connection.call(&Request::RegionRead(request), &[])?;
        let decoded = wire::RegionData::decode_read_reply(&reply.payload, &Limits::default());
        let data = connection.decoded(decoded, "register contents")?;
        let mut raw = [0; 8];
        match raw.get_mut(..count as usize) {
            Some(into) if data.data.len() == into.len() => into.copy_from_slice(data.data),
            _ => {
                let found = format!("{} bytes of register contents", data.data.len());
                return Err(connection.broke(&found, &count.to_string()));
            }
        }
        Ok(u64::from_le_bytes(raw))
    }

    fn write(&self, region: RegionIndex, offset: u64, width: Width, value: u64) -> Result<()> {
        self.region_of(region)?.info.check(offset, width)?;
        RegionInfo::check_value(width, value)?;
        let raw = value.to_le_bytes();
        let data = raw.get(..width.bytes() as usize).unwrap_or(&raw);
        let request = wire::RegionWrite { offset, region: region.0, data };
        let mut connection = self.connection();
        let reply = connection.call(&Request::RegionWrite(request), &[])?;
        let written = connection.decoded(wire::RegionWriteReply::decode(&reply.payload), "what was written")?;
        if u64::from(written.count) != width.bytes() {
            let found = format!("a write of {} bytes", written.count);
            return Err(connection.broke(&found, &width.bytes().to_string()));
        }
        Ok(())
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

    fn mappable(&self) -> Option<&dyn MapRegion> {
        self.regions.iter().any(|region| region.file.is_some()).then_some(self as &dyn MapRegion)
    }
}

impl MapRegion for Client {
    fn region_file(&self, region: RegionIndex) -> Result<RegionFile<'_>> {
        let (file, offset) = self
            .region_of(region)?
            .file
            .as_ref()
            .ok_or_else(|| Error::NotSupported { what: "mapping this region", by: self.info.address.clone() })?;
        Ok(RegionFile { file: file.as_fd(), offset: *offset })
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
        let mut connection = self.connection();
        let prepared = connection.memory.prepare(map, &self.limits())?;
        let flags = wire::DmaFlags::from_bits_truncate(access.bits());
        let request = Request::DmaMap(wire::DmaMap { flags, offset, iova, size });
        connection.call(&request, &[file])?;
        connection.memory.keep(prepared);
        Ok(())
    }

    fn unmap(&self, iova: u64, size: u64) -> Result<()> {
        let mut connection = self.connection();
        if !connection.memory.has(iova, size) {
            return Err(Error::DmaNotMapped { iova, size });
        }
        connection.call(&Request::DmaUnmap(wire::DmaUnmap { all: false, iova, size }), &[])?;
        connection.memory.forget(iova);
        Ok(())
    }
}

impl Reset for Client {
    fn reset(&self) -> Result<()> {
        self.connection().call(&Request::DeviceReset, &[]).map(drop)
    }
}
