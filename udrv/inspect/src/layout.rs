//! Where things are in the page: version 1 of the layout, as docs/inspection.md has it for readers in other languages.
//!
//! The page is an array of 64-bit little-endian words. It has a head, tables of slots, a ring, and room for text. Word 0 of
//! every slot is its state, 0 where it is free. Texts are a word with their length in bytes, then the bytes, cut to what fits.

/// `udrvinsp`, in the order of the bytes.
pub const MAGIC: u64 = u64::from_le_bytes(*b"udrvinsp");
/// Of the layout. A reader that knows another one must not go on.
pub const VERSION: u64 = 1;
/// Name of the memfd: its link in `/proc/PID/fd` is `/memfd:udrv-inspect (deleted)`.
pub const NAME: &str = "udrv-inspect";

/// Words of the head.
pub mod head {
    /// [`super::MAGIC`].
    pub const MAGIC: usize = 0;
    /// [`super::VERSION`].
    pub const VERSION: usize = 1;
    /// Process number, as the process itself sees it.
    pub const PID: usize = 2;
    /// Nanoseconds by which the runtime's clock is behind CLOCK_MONOTONIC. Written by whoever stops the process.
    pub const HELD: usize = 3;
    /// CLOCK_MONOTONIC in nanoseconds since when the process is held; 0 if it is not, all ones if it is and its clock is
    /// to go on all the same. Written by whoever stops it.
    pub const HELD_SINCE: usize = 4;
    /// Bit 0: sections are recorded. Bit 1: accesses to mapped registers are.
    pub const RECORDS: usize = 5;
    /// Accesses recorded so far: the ring has the last of them.
    pub const ACCESSES: usize = 6;
    /// Slots that were wanted when their table was full.
    pub const REFUSED: usize = 7;
    /// Words of the head.
    pub const WORDS: usize = 64;
}

/// A table: `count` slots of `words` words, the first at word `base`.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Word of the first slot.
    pub base: usize,
    /// Words of a slot.
    pub words: usize,
    /// Number of slots.
    pub count: usize,
}

impl Table {
    const fn after(base: usize, words: usize, count: usize) -> Self {
        Self { base, words, count }
    }

    /// The word behind the last slot.
    #[must_use]
    pub const fn end(&self) -> usize {
        self.base + self.words * self.count
    }

    /// First word of slot `slot`.
    #[must_use]
    pub const fn at(&self, slot: usize) -> usize {
        self.base + self.words * slot
    }
}

/// Devices in use.
pub const DEVICES: Table = Table::after(head::WORDS, 64, 16);
/// Interrupt domains.
pub const DOMAINS: Table = Table::after(DEVICES.end(), 8, 32);
/// Open sections, if they are recorded.
pub const SECTIONS: Table = Table::after(DOMAINS.end(), 24, 64);
/// Interrupt sources.
pub const SOURCES: Table = Table::after(SECTIONS.end(), 24, 2560);
/// DMA buffers.
pub const BUFFERS: Table = Table::after(SOURCES.end(), 8, 4096);
/// The ring of register accesses; number n is in slot n modulo its count.
pub const RING: Table = Table::after(BUFFERS.end(), 8, 1024);
/// What a panic said: one text.
pub const PANIC: Table = Table::after(RING.end(), 2048, 1);
/// Register maps, as JSON.
pub const TEXT: Table = Table::after(PANIC.end(), 1, 16 * 1024);
/// Words of the page. Most of them are never touched, and take no memory.
pub const WORDS: usize = TEXT.end();

/// Words of a device's slot.
pub mod device {
    /// 1: in use.
    pub const STATE: usize = 0;
    /// Byte of its register map in the page, 0 for none.
    pub const MAP: usize = 1;
    /// Bytes of its register map.
    pub const MAP_LENGTH: usize = 2;
    /// Its address, a text of at most 256 bytes.
    pub const ADDRESS: usize = 4;
    /// Bytes for the address.
    pub const ADDRESS_ROOM: usize = 256;
    /// For each region that has a file: the file's descriptor plus one (0: none), and where the region starts in it.
    pub const FILES: usize = 40;
    /// How many regions.
    pub const REGIONS: usize = 9;
}

/// Words of a domain's slot.
pub mod domain {
    /// 1: in use.
    pub const STATE: usize = 0;
    /// 0 thread, 1 signal, 2 poll.
    pub const DELIVERY: usize = 1;
}

/// Words of a section's slot.
pub mod section {
    /// 1: open.
    pub const STATE: usize = 0;
    /// Slot of its domain.
    pub const DOMAIN: usize = 1;
    /// The thread that has it open.
    pub const THREAD: usize = 2;
    /// CLOCK_MONOTONIC in nanoseconds when it was opened.
    pub const SINCE: usize = 3;
    /// Line where it was entered.
    pub const LINE: usize = 4;
    /// File where it was entered: a text, whose beginning is cut if it is too long.
    pub const FILE: usize = 5;
    /// Bytes for the file.
    pub const FILE_ROOM: usize = 128;
}

/// Words of a source's slot.
pub mod source {
    /// 1: in use.
    pub const STATE: usize = 0;
    /// Slot of its device plus one; 0: a timer.
    pub const DEVICE: usize = 1;
    /// Interrupt index, in VFIO's numbering.
    pub const INDEX: usize = 2;
    /// Vector.
    pub const VECTOR: usize = 3;
    /// Slot of its domain.
    pub const DOMAIN: usize = 4;
    /// Descriptor of the eventfd that signals it, plus one; 0: there is none.
    pub const EVENTFD: usize = 5;
    /// Signals that no longer wait: with those of [`MARK`], all there were.
    pub const TAKEN: usize = 6;
    /// Deliveries.
    pub const DELIVERED: usize = 7;
    /// Signals that came with another.
    pub const MERGED: usize = 8;
    /// Deliveries without an effect.
    pub const SPURIOUS: usize = 9;
    /// Deliveries that a section held back.
    pub const DEFERRED: usize = 10;
    /// Longest time so held back, nanoseconds.
    pub const LONGEST_DEFERRAL: usize = 11;
    /// Longest run of the handlers, nanoseconds.
    pub const LONGEST_HANDLER: usize = 12;
    /// 1: masked after a storm.
    pub const STORMED: usize = 13;
    /// The thread in its handler; 0: none.
    pub const HANDLER: usize = 15;
    /// Low 48 bits: signals that wait. Above: how often it is disabled. On another cache line than what a delivery writes,
    /// for those who signal.
    pub const MARK: usize = 16;
}

/// Words of a buffer's slot.
pub mod buffer {
    /// Whose it is: [`DRIVER`], [`DEVICE`], [`BOTH`] or [`LEAKED`].
    pub const STATE: usize = 0;
    /// Slot of the device it is mapped for.
    pub const MAPPED_FOR: usize = 1;
    /// Its bus address.
    pub const IOVA: usize = 2;
    /// Bytes mapped.
    pub const SIZE: usize = 3;
    /// Bytes asked for.
    pub const LENGTH: usize = 4;
    /// What the device may do: 1 read, 2 write.
    pub const ACCESS: usize = 5;
    /// The driver's.
    pub const DRIVER: u64 = 1;
    /// The device's, until it is completed.
    pub const DEVICE: u64 = 2;
    /// Coherent memory: both's.
    pub const BOTH: u64 = 3;
    /// Dropped while the device had it: it stays mapped.
    pub const LEAKED: u64 = 4;
}

/// Words of an access in the ring.
pub mod access {
    /// Its number plus one; 0 while it is being written.
    pub const NUMBER: usize = 0;
    /// CLOCK_MONOTONIC in nanoseconds.
    pub const TIME: usize = 1;
    /// Thread.
    pub const THREAD: usize = 2;
    /// 1 read, 2 write; and the width in bytes, from bit 8 on.
    pub const KIND: usize = 3;
    /// Slot of the device, and the region from bit 32 on.
    pub const WHERE: usize = 4;
    /// Byte offset in the region.
    pub const OFFSET: usize = 5;
    /// What was read, or is to be written.
    pub const VALUE: usize = 6;
    /// Kind of a read.
    pub const READ: u64 = 1;
    /// Kind of a write.
    pub const WRITE: u64 = 2;
}
