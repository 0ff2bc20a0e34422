//! The reader: a page as it was at one moment. Counters go on while it is read, so two of them may be a moment apart.

use crate::layout::{self, Table, access, buffer, device, domain, head, section, source};
use crate::registers::Registers;
use serde::{Deserialize, Serialize};
use udrv_backend::IrqIndex;

/// What a process shows of itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its number, as it sees itself.
    pub pid: u64,
    /// By how much its clock is behind, nanoseconds.
    pub held_ns: u64,
    /// Whether somebody holds it now.
    pub is_held: bool,
    /// Whether its build records open sections.
    pub records_sections: bool,
    /// Whether its build records accesses to mapped registers.
    pub records_mapped: bool,
    /// Its devices.
    pub devices: Vec<DeviceState>,
    /// Its interrupt sources.
    pub sources: Vec<SourceState>,
    /// Sections that are open.
    pub sections: Vec<SectionState>,
    /// DMA buffers.
    pub buffers: Vec<BufferState>,
    /// The last register accesses, oldest first.
    pub accesses: Vec<Access>,
    /// What its last panic said.
    pub panic: Option<String>,
}

/// A device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceState {
    /// Number of its slot, by which the others refer to it.
    pub slot: u64,
    /// Its address.
    pub address: String,
    /// Its driver's registers, if the driver has told.
    pub registers: Option<Registers>,
    /// For each region that has one: region, the descriptor in the process, where the region starts in it.
    pub files: Vec<(u32, i32, u64)>,
}

/// An interrupt source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceState {
    /// Slot of its device; `None` for a timer.
    pub device: Option<u64>,
    /// `MSI vector 0 of pci:0000:03:00.0`.
    pub name: String,
    /// Interrupt index.
    pub index: u32,
    /// Vector.
    pub vector: u32,
    /// Slot of its domain.
    pub domain: u64,
    /// How it is delivered: `thread`, `signal`, `poll`.
    pub delivery: String,
    /// The eventfd in the process that signals it.
    pub eventfd: Option<i32>,
    /// Signals.
    pub raised: u64,
    /// Deliveries.
    pub delivered: u64,
    /// Signals that came with another.
    pub merged: u64,
    /// Deliveries without an effect.
    pub spurious: u64,
    /// Deliveries that a section held back.
    pub deferred: u64,
    /// Longest time so held back, nanoseconds.
    pub longest_deferral_ns: u64,
    /// Longest run of the handlers, nanoseconds.
    pub longest_handler_ns: u64,
    /// Whether it was masked after a storm.
    pub stormed: bool,
    /// How many signals wait.
    pub pending: u64,
    /// How often it is disabled; 0 is enabled.
    pub disabled: u64,
    /// The thread in its handler.
    pub in_handler: Option<u64>,
}

/// An open section.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SectionState {
    /// Slot of its domain.
    pub domain: u64,
    /// The thread that has it open.
    pub thread: u64,
    /// CLOCK_MONOTONIC in nanoseconds when it was opened.
    pub since_ns: u64,
    /// Where: `src/driver.rs:17`.
    pub entered_at: String,
}

/// Whose a buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// The driver's.
    Driver,
    /// The device's.
    Device,
    /// Both's.
    Both,
    /// It was dropped while the device had it.
    Leaked,
}

/// A DMA buffer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BufferState {
    /// Slot of its device.
    pub device: u64,
    /// Bus address.
    pub iova: u64,
    /// Bytes mapped.
    #[serde(rename = "size_bytes")]
    pub size: u64,
    /// Bytes asked for.
    #[serde(rename = "length_bytes")]
    pub length: u64,
    /// Whether the device may read it.
    pub device_reads: bool,
    /// Whether the device may write it.
    pub device_writes: bool,
    /// Whose it is.
    pub owner: Owner,
}

/// A register access.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Access {
    /// Counted from 0.
    pub number: u64,
    /// CLOCK_MONOTONIC in nanoseconds.
    pub time_ns: u64,
    /// Thread.
    pub thread: u64,
    /// Slot of its device.
    pub device: u64,
    /// Region.
    pub region: u32,
    /// Byte offset.
    pub offset: u64,
    /// Width in bits.
    #[serde(rename = "width_bits")]
    pub width: u64,
    /// Whether it was a write.
    pub is_write: bool,
    /// The value.
    pub value: u64,
}

/// The words of a page, with nothing believed.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn get(&self, word: usize) -> u64 {
        let bytes = self.0.get(word * 8..word * 8 + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    }

    fn bytes(&self, at: usize, length: u64) -> &[u8] {
        let end = usize::try_from(length).ok().and_then(|length| at.checked_add(length));
        end.and_then(|end| self.0.get(at..end)).unwrap_or_default()
    }

    fn text(&self, word: usize, room: usize) -> String {
        let length = self.get(word).min(room as u64);
        String::from_utf8_lossy(self.bytes((word + 1) * 8, length)).into_owned()
    }

    /// The slots in use, by number and first word.
    fn slots(&self, table: Table) -> impl Iterator<Item = (u64, usize)> + '_ {
        let used = move |slot: &usize| !matches!(self.get(table.at(*slot)), 0 | u64::MAX);
        (0..table.count).filter(used).map(move |slot| (slot as u64, table.at(slot)))
    }
}

impl Snapshot {
    /// What a page says; `None` if it is none, or of another version.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let words = Words(bytes);
        if words.get(head::MAGIC) != layout::MAGIC || words.get(head::VERSION) != layout::VERSION {
            return None;
        }
        let devices: Vec<_> = words.slots(layout::DEVICES).map(|(slot, at)| device_state(&words, slot, at)).collect();
        let name = |slot: u64| devices.iter().find(|device| device.slot == slot).map(|device| device.address.as_str());
        let panic = words.text(layout::PANIC.base, (layout::PANIC.words - 1) * 8);
        Some(Self {
            pid: words.get(head::PID),
            held_ns: words.get(head::HELD),
            is_held: words.get(head::HELD_SINCE) != 0,
            records_sections: words.get(head::RECORDS) & 1 != 0,
            records_mapped: words.get(head::RECORDS) & 2 != 0,
            sources: words.slots(layout::SOURCES).map(|(_, at)| source_state(&words, at, name)).collect(),
            sections: words.slots(layout::SECTIONS).map(|(_, at)| section_state(&words, at)).collect(),
            buffers: words.slots(layout::BUFFERS).filter_map(|(_, at)| buffer_state(&words, at)).collect(),
            accesses: accesses(&words),
            panic: Some(panic).filter(|text| !text.is_empty()),
            devices,
        })
    }

    /// The device in a slot.
    #[must_use]
    pub fn device(&self, slot: u64) -> Option<&DeviceState> {
        self.devices.iter().find(|device| device.slot == slot)
    }
}

fn device_state(words: &Words<'_>, slot: u64, at: usize) -> DeviceState {
    let map = words.get(at + device::MAP);
    let map = words.bytes(usize::try_from(map).unwrap_or(usize::MAX), words.get(at + device::MAP_LENGTH));
    let file = |region: usize| {
        let descriptor = words.get(at + device::FILES + 2 * region).checked_sub(1)?;
        let offset = words.get(at + device::FILES + 2 * region + 1);
        Some((region as u32, i32::try_from(descriptor).ok()?, offset))
    };
    DeviceState {
        slot,
        address: words.text(at + device::ADDRESS, device::ADDRESS_ROOM),
        registers: serde_json::from_slice(map).ok(),
        files: (0..device::REGIONS).filter_map(file).collect(),
    }
}

fn source_state<'a>(words: &Words<'_>, at: usize, name: impl Fn(u64) -> Option<&'a str>) -> SourceState {
    let get = |word| words.get(at + word);
    let device = get(source::DEVICE).checked_sub(1);
    let (index, vector) = (get(source::INDEX) as u32, get(source::VECTOR) as u32);
    let of =
        |device| format!("{} vector {vector} of {}", IrqIndex(index), name(device).unwrap_or("a device that is gone"));
    let delivery = usize::try_from(get(source::DOMAIN)).unwrap_or(usize::MAX);
    let delivery = if delivery < layout::DOMAINS.count {
        words.get(layout::DOMAINS.at(delivery) + domain::DELIVERY)
    } else {
        u64::MAX
    };
    let waiting = get(source::MARK) & ((1 << 48) - 1);
    SourceState {
        device,
        name: device.map_or_else(|| "a timer".into(), of),
        index,
        vector,
        domain: get(source::DOMAIN),
        delivery: ["thread", "signal", "poll"].get(delivery as usize).copied().unwrap_or("unknown").into(),
        eventfd: get(source::EVENTFD).checked_sub(1).and_then(|fd| i32::try_from(fd).ok()),
        raised: get(source::TAKEN).saturating_add(waiting),
        delivered: get(source::DELIVERED),
        merged: get(source::MERGED),
        spurious: get(source::SPURIOUS),
        deferred: get(source::DEFERRED),
        longest_deferral_ns: get(source::LONGEST_DEFERRAL),
        longest_handler_ns: get(source::LONGEST_HANDLER),
        stormed: get(source::STORMED) != 0,
        pending: waiting,
        disabled: get(source::MARK) >> 48,
        in_handler: Some(get(source::HANDLER)).filter(|thread| *thread != 0),
    }
}

fn section_state(words: &Words<'_>, at: usize) -> SectionState {
    let file = words.text(at + section::FILE, section::FILE_ROOM);
    SectionState {
        domain: words.get(at + section::DOMAIN),
        thread: words.get(at + section::THREAD),
        since_ns: words.get(at + section::SINCE),
        entered_at: format!("{file}:{}", words.get(at + section::LINE)),
    }
}

fn buffer_state(words: &Words<'_>, at: usize) -> Option<BufferState> {
    let owner = match words.get(at + buffer::STATE) {
        buffer::DRIVER => Owner::Driver,
        buffer::DEVICE => Owner::Device,
        buffer::BOTH => Owner::Both,
        buffer::LEAKED => Owner::Leaked,
        _ => return None,
    };
    Some(BufferState {
        device: words.get(at + buffer::MAPPED_FOR),
        iova: words.get(at + buffer::IOVA),
        size: words.get(at + buffer::SIZE),
        length: words.get(at + buffer::LENGTH),
        device_reads: words.get(at + buffer::ACCESS) & 1 != 0,
        device_writes: words.get(at + buffer::ACCESS) & 2 != 0,
        owner,
    })
}

fn accesses(words: &Words<'_>) -> Vec<Access> {
    let access = |(_, at): (u64, usize)| Access {
        number: words.get(at + access::NUMBER).saturating_sub(1),
        time_ns: words.get(at + access::TIME),
        thread: words.get(at + access::THREAD),
        device: words.get(at + access::WHERE) & 0xffff_ffff,
        region: (words.get(at + access::WHERE) >> 32) as u32,
        offset: words.get(at + access::OFFSET),
        width: (words.get(at + access::KIND) >> 8 & 0xff) * 8,
        is_write: words.get(at + access::KIND) & 0xff == access::WRITE,
        value: words.get(at + access::VALUE),
    };
    let mut all: Vec<_> = words.slots(layout::RING).map(access).collect();
    all.sort_unstable_by_key(|access| access.number);
    all
}
