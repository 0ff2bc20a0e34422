//! What goes over the bus: wrappers (BOT, section 5) and SCSI commands (SPC-4, SBC-3).
//!
//! Wrappers are little-endian, SCSI is big-endian.

/// `bInterfaceClass`, `bInterfaceSubClass` (SCSI transparent), `bInterfaceProtocol` (bulk-only); BOT, table 4.5.
pub const INTERFACE_CLASS: (u8, u8, u8) = (0x08, 0x06, 0x50);

/// Bulk-Only Mass Storage Reset: `bmRequestType`, `bRequest` (BOT, 3.1).
pub const RESET: (u8, u8) = (0x21, 0xff);
/// Get Max LUN: `bmRequestType`, `bRequest` (BOT, 3.2).
pub const GET_MAX_LUN: (u8, u8) = (0xa1, 0xfe);

/// Bytes of a Command Block Wrapper (BOT, 5.1).
pub const CBW_LENGTH: usize = 31;
/// Bytes of a Command Status Wrapper (BOT, 5.2).
pub const CSW_LENGTH: usize = 13;

const CBW_SIGNATURE: u32 = 0x4342_5355;
const CSW_SIGNATURE: u32 = 0x5342_5355;

/// A Command Block Wrapper (BOT, table 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandWrapper {
    /// `dCBWTag`: comes back in the status.
    pub tag: u32,
    /// `dCBWDataTransferLength`: bytes the host expects to transfer.
    pub length: u32,
    /// `bmCBWFlags`, bit 7: the data goes to the host.
    pub into_host: bool,
    /// `bCBWLUN`, 0 to 15.
    pub lun: u8,
    /// The command, as long as `bCBWCBLength` says (1 to 16), then zeros.
    pub command: [u8; 16],
    /// `bCBWCBLength`.
    pub command_length: u8,
}

impl CommandWrapper {
    /// The bytes on the bus.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; CBW_LENGTH] {
        let mut bytes = [0; CBW_LENGTH];
        bytes[..4].copy_from_slice(&CBW_SIGNATURE.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.tag.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12] = u8::from(self.into_host) << 7;
        bytes[13] = self.lun;
        bytes[14] = self.command_length;
        bytes[15..].copy_from_slice(&self.command);
        bytes
    }

    /// From the bytes on the bus; `None` unless valid and meaningful (BOT, 6.2).
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; CBW_LENGTH] = bytes.try_into().ok()?;
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let (lun, command_length) = (bytes[13], bytes[14]);
        let valid = word(0)? == CBW_SIGNATURE && lun < 16 && (1..=16).contains(&command_length);
        valid.then_some(Self {
            tag: word(4)?,
            length: word(8)?,
            into_host: bytes[12] & 0x80 != 0,
            lun,
            command: *bytes.get(15..)?.first_chunk()?,
            command_length,
        })
    }
}

/// `bCSWStatus` (BOT, table 5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandStatus {
    /// 0: the command passed.
    Passed,
    /// 1: it failed; REQUEST SENSE says why.
    Failed,
    /// 2: host and device disagree on what is to be transferred; only reset recovery helps.
    PhaseError,
}

/// A Command Status Wrapper (BOT, table 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusWrapper {
    /// `dCSWTag`: the command's.
    pub tag: u32,
    /// `dCSWDataResidue`: bytes expected and not processed.
    pub residue: u32,
    /// `bCSWStatus`.
    pub status: CommandStatus,
}

impl StatusWrapper {
    /// The bytes on the bus.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; CSW_LENGTH] {
        let mut bytes = [0; CSW_LENGTH];
        bytes[..4].copy_from_slice(&CSW_SIGNATURE.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.tag.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.residue.to_le_bytes());
        bytes[12] = self.status as u8;
        bytes
    }

    /// From the bytes on the bus; `None` unless valid (BOT, 6.3.1).
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; CSW_LENGTH] = bytes.try_into().ok()?;
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let status = match bytes[12] {
            0 => CommandStatus::Passed,
            1 => CommandStatus::Failed,
            2 => CommandStatus::PhaseError,
            _ => return None,
        };
        (word(0)? == CSW_SIGNATURE).then_some(Self { tag: word(4)?, residue: word(8)?, status })
    }
}

/// Operation codes (SPC-4, table D.2; SBC-3, table 18).
pub mod opcode {
    /// TEST UNIT READY.
    pub const TEST_UNIT_READY: u8 = 0x00;
    /// REQUEST SENSE.
    pub const REQUEST_SENSE: u8 = 0x03;
    /// INQUIRY.
    pub const INQUIRY: u8 = 0x12;
    /// MODE SENSE (6).
    pub const MODE_SENSE_6: u8 = 0x1a;
    /// START STOP UNIT.
    pub const START_STOP_UNIT: u8 = 0x1b;
    /// PREVENT ALLOW MEDIUM REMOVAL.
    pub const PREVENT_ALLOW_REMOVAL: u8 = 0x1e;
    /// READ CAPACITY (10).
    pub const READ_CAPACITY_10: u8 = 0x25;
    /// READ (10).
    pub const READ_10: u8 = 0x28;
    /// WRITE (10).
    pub const WRITE_10: u8 = 0x2a;
    /// SYNCHRONIZE CACHE (10).
    pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    /// READ (16).
    pub const READ_16: u8 = 0x88;
    /// WRITE (16).
    pub const WRITE_16: u8 = 0x8a;
    /// SERVICE ACTION IN (16), of which service action 0x10 is READ CAPACITY (16).
    pub const SERVICE_ACTION_IN_16: u8 = 0x9e;
    /// REPORT LUNS.
    pub const REPORT_LUNS: u8 = 0xa0;
}

/// The service action of READ CAPACITY (16) (SBC-3, 5.16).
pub const SERVICE_READ_CAPACITY_16: u8 = 0x10;

/// A SCSI command, 6 to 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    /// The bytes, then zeros.
    pub bytes: [u8; 16],
    /// How many there are.
    pub length: u8,
}

impl Command {
    fn new<const N: usize>(bytes: [u8; N]) -> Self {
        let mut all = [0; 16];
        all.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        Self { bytes: all, length: u8::try_from(N).unwrap_or(16) }
    }

    /// TEST UNIT READY (SPC-4, 6.37).
    #[must_use]
    pub fn test_unit_ready() -> Self {
        Self::new([opcode::TEST_UNIT_READY, 0, 0, 0, 0, 0])
    }

    /// REQUEST SENSE, fixed format (SPC-4, 6.31).
    #[must_use]
    pub fn request_sense() -> Self {
        Self::new([opcode::REQUEST_SENSE, 0, 0, 0, SENSE_LENGTH, 0])
    }

    /// INQUIRY, standard data (SPC-4, 6.4).
    #[must_use]
    pub fn inquiry() -> Self {
        Self::new([opcode::INQUIRY, 0, 0, 0, INQUIRY_LENGTH, 0])
    }

    /// READ CAPACITY (10) (SBC-3, 5.15).
    #[must_use]
    pub fn read_capacity_10() -> Self {
        Self::new([opcode::READ_CAPACITY_10, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    /// READ CAPACITY (16) (SBC-3, 5.16).
    #[must_use]
    pub fn read_capacity_16() -> Self {
        const LENGTH: u8 = CAPACITY_16_LENGTH;
        Self::new([
            opcode::SERVICE_ACTION_IN_16,
            SERVICE_READ_CAPACITY_16,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            LENGTH,
            0,
            0,
        ])
    }

    /// SYNCHRONIZE CACHE (10) of the whole medium (SBC-3, 5.26).
    #[must_use]
    pub fn synchronize_cache() -> Self {
        Self::new([opcode::SYNCHRONIZE_CACHE_10, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    /// READ or WRITE of `blocks` from `lba`: of 10 bytes where that is enough (SBC-3, 5.11, 5.13, 5.42, 5.44).
    #[must_use]
    pub fn access(write: bool, lba: u64, blocks: u32) -> Self {
        match (u32::try_from(lba), u16::try_from(blocks)) {
            (Ok(lba), Ok(blocks)) => {
                let ([a, b, c, d], [e, f]) = (lba.to_be_bytes(), blocks.to_be_bytes());
                let opcode = if write { opcode::WRITE_10 } else { opcode::READ_10 };
                Self::new([opcode, 0, a, b, c, d, 0, e, f, 0])
            }
            _ => {
                let ([a, b, c, d, e, f, g, h], [i, j, k, l]) = (lba.to_be_bytes(), blocks.to_be_bytes());
                let opcode = if write { opcode::WRITE_16 } else { opcode::READ_16 };
                Self::new([opcode, 0, a, b, c, d, e, f, g, h, i, j, k, l, 0, 0])
            }
        }
    }
}

/// Bytes of standard INQUIRY data that every device has (SPC-4, table 141).
pub const INQUIRY_LENGTH: u8 = 36;
/// Bytes of fixed-format sense data (SPC-4, table 53).
pub const SENSE_LENGTH: u8 = 18;
/// Bytes of READ CAPACITY (10) data (SBC-3, table 60).
pub const CAPACITY_10_LENGTH: u8 = 8;
/// Bytes of READ CAPACITY (16) data (SBC-3, table 62).
pub const CAPACITY_16_LENGTH: u8 = 32;

/// What a device is (SPC-4, table 141).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inquiry {
    /// PERIPHERAL DEVICE TYPE: 0 is a block device.
    pub device_type: u8,
    /// RMB: the medium can be removed.
    pub removable: bool,
    /// T10 VENDOR IDENTIFICATION.
    pub vendor: String,
    /// PRODUCT IDENTIFICATION.
    pub product: String,
    /// PRODUCT REVISION LEVEL.
    pub revision: String,
}

impl Inquiry {
    /// From standard INQUIRY data; `None` if it is too short.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let text = |from: usize, to: usize| Some(String::from_utf8_lossy(bytes.get(from..to)?).trim().to_owned());
        Some(Self {
            device_type: bytes.first()? & 0x1f,
            removable: bytes.get(1)? & 0x80 != 0,
            vendor: text(8, 16)?,
            product: text(16, 32)?,
            revision: text(32, 36)?,
        })
    }
}

/// How large a medium is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Blocks.
    pub blocks: u64,
    /// Bytes of a block.
    pub block_size: u32,
}

impl Capacity {
    /// Bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size as u64)
    }

    /// From READ CAPACITY (10) data: the last block's address and the block's size (SBC-3, table 60). The address is all
    /// ones if it does not fit: then READ CAPACITY (16) says more.
    #[must_use]
    pub fn from_bytes_10(bytes: &[u8]) -> Option<(u32, u32)> {
        let (last, size) = (bytes.first_chunk()?, bytes.get(4..)?.first_chunk()?);
        Some((u32::from_be_bytes(*last), u32::from_be_bytes(*size)))
    }

    /// From READ CAPACITY (16) data (SBC-3, table 62).
    #[must_use]
    pub fn from_bytes_16(bytes: &[u8]) -> Option<Self> {
        let (last, size) = (bytes.first_chunk()?, bytes.get(8..)?.first_chunk()?);
        Some(Self { blocks: u64::from_be_bytes(*last).checked_add(1)?, block_size: u32::from_be_bytes(*size) })
    }
}

/// Why a command failed: sense key, additional sense code and its qualifier (SPC-4, 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    /// SENSE KEY.
    pub key: u8,
    /// ADDITIONAL SENSE CODE.
    pub code: u8,
    /// ADDITIONAL SENSE CODE QUALIFIER.
    pub qualifier: u8,
}

impl Sense {
    /// Nothing to tell.
    pub const NONE: Self = Self { key: 0, code: 0, qualifier: 0 };
    /// LOGICAL BLOCK ADDRESS OUT OF RANGE.
    pub const OUT_OF_RANGE: Self = Self { key: Self::ILLEGAL_REQUEST, code: 0x21, qualifier: 0 };
    /// INVALID COMMAND OPERATION CODE.
    pub const INVALID_OPCODE: Self = Self { key: Self::ILLEGAL_REQUEST, code: 0x20, qualifier: 0 };
    /// INVALID FIELD IN CDB.
    pub const INVALID_FIELD: Self = Self { key: Self::ILLEGAL_REQUEST, code: 0x24, qualifier: 0 };
    /// Sense key NOT READY.
    pub const NOT_READY: u8 = 0x2;
    /// Sense key ILLEGAL REQUEST.
    pub const ILLEGAL_REQUEST: u8 = 0x5;
    /// Sense key UNIT ATTENTION: something changed, and the next command will do.
    pub const UNIT_ATTENTION: u8 = 0x6;

    /// From fixed-format sense data (SPC-4, table 53).
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let fixed = matches!(bytes.first()? & 0x7f, 0x70 | 0x71);
        fixed.then_some(Self { key: bytes.get(2)? & 0x0f, code: *bytes.get(12)?, qualifier: *bytes.get(13)? })
    }

    /// Fixed-format sense data.
    #[must_use]
    pub fn to_bytes(self) -> [u8; SENSE_LENGTH as usize] {
        let mut bytes = [0; SENSE_LENGTH as usize];
        (bytes[0], bytes[2], bytes[7], bytes[12], bytes[13]) = (0x70, self.key, 10, self.code, self.qualifier);
        bytes
    }
}

impl std::fmt::Display for Sense {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = match self.key {
            0x0 => "NO SENSE",
            0x1 => "RECOVERED ERROR",
            0x2 => "NOT READY",
            0x3 => "MEDIUM ERROR",
            0x4 => "HARDWARE ERROR",
            0x5 => "ILLEGAL REQUEST",
            0x6 => "UNIT ATTENTION",
            0x7 => "DATA PROTECT",
            0xb => "ABORTED COMMAND",
            _ => "sense key",
        };
        write!(f, "{key} ({:#x}), code {:#04x}, qualifier {:#04x}", self.key, self.code, self.qualifier)
    }
}
