//! Commands and completions, as they are in the queues (NVM Express Base Specification 1.4, sections 4.2 and 4.6).

use std::fmt;

/// Bytes of a submission queue entry (4.2).
pub const COMMAND_SIZE: usize = 64;
/// Bytes of a completion queue entry (4.6).
pub const COMPLETION_SIZE: usize = 16;
/// Bytes of a memory page as this crate configures controllers (CC.MPS 0).
pub const PAGE: u64 = 4096;
/// A namespace identifier that stands for all (6.1).
pub const ALL_NAMESPACES: u32 = u32::MAX;

/// Admin command opcodes (5, figure 139).
pub mod admin {
    /// Delete I/O Submission Queue (5.6).
    pub const DELETE_SUBMISSION_QUEUE: u8 = 0x00;
    /// Create I/O Submission Queue (5.4).
    pub const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
    /// Get Log Page (5.14).
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue (5.5).
    pub const DELETE_COMPLETION_QUEUE: u8 = 0x04;
    /// Create I/O Completion Queue (5.3).
    pub const CREATE_COMPLETION_QUEUE: u8 = 0x05;
    /// Identify (5.15).
    pub const IDENTIFY: u8 = 0x06;
    /// Abort (5.1).
    pub const ABORT: u8 = 0x08;
    /// Set Features (5.21).
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features (5.13).
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request (5.2).
    pub const ASYNCHRONOUS_EVENT_REQUEST: u8 = 0x0c;
    /// Doorbell Buffer Config (5.7).
    pub const DOORBELL_BUFFER_CONFIG: u8 = 0x7c;
}

/// NVM command opcodes (6, figure 346).
pub mod nvm {
    /// Flush (6.8).
    pub const FLUSH: u8 = 0x00;
    /// Write (6.15).
    pub const WRITE: u8 = 0x01;
    /// Read (6.9).
    pub const READ: u8 = 0x02;
    /// Write Zeroes (6.16).
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Command Dword 12 of Write: Force Unit Access (6.15).
    pub const FORCE_UNIT_ACCESS: u32 = 1 << 30;
    /// Dataset Management (6.7).
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// What Identify answers with (5.15.1, figure 244: CNS).
pub mod cns {
    /// One namespace.
    pub const NAMESPACE: u32 = 0x00;
    /// The controller.
    pub const CONTROLLER: u32 = 0x01;
    /// The active namespaces above the one given.
    pub const NAMESPACE_LIST: u32 = 0x02;
    /// The names of one namespace.
    pub const NAMESPACE_DESCRIPTORS: u32 = 0x03;
}

/// Log pages (5.14.1).
pub mod log {
    /// Error Information (5.14.1.1).
    pub const ERROR: u8 = 0x01;
    /// SMART / Health Information (5.14.1.2).
    pub const SMART: u8 = 0x02;
}

/// Features (5.21.1).
pub mod feature {
    /// Volatile Write Cache (5.21.1.6).
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    /// Number of Queues (5.21.1.7).
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
}

/// One submission queue entry: Command Dwords 0 to 15 (4.2, figure 104).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command(pub [u32; 16]);

impl Command {
    /// A command on a namespace, or on none (0).
    #[must_use]
    #[inline]
    pub const fn new(opcode: u8, namespace: u32) -> Self {
        let mut dwords = [0; 16];
        dwords[0] = opcode as u32;
        dwords[1] = namespace;
        Self(dwords)
    }

    /// Sets Command Dword 10.
    #[must_use]
    #[inline]
    pub const fn cdw10(mut self, value: u32) -> Self {
        self.0[10] = value;
        self
    }

    /// Sets Command Dword 11.
    #[must_use]
    #[inline]
    pub const fn cdw11(mut self, value: u32) -> Self {
        self.0[11] = value;
        self
    }

    /// Sets Command Dword 12.
    #[must_use]
    #[inline]
    pub const fn cdw12(mut self, value: u32) -> Self {
        self.0[12] = value;
        self
    }

    /// Sets Starting LBA: Command Dwords 10 and 11 of the commands that have one (6).
    #[must_use]
    #[inline]
    pub const fn lba(self, lba: u64) -> Self {
        self.cdw10(lba as u32).cdw11((lba >> 32) as u32)
    }

    /// Sets the Command Identifier.
    #[must_use]
    #[inline]
    pub const fn identified(mut self, id: u16) -> Self {
        self.0[0] = self.0[0] & 0xffff | (id as u32) << 16;
        self
    }

    /// Sets the data pointer (4.3).
    #[must_use]
    #[inline]
    pub const fn data(mut self, [first, second]: [u64; 2]) -> Self {
        self.0[6] = first as u32;
        self.0[7] = (first >> 32) as u32;
        self.0[8] = second as u32;
        self.0[9] = (second >> 32) as u32;
        self
    }

    /// As it is in memory, 8 bytes at a time.
    #[must_use]
    #[inline]
    pub const fn qwords(&self) -> [u64; 8] {
        const fn pair(low: u32, high: u32) -> u64 {
            low as u64 | (high as u64) << 32
        }
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.0;
        [pair(a, b), pair(c, d), pair(e, f), pair(g, h), pair(i, j), pair(k, l), pair(m, n), pair(o, p)]
    }

    /// The opcode.
    #[must_use]
    pub const fn opcode(&self) -> u8 {
        self.0[0] as u8
    }

    /// The Command Identifier.
    #[must_use]
    pub const fn id(&self) -> u16 {
        (self.0[0] >> 16) as u16
    }

    /// The namespace.
    #[must_use]
    pub const fn namespace(&self) -> u32 {
        self.0[1]
    }

    /// PRP Entry 1 and PRP Entry 2.
    #[must_use]
    pub const fn prps(&self) -> [u64; 2] {
        [self.0[6] as u64 | (self.0[7] as u64) << 32, self.0[8] as u64 | (self.0[9] as u64) << 32]
    }

    /// Starting LBA.
    #[must_use]
    pub const fn starting_lba(&self) -> u64 {
        self.0[10] as u64 | (self.0[11] as u64) << 32
    }

    /// Number of Logical Blocks, which the command has less one.
    #[must_use]
    pub const fn block_count(&self) -> u64 {
        (self.0[12] & 0xffff) as u64 + 1
    }
}

/// The Status Field of a completion without its phase tag (4.6.1): code, type, and two bits above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome(pub u16);

impl Outcome {
    /// Successful Completion.
    pub const SUCCESS: Self = Self(0x00);
    /// Invalid Command Opcode.
    pub const INVALID_OPCODE: Self = Self(0x01);
    /// Invalid Field in Command.
    pub const INVALID_FIELD: Self = Self(0x02);
    /// Data Transfer Error.
    pub const DATA_TRANSFER_ERROR: Self = Self(0x04);
    /// Internal Error.
    pub const INTERNAL_ERROR: Self = Self(0x06);
    /// Command Abort Requested.
    pub const ABORT_REQUESTED: Self = Self(0x07);
    /// Command Aborted due to SQ Deletion.
    pub const QUEUE_DELETED: Self = Self(0x08);
    /// Invalid Namespace or Format.
    pub const INVALID_NAMESPACE: Self = Self(0x0b);
    /// PRP Offset Invalid.
    pub const PRP_OFFSET_INVALID: Self = Self(0x13);
    /// LBA Out of Range.
    pub const LBA_OUT_OF_RANGE: Self = Self(0x80);
    /// Completion Queue Invalid.
    pub const COMPLETION_QUEUE_INVALID: Self = Self(0x100);
    /// Invalid Queue Identifier.
    pub const INVALID_QUEUE_IDENTIFIER: Self = Self(0x101);
    /// Invalid Queue Size.
    pub const INVALID_QUEUE_SIZE: Self = Self(0x102);
    /// Asynchronous Event Request Limit Exceeded.
    pub const EVENT_LIMIT_EXCEEDED: Self = Self(0x105);
    /// Invalid Interrupt Vector.
    pub const INVALID_VECTOR: Self = Self(0x108);
    /// Invalid Log Page.
    pub const INVALID_LOG_PAGE: Self = Self(0x109);
    /// Invalid Queue Deletion.
    pub const INVALID_QUEUE_DELETION: Self = Self(0x10c);
    /// Unrecovered Read Error.
    pub const UNRECOVERED_READ_ERROR: Self = Self(0x281);
    /// Command Aborted By Host: what the driver answers with for what a reset of the controller ended.
    pub const ABORTED_BY_HOST: Self = Self(0x371);

    /// SC, with SCT above it.
    #[must_use]
    #[inline]
    pub const fn code(self) -> u16 {
        self.0 & 0x7ff
    }

    /// What [`udrv_backend::Error::Status`] says; `None` for other errors.
    #[must_use]
    pub fn of(error: &udrv_backend::Error) -> Option<Self> {
        match error {
            udrv_backend::Error::Status { status, .. } => u16::try_from(*status).ok().map(Self),
            _ => None,
        }
    }

    /// Whether the command did what it says.
    #[must_use]
    #[inline]
    pub const fn is_success(self) -> bool {
        self.code() == 0
    }

    /// Whether it was ended from this side, and did no harm to try again.
    #[must_use]
    #[inline]
    pub const fn is_ended_by_host(self) -> bool {
        let code = self.code();
        code == Self::ABORT_REQUESTED.0 || code == Self::QUEUE_DELETED.0 || code == Self::ABORTED_BY_HOST.0
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match Self(self.code()) {
            Self::SUCCESS => "success",
            Self::INVALID_OPCODE => "Invalid Command Opcode",
            Self::INVALID_FIELD => "Invalid Field in Command",
            Self::DATA_TRANSFER_ERROR => "Data Transfer Error",
            Self::INTERNAL_ERROR => "Internal Error",
            Self::ABORT_REQUESTED => "Command Abort Requested",
            Self::QUEUE_DELETED => "Command Aborted due to SQ Deletion",
            Self::INVALID_NAMESPACE => "Invalid Namespace or Format",
            Self::PRP_OFFSET_INVALID => "PRP Offset Invalid",
            Self::LBA_OUT_OF_RANGE => "LBA Out of Range",
            Self::COMPLETION_QUEUE_INVALID => "Completion Queue Invalid",
            Self::INVALID_QUEUE_IDENTIFIER => "Invalid Queue Identifier",
            Self::INVALID_QUEUE_SIZE => "Invalid Queue Size",
            Self::EVENT_LIMIT_EXCEEDED => "Asynchronous Event Request Limit Exceeded",
            Self::INVALID_VECTOR => "Invalid Interrupt Vector",
            Self::INVALID_LOG_PAGE => "Invalid Log Page",
            Self::INVALID_QUEUE_DELETION => "Invalid Queue Deletion",
            Self::UNRECOVERED_READ_ERROR => "Unrecovered Read Error",
            Self::ABORTED_BY_HOST => "Command Aborted By Host",
            _ => "status",
        };
        write!(f, "{name} (SCT {:x}h, SC {:02x}h)", self.code() >> 8, self.code() & 0xff)
    }
}

/// One completion queue entry (4.6, figure 120).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Dword 0: specific to the command.
    pub result: u32,
    /// SQHD: how far the controller has read the submission queue.
    pub submission_head: u16,
    /// SQID.
    pub queue: u16,
    /// CID.
    pub id: u16,
    /// The phase tag.
    pub phase: bool,
    /// The status field.
    pub outcome: Outcome,
}

impl Completion {
    /// From Dwords 0 and 1, and 2 and 3.
    #[must_use]
    #[inline]
    pub const fn from_qwords([low, high]: [u64; 2]) -> Self {
        Self {
            result: low as u32,
            submission_head: high as u16,
            queue: (high >> 16) as u16,
            id: (high >> 32) as u16,
            phase: high >> 48 & 1 != 0,
            outcome: Outcome((high >> 49) as u16),
        }
    }

    /// As it is in memory.
    #[must_use]
    pub fn to_bytes(self) -> [u8; COMPLETION_SIZE] {
        let queue = u32::from(self.submission_head) | u32::from(self.queue) << 16;
        let status = u32::from(self.id) | u32::from(self.phase) << 16 | u32::from(self.outcome.0) << 17;
        let mut bytes = [0; COMPLETION_SIZE];
        for (at, dword) in bytes.chunks_exact_mut(4).zip([self.result, 0, queue, status]) {
            at.copy_from_slice(&dword.to_le_bytes());
        }
        bytes
    }
}
