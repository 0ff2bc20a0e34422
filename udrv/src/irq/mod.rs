//! Interrupts: domains, sections with interrupts off, and handlers.
//!
//! The contract is `docs/irq-semantics.md`; rule numbers below are its. In short: pending and enabled are separate, and
//! pending is a mark that is set as often as you like (1); while a section of a domain is open no handler of that domain
//! runs (3); handlers never run inside a register access or a signal handler (4); a level interrupt is unmasked after its
//! handler and comes again while it is asserted (5); whoever disables or unregisters waits for a running handler, and is
//! told so instead of deadlocking when it is that handler (6).
//!
//! ```no_run
//! # fn main() -> udrv::Result<()> {
//! use udrv::irq::{Delivery, IrqDomain, IrqReturn};
//! use udrv::backend::IrqIndex;
//! let device = udrv::open("unix:/run/udrv/edu.sock")?;
//! let domain = IrqDomain::new(Delivery::Thread)?;
//! let _irq = domain.register(&device, IrqIndex::MSI, 0, |_| IrqReturn::Handled)?;
//! domain.off(|_section| {
//!     // No handler of this domain runs here; what arrives is delivered before `off` returns.
//! });
//! # Ok(()) }
//! ```

mod accounts;
mod bottom_half;
#[cfg(any(debug_assertions, feature = "checks"))]
mod checks;
#[cfg(not(any(debug_assertions, feature = "checks")))]
#[path = "unchecked.rs"]
mod checks;
mod contain;
mod deliver;
mod direct;
mod domain;
mod future;
mod gate;
mod inlet;
mod lock;
#[cfg(any(debug_assertions, feature = "checks"))]
mod lockdep;
mod mark;
mod number;
mod parking;
mod pending;
mod ranks;
mod registration;
mod service;
mod sigio;
mod source;
mod sync;
mod tally;
mod timer;
mod violation;

pub use accounts::{Account, Accounts, accounts};
pub use bottom_half::BottomHalf;
pub use checks::{are_checked, might_sleep, violations};
pub use domain::{IrqDomain, Section, SectionGuard};
pub use future::NextDelivery;
pub use lock::{IrqLock, IrqLockGuard, Lock, LockGuard};
pub use registration::{Raiser, Registration};
pub use source::Interrupt;
pub use timer::Timer;
pub use violation::{IrqsOff, OffPlace, Place, Rule, Violation, irqs_off};

use std::ops::Range;
use std::time::Duration;

/// How interrupts reach the handlers, chosen at run time. The contract is the same in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// A thread of the domain waits for them (one mio loop over eventfds) and runs the handlers.
    Thread,
    /// A SIGIO to the thread that made the domain; handlers run there when it leaves a section, waits, or calls
    /// [`IrqDomain::deliver`].
    Signal,
    /// Nobody is told: the driver looks, in [`IrqDomain::wait`], which spins a while before it sleeps, and
    /// [`IrqDomain::deliver`].
    Poll,
}

/// What a handler found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IrqReturn {
    /// The interrupt was its device's, and has been acknowledged.
    Handled,
    /// It was not. If no handler of the line says otherwise, the delivery counts as spurious.
    None,
    /// The rest is for the threaded half ([`IrqDomain::register_threaded`]); [`IrqReturn::Handled`] if there is none.
    WakeThread,
}

/// Which of several pending sources is delivered first. Within one priority it is the one that has the lower place; a new
/// source takes the lowest free place, so it is the order of registration as long as none was dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// First: at most 1,024 sources of a domain.
    High,
    /// Second: at most 2,048, as many as a device has MSI-X vectors.
    #[default]
    Normal,
    /// Last: at most 894.
    Low,
}

impl Priority {
    fn ranks(self) -> Range<u32> {
        match self {
            Self::High => 0..1024,
            Self::Normal => 1024..3072,
            Self::Low => 3072..3968,
        }
    }
}

/// How a source is registered.
#[derive(Debug, Clone, Copy)]
pub struct IrqOptions {
    /// Its place among others.
    pub priority: Priority,
    /// Whether other handlers may be registered for the same vector. All of them are called for each delivery.
    pub shared: bool,
    /// Deliveries that are judged together: if more than 999 of 1,000 of them were unhandled, close on one another, it is a
    /// storm. The kernel's number, 100,000, unless set.
    pub storm_window: u32,
}

impl Default for IrqOptions {
    fn default() -> Self {
        Self { priority: Priority::Normal, shared: false, storm_window: 100_000 }
    }
}

/// What one source has seen. Counts since registration; `raised` is `delivered` and `merged` together, and what is pending
/// or was taken back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct IrqStats {
    /// Interrupts signalled by the device, as the kernel or the server counted them.
    pub raised: u64,
    /// Times the handlers ran.
    pub delivered: u64,
    /// Interrupts that came to a delivery together with an earlier one.
    pub merged: u64,
    /// Deliveries whose handlers found nothing to do.
    pub spurious: u64,
    /// Deliveries that an open section held back.
    pub deferred: u64,
    /// Longest time from when the runtime noticed an interrupt that a section held back until its handler ran.
    pub longest_deferral: Duration,
    /// Longest run of the handlers.
    pub longest_handler: Duration,
    /// It was masked because nobody handled it ([`Registration::rearm`]).
    pub stormed: bool,
}
