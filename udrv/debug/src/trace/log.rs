//! The file that a recorder writes: mapped, so that what was written is there whatever becomes of the process.
#![expect(unsafe_code, reason = "the file is written through a shared mapping; all of it is atomic words")]

use super::describe::Description;
use super::event::{DONE, FAILED, Place, Tag, WORDS, head, name_words, pack_pair, word};
use super::read::MOST_EVENTS;
use super::ticks::{self, Source};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use udrv_backend::{Error, Result};

/// The first bytes of a trace.
pub(crate) const MAGIC: [u8; 8] = *b"udrvtrc\0";
/// The format's version.
pub(crate) const VERSION: u64 = 3;
/// Where the words of the header are: magic, version, bytes before the first event, length of the description, events
/// claimed; then what version 1 had not: what times are read from (0 nanoseconds, 1 a counter), the counter at the start,
/// its ticks in a second as far as known then, the counter at the end, nanoseconds at the end. The description follows.
pub(crate) const HEADER_WORDS: usize = 10;
const CLAIMED: usize = 4;
const RATE: usize = 7;
const END: usize = 8;
/// Both clocks are read together before every so manieth event.
const CLOCK_EVERY: u64 = 4096;
const PAGE: usize = 4096;

/// A trace that is being written.
pub(super) struct Log {
    base: NonNull<AtomicU64>,
    size: usize,
    /// Index of the first event's first word.
    first: usize,
    capacity: u64,
    source: Source,
    /// Nanoseconds and ticks.
    start: (u64, u64),
    file: File,
    path: PathBuf,
    known: Mutex<Vec<u32>>,
    /// Source files that have a number: their place, and one.
    files: Mutex<Vec<&'static str>>,
    id: u64,
}

// SAFETY: the mapping is reached as atomic words only, and lives until the log is dropped.
unsafe impl Send for Log {}
// SAFETY: as above.
unsafe impl Sync for Log {}

thread_local! {
    /// This thread's kernel id, and the log that it last announced itself in.
    static THREAD: Cell<(u32, u64)> = const { Cell::new((0, 0)) };
    /// The source file that this thread named last, its number, and in which log.
    static FILE: Cell<(&'static str, u32, u64)> = const { Cell::new(("", 0, 0)) };
}

/// An event that has begun.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    at: usize,
    head: u64,
}

/// Everything before the first event, in whole pages.
pub(super) fn header(description: &Description, source: Source, start: u64, claimed: u64) -> io::Result<Vec<u8>> {
    let text = serde_json::to_vec(description)?;
    let first = (HEADER_WORDS * 8 + text.len()).next_multiple_of(PAGE);
    let mut bytes = MAGIC.to_vec();
    let is_counter = u64::from(source == Source::Counter);
    for word in [VERSION, first as u64, text.len() as u64, claimed, is_counter, start, 0, 0, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(text);
    bytes.resize(first, 0);
    Ok(bytes)
}

/// A new file in place of another. Never the same file: another recorder may have it mapped, whose next store would be a
/// SIGBUS if it became shorter. What is no file stays.
pub(super) fn replace(path: &Path) -> io::Result<File> {
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.is_file() || there.is_symlink() => std::fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists and is no file: name another")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

impl Log {
    /// Room for `capacity` events, all of it allocated now: a store to a mapped hole of a file on a full disk would
    /// otherwise be a SIGBUS.
    pub(super) fn create(path: &Path, description: &Description, capacity: u64) -> Result<Self> {
        let os = |cause: io::Error| Error::os(format!("writing the trace {}", path.display()), cause);
        let start = (ticks::nanoseconds(), ticks::counter());
        let source = Source::of_this_machine();
        let header = header(description, source, start.1, 0).map_err(os)?;
        let first = header.len();
        let size = usize::try_from(capacity.min(MOST_EVENTS)).ok().and_then(|events| events.checked_mul(WORDS * 8));
        let size = size.and_then(|bytes| bytes.checked_add(first)).filter(|_| capacity <= MOST_EVENTS);
        let size = size.ok_or_else(|| os(io::ErrorKind::FileTooLarge.into()))?;
        let file = replace(path).map_err(os)?;
        let length = i64::try_from(size).map_err(|_| os(io::ErrorKind::FileTooLarge.into()))?;
        // First, so that a file whose recorder is killed here is a recording of nothing.
        file.write_all_at(&header, 0).map_err(os)?;
        nix::fcntl::posix_fallocate(&file, 0, length).map_err(|errno| os(errno.into()))?;
        let length = NonZeroUsize::new(size).ok_or_else(|| os(io::ErrorKind::InvalidInput.into()))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new shared mapping at an address the kernel chooses replaces nothing.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &file, 0) };
        let base = base.map_err(|errno| os(errno.into()))?;
        // Page faults are taken here rather than by the accesses that are timed. Kernels before 5.14 cannot; then they are.
        // SAFETY: this advice changes no contents, and the range is the mapping made above.
        let _old_kernel = unsafe { libc::madvise(base.as_ptr(), size, libc::MADV_POPULATE_WRITE) };
        static LOGS: AtomicU64 = AtomicU64::new(1);
        let it = Self {
            base: base.cast(),
            size,
            first: first / 8,
            capacity,
            source,
            start,
            file,
            path: path.to_owned(),
            known: Mutex::default(),
            files: Mutex::default(),
            id: LOGS.fetch_add(1, Ordering::Relaxed),
        };
        // What has been done since took a while, by which the counter's rate is known well enough to begin with.
        let (ticks, nanoseconds) = it.both_clocks();
        let rate = u128::from(ticks - it.start.1) * 1_000_000_000 / u128::from(nanoseconds.max(1));
        it.word(RATE).store((rate as u64).to_le(), Ordering::Relaxed);
        Ok(it)
    }

    /// The counter, and nanoseconds from the start.
    fn both_clocks(&self) -> (u64, u64) {
        (ticks::counter(), ticks::nanoseconds().saturating_sub(self.start.0))
    }

    #[inline]
    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.size / 8, "an event beyond the trace");
        // SAFETY: in bounds of the mapping, as was asserted.
        let at = unsafe { self.base.add(index) };
        // SAFETY: the mapping is page aligned, as long-lived as `self`, and reached as atomic words only.
        unsafe { at.as_ref() }
    }

    /// An event whose end is not known yet: it is in the file before the call it is about. `None` when the file is full.
    #[inline]
    pub(super) fn begin(&self, tag: Tag, index: u32, bytes: u64, a: u64, b: u64) -> Option<Slot> {
        let (mut thread, announced) = THREAD.get();
        if announced != self.id {
            thread = self.announce();
        }
        self.claim(head(tag, index, bytes, thread), a, b)
    }

    #[inline]
    fn claim(&self, head: u64, a: u64, b: u64) -> Option<Slot> {
        let number = self.word(CLAIMED).fetch_add(1, Ordering::Relaxed);
        if number >= self.capacity {
            return None;
        }
        let time = match self.source {
            Source::Counter => {
                if number % CLOCK_EVERY == CLOCK_EVERY - 1 {
                    self.record_clock();
                }
                ticks::counter()
            }
            Source::Clock => self.both_clocks().1,
        };
        let at = self.first + number as usize * WORDS;
        self.word(at).store(time.to_le(), Ordering::Relaxed);
        self.word(at + 2).store(a.to_le(), Ordering::Relaxed);
        self.word(at + 3).store(b.to_le(), Ordering::Relaxed);
        self.word(at + 1).store(head.to_le(), Ordering::Release);
        Some(Slot { at, head })
    }

    #[cold]
    fn record_clock(&self) {
        let (ticks, nanoseconds) = self.both_clocks();
        let number = self.word(CLAIMED).fetch_add(1, Ordering::Relaxed);
        if number < self.capacity {
            let at = self.first + number as usize * WORDS;
            self.word(at).store(ticks.to_le(), Ordering::Relaxed);
            self.word(at + 2).store(nanoseconds.to_le(), Ordering::Relaxed);
            self.word(at + 1).store((head(Tag::Clock, 0, 0, 0) | DONE).to_le(), Ordering::Release);
        }
    }

    /// How it ended, and the value that came with it.
    #[inline]
    pub(super) fn end(&self, slot: Option<Slot>, outcome: std::result::Result<Option<u64>, i32>) {
        let Some(Slot { at, head }) = slot else { return };
        let (flag, value) = match outcome {
            Ok(value) => (DONE, value),
            Err(errno) => (FAILED, Some(errno as u64)),
        };
        if let Some(value) = value {
            self.word(at + 3).store(value.to_le(), Ordering::Relaxed);
        }
        self.word(at + 1).store((head | flag).to_le(), Ordering::Release);
    }

    /// An event that is over at once.
    pub(super) fn event(&self, tag: Tag, index: u32, bytes: u64, a: u64, b: u64) {
        let slot = self.begin(tag, index, bytes, a, b);
        self.end(slot, Ok(None));
    }

    /// This thread's id, with its name in the trace.
    #[cold]
    fn announce(&self) -> u32 {
        let thread = nix::unistd::gettid().as_raw() as u32;
        THREAD.set((thread, self.id));
        let mut known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !known.contains(&thread) {
            known.push(thread);
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            let (a, b) = name_words(&name);
            let slot = self.claim(head(Tag::Thread, 0, 16, thread), a, b);
            self.end(slot, Ok(None));
        }
        thread
    }

    /// A place in the source; its file's name is in the trace before it.
    pub(super) fn place(&self, at: &'static Location<'static>) -> Place {
        let (name, number, log) = FILE.get();
        let is_known = log == self.id && std::ptr::eq(name, at.file());
        let file = if is_known { number } else { self.number_of(at.file()) };
        Place { file, line: at.line() }
    }

    #[cold]
    fn number_of(&self, name: &'static str) -> u32 {
        let mut files = self.files.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let place = files.iter().position(|known| *known == name);
        let number = place.unwrap_or(files.len()) as u32 + 1;
        if place.is_none() {
            files.push(name);
            // Still locked: whoever uses the number finds the whole name before that.
            for (piece, bytes) in (0..).step_by(8).zip(name.as_bytes().chunks(8)) {
                self.event(Tag::File, 0, bytes.len() as u64, pack_pair(number, piece), word(bytes));
            }
        }
        FILE.set((name, number, self.id));
        number
    }

    /// How many events there was no room for.
    pub(super) fn lost(&self) -> u64 {
        self.word(CLAIMED).load(Ordering::Relaxed).saturating_sub(self.capacity)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let events = self.word(CLAIMED).load(Ordering::Relaxed).min(self.capacity);
        let length = self.first as u64 * 8 + events * WORDS as u64 * 8;
        let (ticks, nanoseconds) = self.both_clocks();
        self.word(END).store(ticks.to_le(), Ordering::Relaxed);
        self.word(END + 1).store(nanoseconds.to_le(), Ordering::Relaxed);
        // SAFETY: this is the mapping made in `create`; references into it last no longer than a call of `self`.
        let unmapped = unsafe { munmap(self.base.cast(), self.size) };
        // What is left too long is a trace all the same: its header counts the events.
        if unmapped.is_ok() && self.file.set_len(length).is_err() {
            eprintln!("udrv: the trace {} keeps room that it does not need", self.path.display());
        }
    }
}
