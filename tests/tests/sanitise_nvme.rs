//! The checker of DMA around an NVMe controller: rings and PRP lists are memory that both use, and go to the device as they are;
//! data buffers are checked. Each thing that is not allowed is planted, in the device or in the driver, and found.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use udrv::irq::{Delivery, IrqDomain};
use udrv::mmio::Window;
use udrv_backend::{AnyBackend, Backend, DmaAccess, DmaMap, Error, IrqIndex, RegionIndex, Result, Width};
use udrv_debug::around::{Around, Call, Device, Layer, Signal};
use udrv_debug::sanitise::{Findings, Rule, Sanitised};
use udrv_nvme::driver::{Controller, QueueConfig, Wait};

/// From here on a write to BAR 0 tells the controller of commands or completions.
const DOORBELLS: u64 = 0x1000;

/// What is planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    /// In the device: with each doorbell it writes memory that was unmapped,
    WritesUnmapped,
    /// memory that it may only read,
    WritesReadOnly,
    /// data buffers, whoever's they are.
    WritesAlways,
    /// In the driver: memory is not unmapped,
    NeverUnmaps,
    /// or mapped at a second address too,
    MapsTwice,
    /// or unmapped just before the controller is told of it.
    UnmapsInFlight,
}

impl Bug {
    const fn is_the_drivers(self) -> bool {
        matches!(self, Self::NeverUnmaps | Self::MapsTwice | Self::UnmapsInFlight)
    }
}

/// A mapping, also one that is gone.
struct Seen {
    iova: u64,
    size: u64,
    access: DmaAccess,
    file: File,
    offset: u64,
    is_mapped: bool,
}

struct Planted {
    bug: Bug,
    seen: Mutex<Vec<Seen>>,
    scribbled: AtomicU8,
}

impl Planted {
    fn around<B: Backend + 'static>(device: B, bug: Bug) -> AnyBackend {
        Arc::new(
            Around::wrap(device, Self { bug, seen: Mutex::default(), scribbled: AtomicU8::new(0) }).expect("a layer"),
        )
    }

    fn scribble(&self) {
        let wanted = |seen: &&Seen| match self.bug {
            Bug::WritesUnmapped => !seen.is_mapped && seen.access == DmaAccess::WRITE,
            Bug::WritesReadOnly => seen.is_mapped && seen.access == DmaAccess::READ,
            Bug::WritesAlways => seen.is_mapped && seen.access == DmaAccess::WRITE,
            _ => false,
        };
        for Seen { file, offset, .. } in self.seen.lock().expect("not poisoned").iter().filter(wanted) {
            // Never the same again: what does not change, nobody sees.
            let bytes = [self.scribbled.fetch_add(1, Ordering::Relaxed); 4];
            file.write_all_at(&bytes, offset + 9).expect("memory");
        }
    }

    fn unmap_in_flight(&self, device: &impl Backend) {
        let seen = self.seen.lock().expect("not poisoned");
        if let Some(data) = seen.iter().find(|seen| seen.is_mapped && seen.access == DmaAccess::WRITE) {
            // The second time it is gone.
            let _gone = device.dma().expect("DMA").unmap(data.iova, data.size);
        }
    }
}

impl Layer for Planted {
    fn read<B: Backend>(&self, device: &Device<'_, B>, at: (RegionIndex, u64, Width)) -> Result<u64> {
        device.inner.read(at.0, at.1, at.2)
    }

    fn write<B: Backend>(&self, device: &Device<'_, B>, at: (RegionIndex, u64, Width), value: u64) -> Result<()> {
        let (region, offset, width) = at;
        let is_doorbell = region == RegionIndex::BAR0 && offset >= DOORBELLS;
        if is_doorbell && self.bug == Bug::UnmapsInFlight {
            self.unmap_in_flight(device.inner);
        }
        device.inner.write(region, offset, width, value)?;
        if is_doorbell {
            self.scribble();
        }
        Ok(())
    }

    fn call<B: Backend>(
        &self,
        device: &Device<'_, B>,
        call: Call<'_>,
        make: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        match call {
            Call::Unmap(..) if self.bug == Bug::NeverUnmaps => return Ok(()),
            Call::Unmap(iova, _) => {
                let mut seen = self.seen.lock().expect("not poisoned");
                seen.iter_mut().filter(|seen| seen.iova == iova).for_each(|seen| seen.is_mapped = false);
            }
            Call::Map(map) => {
                let &DmaMap { iova, size, access, file, offset } = map;
                if self.bug == Bug::MapsTwice && access == DmaAccess::WRITE {
                    device.inner.dma().expect("DMA").map(&DmaMap { iova: iova + (1 << 30), ..*map })?;
                }
                let file = file.try_clone_to_owned().expect("a descriptor").into();
                let seen = Seen { iova, size, access, file, offset, is_mapped: true };
                self.seen.lock().expect("not poisoned").push(seen);
            }
            _ => {}
        }
        make()
    }

    fn signalled(&self, _: IrqIndex, _: u32, _: u64) -> Signal {
        Signal::PASS
    }
}

/// Blocks written, read back, flushed; by a driver that may find its device strange.
fn work(device: &AnyBackend) -> Result<()> {
    let irqs = IrqDomain::new(Delivery::Thread)?;
    let mut controller: Controller = Controller::attach(device, Window::open(device, RegionIndex::BAR0)?, &irqs, 1)?;
    let namespace = controller.namespace(1)?;
    let mut queue = controller.io_queue(QueueConfig { wait: Wait::Polled, ..QueueConfig::default() })?;
    // Of several pages each, so that there is a PRP list.
    let sent: Vec<u8> = (0..65_536_u32).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
    let mut came = vec![0; sent.len()];
    queue.write(&namespace, 0, &sent)?;
    queue.read(&namespace, 0, &mut came)?;
    queue.flush(&namespace)?;
    let other =
        || Error::Protocol { peer: "the disk".into(), found: "other bytes".into(), expected: "the same".into() };
    if came == sent { Ok(()) } else { Err(other()) }
}

/// The rules that were broken, each once, in order; and how the driver fared.
fn found(bug: Option<Bug>) -> (Vec<Rule>, Result<()>) {
    let model = udrv_nvme::model::nvme().expect("a model");
    let check = |device: AnyBackend| -> (AnyBackend, Findings) {
        let (checked, findings) = Sanitised::new(device).expect("a checker");
        (Arc::new(checked), findings)
    };
    let (device, findings) = match bug {
        Some(bug) if bug.is_the_drivers() => {
            let (checked, findings) = check(Arc::new(model));
            (Planted::around(checked, bug), findings)
        }
        Some(bug) => check(Planted::around(model, bug)),
        None => check(Arc::new(model)),
    };
    let worked = work(&device);
    drop(device);
    let mut rules: Vec<_> = findings.all().into_iter().map(|finding| finding.rule).collect();
    rules.sort_unstable();
    rules.dedup();
    (rules, worked)
}

#[test]
fn sound_driver_and_controller_have_no_findings_and_their_data() {
    let (rules, worked) = found(None);
    worked.expect("the driver works");
    assert_eq!(rules, []);
}

#[test]
fn controller_that_writes_a_buffer_that_was_unmapped_is_found() {
    let (rules, worked) = found(Some(Bug::WritesUnmapped));
    worked.expect("it did no harm");
    assert_eq!(rules, [Rule::UseAfterUnmap]);
}

#[test]
fn controller_that_writes_what_it_was_to_read_is_found_and_did_no_harm() {
    let (rules, worked) = found(Some(Bug::WritesReadOnly));
    assert!(worked.is_ok(), "{worked:?}");
    assert_eq!(rules, [Rule::WrongDirection]);
}

#[test]
fn controller_that_writes_a_buffer_that_the_driver_has_taken_back_is_found() {
    assert_eq!(found(Some(Bug::WritesAlways)).0, [Rule::NotOwner]);
}

#[test]
fn driver_that_does_not_unmap_is_found_with_the_memory_that_it_gives_away_twice() {
    assert_eq!(found(Some(Bug::NeverUnmaps)).0, [Rule::Overlap, Rule::Leak]);
}

#[test]
fn driver_that_maps_a_buffer_twice_is_found() {
    let (rules, _) = found(Some(Bug::MapsTwice));
    assert!(rules.contains(&Rule::Overlap), "{rules:?}");
}

#[test]
fn driver_that_unmaps_a_buffer_before_its_transfer_is_found() {
    let (rules, worked) = found(Some(Bug::UnmapsInFlight));
    assert!(rules.contains(&Rule::UnmappedInFlight), "{rules:?}");
    worked.expect_err("its transfer went nowhere");
}
