//! Backends for debugging a driver: around a device (faults, recorder, checker of DMA) and instead of one (replay).
//!
//! What lives here: wrappers of any [`Backend`](udrv_backend::Backend), the trace file they write and read, and what is
//! shown of it. What must not: any device, any runtime. A wrapped device is never mapped: an access that does not pass
//! through the wrapper would neither be seen nor be changed.

pub mod around;
pub mod fault;
mod relay;
pub mod replay;
pub mod sanitise;
pub mod trace;
mod watch;
