//! What Identify and Get Log Page answer with, as far as the driver and its users need it (5.15.2, 5.14.1).

/// Little-endian fields of a data structure; beyond its end all is 0.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn number<const N: usize>(&self, at: usize) -> u64 {
        let bytes = self.0.get(at..at + N).unwrap_or_default();
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn wide(&self, at: usize) -> u128 {
        u128::from(self.number::<8>(at)) | u128::from(self.number::<8>(at + 8)) << 64
    }

    fn text(&self, at: usize, length: usize) -> String {
        // ASCII from 20h to 7Eh (1.5). What else comes is not passed on to a terminal.
        let shown = |byte: &u8| if (0x20..0x7f).contains(byte) { char::from(*byte) } else { '?' };
        let bytes = self.0.get(at..at + length).unwrap_or_default();
        let end = bytes.iter().rposition(|byte| ![0, 0x20].contains(byte)).map_or(0, |last| last + 1);
        bytes.iter().take(end).map(shown).collect::<String>().trim_start().to_owned()
    }
}

/// The controller (5.15.2.2, figure 247).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerInfo {
    /// SN.
    pub serial: String,
    /// MN.
    pub model: String,
    /// FR.
    pub firmware: String,
    /// VER: major version in the upper half, minor above the lowest byte.
    pub version: u32,
    /// MDTS: most bytes of one command; `None` for no limit.
    pub max_transfer: Option<u64>,
    /// NN: the highest namespace identifier.
    pub namespaces: u32,
    /// ELPE: entries of the error log.
    pub error_entries: u32,
    /// OACS bit 8: Doorbell Buffer Config.
    pub has_shadow_doorbells: bool,
    /// ONCS.
    pub optional: Optional,
    /// VWC bit 0: there is a volatile write cache, so that what is not flushed may be lost.
    pub has_write_cache: bool,
}

bitflags::bitflags! {
    /// Optional NVM Command Support (ONCS).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Optional: u16 {
        /// Dataset Management.
        const DATASET_MANAGEMENT = 1 << 2;
        /// Write Zeroes.
        const WRITE_ZEROES = 1 << 3;
        const _ = !0;
    }
}

impl ControllerInfo {
    pub(super) fn decode(data: &[u8], min_page: u64) -> Self {
        let fields = Fields(data);
        let max_transfer = match fields.number::<1>(77) {
            0 => None,
            power => Some(1u64.checked_shl(power as u32).unwrap_or(u64::MAX).saturating_mul(min_page)),
        };
        Self {
            serial: fields.text(4, 20),
            model: fields.text(24, 40),
            firmware: fields.text(64, 8),
            version: fields.number::<4>(80) as u32,
            max_transfer,
            namespaces: fields.number::<4>(516) as u32,
            error_entries: fields.number::<1>(262) as u32 + 1,
            has_shadow_doorbells: fields.number::<2>(256) & 1 << 8 != 0,
            optional: Optional::from_bits_retain(fields.number::<2>(520) as u16),
            has_write_cache: fields.number::<1>(525) & 1 != 0,
        }
    }
}

/// A namespace (5.15.2.1, figure 245).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace {
    /// NSID.
    pub id: u32,
    /// NSZE: its blocks.
    pub blocks: u64,
    /// Bytes of a block, by the format in use (FLBAS, LBADS).
    pub block_size: u64,
}

impl Namespace {
    /// `None` if it is inactive, or has a format that this driver cannot use: metadata, or blocks that are too small or
    /// too large for a command.
    pub(super) fn decode(id: u32, data: &[u8]) -> Option<Self> {
        let fields = Fields(data);
        let format = fields.number::<4>(128 + 4 * (fields.number::<1>(26) & 0xf) as usize);
        let (metadata, shift) = (format & 0xffff, format >> 16 & 0xff);
        let blocks = fields.number::<8>(0);
        let usable = blocks > 0 && metadata == 0 && (9..=16).contains(&shift);
        usable.then(|| Self { id, blocks, block_size: 1 << shift })
    }

    /// Its size in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size)
    }
}

/// SMART / Health Information (5.14.1.2, figure 194).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smart {
    /// Critical Warning: 0 for none.
    pub critical_warning: u8,
    /// Composite Temperature, kelvin.
    pub temperature: u16,
    /// Available Spare, percent.
    pub available_spare: u8,
    /// Percentage Used; may exceed 100.
    pub percentage_used: u8,
    /// Data Units Read: thousands of 512 bytes.
    pub data_units_read: u128,
    /// Data Units Written: thousands of 512 bytes.
    pub data_units_written: u128,
    /// Host Read Commands.
    pub host_reads: u128,
    /// Host Write Commands.
    pub host_writes: u128,
    /// Power Cycles.
    pub power_cycles: u128,
    /// Power On Hours.
    pub power_on_hours: u128,
    /// Unsafe Shutdowns.
    pub unsafe_shutdowns: u128,
    /// Media and Data Integrity Errors.
    pub media_errors: u128,
    /// Number of Error Information Log Entries.
    pub error_log_entries: u128,
}

impl Smart {
    pub(super) fn decode(data: &[u8]) -> Self {
        let fields = Fields(data);
        Self {
            critical_warning: fields.number::<1>(0) as u8,
            temperature: fields.number::<2>(1) as u16,
            available_spare: fields.number::<1>(3) as u8,
            percentage_used: fields.number::<1>(5) as u8,
            data_units_read: fields.wide(32),
            data_units_written: fields.wide(48),
            host_reads: fields.wide(64),
            host_writes: fields.wide(80),
            power_cycles: fields.wide(112),
            power_on_hours: fields.wide(128),
            unsafe_shutdowns: fields.wide(144),
            media_errors: fields.wide(160),
            error_log_entries: fields.wide(176),
        }
    }
}

/// One entry of the error log (5.14.1.1, figure 193).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorEntry {
    /// Error Count: a number of its own, 0 for an entry that is not used.
    pub count: u64,
    /// The submission queue of the command.
    pub queue: u16,
    /// Its Command Identifier.
    pub command: u16,
    /// How it ended.
    pub outcome: crate::command::Outcome,
    /// The first block that it failed at.
    pub lba: u64,
    /// Its namespace.
    pub namespace: u32,
}

impl ErrorEntry {
    /// Bytes of an entry.
    pub(super) const SIZE: usize = 64;

    pub(super) fn decode(data: &[u8]) -> Self {
        let fields = Fields(data);
        Self {
            count: fields.number::<8>(0),
            queue: fields.number::<2>(8) as u16,
            command: fields.number::<2>(10) as u16,
            outcome: crate::command::Outcome((fields.number::<2>(12) >> 1) as u16),
            lba: fields.number::<8>(16),
            namespace: fields.number::<4>(24) as u32,
        }
    }
}

/// An asynchronous event (5.2.1, figures 145 to 150).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Its type: 0 error, 1 SMART / health, 2 notice, 6 of the I/O command set, 7 vendor specific.
    pub kind: u8,
    /// What it is, within its type.
    pub information: u8,
    /// The log page that tells more; reading it lets the controller report the next event of this type.
    pub log_page: u8,
}

impl Event {
    pub(super) const fn decode(dword: u32) -> Self {
        Self { kind: (dword & 0b111) as u8, information: (dword >> 8) as u8, log_page: (dword >> 16) as u8 }
    }
}
