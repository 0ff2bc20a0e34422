//! What a runtime tells of itself to whoever looks on: a recorder, a checker of DMA.

use crate::IrqIndex;

/// Something that a runtime does and a device does not see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// A thread turned interrupts off; nested sections are told one by one.
    SectionBegins {
        /// Which domain: a number that others of the process do not have at the same time.
        domain: u64,
        /// The source line that did.
        line: u32,
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
