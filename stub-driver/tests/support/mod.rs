//! A client that can send anything, and a device that writes down what is done to it.
#![expect(dead_code, reason = "each test file uses its part")]

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use stub_driver::serve::{DeviceServer, Export};
use udrv_backend::{
    AnyBackend, Backend, DeviceInfo, Dma, DmaLimits, DmaMap, Error, IrqFlags, IrqIndex, IrqInfo, MapRegion, RegionFile,
    RegionFlags, RegionIndex, RegionInfo, Reset, Result, SparseArea, Trigger, Width,
};
use udrv_channel::{Channel, ChannelError, Message};
use udrv_wire::{Capabilities, Command, Errno, Header, Limits, Request, Version};

/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A folder of its own for a test's sockets, removed at the end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("udrv-serve-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).expect("a folder");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A device served from this process.
pub struct Stub {
    pub device: Arc<Recorder>,
    pub server: DeviceServer,
    // After the server, which removes its socket from it.
    _folder: Folder,
}

/// Serves a [`Recorder`]; its clients may map.
pub fn serve() -> Stub {
    serve_with(PATIENCE)
}

pub fn serve_with(patience: Duration) -> Stub {
    let folder = Folder::new();
    let device = Arc::new(Recorder::default());
    let export = Export::shared("recorder", device.clone()).mapped(true);
    let server = DeviceServer::start_with(export, &folder.join("it.sock"), patience).expect("served");
    Stub { device, server, _folder: folder }
}

impl Stub {
    pub fn client(&self) -> Client {
        Client::connect(self.server.path())
    }

    pub fn stream(&self) -> UnixStream {
        UnixStream::connect(self.server.path()).expect("connected")
    }
}

/// What a server replied.
pub type Answered<T> = std::result::Result<T, Errno>;

/// One end of a conversation that may be nonsense.
pub struct Client {
    pub channel: Channel,
    next: u16,
}

impl Client {
    /// Without a VERSION.
    pub fn over(stream: UnixStream) -> Self {
        Self::over_with(stream, PATIENCE)
    }

    pub fn over_with(stream: UnixStream, patience: Duration) -> Self {
        let limits = Limits { max_msg_fds: 16, ..Limits::default() };
        Self { channel: Channel::new(stream, limits, patience).expect("a channel"), next: 100 }
    }

    /// With a lease.
    pub fn connect(path: &Path) -> Self {
        let mut client = Self::over(UnixStream::connect(path).expect("connected"));
        client.hello().expect("a lease");
        client
    }

    pub fn hello(&mut self) -> Answered<Vec<u8>> {
        let version = Version { major: 0, minor: 2, capabilities: Capabilities::default() };
        self.request(&Request::Version(version), &[])
    }

    pub fn request(&mut self, request: &Request<'_>, fds: &[BorrowedFd<'_>]) -> Answered<Vec<u8>> {
        self.call(request.command(), &request.encode(), fds)
    }

    /// Any payload; the reply's payload or errno. The reply must be to this message.
    pub fn call(&mut self, command: Command, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Answered<Vec<u8>> {
        self.send(command, payload, fds);
        self.reply().map(|message| message.payload)
    }

    pub fn send(&mut self, command: Command, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        self.next += 1;
        let header = Header::command(self.next, command, payload.len());
        self.channel.send(&header, payload, fds).expect("sent");
    }

    /// The reply to what was sent last.
    pub fn reply(&mut self) -> Answered<Message> {
        let message = self.channel.receive().expect("a reply");
        assert_eq!(message.header.msg_id, self.next, "the reply is to another message");
        match message.header.error {
            Some(errno) => Err(errno),
            None => Ok(message),
        }
    }

    /// The server has closed the connection, with nothing more to say.
    pub fn assert_closed(&self) {
        let end = self.channel.receive();
        assert!(matches!(end, Err(ChannelError::Closed)), "{end:?}");
    }

    /// The server is there, in step, and the lease is still this client's.
    pub fn assert_served(&mut self) {
        self.call(Command::DEVICE_GET_INFO, &words(&[16, 0, 0, 0]), &[]).expect("still served");
    }
}

/// 32-bit fields.
pub fn words(fields: &[u32]) -> Vec<u8> {
    fields.iter().flat_map(|field| field.to_ne_bytes()).collect()
}

/// 64-bit fields.
pub fn longs(fields: &[u64]) -> Vec<u8> {
    fields.iter().flat_map(|field| field.to_ne_bytes()).collect()
}

pub fn memfd(size: u64) -> OwnedFd {
    let fd = nix::sys::memfd::memfd_create(c"client", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).expect("a memfd");
    nix::unistd::ftruncate(&fd, size as i64).expect("its size");
    fd
}

pub const MSIX_VECTORS: u32 = 2048;
pub const BAR0_SIZE: u64 = 0x2000;

/// A device that writes down what is done to it, and can be made to fail or panic.
pub struct Recorder {
    info: DeviceInfo,
    log: Mutex<Vec<String>>,
    /// Calls whose log line starts so fail.
    pub failing: Mutex<Vec<&'static str>>,
    /// A call whose log line starts so panics.
    pub panicking: Mutex<Option<&'static str>>,
    /// Held, a reset takes until it is let go.
    pub resetting: Mutex<()>,
    bar0: OwnedFd,
    config: Mutex<Vec<u8>>,
    pub triggers: Mutex<Vec<Option<OwnedFd>>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            info: DeviceInfo { address: "test:recorder".into(), regions: 9, irqs: 5 },
            log: Mutex::default(),
            failing: Mutex::default(),
            panicking: Mutex::default(),
            resetting: Mutex::default(),
            bar0: memfd(BAR0_SIZE),
            // Bus mastering on, as a driver leaves it.
            config: Mutex::new((0..=255).map(|byte| if byte == 4 { 6 } else { 0 }).collect()),
            triggers: Mutex::new((0..MSIX_VECTORS).map(|_| None).collect()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    /// What was done since the last look.
    pub fn taken_log(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.log))
    }

    fn record(&self, line: String) -> Result<()> {
        let fails = lock(&self.failing).iter().any(|start| line.starts_with(start));
        let panics = lock(&self.panicking).is_some_and(|start| line.starts_with(start));
        lock(&self.log).push(line);
        assert!(!panics, "the device was told to panic");
        if fails { Err(Error::os("told to fail", std::io::Error::from_raw_os_error(5))) } else { Ok(()) }
    }

    fn check(&self, index: IrqIndex, vector: u32) -> Result<()> {
        let available = self.irq(index)?.count;
        if vector < available { Ok(()) } else { Err(Error::NoSuchIrq { index, start: vector, count: 1, available }) }
    }
}

impl Backend for Recorder {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn region(&self, region: RegionIndex) -> Result<RegionInfo> {
        if lock(&self.failing).contains(&"region") {
            return Err(Error::os("told to fail", std::io::Error::from_raw_os_error(5)));
        }
        let (size, mappable) = match region.0 {
            0 => (BAR0_SIZE, vec![SparseArea { offset: 0x1000, size: 0x1000 }]),
            7 => (256, vec![]),
            1..=8 => (0, vec![]),
            _ => return Err(Error::NoSuchRegion { region, count: 9 }),
        };
        let mut flags = if size > 0 { RegionFlags::READ | RegionFlags::WRITE } else { RegionFlags::empty() };
        flags.set(RegionFlags::MMAP, !mappable.is_empty());
        Ok(RegionInfo { index: region, size, flags, mappable })
    }

    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        let (count, flags) = match index.0 {
            0 => (1, IrqFlags::EVENTFD | IrqFlags::MASKABLE | IrqFlags::AUTOMASKED),
            1 => (0, IrqFlags::empty()),
            2 => (MSIX_VECTORS, IrqFlags::EVENTFD | IrqFlags::NORESIZE),
            3 | 4 => (1, IrqFlags::EVENTFD),
            _ => return Err(Error::NoSuchIrq { index, start: 0, count: 0, available: 0 }),
        };
        Ok(IrqInfo { index, count, flags })
    }

    fn read(&self, region: RegionIndex, offset: u64, width: Width) -> Result<u64> {
        self.region(region)?.check(offset, width)?;
        let bytes = width.bytes() as usize;
        self.record(format!("read {region} {offset:#x} {bytes}"))?;
        let mut raw = [0; 8];
        if region == RegionIndex::CONFIG {
            raw[..bytes].copy_from_slice(&lock(&self.config)[offset as usize..][..bytes]);
        } else {
            nix::sys::uio::pread(&self.bar0, &mut raw[..bytes], offset as i64).expect("BAR0");
        }
        Ok(u64::from_le_bytes(raw))
    }

    fn write(&self, region: RegionIndex, offset: u64, width: Width, value: u64) -> Result<()> {
        self.region(region)?.check(offset, width)?;
        let bytes = width.bytes() as usize;
        self.record(format!("write {region} {offset:#x} {bytes} {value:#x}"))?;
        let raw = &value.to_le_bytes()[..bytes];
        if region == RegionIndex::CONFIG {
            lock(&self.config)[offset as usize..][..bytes].copy_from_slice(raw);
        } else {
            nix::sys::uio::pwrite(&self.bar0, raw, offset as i64).expect("BAR0");
        }
        Ok(())
    }

    fn set_triggers(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        let pattern: String = triggers.iter().take(32).map(|fd| if fd.is_some() { '+' } else { '-' }).collect();
        self.record(format!("triggers {index} {start} {pattern}"))?;
        for (vector, trigger) in (start as usize..).zip(triggers) {
            lock(&self.triggers)[vector] = trigger.map(|fd| fd.try_clone_to_owned().expect("a copy"));
        }
        Ok(())
    }

    fn disable_irq(&self, index: IrqIndex) -> Result<()> {
        self.record(format!("disable {index}"))?;
        lock(&self.triggers).fill_with(|| None);
        Ok(())
    }

    fn mask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.check(index, vector)?;
        if !self.irq(index)?.flags.contains(IrqFlags::MASKABLE) {
            return Err(Error::NotSupported { what: "masking", by: self.info.address.clone() });
        }
        self.record(format!("mask {index} {vector}"))
    }

    fn unmask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.check(index, vector)?;
        self.record(format!("unmask {index} {vector}"))
    }

    fn fire_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.check(index, vector)?;
        self.record(format!("fire {index} {vector}"))
    }

    fn dma(&self) -> Option<&dyn Dma> {
        Some(self)
    }

    fn resettable(&self) -> Option<&dyn Reset> {
        Some(self)
    }

    fn mappable(&self) -> Option<&dyn MapRegion> {
        Some(self)
    }
}

impl Reset for Recorder {
    fn reset(&self) -> Result<()> {
        let _wait = lock(&self.resetting);
        self.record("reset".into())
    }
}

impl Dma for Recorder {
    fn limits(&self) -> DmaLimits {
        DmaLimits { iova_ranges: vec![0..=u64::MAX], page_size: 4096, max_mappings: 8 }
    }

    fn map(&self, map: &DmaMap<'_>) -> Result<()> {
        self.record(format!("map {:#x} {:#x}", map.iova, map.size))
    }

    fn unmap(&self, iova: u64, size: u64) -> Result<()> {
        self.record(format!("unmap {iova:#x} {size:#x}"))
    }
}

impl MapRegion for Recorder {
    fn region_file(&self, region: RegionIndex) -> Result<RegionFile<'_>> {
        match region {
            RegionIndex::BAR0 => Ok(RegionFile { file: self.bar0.as_fd(), offset: 0 }),
            _ => Err(Error::NotSupported { what: "mapping this region", by: self.info.address.clone() }),
        }
    }
}

/// The same device for every lease.
pub fn erased(device: &Arc<Recorder>) -> AnyBackend {
    device.clone()
}
