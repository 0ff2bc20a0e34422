//! What passed between a driver and its device, in a file.
//!
//! [`Recorder`] writes it, and [`Trace`] is one that was read.
//! `docs/trace.md` has the file's format.

mod diff;
mod event;
mod log;
mod minimise;
mod perfetto;
mod plot;
mod read;
mod record;
mod ticks;

pub use diff::{Divergence, diff};
pub use event::{Event, Outcome, What};
pub use minimise::{Progress, minimise};
pub use perfetto::perfetto;
pub use plot::{latencies, plot};
pub use read::{Description, DmaDescription, Identity, ThreadNames, Trace};
pub use record::{Options, Recorder, Recording};
