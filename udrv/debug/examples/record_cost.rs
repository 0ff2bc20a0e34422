//! What recording costs an access: `cargo run --release -p udrv-debug --example record_cost`.
//!
//! The device is one that does nothing, so that what is left is the recorder. Its clock is read once an access, which is
//! shown apart.

use std::hint::black_box;
use std::time::Duration;
use udrv_backend::{
    Backend, DeviceInfo, Dma, Error, IrqIndex, IrqInfo, RegionFlags, RegionIndex, RegionInfo, Result, Trigger, Width,
    clock,
};
use udrv_debug::trace::{Options, Recorder};

const ACCESSES: u32 = 1_000_000;

/// A device that answers at once.
struct Nothing(DeviceInfo);

impl Backend for Nothing {
    fn info(&self) -> &DeviceInfo {
        &self.0
    }
    fn region(&self, index: RegionIndex) -> Result<RegionInfo> {
        Ok(RegionInfo { index, size: 4096, flags: RegionFlags::READ, mappable: Vec::new() })
    }
    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        Err(Error::NoSuchIrq { index, start: 0, count: 0, available: 0 })
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

/// The best of ten: what is slower was disturbed.
fn each<T>(mut access: impl FnMut() -> T) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let start = clock::now();
        (0..ACCESSES / 10).for_each(|_| {
            black_box(access());
        });
        best = best.min(start.elapsed() / (ACCESSES / 10));
    }
    best
}

fn main() -> Result<()> {
    let path = std::env::temp_dir().join(format!("udrv-record-cost-{}", std::process::id()));
    let nothing = || Nothing(DeviceInfo { address: "nothing".into(), regions: 1, irqs: 0 });
    let read = |device: &dyn Backend| black_box(device.read(RegionIndex::BAR0, 8, Width::Bits32).ok());
    let bare = nothing();
    let options = Options { events: u64::from(ACCESSES) + 10, dma_contents: false };
    let recorder = Recorder::new(nothing(), &path, options)?;
    println!("clock       {:?}", each(clock::now));
    println!("not recorded {:?}", each(|| read(&bare)));
    println!("recorded    {:?}", each(|| read(&recorder)));
    println!("lost        {}", recorder.lost());
    std::fs::remove_file(&path).map_err(|error| Error::os("removing the trace", error))
}
