//! The registers of BAR 0, by the names of QEMU's specification (docs/specs/edu.rst, "MMIO area spec").
//!
//! Below 0x80 only 4-byte accesses are specified; from 0x80 on, 4 or 8 bytes.

use udrv_backend::register::{ReadOnly, ReadWrite, Register, RegisterMap, WriteOnly};
use udrv_backend::{RegionIndex, flags_value};

/// PCI vendor ID.
pub const VENDOR: u16 = 0x1234;
/// PCI device ID.
pub const DEVICE: u16 = 0x11e8;
/// Size of BAR 0 in bytes.
pub const BAR0_SIZE: u64 = 0x10_0000;

/// `0xRRrr00ed`: major and minor revision.
pub const IDENTIFICATION: Register<u32, ReadOnly> = Register::new("identification", 0x00);
/// Reads as the complement of what was written.
pub const LIVENESS: Register<u32, ReadWrite> = Register::new("card liveness check", 0x04);
/// Write n, read n! once [`Status::COMPUTING`] is clear.
pub const FACTORIAL: Register<u32, ReadWrite> = Register::new("factorial computation", 0x08);
/// State of the factorial unit.
pub const STATUS: Register<Status, ReadWrite> = Register::new("status", 0x20);
/// What raised the interrupt.
pub const INTERRUPT_STATUS: Register<InterruptStatus, ReadOnly> = Register::new("interrupt status", 0x24);
/// Sets bits of the interrupt status.
pub const INTERRUPT_RAISE: Register<InterruptStatus, WriteOnly> = Register::new("interrupt raise", 0x60);
/// Clears bits of the interrupt status.
pub const INTERRUPT_ACKNOWLEDGE: Register<InterruptStatus, WriteOnly> = Register::new("interrupt acknowledge", 0x64);
/// Where a transfer reads.
pub const DMA_SOURCE: Register<u64, ReadWrite> = Register::new("DMA source address", 0x80);
/// Where a transfer writes.
pub const DMA_DESTINATION: Register<u64, ReadWrite> = Register::new("DMA destination address", 0x88);
/// Bytes of a transfer.
pub const DMA_COUNT: Register<u64, ReadWrite> = Register::new("DMA transfer count", 0x90);
/// Starts a transfer.
pub const DMA_COMMAND: Register<DmaCommand, ReadWrite> = Register::new("DMA command", 0x98);

/// All of them.
pub const MAP: RegisterMap = RegisterMap {
    device: "edu",
    region: RegionIndex::BAR0,
    registers: &[
        IDENTIFICATION.info(),
        LIVENESS.info(),
        FACTORIAL.info(),
        STATUS.info(),
        INTERRUPT_STATUS.info(),
        INTERRUPT_RAISE.info(),
        INTERRUPT_ACKNOWLEDGE.info(),
        DMA_SOURCE.info(),
        DMA_DESTINATION.info(),
        DMA_COUNT.info(),
        DMA_COMMAND.info(),
    ],
};

/// Where the device's own buffer stands, in its DMA addresses.
pub const BUFFER_OFFSET: u64 = 0x4_0000;
/// Its size in bytes.
pub const BUFFER_SIZE: u64 = 4096;
/// Width of the addresses the device emits, unless its `dma_mask` property says otherwise.
pub const DMA_ADDRESS_BITS: u32 = 28;

bitflags::bitflags! {
    /// The status register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Status: u32 {
        /// A factorial is being computed (read only).
        const COMPUTING = 0x01;
        /// Raise [`InterruptStatus::FACTORIAL`] when it is done.
        const IRQ_ON_FACTORIAL = 0x80;
        const _ = !0;
    }

    /// The interrupt status. All 32 bits can be raised by a write; the device itself uses two.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct InterruptStatus: u32 {
        /// A factorial is done.
        const FACTORIAL = 0x001;
        /// A transfer is done.
        const DMA = 0x100;
        const _ = !0;
    }

    /// The DMA command.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct DmaCommand: u64 {
        /// Start; reads as set until the transfer is done.
        const START = 0x01;
        /// From the device's buffer to memory; the other way if clear.
        const TO_MEMORY = 0x02;
        /// Raise [`InterruptStatus::DMA`] when it is done.
        const IRQ = 0x04;
        const _ = !0;
    }
}
flags_value!(Status, u32);
flags_value!(InterruptStatus, u32);
flags_value!(DmaCommand, u64);
