//! The userspace driver runtime: registers, DMA, interrupts and guest drivers over any
//! [`Backend`](udrv_backend::Backend).
//!
//! A driver opens a device by address ([`open`]), reads and writes its registers ([`mmio`]), gives it memory ([`dma`]),
//! takes its interrupts through an [`irq::IrqDomain`] and is supervised by a [`host::Host`]. Its tests place interrupts at its
//! accesses with [`schedules`]. [`pty`] is the serial port that other programs see of one.

pub mod dma;
pub mod host;
pub mod irq;
pub mod mmio;
mod open;
pub mod pty;
pub mod rt;
pub mod schedules;
pub mod vfio_user;

pub use open::open;
pub use udrv_backend as backend;
pub use udrv_backend::{Error, Result};
pub use udrv_backend::{clock, pci};
pub use udrv_debug as debug;
pub use udrv_inspect as inspect;
