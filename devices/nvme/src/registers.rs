//! The controller's registers in BAR 0 (NVM Express Base Specification 1.4, section 3.1).
//!
//! Registers below 0x1000 are accessed by 4 bytes, 8-byte ones by 8 or by 4 (section 3); doorbells by 4.

use std::time::Duration;
use udrv_backend::register::{ReadOnly, ReadWrite, Register, RegisterMap, Value, WriteOnly};
use udrv_backend::{RegionIndex, flags_value};

/// PCI class code: mass storage, non-volatile memory, NVMe I/O controller (2.1.5).
pub const CLASS: u32 = 0x01_08_02;

/// Controller Capabilities (3.1.1).
pub const CAP: Register<Capabilities, ReadOnly> = Register::new("CAP", 0x00);
/// Version (3.1.2).
pub const VS: Register<u32, ReadOnly> = Register::new("VS", 0x08);
/// Interrupt Mask Set (3.1.3). Not for use with MSI-X.
pub const INTMS: Register<u32, ReadWrite> = Register::new("INTMS", 0x0c);
/// Interrupt Mask Clear (3.1.4). Not for use with MSI-X.
pub const INTMC: Register<u32, ReadWrite> = Register::new("INTMC", 0x10);
/// Controller Configuration (3.1.5).
pub const CC: Register<Configuration, ReadWrite> = Register::new("CC", 0x14);
/// Controller Status (3.1.6).
pub const CSTS: Register<Status, ReadOnly> = Register::new("CSTS", 0x1c);
/// Admin Queue Attributes (3.1.8): entries of the admin queues less one, submission below, completion from bit 16.
pub const AQA: Register<u32, ReadWrite> = Register::new("AQA", 0x24);
/// Admin Submission Queue Base Address (3.1.9).
pub const ASQ: Register<u64, ReadWrite> = Register::new("ASQ", 0x28);
/// Admin Completion Queue Base Address (3.1.10).
pub const ACQ: Register<u64, ReadWrite> = Register::new("ACQ", 0x30);
/// Where the doorbells begin (3.1.24).
pub const DOORBELLS: u64 = 0x1000;

/// Submission Queue y Tail Doorbell (3.1.24).
#[must_use]
pub const fn submission_doorbell(queue: u16, stride: u64) -> Register<u32, WriteOnly> {
    Register::new("SQyTDBL", DOORBELLS + 2 * queue as u64 * stride)
}

/// Completion Queue y Head Doorbell (3.1.25).
#[must_use]
pub const fn completion_doorbell(queue: u16, stride: u64) -> Register<u32, WriteOnly> {
    Register::new("CQyHDBL", DOORBELLS + (2 * queue as u64 + 1) * stride)
}

/// All of them, and the doorbells of the admin queues and two pairs of I/O queues at the smallest stride, which is the usual
/// one.
pub const MAP: RegisterMap = RegisterMap {
    device: "nvme",
    region: RegionIndex::BAR0,
    registers: &[
        CAP.info(),
        VS.info(),
        INTMS.info(),
        INTMC.info(),
        CC.info(),
        CSTS.info(),
        AQA.info(),
        ASQ.info(),
        ACQ.info(),
        doorbell("SQ0TDBL", 0).info(),
        doorbell("CQ0HDBL", 1).info(),
        doorbell("SQ1TDBL", 2).info(),
        doorbell("CQ1HDBL", 3).info(),
        doorbell("SQ2TDBL", 4).info(),
        doorbell("CQ2HDBL", 5).info(),
    ],
};

const fn doorbell(name: &'static str, place: u64) -> Register<u32, WriteOnly> {
    Register::new(name, DOORBELLS + 4 * place)
}

/// CAP (3.1.1, figure 69).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Value for Capabilities {
    type Word = u64;
    fn from_word(word: u64) -> Self {
        Self(word)
    }
    fn into_word(self) -> u64 {
        self.0
    }
}

impl Capabilities {
    /// MQES: most entries of an I/O queue.
    #[must_use]
    pub const fn queue_entries(self) -> u32 {
        (self.0 & 0xffff) as u32 + 1
    }

    /// TO: longest wait for CSTS.RDY to follow CC.EN. 0 is taken for one unit of 500 ms.
    #[must_use]
    pub const fn timeout(self) -> Duration {
        let units = self.0 >> 24 & 0xff;
        Duration::from_millis(500 * if units == 0 { 1 } else { units })
    }

    /// DSTRD: bytes from one doorbell to the next.
    #[must_use]
    pub const fn doorbell_stride(self) -> u64 {
        4 << (self.0 >> 32 & 0xf)
    }

    /// CSS bit 0: the NVM command set.
    #[must_use]
    pub const fn has_nvm_commands(self) -> bool {
        self.0 >> 37 & 1 != 0
    }

    /// MPSMIN: the smallest memory page, bytes.
    #[must_use]
    pub const fn min_page(self) -> u64 {
        4096 << (self.0 >> 48 & 0xf)
    }
}

bitflags::bitflags! {
    /// CC (3.1.5, figure 78), with the values of its fields that are used here.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Configuration: u32 {
        /// EN: the controller processes commands.
        const ENABLE = 1;
        /// SHN 01b: normal shutdown.
        const SHUTDOWN_NORMAL = 1 << 14;
        /// SHN: both bits.
        const SHUTDOWN_MASK = 3 << 14;
        /// IOSQES 6: commands of 64 bytes.
        const COMMANDS_OF_64 = 6 << 16;
        /// IOCQES 4: completions of 16 bytes.
        const COMPLETIONS_OF_16 = 4 << 20;
        const _ = !0;
    }

    /// CSTS (3.1.6, figure 79).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Status: u32 {
        /// RDY.
        const READY = 1;
        /// CFS: fatal, only a reset helps.
        const FATAL = 1 << 1;
        /// SHST 10b: shut down.
        const SHUTDOWN_COMPLETE = 2 << 2;
        /// SHST: both bits.
        const SHUTDOWN_MASK = 3 << 2;
        const _ = !0;
    }
}
flags_value!(Configuration, u32);
flags_value!(Status, u32);
