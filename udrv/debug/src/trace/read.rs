//! A trace as it is read: nothing in the file is trusted.

use super::describe::Description;
use super::event::{Event, Tag, WORDS, What, printable, unpack};
use super::log::{HEADER_WORDS, MAGIC, VERSION, header, replace};
use super::names::Names;
use super::ticks::{Scale, Source};
use nix::fcntl::OFlag;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use udrv_backend::{Error, Result};

/// The most events of one recording (4 GiB of file): no machine is asked for more memory than that takes.
pub(crate) const MOST_EVENTS: u64 = 1 << 27;
/// The longest description: thousands of times what any device has to say.
const LONGEST_DESCRIPTION: u64 = 4 << 20;
/// So many events in a row that were never written are no threads that were killed (each leaves one), but a hole: nothing is
/// looked for behind it.
const LONGEST_GAP: u64 = 1 << 16;
/// Words of version 1's header.
const OLD_HEADER_WORDS: usize = 5;

/// A recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Of which device.
    pub device: Description,
    /// What happened, in the order in which it began.
    pub events: Vec<Event>,
    /// How many events more there were, for which there was no room.
    pub lost: u64,
}

/// What is wrong with a file: found, and expected.
pub(super) type Wrong = (String, &'static str);

pub(super) fn refusal(name: &str, (found, expected): Wrong) -> Error {
    Error::Protocol { peer: name.into(), found, expected: expected.into() }
}

/// The header's words after the magic.
struct Header {
    version: u64,
    first: u64,
    length: u64,
    claimed: u64,
    /// If times are of a counter: what its ticks are.
    scale: Option<Scale>,
    /// The counter and the clock when it was closed; 0 if it was not.
    end: (u64, u64),
}

/// A recording as it is read, piece by piece.
pub(super) struct Pieces {
    header: Header,
    /// Events seen so far, also such as were never written.
    number: u64,
    unwritten: u64,
}

impl Trace {
    /// Reads a file, also one whose recorder was killed.
    ///
    /// # Errors
    /// [`Error::Os`]; [`Error::Protocol`] if it is no trace, or one of another version.
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(open(path)?, &path.display().to_string())
    }

    /// Reads a recording's bytes, of something of this name.
    ///
    /// # Errors
    /// As [`Trace::open`].
    pub fn read(bytes: impl Read, name: &str) -> Result<Self> {
        let parsed = Self::parse(bytes).map_err(|error| Error::os(format!("reading the trace {name}"), error))?;
        parsed.map_err(|wrong| refusal(name, wrong))
    }

    fn parse(mut file: impl Read) -> io::Result<std::result::Result<Self, Wrong>> {
        let (device, mut pieces) = match Pieces::begin(&mut file)? {
            Ok(begun) => begun,
            Err(wrong) => return Ok(Err(wrong)),
        };
        let mut events = Vec::new();
        loop {
            match pieces.next(&mut file)? {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(wrong) => return Ok(Err(wrong)),
            }
        }
        let lost = pieces.lost();
        if let Some(scale) = pieces.scale() {
            events.iter_mut().for_each(|event| event.time = scale.time(event.time));
        }
        Ok(Ok(Self { device, events, lost }))
    }

    /// Writes it as a recording of its own, in place of a file of this name.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let write = || -> io::Result<()> {
            let claimed = self.events.len() as u64;
            let mut file = BufWriter::new(replace(path)?);
            file.write_all(&header(&self.device, Source::Clock, 0, claimed.saturating_add(self.lost))?)?;
            for event in &self.events {
                let (head, a, b) = event.what.pack();
                let time = u64::try_from(event.time.as_nanos()).unwrap_or(u64::MAX);
                for word in [time, head | u64::from(event.thread) << 32, a, b] {
                    file.write_all(&word.to_le_bytes())?;
                }
            }
            file.flush()
        };
        write().map_err(|error| Error::os(format!("writing the trace {}", path.display()), error))
    }

    /// The names of what the events have numbers of.
    #[must_use]
    pub fn names(&self) -> Names {
        Names::of_events(&self.events)
    }

    /// Whether it has what the device wrote into memory. Recordings before version 3 do not say: of them, those that have
    /// any have it.
    #[must_use]
    pub fn has_dma_contents(&self) -> bool {
        let any = || self.events.iter().any(|event| matches!(event.what, What::Data { .. }));
        self.device.dma_contents.unwrap_or_else(any)
    }
}

impl Pieces {
    /// What comes before the events.
    pub(super) fn begin(file: &mut impl Read) -> io::Result<std::result::Result<(Description, Self), Wrong>> {
        let (header, read) = match Header::parse(file)? {
            Ok(header) => header,
            Err(wrong) => return Ok(Err(wrong)),
        };
        let no_description = || (format!("a description of {} bytes", header.length), "one after the header");
        if header.length > LONGEST_DESCRIPTION {
            return Ok(Err(no_description()));
        }
        let text = up_to(file, header.length)?;
        if text.len() as u64 != header.length {
            return Ok(Err(no_description()));
        }
        let device: Description = match serde_json::from_slice(&text) {
            Ok(device) => device,
            Err(error) => return Ok(Err((printable(&error.to_string()), "the device's description"))),
        };
        if let Err(wrong) = device.check() {
            return Ok(Err((wrong, "what a device can have")));
        }
        let device = Description { address: printable(&device.address), ..device };
        let before = header.first.saturating_sub(read + header.length);
        io::copy(&mut file.take(before), &mut io::sink())?;
        Ok(Ok((device, Self { header, number: 0, unwritten: 0 })))
    }

    /// Not to look at more places for events than so many.
    pub(super) fn stop_after(&mut self, places: u64) {
        self.header.claimed = self.header.claimed.min(places);
    }

    /// The next event, with its time as the file has it; `None` after the last.
    pub(super) fn next(&mut self, file: &mut impl Read) -> io::Result<std::result::Result<Option<Event>, Wrong>> {
        while self.number < self.header.claimed.min(MOST_EVENTS) && self.unwritten < LONGEST_GAP {
            let mut bytes = [0; WORDS * 8];
            match file.read_exact(&mut bytes) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error),
            }
            let number = self.number;
            self.number += 1;
            let mut words = [0; WORDS];
            for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
                *word = bytes.try_into().map_or(0, u64::from_le_bytes);
            }
            let [time, head, nanoseconds, _] = words;
            // A head of 0 is an event whose recorder was killed before it had written it.
            if head == 0 {
                self.unwritten += 1;
                continue;
            }
            self.unwritten = 0;
            if self.header.version > 1 && head.to_le_bytes()[0] == Tag::Clock as u8 {
                self.header.scale.iter_mut().for_each(|scale| scale.add(time, nanoseconds));
                continue;
            }
            return Ok(match unpack(number, words) {
                Some(event) => Ok(Some(event)),
                None => Err((format!("event {number} of no known kind"), "an event of this version")),
            });
        }
        Ok(Ok(None))
    }

    /// After the last event: how many there was no room for.
    fn lost(&self) -> u64 {
        self.header.claimed - self.number
    }

    /// After the last event: what times are, unless they are nanoseconds.
    pub(super) fn scale(self) -> Option<Scale> {
        let (ticks, nanoseconds) = self.header.end;
        let mut scale = self.header.scale?;
        scale.add(ticks, nanoseconds);
        Some(scale)
    }
}

/// A trace's file.
pub(super) fn open(path: &Path) -> Result<BufReader<File>> {
    let os = |error: io::Error| Error::os(format!("reading the trace {}", path.display()), error);
    // Whatever it is, opening it does not wait.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(os)?;
    if !file.metadata().map_err(os)?.is_file() {
        return Err(refusal(&path.display().to_string(), ("something that is no file".into(), "a file")));
    }
    Ok(BufReader::with_capacity(1 << 16, file))
}

/// At most so many bytes: fewer where the file ends.
fn up_to(file: &mut impl Read, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// At most so many words: fewer where the file ends.
fn words(file: &mut impl Read, count: usize) -> io::Result<Vec<u64>> {
    let bytes = up_to(file, count as u64 * 8)?;
    Ok(bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes)).collect())
}

impl Header {
    /// And how many bytes it took.
    fn parse(file: &mut impl Read) -> io::Result<std::result::Result<(Self, u64), Wrong>> {
        let cut_short = || Ok(Err(("a header that is cut short".into(), "one of five or ten words")));
        let old = words(file, OLD_HEADER_WORDS)?;
        if old.first() != Some(&u64::from_le_bytes(MAGIC)) {
            return Ok(Err(("another kind of file".into(), "a trace, which begins with \"udrvtrc\"")));
        }
        let &[_, version, first, length, claimed] = old.as_slice() else { return cut_short() };
        let mut header = Self { version, first, length, claimed, scale: None, end: (0, 0) };
        match version {
            1 => return Ok(Ok((header, OLD_HEADER_WORDS as u64 * 8))),
            2..=VERSION => {}
            other => {
                let expected = "version 1 to 3: record again, or use the udrv that recorded it";
                return Ok(Err((format!("version {other}"), expected)));
            }
        }
        let new = words(file, HEADER_WORDS - OLD_HEADER_WORDS)?;
        let &[is_counter, start, rate, ..] = new.as_slice() else { return cut_short() };
        let &[.., end, nanoseconds] = new.as_slice() else { return cut_short() };
        if new.len() != HEADER_WORDS - OLD_HEADER_WORDS {
            return cut_short();
        }
        if is_counter == 1 {
            header.scale = Some(Scale::new(start, rate));
            header.end = (end, nanoseconds);
        }
        Ok(Ok((header, HEADER_WORDS as u64 * 8)))
    }
}
