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

mod domain;
mod sigio;
mod thread;

pub use domain::{Interrupt, IrqDomain, Registration, Section, SectionGuard};

/// How interrupts reach the handlers, chosen at run time. The contract is the same in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// A thread of the domain waits for them (one mio loop over eventfds) and runs the handlers.
    Thread,
    /// A SIGIO to the thread that made the domain; handlers run there when it leaves a section, waits, or calls
    /// [`IrqDomain::deliver`].
    Signal,
}

/// What a handler found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IrqReturn {
    /// The interrupt was its device's, and has been acknowledged.
    Handled,
    /// It was not: counted as spurious.
    None,
}

/// What one source has seen. Counts since registration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IrqStats {
    /// Interrupts signalled by the device.
    pub raised: u64,
    /// Times the handler ran.
    pub delivered: u64,
    /// Deliveries whose handler found nothing to do.
    pub spurious: u64,
    /// Times it became pending while a section was open.
    pub deferred: u64,
}
