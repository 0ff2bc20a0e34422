//! The checker of DMA: each thing that is not allowed is found, where it is done, and nothing in a sound driver is.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex};
use udrv::dma::{Bidirectional, Buffer, Direction, FromDevice, Pool, ToDevice};
use udrv::host::{Ended, Host};
use udrv::irq::Delivery;
use udrv_backend::conformance::{Outcome, Subject, checks};
use udrv_backend::{
    AnyBackend, Backend, DeviceInfo, Dma, DmaAccess, DmaLimits, DmaMap, Error, IrqIndex, IrqInfo, RegionFlags,
    RegionIndex, RegionInfo, Result, Trigger, Width,
};
use udrv_debug::sanitise::{Finding, Findings, POISON, Rule, Sanitised};
use udrv_edu::driver::{Tour, TourConfig};

/// A device that writes wherever it ever could, whatever it may do.
struct Lawless {
    info: DeviceInfo,
    seen: Mutex<Vec<(u64, u64, File, u64)>>,
}

impl Lawless {
    fn at(&self, iova: u64, act: impl FnOnce(&File, u64) -> std::io::Result<()>) {
        let seen = self.seen.lock().expect("not poisoned");
        let within = |(start, size, ..): &&(u64, u64, File, u64)| (*start..*start + *size).contains(&iova);
        let (start, _, file, offset) = seen.iter().rev().find(within).expect("once mapped");
        act(file, offset + (iova - start)).expect("memory");
    }

    fn write_memory(&self, iova: u64, bytes: &[u8]) {
        self.at(iova, |file, offset| file.write_all_at(bytes, offset));
    }

    fn read_memory(&self, iova: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.at(iova, |file, offset| file.read_exact_at(&mut bytes, offset));
        bytes
    }
}

impl Backend for Lawless {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn region(&self, index: RegionIndex) -> Result<RegionInfo> {
        Ok(RegionInfo { index, size: 4096, flags: RegionFlags::READ, mappable: Vec::new() })
    }
    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        Err(Error::NoSuchIrq { index, start: 0, count: 0, available: 0 })
    }
    fn read(&self, _: RegionIndex, _: u64, _: Width) -> Result<u64> {
        Ok(0)
    }
    fn write(&self, _: RegionIndex, _: u64, _: Width, _: u64) -> Result<()> {
        Ok(())
    }
    fn set_triggers(&self, _: IrqIndex, _: u32, _: &[Option<Trigger<'_>>]) -> Result<()> {
        Ok(())
    }
    fn disable_irq(&self, _: IrqIndex) -> Result<()> {
        Ok(())
    }
    fn mask_irq(&self, _: IrqIndex, _: u32) -> Result<()> {
        Ok(())
    }
    fn unmask_irq(&self, _: IrqIndex, _: u32) -> Result<()> {
        Ok(())
    }
    fn fire_irq(&self, _: IrqIndex, _: u32) -> Result<()> {
        Ok(())
    }
    fn dma(&self) -> Option<&dyn Dma> {
        Some(self)
    }
}

impl Dma for Lawless {
    fn limits(&self) -> DmaLimits {
        DmaLimits { iova_ranges: vec![0..=u64::from(u32::MAX)], page_size: 4096, max_mappings: 100 }
    }
    fn map(&self, map: &DmaMap<'_>) -> Result<()> {
        let file = map.file.try_clone_to_owned().expect("a descriptor");
        self.seen.lock().expect("not poisoned").push((map.iova, map.size, file.into(), map.offset));
        Ok(())
    }
    fn unmap(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }
}

/// The device, as it is and as a driver has it.
struct Bench {
    device: Arc<Lawless>,
    checked: AnyBackend,
    findings: Findings,
}

impl Bench {
    fn new() -> Self {
        let info = DeviceInfo { address: "lawless".into(), regions: 1, irqs: 0 };
        let device = Arc::new(Lawless { info, seen: Mutex::default() });
        let (checked, findings) = Sanitised::new(Arc::clone(&device)).expect("a checker");
        Self { device, checked: Arc::new(checked), findings }
    }

    fn buffer<D: Direction>(&self) -> Buffer<D> {
        Pool::new(Arc::clone(&self.checked), 0x4000, 32).expect("a pool").alloc(64).expect("a buffer")
    }

    /// What is found once the device was read, or the rules alone.
    fn found(&self) -> Vec<Finding> {
        self.checked.read(RegionIndex::BAR0, 0, Width::Bits32).expect("read");
        self.findings.all()
    }
}

#[test]
fn sound_driver_has_no_findings_and_its_data() {
    let (edu, findings) = Sanitised::new(udrv_edu::model::edu()).expect("a checker");
    let mut host = Host::new();
    let config = TourConfig { irq: None, samples: 5, tell: Box::new(|_| {}) };
    host.start::<Tour>(Arc::new(edu), Delivery::Thread, config).expect("started");
    for report in host.join() {
        assert!(matches!(report.ended, Ended::Returned), "{report:?}");
    }
    assert_eq!(findings.all(), []);
}

#[test]
fn checked_device_conforms() {
    let open = || -> Result<AnyBackend> { Ok(Arc::new(Sanitised::new(udrv_tests::vectors::vectors()?)?.0)) };
    let subject = Subject { open: &open, knowledge: udrv_tests::vectors::KNOWLEDGE };
    let mut failed = Vec::new();
    for check in checks() {
        if let Outcome::Failed(why) = check.run(&subject) {
            failed.push(format!("{}: {why}", check.name));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn data_goes_with_the_buffer_and_poison_is_what_nobody_wrote() {
    let bench = Bench::new();
    let mut buffer = bench.buffer::<Bidirectional>();
    buffer.write(0, b"request").expect("written");
    let iova = buffer.iova();
    assert_eq!(bench.device.read_memory(iova, 7), [POISON; 7], "before it is submitted");
    let flight = buffer.submit();
    assert_eq!(bench.device.read_memory(iova, 7), b"request");
    bench.device.write_memory(iova, b"replied");
    let mut bytes = [0; 7];
    flight.complete().read(0, &mut bytes).expect("read");
    assert_eq!(&bytes, b"replied");
    let flight = bench.buffer::<FromDevice>().submit();
    bench.device.write_memory(flight.iova(), b"short");
    let mut bytes = [0; 8];
    flight.complete().read(0, &mut bytes).expect("read");
    assert_eq!(&bytes, b"short\xa5\xa5\xa5");
    assert_eq!(bench.found(), []);
}

#[test]
fn device_that_writes_after_the_unmapping_is_found() {
    let bench = Bench::new();
    let buffer = bench.buffer::<FromDevice>();
    let iova = buffer.iova();
    drop(buffer.submit().complete());
    assert_eq!(bench.found(), []);
    bench.device.write_memory(iova + 3, b"late");
    assert_eq!(bench.found(), [Finding { rule: Rule::UseAfterUnmap, iova: iova + 3, size: 4 }]);
}

#[test]
fn device_that_writes_what_it_may_only_read_is_found() {
    let bench = Bench::new();
    let flight = bench.buffer::<ToDevice>().submit();
    bench.device.write_memory(flight.iova(), b"no");
    assert_eq!(bench.found(), [Finding { rule: Rule::WrongDirection, iova: flight.iova(), size: 2 }]);
    assert_eq!(bench.found().len(), 1, "once");
    drop(flight.complete());
}

#[test]
fn device_that_writes_what_is_the_drivers_is_found_and_does_no_harm() {
    let bench = Bench::new();
    let flight = bench.buffer::<FromDevice>().submit();
    bench.device.write_memory(flight.iova(), b"data");
    let buffer = flight.complete();
    bench.device.write_memory(buffer.iova() + 1, b"oops");
    assert_eq!(bench.found(), [Finding { rule: Rule::NotOwner, iova: buffer.iova() + 1, size: 4 }]);
    let mut bytes = [0; 4];
    buffer.read(0, &mut bytes).expect("read");
    assert_eq!(&bytes, b"data");
}

#[test]
fn memory_that_is_mapped_twice_is_found_unless_the_device_only_reads_it() {
    let bench = Bench::new();
    let file = nix::sys::memfd::memfd_create(c"twice", nix::sys::memfd::MFdFlags::empty()).expect("a memfd");
    nix::unistd::ftruncate(&file, 0x4000).expect("long enough");
    let dma = bench.checked.dma().expect("DMA");
    let map = |iova, offset, access| {
        let file = std::os::fd::AsFd::as_fd(&file);
        dma.map(&DmaMap { iova, size: 0x1000, access, file, offset }).expect("mapped");
    };
    map(0x1000, 0, DmaAccess::READ);
    map(0x2000, 0, DmaAccess::READ);
    map(0x3000, 0x1000, DmaAccess::WRITE);
    assert_eq!(bench.found(), []);
    map(0x5000, 0, DmaAccess::WRITE);
    assert_eq!(bench.found(), [Finding { rule: Rule::Overlap, iova: 0x5000, size: 0x1000 }]);
}

#[test]
fn buffer_that_is_dropped_in_flight_leaks_and_is_found_when_the_device_is_closed() {
    let bench = Bench::new();
    let iova = {
        let flight = bench.buffer::<ToDevice>().submit();
        flight.iova()
    };
    assert_eq!(bench.found(), []);
    let Bench { checked, findings, .. } = bench;
    drop(checked);
    assert_eq!(findings.all(), [Finding { rule: Rule::Leak, iova, size: 0x1000 }]);
}

#[test]
fn buffer_that_is_unmapped_in_flight_is_found() {
    let bench = Bench::new();
    let flight = bench.buffer::<ToDevice>().submit();
    bench.checked.dma().expect("DMA").unmap(flight.iova(), 0x1000).expect("unmapped");
    let found = [Finding { rule: Rule::UnmappedInFlight, iova: flight.iova(), size: 0x1000 }];
    assert_eq!(bench.found(), found);
}
