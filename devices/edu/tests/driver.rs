//! The driver, where the model alone would not show a mistake: what happens between two of its accesses.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use udrv::irq::{Delivery, IrqDomain};
use udrv::mmio::{Io, Window};
use udrv_backend::register::Word;
use udrv_backend::{AnyBackend, IrqIndex, RegionIndex, Result};
use udrv_edu::driver::Edu;
use udrv_edu::registers::{INTERRUPT_ACKNOWLEDGE, InterruptStatus};

/// Registers that note whether the driver has told of the cause before it acknowledges it.
struct Watched {
    window: Window<0x1000>,
    driver: Arc<OnceLock<Weak<Edu<Self>>>>,
    told_early: Arc<AtomicBool>,
}

impl Io for Watched {
    fn load<W: Word>(&self, offset: u64) -> Result<W> {
        self.window.load(offset)
    }

    fn store<W: Word>(&self, offset: u64, value: W) -> Result<()> {
        if offset == INTERRUPT_ACKNOWLEDGE.offset
            && let Some(driver) = self.driver.get().and_then(Weak::upgrade)
            && driver.has_seen(InterruptStatus::FACTORIAL)
        {
            self.told_early.store(true, Ordering::Relaxed);
        }
        self.window.store(offset, value)
    }
}

#[test]
fn cause_is_told_once_it_is_acknowledged() {
    let device: AnyBackend = Arc::new(udrv_edu::model::edu());
    let domain = IrqDomain::new(Delivery::Thread).expect("a domain");
    let (driver, told_early) = (Arc::new(OnceLock::new()), Arc::new(AtomicBool::new(false)));
    let window = Window::open(&device, RegionIndex::BAR0).expect("registers");
    let io = Watched { window, driver: Arc::clone(&driver), told_early: Arc::clone(&told_early) };
    let edu = Arc::new(Edu::attach(&device, io, &domain, IrqIndex::MSI).expect("attached"));
    driver.set(Arc::downgrade(&edu)).expect("set once");

    let factorial = edu.factorial(5).expect("the factorial");

    assert_eq!(factorial, 120);
    assert!(
        !told_early.load(Ordering::Relaxed),
        "who waits for the cause may raise it again before it is acknowledged"
    );
}
