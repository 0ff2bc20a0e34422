//! What passed between a driver and its device, in a file.
//!
//! [`Recorder`] writes it, and [`Trace`] is one that was read.
//! `docs/trace.md` has the file's format.

mod diff;
mod event;
mod log;
mod perfetto;
mod read;
mod record;

pub use diff::{Divergence, diff};
pub use event::{Event, Outcome, What};
pub use perfetto::perfetto;
pub use read::{Description, DmaDescription, Trace};
pub use record::{Options, Recorder};
