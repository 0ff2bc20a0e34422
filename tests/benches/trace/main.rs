//! What recording costs. Run by `cargo xtask bench trace`; written as `target/bench/trace.json` and `trace.svg`.
//!
//! The device is one that does nothing, so that what is left is the recorder and the call through a trait object. Of an
//! access that is not recorded there is nothing to measure beyond that: no recorder is there.

#[path = "../irq/report.rs"]
mod report;

use report::{Goal, Measure, one};
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use udrv::irq::{Delivery, IrqDomain, IrqReturn};
use udrv_backend::{
    AnyBackend, Backend, DeviceInfo, Dma, IrqFlags, IrqIndex, IrqInfo, RegionFlags, RegionIndex, RegionInfo, Result,
    Trigger, Width, clock,
};
use udrv_debug::trace::{Options, Recorder};

const CALLS: u32 = 100_000;

/// A device that answers at once.
struct Nothing(DeviceInfo);

fn nothing() -> Nothing {
    Nothing(DeviceInfo { address: "nothing".into(), regions: 1, irqs: 5 })
}

impl Backend for Nothing {
    fn info(&self) -> &DeviceInfo {
        &self.0
    }
    fn region(&self, index: RegionIndex) -> Result<RegionInfo> {
        Ok(RegionInfo { index, size: 4096, flags: RegionFlags::READ, mappable: Vec::new() })
    }
    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        Ok(IrqInfo { index, count: 1, flags: IrqFlags::EVENTFD })
    }
    fn read(&self, _: RegionIndex, offset: u64, _: Width) -> Result<u64> {
        Ok(black_box(offset))
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
        None
    }
}

/// A recorder of a device, whose file is gone with it.
struct Recorded {
    device: AnyBackend,
    path: PathBuf,
}

impl Recorded {
    fn new(events: u64) -> Self {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("udrv-bench-trace-{}-{number}", std::process::id()));
        let options = Options { events, dma_contents: false };
        let device = Arc::new(Recorder::new(nothing(), &path, options).expect("room for a recording"));
        Self { device, path }
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

/// Nanoseconds of one call: of the best of ten rounds, since what is slower was disturbed.
fn each<T>(mut call: impl FnMut() -> T) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..10 {
        let start = clock::now();
        for _ in 0..CALLS / 10 {
            black_box(call());
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(CALLS / 10));
    }
    best
}

fn read(device: &dyn Backend) -> f64 {
    each(|| device.read(RegionIndex::BAR0, 8, Width::Bits32).ok())
}

fn sections(device: &AnyBackend) -> f64 {
    let domain = IrqDomain::new(Delivery::Poll).expect("a domain");
    let registration = domain.register(device, IrqIndex::MSI, 0, |_| IrqReturn::Handled).expect("registered");
    let cost = each(|| domain.off(|_| ()));
    drop(registration);
    cost
}

fn main() {
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let plain: AnyBackend = Arc::new(nothing());
    let (first, second) = (Arc::clone(&plain), Arc::clone(&plain));
    let measures = [
        Measure {
            name: "access, recorded",
            parts: &[("", Goal::Figure(25.0))],
            unit: "ns",
            peer: "access, not recorded",
            ours: one(|| read(&*Recorded::new(u64::from(CALLS) + 100).device)),
            theirs: one(move || read(&*plain)),
        },
        Measure {
            name: "access, not recorded",
            parts: &[("", Goal::Ratio(0.5))],
            unit: "ns",
            peer: "one read of the clock",
            ours: one(move || read(&*first)),
            theirs: one(|| each(clock::now)),
        },
        Measure {
            name: "section, recorded (two events)",
            parts: &[("", Goal::None)],
            unit: "ns",
            peer: "section, not recorded",
            ours: one(|| sections(&Recorded::new(2 * u64::from(CALLS) + 100).device)),
            theirs: one(move || sections(&second)),
        },
    ];
    let mut rows = Vec::new();
    for measure in measures {
        if wanted.as_ref().is_some_and(|part| !measure.name.contains(part)) {
            continue;
        }
        for row in measure.run() {
            println!("{row}");
            rows.push(row);
        }
    }
    report::write("trace", &rows);
}
