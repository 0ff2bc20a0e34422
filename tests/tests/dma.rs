//! Buffers on the edu model: directions, ownership, alignment, leaks.

use std::sync::Arc;
use udrv::dma::{Bidirectional, FromDevice, Pool, ToDevice};
use udrv::pci::{Command, Config};
use udrv_backend::{
    AnyBackend, Backend, DeviceInfo, Dma, DmaLimits, DmaMap, Error, IrqIndex, IrqInfo, RegionIndex, RegionInfo,
    Trigger, Width,
};

/// BAR 0 registers of edu (docs/specs/edu.rst), retyped.
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
const INNER: u64 = 0x4_0000;

fn device() -> AnyBackend {
    let device: AnyBackend = Arc::new(udrv_edu::model::edu());
    Config::new(&*device).change_command(Command::BUS_MASTER, Command::empty()).expect("bus mastering");
    device
}

fn transfer(device: &AnyBackend, source: u64, destination: u64, count: u64, command: u64) {
    for (register, value) in [(SOURCE, source), (DESTINATION, destination), (COUNT, count), (COMMAND, command)] {
        device.write(RegionIndex::BAR0, register, Width::Bits64, value).expect("a register");
    }
}

fn pool(device: &AnyBackend) -> Pool {
    Pool::new(Arc::clone(device), 1 << 20, 28).expect("a pool")
}

#[test]
fn buffer_in_its_direction_is_transferred() {
    let device = device();
    let mut out = pool(&device).alloc::<ToDevice>(16).expect("a buffer");
    out.write(0, b"sixteen bytes it").expect("fits");
    let out = out.submit();
    transfer(&device, out.iova(), INNER, 16, 1);
    let back = pool(&device).alloc::<FromDevice>(16).expect("a buffer").submit();
    transfer(&device, INNER, back.iova(), 16, 3);
    let mut came = [0; 16];
    back.complete().read(0, &mut came).expect("fits");
    drop(out.complete());
    assert_eq!(&came, b"sixteen bytes it");
}

#[test]
fn buffer_in_the_wrong_direction_is_not_transferred() {
    let device = device();
    let pool = pool(&device);
    let mut known = pool.alloc::<ToDevice>(8).expect("a buffer");
    known.write(0, &[0xaa; 8]).expect("fits");
    transfer(&device, known.iova(), INNER, 8, 1);

    // The device writes where it may only read ...
    transfer(&device, INNER + 8, known.iova(), 8, 3);
    let mut now = [0; 8];
    known.read(0, &mut now).expect("fits");
    assert_eq!(now, [0xaa; 8], "the device wrote into a buffer that it may only read");

    // ... and reads where it may only write.
    let secret = pool.alloc::<FromDevice>(8).expect("a buffer");
    transfer(&device, secret.iova(), INNER, 8, 1);
    let back = pool.alloc::<Bidirectional>(8).expect("a buffer");
    transfer(&device, INNER, back.iova(), 8, 3);
    back.read(0, &mut now).expect("fits");
    assert_eq!(now, [0xaa; 8], "the device read a buffer that it may only write");
}

#[test]
fn freed_buffer_is_out_of_reach_and_comes_back_zeroed() {
    let device = device();
    let pool = pool(&device);
    let mut buffer = pool.alloc::<Bidirectional>(4096).expect("a buffer");
    buffer.write(0, &[0x77; 4096]).expect("fits");
    let iova = buffer.iova();
    drop(buffer);
    assert!(matches!(device.dma().expect("DMA").unmap(iova, 4096), Err(Error::DmaNotMapped { .. })));
    let again = pool.alloc::<Bidirectional>(4096).expect("a buffer");
    let mut now = [1; 4096];
    again.read(0, &mut now).expect("fits");
    assert_eq!(now, [0; 4096]);
}

#[test]
fn buffer_dropped_in_flight_is_reported_and_stays_mapped() {
    let device = device();
    let pool = pool(&device);
    let flight = pool.alloc::<FromDevice>(5000).expect("a buffer").submit();
    let iova = flight.iova();
    drop(flight);
    assert_eq!(pool.leaks(), [udrv::dma::Leak { iova, size: 8192 }]);
    assert!(pool.alloc::<FromDevice>(4096).expect("a buffer").iova() != iova, "its address must not be reused");
    drop(pool);
    assert_eq!(Arc::strong_count(&device), 1, "a leak must not keep the device open");
    device.dma().expect("DMA").unmap(iova, 8192).expect("it stayed mapped");
}

#[test]
fn alignment_that_was_asked_for_is_had() {
    let device = device();
    let pool = pool(&device);
    let _first = pool.alloc::<ToDevice>(1).expect("a buffer");
    let aligned = pool.alloc_aligned::<ToDevice>(4096, 1 << 20).expect("a buffer");
    assert_eq!(aligned.iova() % (1 << 20), 0);
    assert!(matches!(pool.alloc_aligned::<ToDevice>(4096, 3), Err(Error::DmaRange { .. })));
    assert!(matches!(pool.alloc_aligned::<ToDevice>(4096, 1 << 28), Err(Error::DmaRange { .. })), "beyond 28 bits");
}

#[test]
fn address_stays_within_what_the_device_can_emit() {
    let device = device();
    let pool = Pool::new(Arc::clone(&device), 1 << 20, 14).expect("a pool");
    // 14 bits without page 0: three pages.
    let held: Vec<_> = (0..3).map(|_| pool.alloc::<ToDevice>(4096).expect("in reach")).collect();
    assert!(held.iter().all(|buffer| buffer.iova() + 4096 <= 1 << 14));
    assert!(matches!(pool.alloc::<ToDevice>(4096), Err(Error::DmaRange { .. })));
}

#[test]
fn pool_that_is_used_up_says_so_and_recovers() {
    let device = device();
    let pool = Pool::new(Arc::clone(&device), 8192, 28).expect("a pool");
    let whole = pool.alloc::<ToDevice>(8192).expect("all of it");
    assert!(matches!(pool.alloc::<ToDevice>(1), Err(Error::DmaRange { .. })));
    drop(whole);
    pool.alloc::<ToDevice>(8192).expect("all of it, again");
}

#[test]
fn two_pools_of_one_device_do_not_collide() {
    let device = device();
    let (one, other) = (pool(&device), pool(&device));
    let _held: Vec<_> = (0..40)
        .map(|_| (one.alloc::<ToDevice>(4096).expect("a buffer"), other.alloc::<FromDevice>(8192).expect("a buffer")))
        .collect();
}

#[test]
fn thousands_of_buffers_are_had() {
    let device = device();
    let pool = Pool::new(Arc::clone(&device), 4096 * 4096, 28).expect("a pool");
    let held: Vec<_> = (0..4096).map(|_| pool.alloc::<ToDevice>(4096).expect("a buffer")).collect();
    let mut addresses: Vec<_> = held.iter().map(udrv::dma::Buffer::iova).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 4096);
}

#[test]
fn large_buffer_is_one_piece_on_the_bus_in_pages_of_either_size() {
    let device = device();
    let pool = Pool::new(Arc::clone(&device), 8 << 20, 28).expect("a pool");
    let mut buffer = pool.alloc::<ToDevice>((2 << 20) + 1).expect("a buffer");
    // In huge pages where the kernel has two free, in ordinary ones otherwise.
    let meminfo = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
    let free = meminfo.lines().find_map(|line| line.strip_prefix("HugePages_Free:")).expect("the line").trim();
    let size = if buffer.is_huge() { 4 << 20 } else { (2 << 20) + 4096 };
    assert!(buffer.is_huge() || free.parse::<u64>().expect("a number") < 2, "{free} huge pages are free");
    buffer.write(2 << 20, &[0x5c]).expect("the last byte");
    transfer(&device, buffer.iova() + (2 << 20), INNER, 1, 1);
    let back = pool.alloc::<FromDevice>(1).expect("a buffer");
    transfer(&device, INNER, back.iova(), 1, 3);
    let mut last = [0];
    back.read(0, &mut last).expect("fits");
    assert_eq!(last, [0x5c]);
    let iova = buffer.iova();
    drop(buffer);
    let stdin = std::io::stdin();
    let map = udrv_backend::DmaMap {
        iova,
        size,
        access: udrv_backend::DmaAccess::READ,
        file: std::os::fd::AsFd::as_fd(&stdin),
        offset: 0,
    };
    device.dma().expect("DMA").map(&map).expect("the whole range is free again");
}

#[test]
fn coherent_memory_shows_what_the_device_writes() {
    let device = device();
    let ring = pool(&device).alloc_coherent(64).expect("memory");
    ring.write(0, 0x0102_0304_0506_0708u64).expect("fits");
    transfer(&device, ring.iova(), INNER, 8, 1);
    transfer(&device, INNER, ring.iova() + 32, 8, 3);
    assert_eq!(ring.read::<u64>(32).expect("fits"), 0x0102_0304_0506_0708);
    assert_eq!(ring.read::<u8>(33).expect("fits"), 0x07);
}

/// A device that keeps the file of each mapping, as a server over a socket has it.
#[test]
fn file_of_a_buffer_cannot_be_truncated_by_its_server() {
    let device = Arc::new(KeepsFiles { edu: device(), files: std::sync::Mutex::default() });
    let any: AnyBackend = device.clone();
    let buffer = pool(&any).alloc::<FromDevice>(4096).expect("a buffer");
    let files = device.files.lock().expect("not poisoned");
    let file = files.first().expect("one mapping");

    for length in [0, 4096, 1 << 30] {
        assert_eq!(nix::unistd::ftruncate(file, length), Err(nix::errno::Errno::EPERM), "to {length} bytes");
    }

    nix::sys::uio::pwrite(file, &[0x5a], 0).expect("a server may write");
    let mut now = [0; 4096];
    buffer.read(0, &mut now).expect("readable");
    assert_eq!(now[0], 0x5a);
}

struct KeepsFiles {
    edu: AnyBackend,
    files: std::sync::Mutex<Vec<std::os::fd::OwnedFd>>,
}

impl Backend for KeepsFiles {
    fn info(&self) -> &DeviceInfo {
        self.edu.info()
    }
    fn region(&self, region: RegionIndex) -> Result<RegionInfo, Error> {
        self.edu.region(region)
    }
    fn irq(&self, index: IrqIndex) -> Result<IrqInfo, Error> {
        self.edu.irq(index)
    }
    fn read(&self, region: RegionIndex, offset: u64, width: Width) -> Result<u64, Error> {
        self.edu.read(region, offset, width)
    }
    fn write(&self, region: RegionIndex, offset: u64, width: Width, value: u64) -> Result<(), Error> {
        self.edu.write(region, offset, width, value)
    }
    fn set_triggers(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<(), Error> {
        self.edu.set_triggers(index, start, triggers)
    }
    fn disable_irq(&self, index: IrqIndex) -> Result<(), Error> {
        self.edu.disable_irq(index)
    }
    fn mask_irq(&self, index: IrqIndex, vector: u32) -> Result<(), Error> {
        self.edu.mask_irq(index, vector)
    }
    fn unmask_irq(&self, index: IrqIndex, vector: u32) -> Result<(), Error> {
        self.edu.unmask_irq(index, vector)
    }
    fn fire_irq(&self, index: IrqIndex, vector: u32) -> Result<(), Error> {
        self.edu.fire_irq(index, vector)
    }
    fn dma(&self) -> Option<&dyn Dma> {
        Some(self)
    }
}

impl Dma for KeepsFiles {
    fn limits(&self) -> DmaLimits {
        self.edu.dma().expect("DMA").limits()
    }
    fn map(&self, map: &DmaMap<'_>) -> Result<(), Error> {
        self.files.lock().expect("not poisoned").push(map.file.try_clone_to_owned().expect("a duplicate"));
        self.edu.dma().expect("DMA").map(map)
    }
    fn unmap(&self, iova: u64, size: u64) -> Result<(), Error> {
        self.edu.dma().expect("DMA").unmap(iova, size)
    }
}

#[test]
fn coherent_access_beyond_or_unaligned_is_an_error() {
    let ring = pool(&device()).alloc_coherent(64).expect("memory");
    for offset in [61, 62, 64, usize::MAX, usize::MAX - 3] {
        assert!(ring.read::<u32>(offset).is_err(), "{offset}");
        assert!(ring.write(offset, 0u32).is_err(), "{offset}");
    }
    assert!(ring.read::<u32>(60).is_ok());
}
