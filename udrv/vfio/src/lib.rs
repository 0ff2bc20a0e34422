//! A PCI device through the kernel's VFIO, as a [`Backend`](udrv_backend::Backend); and what `/sys` says of PCI devices,
//! which is needed to say why one cannot be opened.

mod address;
mod attach;
mod backend;
pub mod descriptor;
mod dma;
mod irq;
pub mod relay;
mod reply;
mod sysfs;
mod uapi;

pub use address::Bdf;
pub use backend::VfioBackend;
pub use sysfs::{PciDevice, Sysfs};
