//! DMA buffers: memory from a memfd pool, a bus address in reach of the device, direction and ownership in the type.
//!
//! A [`Buffer`] belongs to the driver; [`Buffer::submit`] turns it into an [`InFlight`], which belongs to the device and
//! offers no access; [`InFlight::complete`] takes it back. [`Coherent`] memory belongs to both. Contents are copied, or
//! read word by word: the other side may be another process, so no Rust reference ever points into them.
//!
//! **One mapping a buffer, not one for the pool.** A buffer is mapped with just the access its direction needs, so the
//! IOMMU stops a device that transfers the wrong way or beyond the end, and a freed buffer is out of its reach. The price
//! is a system call (or a message) when a buffer is made and when it goes, and the kernel's limit of 64 Ki mappings:
//! buffers are for keeping. A driver that needs many small ones makes a large one and cuts it itself.
//!
//! **Huge pages** are tried for buffers of 2 MiB and more, each in a file of its own, since a part of a huge page cannot be
//! mapped. Where the kernel has none to give, ordinary pages do.

mod buffer;
mod memory;
mod pool;
mod ranges;

pub use buffer::{Bidirectional, Buffer, Coherent, Direction, FromDevice, InFlight, ToDevice};
pub use pool::{Leak, Pool};
