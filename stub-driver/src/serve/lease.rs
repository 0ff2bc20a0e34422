//! One client's time with a device, from the opening of the device to its orderly end.

use super::dma::Mappings;
use super::export::Opened;
use super::hold::Hold;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use udrv_backend::{AnyBackend, Error, IrqIndex, IrqInfo, RegionIndex, RegionInfo};

/// What a lease has seen, for `status`.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) messages: Counter,
    pub(super) reads: Counter,
    pub(super) writes: Counter,
    pub(super) irqs_set: Counter,
    pub(super) errors: Counter,
    /// Now, not in total.
    pub(super) dma_bytes: Counter,
}

/// Counted by one thread, read by others.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The device while a client has it.
pub(super) struct Lease {
    pub(super) device: AnyBackend,
    pub(super) regions: Vec<RegionInfo>,
    pub(super) irqs: Vec<IrqInfo>,
    pub(super) mappings: Mappings,
    pub(super) counters: Arc<Counters>,
    pub(super) hold: Arc<Hold>,
    held: Option<Box<dyn Any + Send>>,
}

impl Lease {
    /// # Errors
    /// What the device gave when asked about itself.
    pub(super) fn new(
        opened: Opened,
        (counters, hold): (Arc<Counters>, Arc<Hold>),
        mappings: Mappings,
    ) -> Result<Self, Error> {
        // On an error the last one named is dropped first: the device is closed before it is given back.
        let Opened { held, device } = opened;
        let info = device.info();
        let regions = (0..info.regions).map(|index| device.region(RegionIndex(index))).collect::<Result<_, _>>()?;
        let irqs = (0..info.irqs).map(|index| device.irq(IrqIndex(index))).collect::<Result<_, _>>()?;
        let mappings = mappings.limited_to(device.dma().map_or(0, |dma| dma.limits().max_mappings));
        Ok(Self { regions, irqs, mappings, counters, hold, held, device })
    }

    /// Ends it, whatever state the client left: interrupts disarmed, bus mastering off, reset if the device can, DMA
    /// unmapped, the device closed and given back if it was taken for this lease. In this order, so that nothing can
    /// still be written to memory when the memory is taken away; each step is tried even if one before it failed.
    pub(super) fn end(self, name: &str) {
        let Self { device, mut mappings, hold, held, .. } = self;
        try_step(name, "making the device quiet", || udrv_backend::pci::quiesce(&*device));
        try_step(name, "letting go of its interrupts", || {
            hold.end();
            Ok(())
        });
        try_step(name, "unmapping DMA", || mappings.unmap_all(&*device));
        try_step(name, "closing the device", || {
            drop(device);
            Ok(())
        });
        try_step(name, "giving the device back", || {
            drop(held);
            Ok(())
        });
    }
}

/// A step's error or panic is logged, and the next step is tried.
fn try_step(name: &str, doing: &str, step: impl FnOnce() -> Result<(), Error>) {
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!("{name}: {doing} at the end of a lease: {error}"),
        Err(_) => tracing::error!("{name}: {doing} at the end of a lease panicked"),
    }
}
