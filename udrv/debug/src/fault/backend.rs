//! A device with what its plan says wrong.

use super::{Fault, FaultPlan};
use crate::relay::{Fate, Relay};
use crate::watch::Watch;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use udrv_backend::{
    Backend, DeviceInfo, Dma, DmaLimits, DmaMap, Error, IrqIndex, IrqInfo, RegionFlags, RegionIndex, RegionInfo, Reset,
    Result, Trigger, Width,
};

/// A backend with faults. Without any it is as good as the one it is around, except that its regions cannot be mapped.
pub struct Faulty<B> {
    /// Dropped before the device, so that no signal of a device that is closed is passed on.
    relay: Relay,
    shared: Arc<Shared>,
    inner: B,
}

struct Shared {
    plan: FaultPlan,
    accesses: AtomicU64,
    interrupts: AtomicU64,
    mappings: AtomicU64,
    gone: AtomicBool,
    memory: Mutex<Watch>,
    /// How often registers were written whose writes are lost.
    writes: Mutex<BTreeMap<(u32, u64), u64>>,
    /// What registers that never become ready read as.
    frozen: Mutex<BTreeMap<(u32, u64), u64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: Backend> Faulty<B> {
    /// Around `inner`.
    ///
    /// # Errors
    /// [`Error::Os`] if the thread that passes interrupts on cannot be started.
    pub fn new(inner: B, plan: FaultPlan) -> Result<Self> {
        let shared = Arc::new(Shared {
            plan,
            accesses: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            mappings: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            memory: Mutex::default(),
            writes: Mutex::default(),
            frozen: Mutex::default(),
        });
        let judge = Arc::clone(&shared);
        let relay = Relay::new(Box::new(move |_, _, _| judge.interrupt()))?;
        Ok(Self { relay, shared, inner })
    }

    /// Counts an access, and says whether the device is still there for it.
    fn access(&self) -> Result<u64> {
        let number = self.shared.accesses.fetch_add(1, Ordering::Relaxed);
        for fault in &self.shared.plan.faults {
            match fault {
                Fault::Gone { at } if number >= *at => self.shared.gone.store(true, Ordering::Release),
                Fault::Slow { by_us } => slow(Duration::from_micros(*by_us)),
                _ => {}
            }
        }
        self.here()?;
        Ok(number)
    }

    fn here(&self) -> Result<()> {
        if !self.shared.gone.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::Gone { device: self.inner.info().address.clone(), why: "its fault plan says so".into() })
    }

    fn after(&self, number: u64) {
        let spurious =
            |fault: &Fault| matches!(fault, Fault::SpuriousInterrupt { accesses } if accesses.contains(number));
        if self.shared.plan.faults.iter().any(spurious) {
            self.relay.signal(None);
        }
    }

    /// Before the driver's first word to a region: what registers of that region that never become ready hold now.
    fn freeze(&self, written: RegionIndex) {
        for fault in &self.shared.plan.faults {
            let Fault::NeverReady { region, offset } = fault else { continue };
            if *region != written.0 {
                continue;
            }
            let mut frozen = lock(&self.shared.frozen);
            if frozen.contains_key(&(*region, *offset)) {
                continue;
            }
            if let Ok(value) = self.inner.read(RegionIndex(*region), *offset, Width::Bits32) {
                frozen.insert((*region, *offset), value);
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "slowness is what is asked for; nothing is synchronised by it")]
fn slow(by: Duration) {
    std::thread::sleep(by);
}

impl Shared {
    fn has_dma_faults(&self) -> bool {
        self.plan.faults.iter().any(|fault| matches!(fault, Fault::ShortDma | Fault::CorruptDma))
    }

    /// Spoils what the device has written since the driver's last register write.
    fn spoil_memory(&self) {
        if !self.has_dma_faults() {
            return;
        }
        let mut memory = lock(&self.memory);
        let changes = memory.changes();
        for fault in &self.plan.faults {
            match fault {
                Fault::ShortDma => {
                    for change in changes.iter().skip(changes.len() / 2) {
                        // A mapping that has just gone has nothing left to spoil.
                        let _unmapped = memory.write(change.iova, &change.before);
                    }
                }
                Fault::CorruptDma => {
                    if let Some(change) = changes.first() {
                        let mut bytes = change.after.clone();
                        if let Some(first) = bytes.first_mut() {
                            *first ^= 1;
                        }
                        let _unmapped = memory.write(change.iova, &bytes);
                    }
                }
                _ => {}
            }
        }
    }

    /// Counts a write, and says whether it is lost.
    fn loses(&self, region: RegionIndex, offset: u64) -> bool {
        let mut lost = self.plan.faults.iter().filter_map(|fault| match fault {
            Fault::LostWrite { region: of, offset: at, writes } if (*of, *at) == (region.0, offset) => Some(writes),
            _ => None,
        });
        let Some(first) = lost.next() else { return false };
        let mut writes = lock(&self.writes);
        let count = writes.entry((region.0, offset)).or_default();
        let number = *count;
        *count += 1;
        first.contains(number) || lost.any(|writes| writes.contains(number))
    }

    fn interrupt(&self) -> Fate {
        self.spoil_memory();
        if self.gone.load(Ordering::Acquire) {
            return Fate::Pass(0);
        }
        let number = self.interrupts.fetch_add(1, Ordering::Relaxed);
        for fault in &self.plan.faults {
            match fault {
                Fault::LostInterrupt { interrupts } if interrupts.contains(number) => return Fate::Pass(0),
                Fault::LateInterrupt { interrupts, by_ms } if interrupts.contains(number) => {
                    return Fate::Later(Duration::from_millis(*by_ms));
                }
                Fault::DuplicateInterrupt { interrupts } if interrupts.contains(number) => return Fate::Pass(2),
                _ => {}
            }
        }
        Fate::Pass(1)
    }

    fn read_as(&self, number: u64, region: RegionIndex, offset: u64, width: Width, value: u64) -> u64 {
        let mut value = value;
        for fault in &self.plan.faults {
            match fault {
                Fault::AllOnes { accesses } if region <= RegionIndex::ROM && accesses.contains(number) => {
                    value = width.all_ones();
                }
                Fault::StuckBits { region: of, offset: at, ones, zeros } if (*of, *at) == (region.0, offset) => {
                    value = (value | ones) & !zeros & width.all_ones();
                }
                Fault::NeverReady { region: of, offset: at } if (*of, *at) == (region.0, offset) => {
                    value = lock(&self.frozen).get(&(*of, *at)).map_or(value, |kept| kept & width.all_ones());
                }
                _ => {}
            }
        }
        value
    }
}

impl<B: Backend> Backend for Faulty<B> {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
    fn region(&self, region: RegionIndex) -> Result<RegionInfo> {
        let info = self.inner.region(region)?;
        Ok(RegionInfo { flags: info.flags - RegionFlags::MMAP, mappable: Vec::new(), ..info })
    }
    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        self.inner.irq(index)
    }
    fn read(&self, region: RegionIndex, offset: u64, width: Width) -> Result<u64> {
        let number = self.access()?;
        let value = self.inner.read(region, offset, width)?;
        self.shared.spoil_memory();
        self.after(number);
        Ok(self.shared.read_as(number, region, offset, width, value))
    }
    fn write(&self, region: RegionIndex, offset: u64, width: Width, value: u64) -> Result<()> {
        let number = self.access()?;
        self.freeze(region);
        if self.shared.has_dma_faults() {
            lock(&self.shared.memory).settle();
        }
        if !self.shared.loses(region, offset) {
            self.inner.write(region, offset, width, value)?;
        }
        self.after(number);
        Ok(())
    }
    fn set_triggers(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        self.here()?;
        self.relay.set_triggers(&self.inner, index, start, triggers)
    }
    fn disable_irq(&self, index: IrqIndex) -> Result<()> {
        self.here()?;
        self.relay.disable(&self.inner, index)
    }
    fn mask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.here()?;
        self.inner.mask_irq(index, vector)?;
        self.relay.flush();
        Ok(())
    }
    fn unmask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.here()?;
        self.inner.unmask_irq(index, vector)
    }
    fn fire_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.here()?;
        self.inner.fire_irq(index, vector)?;
        self.relay.flush();
        Ok(())
    }
    fn dma(&self) -> Option<&dyn Dma> {
        self.inner.dma().map(|_| self as &dyn Dma)
    }
    fn resettable(&self) -> Option<&dyn Reset> {
        self.inner.resettable().map(|_| self as &dyn Reset)
    }
}

impl<B: Backend> Faulty<B> {
    fn inner_dma(&self) -> Result<&dyn Dma> {
        self.inner.dma().ok_or_else(|| Error::NotSupported { what: "DMA", by: self.inner.info().address.clone() })
    }
}

impl<B: Backend> Dma for Faulty<B> {
    fn limits(&self) -> DmaLimits {
        let none = DmaLimits { iova_ranges: Vec::new(), page_size: 4096, max_mappings: 0 };
        self.inner.dma().map_or(none, Dma::limits)
    }
    fn map(&self, map: &DmaMap<'_>) -> Result<()> {
        self.here()?;
        let number = self.shared.mappings.fetch_add(1, Ordering::Relaxed);
        let fails = |fault: &Fault| matches!(fault, Fault::DmaMapFails { mappings } if mappings.contains(number));
        if self.shared.plan.faults.iter().any(fails) {
            let doing = format!("mapping {:#x} bytes at {:#x} (a fault on purpose)", map.size, map.iova);
            return Err(Error::os(doing, nix::errno::Errno::ENOMEM));
        }
        self.inner_dma()?.map(map)?;
        if self.shared.has_dma_faults() {
            lock(&self.shared.memory).map(map)?;
        }
        Ok(())
    }
    fn unmap(&self, iova: u64, size: u64) -> Result<()> {
        self.here()?;
        self.inner_dma()?.unmap(iova, size)?;
        lock(&self.shared.memory).unmap(iova, size);
        Ok(())
    }
}

impl<B: Backend> Reset for Faulty<B> {
    fn reset(&self) -> Result<()> {
        self.here()?;
        match self.inner.resettable() {
            Some(reset) => reset.reset(),
            None => Err(Error::NotSupported { what: "a reset", by: self.inner.info().address.clone() }),
        }
    }
}
