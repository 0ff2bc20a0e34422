//! The writer: this process's page, and slots in it.
#![expect(unsafe_code, reason = "the page is memory shared with other processes")]

use crate::layout::{self, Table, head};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use std::cell::Cell;
use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// This process's page.
pub struct Page {
    words: &'static [AtomicU64],
    /// Open as long as the process lives, so that others find it. `None`: it could not be made, and nobody sees what is written.
    _file: Option<OwnedFd>,
    names: Mutex<Names>,
}

#[derive(Default)]
pub(crate) struct Names {
    /// Devices in use, by address: slot, and how many handles there are.
    pub(crate) devices: HashMap<String, (u32, usize)>,
    /// The register maps that drivers have told of, by the address of the device.
    pub(crate) maps: HashMap<String, (u64, u64)>,
    /// The maps written, by the driver's name.
    pub(crate) written: HashMap<&'static str, (u64, u64)>,
    /// Bytes of text in use.
    pub(crate) text: usize,
}

/// The page, made at the first call.
pub fn page() -> &'static Page {
    static PAGE: OnceLock<Page> = OnceLock::new();
    PAGE.get_or_init(|| {
        let (words, file) = match map() {
            Ok((words, file)) => (words, Some(file)),
            // Whoever has no descriptor left has other things to tell: the driver goes on, unseen.
            Err(_) => (&*Box::leak((0..layout::WORDS).map(|_| AtomicU64::new(0)).collect()), None),
        };
        let page = Page { words, _file: file, names: Mutex::default() };
        page.set(head::VERSION, layout::VERSION);
        page.set(head::PID, u64::from(std::process::id()));
        page.set(head::MAGIC, layout::MAGIC);
        udrv_backend::clock::stands_still_by(page.word(head::HELD));
        page
    })
}

fn map() -> nix::Result<(&'static [AtomicU64], OwnedFd)> {
    let file = memfd_create(c"udrv-inspect", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let bytes = layout::WORDS * size_of::<AtomicU64>();
    nix::unistd::ftruncate(&file, bytes as i64)?;
    // Nobody can take the memory away under us, whoever opens the file.
    let seals = nix::fcntl::SealFlag::F_SEAL_SHRINK | nix::fcntl::SealFlag::F_SEAL_GROW;
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_ADD_SEALS(seals))?;
    let length = NonZeroUsize::new(bytes).ok_or(nix::errno::Errno::EINVAL)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new shared mapping at an address the kernel chooses replaces nothing.
    let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &file, 0) }?;
    let first = base.cast::<AtomicU64>();
    // SAFETY: the mapping has WORDS words, aligned to a page, zeroed by the kernel; it is never unmapped, and its file cannot
    // shrink (sealed above), so it stays valid; whoever else writes there, an atomic may change at any time.
    let words = unsafe { std::slice::from_raw_parts(first.as_ptr(), layout::WORDS) };
    Ok((words, file))
}

/// The number of this thread, asked of the kernel once.
#[must_use]
pub fn thread() -> u64 {
    thread_local! {
        static THREAD: Cell<u64> = const { Cell::new(0) };
    }
    // A thread so far gone that this is destroyed has no name any more.
    THREAD
        .try_with(|known| {
            if known.get() == 0 {
                known.set(nix::unistd::gettid().as_raw().unsigned_abs().into());
            }
            known.get()
        })
        .unwrap_or(0)
}

/// CLOCK_MONOTONIC in nanoseconds: it does not stand still when the process does.
#[must_use]
pub fn monotonic() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(Duration::from);
    time.map_or(0, |time| time.as_nanos() as u64)
}

impl Page {
    /// A word. Beyond the page, which does not happen, there is one that nobody reads.
    #[inline(always)]
    pub(crate) fn word(&self, at: usize) -> &'static AtomicU64 {
        static NOWHERE: AtomicU64 = AtomicU64::new(0);
        self.words.get(at).unwrap_or(&NOWHERE)
    }

    #[inline(always)]
    pub(crate) fn set(&self, at: usize, value: u64) {
        self.word(at).store(value.to_le(), Ordering::Relaxed);
    }

    pub(crate) fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_text(&self, at: usize, room: usize, bytes: &[u8]) {
        let bytes = bytes.get(..room).unwrap_or(bytes);
        self.set(at, bytes.len() as u64);
        self.set_bytes(at + 1, bytes);
    }

    pub(crate) fn set_bytes(&self, at: usize, bytes: &[u8]) {
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            self.set(at + index, u64::from_le_bytes(word));
        }
    }

    /// Says what this build records: sections, and accesses to mapped registers.
    pub fn records(&self, sections: bool, mapped: bool) {
        self.set(head::RECORDS, u64::from(sections) | u64::from(mapped) << 1);
    }

    /// Keeps what a panic said, for who looks at the process after its end.
    pub fn panicked(&self, text: &str) {
        self.set_text(layout::PANIC.base, (layout::PANIC.words - 1) * 8, text.as_bytes());
    }

    /// Takes a free slot of a table, if there is one, and fills it before it is seen.
    pub(crate) fn take(&'static self, table: Table, state: u64, fill: impl FnOnce(&Slot)) -> Slot {
        // A slot that is being filled has a state that no reader knows.
        const FILLING: u64 = u64::MAX;
        let free = |slot: &usize| {
            let state = self.word(table.at(*slot));
            state.compare_exchange(0, FILLING.to_le(), Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        let Some(number) = (0..table.count).find(free) else {
            self.word(head::REFUSED).fetch_add(1, Ordering::Relaxed);
            return Slot::NOWHERE;
        };
        let slot = Slot::of(table, number);
        for word in 1..table.words {
            slot.set(word, 0);
        }
        fill(&slot);
        self.word(slot.base()).store(state.to_le(), Ordering::Release);
        slot
    }
}

/// A slot of a table, free again when dropped. Small, only where it starts: a source has two, and there may be thousands.
#[derive(Debug)]
pub struct Slot(NonZeroU32);

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Page")
    }
}

impl Slot {
    /// Where there was no room, behind the page: what is stored there is not seen.
    pub(crate) const NOWHERE: Self = Self(NonZeroU32::MIN.saturating_add(layout::WORDS as u32 - 1));

    /// Not 0: before all tables there is the head.
    pub(crate) fn of(table: Table, number: usize) -> Self {
        NonZeroU32::new(table.at(number) as u32).map_or(Self::NOWHERE, Self)
    }

    pub(crate) fn base(&self) -> usize {
        self.0.get() as usize
    }

    pub(crate) fn is_nowhere(&self) -> bool {
        self.base() == layout::WORDS
    }

    /// Which one of its table; all ones where there was no room.
    pub(crate) fn number(&self, table: Table) -> u32 {
        if self.is_nowhere() { u32::MAX } else { ((self.base() - table.base) / table.words) as u32 }
    }

    /// One store.
    #[inline(always)]
    pub(crate) fn set(&self, word: usize, value: u64) {
        page().set(self.base() + word, value);
    }

    /// Gives it back without dropping: it can be seen for good.
    pub(crate) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        page().word(self.base()).store(0, Ordering::Release);
    }
}
