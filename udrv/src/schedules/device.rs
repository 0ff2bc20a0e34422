//! A device that raises interrupts at given accesses.

use super::schedule::{Placement, Schedule};
use crate::clock::Deadline;
use crate::irq::IrqDomain;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use udrv_backend::{
    AnyBackend, Backend, DeviceInfo, Dma, Error, IrqIndex, IrqInfo, RegionIndex, RegionInfo, Reset, Result, Trigger,
    Width,
};

/// What raises one interrupt: its accesses are not the driver's, and are not counted.
pub type Raise = Arc<dyn Fn(&dyn Backend) -> Result<()> + Send + Sync>;

/// Longest that handlers may take at a placement.
const PATIENCE: Duration = Duration::from_secs(2);

/// Any backend, with interrupts placed at its accesses.
///
/// Before the access they are placed at, interrupts are raised, and their handlers run to their end on another thread while
/// the one that makes the access stands still: what another processor may do there. A section that is open holds them back
/// as ever. All registers are reached by message, so that every access is counted; sizes, interrupts and DMA are the
/// device's own.
pub struct Scheduled {
    inner: AnyBackend,
    irqs: IrqDomain,
    raises: Vec<Raise>,
    schedule: Schedule,
    arrival: Duration,
    accesses: AtomicU64,
    raised: Mutex<Vec<Placement>>,
}

impl Scheduled {
    /// Over `inner`, whose interrupts a driver takes in `irqs`; `raises` are the interrupts that `schedule` numbers.
    #[must_use]
    pub fn new(inner: AnyBackend, irqs: &IrqDomain, raises: Vec<Raise>, schedule: Schedule) -> Self {
        Self {
            inner,
            irqs: irqs.clone(),
            raises,
            schedule,
            arrival: Duration::ZERO,
            accesses: AtomicU64::new(0),
            raised: Mutex::default(),
        }
    }

    /// Waits up to so long for each interrupt to arrive, on a device that does not signal it before the raising access returns.
    #[must_use]
    pub fn arriving_within(mut self, arrival: Duration) -> Self {
        self.arrival = arrival;
        self
    }

    /// How many accesses were made.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.accesses.load(Ordering::SeqCst)
    }

    /// What was raised so far.
    #[must_use]
    pub fn raised(&self) -> Vec<Placement> {
        self.raised.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn before_access(&self) -> Result<()> {
        let access = self.accesses.fetch_add(1, Ordering::SeqCst);
        for placement in self.schedule.placements().iter().filter(|placement| placement.access == access) {
            let Some(raise) = self.raises.get(placement.irq) else { continue };
            self.raised.lock().unwrap_or_else(PoisonError::into_inner).push(*placement);
            let before = self.irqs.raised();
            raise(&*self.inner)?;
            self.let_handlers_run(access, before)?;
        }
        Ok(())
    }

    /// On a thread of their own. An access of a handler lets none run: the loop around the handler goes on.
    fn let_handlers_run(&self, access: u64, before: u64) -> Result<()> {
        let arrival = Deadline::after(self.arrival);
        // Delivering looks for it, and in a handler or beside a section does no more than that.
        let arrive = move |irqs: &IrqDomain| {
            let arrived = || {
                irqs.deliver();
                Ok(irqs.raised() > before)
            };
            // One that is masked, or that nobody takes yet, does not.
            let _never = arrival.poll("the placed interrupt", arrived);
        };
        if self.irqs.is_delivering_here() {
            arrive(&self.irqs);
            return Ok(());
        }
        let (irqs, (done, ended)) = (self.irqs.clone(), mpsc::channel());
        let other = std::thread::Builder::new().name("udrv-placed-irq".into()).spawn(move || {
            arrive(&irqs);
            // Whoever waited too long is gone.
            let _late = done.send(());
        });
        other.map_err(|error| Error::os("starting a thread for a placed interrupt", error))?;
        let in_time = ended.recv_timeout(PATIENCE + self.arrival);
        in_time.map_err(|_late| {
            let what = format!("handlers at access {access} (do they wait for what the thread they interrupt holds?)");
            Deadline::after(PATIENCE).missed(what)
        })
    }
}

impl Backend for Scheduled {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
    fn region(&self, region: RegionIndex) -> Result<RegionInfo> {
        // Nothing is mapped: it would not be counted.
        self.inner.region(region).map(|mut info| {
            info.flags -= udrv_backend::RegionFlags::MMAP;
            info.mappable.clear();
            info
        })
    }
    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        self.inner.irq(index)
    }
    fn read(&self, region: RegionIndex, offset: u64, width: Width) -> Result<u64> {
        self.before_access()?;
        self.inner.read(region, offset, width)
    }
    fn write(&self, region: RegionIndex, offset: u64, width: Width, value: u64) -> Result<()> {
        self.before_access()?;
        self.inner.write(region, offset, width, value)
    }
    fn set_triggers(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        self.inner.set_triggers(index, start, triggers)
    }
    fn disable_irq(&self, index: IrqIndex) -> Result<()> {
        self.inner.disable_irq(index)
    }
    fn mask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.inner.mask_irq(index, vector)
    }
    fn unmask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.inner.unmask_irq(index, vector)
    }
    fn fire_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.inner.fire_irq(index, vector)
    }
    fn dma(&self) -> Option<&dyn Dma> {
        self.inner.dma()
    }
    fn resettable(&self) -> Option<&dyn Reset> {
        self.inner.resettable()
    }
}
