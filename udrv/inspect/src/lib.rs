//! The inspection page: one memfd a process, in which a driver's process shows its devices, interrupts, sections, DMA buffers
//! and last register accesses, while it runs.
//!
//! It is plain shared memory, so whoever may look at the process (ptrace(2), "access mode checking") reads it through
//! `/proc/PID/fd`, also while the process stands in a debugger; who has it open still has it after the process was killed. The
//! counters live there rather than being copied there, so it costs nothing when nobody looks. What is in it is told by another
//! process and is not trusted: reading it never fails because of its contents.
//!
//! What lives here: the layout, the writer that the runtime uses, the reader that tools and the stub use. What must not:
//! any policy.

mod find;
pub mod layout;
mod page;
mod registers;
mod shown;
mod snapshot;

pub use find::{Found, find, find_all, page_of};
pub use page::{Page, Slot, monotonic, page, thread};
pub use registers::{Bits, Register, Registers};
pub use shown::{Buffer, Device, Domain, Section, Source, describe};
pub use snapshot::{Access, BufferState, DeviceState, Owner, SectionState, Snapshot, SourceState};
