//! What a runtime tells of itself to whoever looks on: a recorder, a checker of DMA.

use crate::IrqIndex;
use std::panic::Location;

/// Something that a runtime does and a device does not see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// A thread turned interrupts off; nested sections are told one by one.
    SectionBegins {
        /// Which domain: a number that others of the process do not have at the same time.
        domain: u64,
        /// The place in the source that did.
        at: &'static Location<'static>,
    },
    /// It turned them on again; they are off until this has been told.
    SectionEnds {
        /// Which domain.
        domain: u64,
    },
    /// The handlers of a vector are about to run.
    HandlerBegins {
        /// Kind of interrupt.
        index: IrqIndex,
        /// Its vector.
        vector: u32,
    },
    /// They have run.
    HandlerEnds {
        /// Kind of interrupt.
        index: IrqIndex,
        /// Its vector.
        vector: u32,
        /// Whether one of them said that it was for it.
        handled: bool,
    },
    /// The threaded half of a vector's handler is about to run, on its own thread.
    ThreadedBegins {
        /// Kind of interrupt.
        index: IrqIndex,
        /// Its vector.
        vector: u32,
    },
    /// It has run.
    ThreadedEnds {
        /// Kind of interrupt.
        index: IrqIndex,
        /// Its vector.
        vector: u32,
    },
    /// A bottom half is about to run.
    BottomHalfBegins {
        /// Which domain.
        domain: u64,
        /// The place in the source that made it.
        at: &'static Location<'static>,
    },
    /// It has run. No two of a domain run at once.
    BottomHalfEnds {
        /// Which domain.
        domain: u64,
    },
    /// A mapping that is about to be made is of memory that will change hands as told by the next two.
    Streams {
        /// Bus address.
        iova: u64,
        /// Bytes.
        size: u64,
    },
    /// Memory becomes the device's, before any register write that tells it so. Memory that both use at the same time is
    /// never told of.
    Lent {
        /// Bus address.
        iova: u64,
        /// Bytes: those of a mapping.
        size: u64,
    },
    /// It is the driver's again, which has not looked at it yet.
    Returned {
        /// Bus address.
        iova: u64,
        /// Bytes.
        size: u64,
    },
}

/// Whoever looks on. Called on the thread that does it, in handlers and sections too: it does not wait.
pub trait Observe: Send + Sync {
    /// It happens now.
    fn observe(&self, moment: Moment);
}
