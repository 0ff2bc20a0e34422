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
    /// A thread turned interrupts off.
    SectionBegin {
        /// The interrupt domain, a number of no other meaning.
        domain: u64,
        /// Where.
        at: Place,
    },
    /// It turned them on again.
    SectionEnd {
        /// The interrupt domain.
        domain: u64,
    },
    /// The handlers of a vector began to run.
    HandlerBegin {
        /// Kind of interrupt.
        index: IrqIndex,
        /// Its vector.
        vector: u32,
    },
    /// They have run.
    HandlerEnd {
        /// Kind of interrupt.
        index: IrqIndex,
        /// Its vector.
        vector: u32,
        /// Whether it was for one of them.
        handled: bool,
    },
    /// The threaded half of a vector's handler began to run.
    ThreadedBegin {
        /// Kind of interrupt.
        index: IrqIndex,
        /// Its vector.
        vector: u32,
    },
    /// It has run.
    ThreadedEnd {
        /// Kind of interrupt.
        index: IrqIndex,
        /// Its vector.
        vector: u32,
    },
    /// A bottom half began to run.
    BottomHalfBegin {
        /// The interrupt domain.
        domain: u64,
        /// Where it was made.
        at: Place,
    },
    /// It has run.
    BottomHalfEnd {
        /// The interrupt domain.
        domain: u64,
    },
    /// A buffer became the device's.
    Lend {
        /// Bus address.
        iova: u64,
        /// Bytes.
        size: u64,
    },
    /// It is the driver's again.
    Return {
        /// Bus address.
        iova: u64,
        /// Bytes.
        size: u64,
    },
    /// A thread that had not been seen before.
    Thread {
        /// Its name, as far as the kernel keeps it.
        name: String,
    },
    /// A piece of the name of a source file that had not been seen before.
    File {
        /// The file's number in the recording, from 1.
        file: u32,
        /// Where in its name the piece is.
        start: u32,
        /// The piece, up to 8 bytes.
        bytes: Vec<u8>,
    },
}

impl What {
    /// Whether it only names something, for other events.
    pub(crate) const fn is_name(&self) -> bool {
        matches!(self, Self::Thread { .. } | Self::File { .. })
    }
}

/// A place in a program's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The file's number in the recording; 0 if it was not recorded, as before version 3.
    pub file: u32,
    /// The line.
    pub line: u32,
}

impl Place {
    pub(crate) fn pack(self) -> u64 {
        pack_pair(self.line, self.file)
    }

    const fn unpack(word: u64) -> Self {
        Self { file: (word >> 32) as u32, line: word as u32 }
    }
}

/// Two numbers in one word.
pub(crate) fn pack_pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
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

/// Who made an access, for who compares the order of accesses: a thread, or handlers, which run one after the other on
/// whichever thread is there to deliver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Actor {
    Handlers,
    Thread(u32),
}

/// Which threads are in a handler, as the events go by.
#[derive(Default)]
pub(crate) struct Actors(std::collections::BTreeSet<u32>);

impl Actors {
    /// Of an event, to be asked of each in its turn.
    pub(crate) fn of(&mut self, event: &Event) -> Actor {
        match event.what {
            What::HandlerBegin { .. } => drop(self.0.insert(event.thread)),
            What::HandlerEnd { .. } => drop(self.0.remove(&event.thread)),
            _ => {}
        }
        if self.0.contains(&event.thread) { Actor::Handlers } else { Actor::Thread(event.thread) }
    }
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
    SectionBegin = 13,
    SectionEnd = 14,
    HandlerBegin = 15,
    HandlerEnd = 16,
    /// Two clocks at one moment: the event's time, and nanoseconds from the start. Never seen outside the file.
    Clock = 17,
    Lend = 18,
    Return = 19,
    /// From here on since version 3.
    File = 20,
    ThreadedBegin = 21,
    ThreadedEnd = 22,
    BottomHalfBegin = 23,
    BottomHalfEnd = 24,
}

/// Second word: tag, index, width or length in bytes, outcome, thread, lowest first.
pub(crate) const fn head(tag: Tag, index: u32, bytes: u64, thread: u32) -> u64 {
    tag as u64 | ((index & 0xff) as u64) << 8 | (bytes & 0xff) << 16 | (thread as u64) << 32
}

/// Added to the second word when the call has ended.
pub(crate) const DONE: u64 = 1 << 24;
pub(crate) const FAILED: u64 = 2 << 24;

/// Text of a file, which is shown on terminals, without what they would take for commands.
pub(crate) fn printable(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

impl What {
    /// The words of [`unpack`], without the thread: the inverse, for recordings that are made of others.
    pub(crate) fn pack(&self) -> (u64, u64, u64) {
        let of = |tag, index, bytes, a, b| (head(tag, index, bytes, 0), a, b);
        let ended = |(head, a, b): (u64, u64, u64), outcome: Outcome| match outcome {
            Outcome::Unfinished => (head, a, b),
            Outcome::Done => (head | DONE, a, b),
            Outcome::Failed(errno) => (head | FAILED, a, errno as u64),
        };
        let done = |words| ended(words, Outcome::Done);
        match self {
            Self::Read { region, offset, width, value, outcome } => {
                ended(of(Tag::Read, region.0, width.bytes(), *offset, *value), *outcome)
            }
            Self::Write { region, offset, width, value, outcome } => {
                ended(of(Tag::Write, region.0, width.bytes(), *offset, *value), *outcome)
            }
            Self::Irq { index, vector, count } => done(of(Tag::Irq, index.0, 0, (*vector).into(), *count)),
            Self::Arm { index, start, count } => done(of(Tag::Arm, index.0, 0, (*start).into(), *count)),
            Self::Disarm { index } => done(of(Tag::Disarm, index.0, 0, 0, 0)),
            Self::Mask { index, vector, masked } => {
                done(of(if *masked { Tag::Mask } else { Tag::Unmask }, index.0, 0, (*vector).into(), 0))
            }
            Self::Map { iova, size, outcome } => ended(of(Tag::Map, 0, 0, *iova, *size), *outcome),
            Self::Unmap { iova, size } => done(of(Tag::Unmap, 0, 0, *iova, *size)),
            Self::Data { iova, bytes } => done(of(Tag::Data, 0, bytes.len().min(8) as u64, *iova, word(bytes))),
            Self::Reset => done(of(Tag::Reset, 0, 0, 0, 0)),
            Self::SectionBegin { domain, at } => done(of(Tag::SectionBegin, 0, 0, *domain, at.pack())),
            Self::SectionEnd { domain } => done(of(Tag::SectionEnd, 0, 0, *domain, 0)),
            Self::HandlerBegin { index, vector } => done(of(Tag::HandlerBegin, index.0, 0, (*vector).into(), 0)),
            Self::HandlerEnd { index, vector, handled } => {
                done(of(Tag::HandlerEnd, index.0, 0, (*vector).into(), (*handled).into()))
            }
            Self::ThreadedBegin { index, vector } => done(of(Tag::ThreadedBegin, index.0, 0, (*vector).into(), 0)),
            Self::ThreadedEnd { index, vector } => done(of(Tag::ThreadedEnd, index.0, 0, (*vector).into(), 0)),
            Self::BottomHalfBegin { domain, at } => done(of(Tag::BottomHalfBegin, 0, 0, *domain, at.pack())),
            Self::BottomHalfEnd { domain } => done(of(Tag::BottomHalfEnd, 0, 0, *domain, 0)),
            Self::Lend { iova, size } => done(of(Tag::Lend, 0, 0, *iova, *size)),
            Self::Return { iova, size } => done(of(Tag::Return, 0, 0, *iova, *size)),
            Self::Thread { name } => {
                let (a, b) = name_words(name);
                done(of(Tag::Thread, 0, 16, a, b))
            }
            Self::File { file, start, bytes } => {
                done(of(Tag::File, 0, bytes.len().min(8) as u64, pack_pair(*file, *start), word(bytes)))
            }
        }
    }
}

/// Up to 8 bytes as a word.
pub(crate) fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    u64::from_le_bytes(word)
}

/// As much of a thread's name as two words hold: what the kernel keeps of it, and one byte.
pub(crate) fn name_words(name: &str) -> (u64, u64) {
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    let words = u128::from_le_bytes(bytes);
    (words as u64, (words >> 64) as u64)
}

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
            What::Thread { name: printable(String::from_utf8_lossy(&name).trim_end_matches('\0')) }
        }
        13 => What::SectionBegin { domain: a, at: Place::unpack(b) },
        14 => What::SectionEnd { domain: a },
        15 => What::HandlerBegin { index: irq, vector },
        16 => What::HandlerEnd { index: irq, vector, handled: b != 0 },
        18 => What::Lend { iova: a, size: b },
        19 => What::Return { iova: a, size: b },
        20 => {
            let bytes = b.to_le_bytes().get(..bytes.into())?.to_vec();
            What::File { file: vector, start: (a >> 32) as u32, bytes }
        }
        21 => What::ThreadedBegin { index: irq, vector },
        22 => What::ThreadedEnd { index: irq, vector },
        23 => What::BottomHalfBegin { domain: a, at: Place::unpack(b) },
        24 => What::BottomHalfEnd { domain: a },
        _ => return None,
    };
    Some(Event { number, time: Duration::from_nanos(time), thread: (head >> 32) as u32, what })
}
