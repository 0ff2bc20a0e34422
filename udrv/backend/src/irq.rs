//! Interrupts as the device side sees them: indices, vectors and triggers.

use std::fmt;
use std::os::fd::BorrowedFd;

/// Kind of interrupt, in VFIO's numbering (`VFIO_PCI_INTX_IRQ_INDEX` and after).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IrqIndex(pub u32);

impl IrqIndex {
    /// The shared, level-triggered pin interrupt; masked by the kernel before it is signalled.
    pub const INTX: Self = Self(0);
    /// Message-signalled interrupts.
    pub const MSI: Self = Self(1);
    /// Extended message-signalled interrupts.
    pub const MSIX: Self = Self(2);
    /// Uncorrectable errors (AER).
    pub const ERR: Self = Self(3);
    /// The kernel asks for the device back.
    pub const REQ: Self = Self(4);
}

impl fmt::Display for IrqIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("INTx"),
            1 => f.write_str("MSI"),
            2 => f.write_str("MSI-X"),
            3 => f.write_str("ERR"),
            4 => f.write_str("REQ"),
            other => write!(f, "irq index {other}"),
        }
    }
}

bitflags::bitflags! {
    /// What can be done with an interrupt index (`VFIO_IRQ_INFO_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct IrqFlags: u32 {
        /// Vectors can be signalled through a descriptor.
        const EVENTFD = 1;
        /// Vectors can be masked one by one.
        const MASKABLE = 2;
        /// The vector is masked before it is signalled, and stays so until unmasked (level interrupts).
        const AUTOMASKED = 4;
        /// In the kernel, the number of armed vectors cannot change without disarming all of them first. A backend hides
        /// that; whoever arms the most vectors first spares it the work.
        const NORESIZE = 8;
    }
}

/// What an interrupt index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IrqInfo {
    /// The index.
    pub index: IrqIndex,
    /// How many vectors it has; 0 if the device has no such interrupt.
    pub count: u32,
    /// What can be done with them.
    pub flags: IrqFlags,
}

/// Where an interrupt is signalled: any descriptor that 8 bytes can be written to.
///
/// The 8 bytes are a `u64` in the host's byte order: how many interrupts this write stands for, mostly 1. An eventfd is
/// handed on to the kernel where there is one, so that the signal takes no detour; anything else (one end of a socketpair
/// with `O_ASYNC` on the other, for SIGIO) is written to by the backend, which never waits for room: a descriptor that is
/// full has a signal waiting already.
pub type Trigger<'fd> = BorrowedFd<'fd>;
