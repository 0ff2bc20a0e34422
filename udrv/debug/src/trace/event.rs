//! One event, and how it is packed into four words.

use std::time::Duration;
use udrv_backend::{IrqIndex, RegionIndex, Width};

/// Words of one event in the file.
pub(crate) const WORDS: usize = 4;

/// How a call to the device ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It had not when the recording ended.
    Unfinished,
    /// As it should.
    Done,
    /// With this errno.
    Failed(i32),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A register was read.
    Read {
        /// Where.
        region: RegionIndex,
        /// Byte offset.
        offset: u64,
        /// How wide.
        width: Width,
        /// What came; 0 unless done.
        value: u64,
        /// How it ended.
        outcome: Outcome,
    },
    /// A register was written.
    Write {
        /// Where.
        region: RegionIndex,
        /// Byte offset.
        offset: u64,
        /// How wide.
        width: Width,
        /// What was written; 0 if that failed.
        value: u64,
        /// How it ended.
        outcome: Outcome,
    },
    /// The device signalled a vector, and it was passed on to the driver's trigger.
    Irq {
        /// Kind of interrupt.
        index: IrqIndex,
        /// Its vector.
        vector: u32,
        /// How many signals it stands for.
        count: u64,
    },
    /// Triggers were set.
    Arm {
        /// Kind of interrupt.
        index: IrqIndex,
        /// The first vector.
        start: u32,
        /// How many.
        count: u64,
    },
    /// An interrupt index was disarmed.
    Disarm {
        /// Kind of interrupt.
        index: IrqIndex,
    },
    /// A vector was masked or unmasked.
    Mask {
        /// Kind of interrupt.
        index: IrqIndex,
        /// Its vector.
        vector: u32,
        /// Masked, or unmasked.
        masked: bool,
    },
    /// The device was given memory.
    Map {
        /// Bus address.
        iova: u64,
        /// Bytes; 0 if it failed.
        size: u64,
        /// How it ended.
        outcome: Outcome,
    },
    /// Memory was taken back.
    Unmap {
        /// Bus address.
        iova: u64,
        /// Bytes.
        size: u64,
    },
    /// The device wrote up to 8 bytes into memory.
    Data {
        /// Bus address.
        iova: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The device was reset.
    Reset,
    /// A thread that had not been seen before.
    Thread {
        /// Its name, as far as the kernel keeps it.
        name: String,
    },
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place in the recording, counted from 0.
    pub number: u64,
    /// Since the start of the recording.
    pub time: Duration,
    /// The thread's kernel id.
    pub thread: u32,
    /// What happened.
    pub what: What,
}

/// What kind of event it is; numbers are the file's, and never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Tag {
    Read = 1,
    Write = 2,
    Irq = 3,
    Arm = 4,
    Disarm = 5,
    Mask = 6,
    Unmask = 7,
    Map = 8,
    Unmap = 9,
    Data = 10,
    Reset = 11,
    Thread = 12,
}

/// Second word: tag, index, width or length in bytes, outcome, thread, lowest first.
pub(crate) const fn head(tag: Tag, index: u32, bytes: u64, thread: u32) -> u64 {
    tag as u64 | ((index & 0xff) as u64) << 8 | (bytes & 0xff) << 16 | (thread as u64) << 32
}

/// Added to the second word when the call has ended.
pub(crate) const DONE: u64 = 1 << 24;
pub(crate) const FAILED: u64 = 2 << 24;

/// From the file's words; `None` if they are of no event that this version knows.
pub(crate) fn unpack(number: u64, words: [u64; WORDS]) -> Option<Event> {
    let [time, head, a, b] = words;
    let [tag, index, bytes, outcome, ..] = head.to_le_bytes();
    let outcome = match outcome {
        0 => Outcome::Unfinished,
        1 => Outcome::Done,
        _ => Outcome::Failed(b as i32),
    };
    let (irq, region) = (IrqIndex(index.into()), RegionIndex(index.into()));
    let vector = a as u32;
    let what = match tag {
        1 | 2 => {
            let width = Width::from_bytes(bytes.into())?;
            let value = if matches!(outcome, Outcome::Failed(_)) { 0 } else { b };
            if tag == 1 {
                What::Read { region, offset: a, width, value, outcome }
            } else {
                What::Write { region, offset: a, width, value, outcome }
            }
        }
        3 => What::Irq { index: irq, vector, count: b },
        4 => What::Arm { index: irq, start: vector, count: b },
        5 => What::Disarm { index: irq },
        6 | 7 => What::Mask { index: irq, vector, masked: tag == 6 },
        8 => What::Map { iova: a, size: if matches!(outcome, Outcome::Failed(_)) { 0 } else { b }, outcome },
        9 => What::Unmap { iova: a, size: b },
        10 => What::Data { iova: a, bytes: b.to_le_bytes().get(..bytes.into())?.to_vec() },
        11 => What::Reset,
        12 => {
            let name = [a.to_le_bytes(), b.to_le_bytes()].concat();
            let name = String::from_utf8_lossy(&name);
            What::Thread { name: name.trim_end_matches('\0').to_owned() }
        }
        _ => return None,
    };
    Some(Event { number, time: Duration::from_nanos(time), thread: (head >> 32) as u32, what })
}
