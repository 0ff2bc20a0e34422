//! A device with what its plan says wrong.

use super::{Fault, FaultPlan};
use crate::around::{Around, Call, Device, Layer, Signal};
use crate::relay::Fate;
use crate::watch::Watch;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use udrv_backend::{Backend, Error, IrqIndex, RegionIndex, Result, Width};

/// A backend with faults. Without any it is as good as the one it is around, except that its regions cannot be mapped.
pub type Faulty<B> = Around<B, Faults>;

/// What a [`Faulty`] does to what passes through it, and how far its plan has come.
pub struct Faults {
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
        let faults = Faults {
            plan,
            accesses: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            mappings: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            memory: Mutex::default(),
            writes: Mutex::default(),
            frozen: Mutex::default(),
        };
        Self::wrap(inner, faults)
    }
}

#[expect(clippy::disallowed_methods, reason = "slowness is what is asked for; nothing is synchronised by it")]
fn slow(by: Duration) {
    std::thread::sleep(by);
}

impl Faults {
    /// Counts an access, and says whether the device is still there for it.
    fn access(&self, device: &impl Backend) -> Result<u64> {
        let number = self.accesses.fetch_add(1, Ordering::Relaxed);
        for fault in &self.plan.faults {
            match fault {
                Fault::Gone { at } if number >= *at => self.gone.store(true, Ordering::Release),
                Fault::Slow { by_us } => slow(Duration::from_micros(*by_us)),
                _ => {}
            }
        }
        self.here(device)?;
        Ok(number)
    }

    fn here(&self, device: &impl Backend) -> Result<()> {
        if !self.gone.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::Gone { device: device.info().address.clone(), why: "its fault plan says so".into() })
    }

    fn after<B: Backend>(&self, device: &Device<'_, B>, number: u64) {
        let spurious =
            |fault: &Fault| matches!(fault, Fault::SpuriousInterrupt { accesses } if accesses.contains(number));
        if self.plan.faults.iter().any(spurious) {
            device.relay.signal(None);
        }
    }

    /// Before the driver's first word to a region: what registers of that region that never become ready hold now.
    fn freeze(&self, device: &impl Backend, written: RegionIndex) {
        for fault in &self.plan.faults {
            let Fault::NeverReady { region, offset } = fault else { continue };
            if *region != written.0 {
                continue;
            }
            let mut frozen = lock(&self.frozen);
            if frozen.contains_key(&(*region, *offset)) {
                continue;
            }
            if let Ok(value) = device.read(RegionIndex(*region), *offset, Width::Bits32) {
                frozen.insert((*region, *offset), value);
            }
        }
    }

    fn map_fails(&self) -> bool {
        let number = self.mappings.fetch_add(1, Ordering::Relaxed);
        let fails = |fault: &Fault| matches!(fault, Fault::DmaMapFails { mappings } if mappings.contains(number));
        self.plan.faults.iter().any(fails)
    }

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

impl Layer for Faults {
    fn read<B: Backend>(&self, device: &Device<'_, B>, at: (RegionIndex, u64, Width)) -> Result<u64> {
        let (region, offset, width) = at;
        let number = self.access(device.inner)?;
        let value = device.inner.read(region, offset, width)?;
        self.spoil_memory();
        self.after(device, number);
        Ok(self.read_as(number, region, offset, width, value))
    }

    fn write<B: Backend>(&self, device: &Device<'_, B>, at: (RegionIndex, u64, Width), value: u64) -> Result<()> {
        let (region, offset, width) = at;
        let number = self.access(device.inner)?;
        self.freeze(device.inner, region);
        if self.has_dma_faults() {
            lock(&self.memory).settle(None);
        }
        if !self.loses(region, offset) {
            device.inner.write(region, offset, width, value)?;
        }
        // A driver that looks at memory for the transfer's end makes no other access before it.
        self.spoil_memory();
        self.after(device, number);
        Ok(())
    }

    fn call<B: Backend>(
        &self,
        device: &Device<'_, B>,
        call: Call<'_>,
        make: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.here(device.inner)?;
        if let Call::Map(map) = call
            && self.map_fails()
        {
            let doing = format!("mapping {:#x} bytes at {:#x} (a fault on purpose)", map.size, map.iova);
            return Err(Error::os(doing, nix::errno::Errno::ENOMEM));
        }
        make()?;
        match call {
            Call::Map(map) if self.has_dma_faults() => lock(&self.memory).map(map),
            Call::Unmap(iova, size) => {
                lock(&self.memory).unmap(iova, size);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn signalled(&self, _: IrqIndex, _: u32, _: u64) -> Signal {
        Signal(self.interrupt())
    }
}
