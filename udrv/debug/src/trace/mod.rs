//! What passed between a driver and its device, in a file.
//!
//! [`Recorder`] writes it, and [`Trace`] is one that was read.
//! `docs/trace.md` has the file's format.

mod describe;
mod diff;
mod event;
mod log;
mod minimise;
mod names;
mod perfetto;
mod plot;
mod read;
mod record;
mod stream;
mod ticks;

pub use describe::{Description, DmaDescription, Identity};
pub use diff::{Divergence, diff};
pub(crate) use event::{Actor, Actors};
pub use event::{Event, Outcome, Place, What};
pub use minimise::{Progress, minimise};
pub use names::Names;
pub use perfetto::perfetto;
pub use plot::{latencies, plot};
pub use read::Trace;
pub use record::{Options, Recorder, Recording};
pub use stream::Stream;
