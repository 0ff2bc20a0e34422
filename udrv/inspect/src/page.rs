//! The writer: this process's page, and what has a slot in it.
#![expect(unsafe_code, reason = "the page is memory shared with other processes")]

use crate::layout::{self, Table, access, buffer, device, domain, head, section, source};
use crate::registers::Registers;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use std::cell::Cell;
use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use udrv_backend::register::RegisterMap;
use udrv_backend::{Backend, RegionIndex, Width};

/// This process's page.
pub struct Page {
    words: &'static [AtomicU64],
    /// Open as long as the process lives, so that others find it. `None`: it could not be made, and nobody sees what is written.
    _file: Option<OwnedFd>,
    names: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    /// Devices in use, by address: slot, and how many handles there are.
    devices: HashMap<String, (u32, usize)>,
    /// The register maps that drivers have told of, by the address of the device.
    maps: HashMap<String, (u64, u64)>,
    /// The maps written, by the driver's name.
    written: HashMap<&'static str, (u64, u64)>,
    /// Bytes of text in use.
    text: usize,
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
    fn word(&self, at: usize) -> &'static AtomicU64 {
        static NOWHERE: AtomicU64 = AtomicU64::new(0);
        self.words.get(at).unwrap_or(&NOWHERE)
    }

    #[inline(always)]
    fn set(&self, at: usize, value: u64) {
        self.word(at).store(value.to_le(), Ordering::Relaxed);
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_text(&self, at: usize, room: usize, bytes: &[u8]) {
        let bytes = bytes.get(..room).unwrap_or(bytes);
        self.set(at, bytes.len() as u64);
        self.set_bytes(at + 1, bytes);
    }

    fn set_bytes(&self, at: usize, bytes: &[u8]) {
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
    fn take(&'static self, table: Table, state: u64, fill: impl FnOnce(&Slot)) -> Slot {
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

    /// Notes an access in the ring.
    pub fn note(&self, device: &Device, region: RegionIndex, (kind, width): (u64, Width), offset: u64, value: u64) {
        let number = u64::from_le(self.word(head::ACCESSES).fetch_add(1u64.to_le(), Ordering::Relaxed));
        let at = layout::RING.at(number as usize % layout::RING.count);
        self.set(at + access::NUMBER, 0);
        self.set(at + access::TIME, monotonic());
        self.set(at + access::THREAD, thread());
        self.set(at + access::KIND, kind | width.bytes() << 8);
        self.set(at + access::WHERE, u64::from(device.slot.number(layout::DEVICES)) | u64::from(region.0) << 32);
        self.set(at + access::OFFSET, offset);
        self.set(at + access::VALUE, value);
        self.word(at + access::NUMBER).store((number + 1).to_le(), Ordering::Release);
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
    const NOWHERE: Self = Self(NonZeroU32::MIN.saturating_add(layout::WORDS as u32 - 1));

    /// Not 0: before all tables there is the head.
    fn of(table: Table, number: usize) -> Self {
        NonZeroU32::new(table.at(number) as u32).map_or(Self::NOWHERE, Self)
    }

    fn base(&self) -> usize {
        self.0.get() as usize
    }

    fn is_nowhere(&self) -> bool {
        self.base() == layout::WORDS
    }

    /// Which one of its table; all ones where there was no room.
    fn number(&self, table: Table) -> u32 {
        if self.is_nowhere() { u32::MAX } else { ((self.base() - table.base) / table.words) as u32 }
    }

    /// One store.
    #[inline(always)]
    fn set(&self, word: usize, value: u64) {
        page().set(self.base() + word, value);
    }

    /// Gives it back without dropping: it can be seen for good.
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        page().word(self.base()).store(0, Ordering::Release);
    }
}

/// A device in use. It is seen as long as there is a handle for its address.
#[derive(Debug)]
pub struct Device {
    slot: Slot,
}

impl Device {
    /// Shows a device, or finds it shown.
    #[must_use]
    pub fn of(backend: &(impl Backend + ?Sized)) -> Self {
        let page = page();
        let address = &backend.info().address;
        let mut names = page.names();
        if let Some((number, handles)) = names.devices.get_mut(address) {
            *handles += 1;
            return Self { slot: Slot::of(layout::DEVICES, *number as usize) };
        }
        let map = names.maps.get(address).copied();
        let slot = page.take(layout::DEVICES, 1, |slot| {
            page.set_text(slot.base() + device::ADDRESS, device::ADDRESS_ROOM, address.as_bytes());
            show_map(slot, map.unwrap_or_default());
            show_files(slot, backend);
        });
        if !slot.is_nowhere() {
            names.devices.insert(address.clone(), (slot.number(layout::DEVICES), 1));
        }
        Self { slot }
    }

    /// Notes a read that has been made.
    pub fn has_read(&self, region: RegionIndex, width: Width, offset: u64, value: u64) {
        page().note(self, region, (access::READ, width), offset, value);
    }

    /// Notes a write that is about to be made.
    pub fn writes(&self, region: RegionIndex, width: Width, offset: u64, value: u64) {
        page().note(self, region, (access::WRITE, width), offset, value);
    }
}

fn show_map(slot: &Slot, (at, length): (u64, u64)) {
    slot.set(device::MAP_LENGTH, length);
    slot.set(device::MAP, at);
}

/// Through which descriptor each region can be read from outside.
fn show_files(slot: &Slot, backend: &(impl Backend + ?Sized)) {
    let Some(mappable) = backend.mappable() else { return };
    for region in 0..device::REGIONS.min(backend.info().regions as usize) {
        let Ok(file) = mappable.region_file(RegionIndex(region as u32)) else { continue };
        slot.set(device::FILES + 2 * region, file.file.as_raw_fd() as u64 + 1);
        slot.set(device::FILES + 2 * region + 1, file.offset);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let number = self.slot.number(layout::DEVICES);
        let mut names = page().names();
        let known = names.devices.values_mut().find(|(known, _)| *known == number);
        let is_last = known.is_some_and(|(_, handles)| {
            *handles -= 1;
            *handles == 0
        });
        if is_last {
            names.devices.retain(|_, (known, _)| *known != number);
        } else {
            // The last handle frees it.
            std::mem::replace(&mut self.slot, Slot::NOWHERE).keep();
        }
    }
}

/// Says by which registers a device is driven, for who looks at it from outside.
pub fn describe(backend: &(impl Backend + ?Sized), map: &RegisterMap) {
    let page = page();
    let mut names = page.names();
    let known = names.written.get(map.device).copied();
    let Some(place) = known.or_else(|| page.write_map(&mut names, map)) else { return };
    let address = &backend.info().address;
    names.maps.insert(address.clone(), place);
    if let Some((number, _)) = names.devices.get(address) {
        let base = layout::DEVICES.at(*number as usize);
        page.set(base + device::MAP_LENGTH, place.1);
        page.set(base + device::MAP, place.0);
    }
}

impl Page {
    fn write_map(&self, names: &mut Names, map: &RegisterMap) -> Option<(u64, u64)> {
        let text = serde_json::to_vec(&Registers::from(map)).ok()?;
        let words = text.len().div_ceil(8);
        if names.text + words > layout::TEXT.count {
            self.word(head::REFUSED).fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let at = layout::TEXT.base + names.text;
        names.text += words;
        self.set_bytes(at, &text);
        let place = (at as u64 * 8, text.len() as u64);
        names.written.insert(map.device, place);
        Some(place)
    }
}

/// An interrupt domain.
#[derive(Debug)]
pub struct Domain(Slot);

impl Domain {
    /// Shows it. `delivery` is 0 for thread, 1 for signal, 2 for poll.
    #[must_use]
    pub fn new(delivery: u64) -> Self {
        Self(page().take(layout::DOMAINS, 1, |slot| slot.set(domain::DELIVERY, delivery)))
    }

    /// Shows that this thread has a section open, until it is dropped.
    #[must_use]
    pub fn section(&self, at: &std::panic::Location<'_>) -> Section {
        let page = page();
        Section(page.take(layout::SECTIONS, 1, |slot| {
            slot.set(section::DOMAIN, self.0.number(layout::DOMAINS).into());
            slot.set(section::THREAD, thread());
            slot.set(section::SINCE, monotonic());
            slot.set(section::LINE, at.line().into());
            let file = at.file().as_bytes();
            let tail = file.get(file.len().saturating_sub(section::FILE_ROOM)..).unwrap_or(file);
            page.set_text(slot.base() + section::FILE, section::FILE_ROOM, tail);
        }))
    }
}

/// An open section.
#[derive(Debug)]
pub struct Section(#[expect(dead_code, reason = "dropping it is what it is for")] Slot);

/// An interrupt source.
#[derive(Debug)]
pub struct Source {
    slot: Slot,
    _device: Option<Device>,
}

impl Source {
    /// Shows it: a vector of a device, or a timer.
    #[must_use]
    pub fn new(of: &Domain, line: Option<(&dyn Backend, u32, u32)>) -> Self {
        let device = line.map(|(backend, ..)| Device::of(backend));
        let slot = page().take(layout::SOURCES, 1, |slot| {
            slot.set(source::DOMAIN, of.0.number(layout::DOMAINS).into());
            if let (Some(device), Some((_, index, vector))) = (&device, line) {
                slot.set(source::DEVICE, u64::from(device.slot.number(layout::DEVICES)) + 1);
                slot.set(source::INDEX, index.into());
                slot.set(source::VECTOR, vector.into());
            }
        });
        Self { slot, _device: device }
    }

    /// One store of one of the words of [`layout::source`].
    #[inline(always)]
    pub fn set(&self, word: usize, value: u64) {
        self.slot.set(word, value);
    }
}

/// A DMA buffer.
#[derive(Debug)]
pub struct Buffer {
    slot: Slot,
    /// Where its state is: a driver says it twice a transfer.
    state: &'static AtomicU64,
}

impl Buffer {
    /// Shows one that is the driver's.
    #[must_use]
    pub fn new(of: &Device, iova: u64, size: u64, length: u64, access: u32) -> Self {
        let slot = page().take(layout::BUFFERS, buffer::DRIVER, |slot| {
            slot.set(buffer::MAPPED_FOR, of.slot.number(layout::DEVICES).into());
            slot.set(buffer::IOVA, iova);
            slot.set(buffer::SIZE, size);
            slot.set(buffer::LENGTH, length);
            slot.set(buffer::ACCESS, access.into());
        });
        Self { state: page().word(slot.base() + buffer::STATE), slot }
    }

    /// Says whose it is, by [`layout::buffer`].
    #[inline(always)]
    pub fn belongs_to(&self, owner: u64) {
        self.state.store(owner.to_le(), Ordering::Relaxed);
    }

    /// It stays mapped after it was dropped.
    pub fn leak(self) {
        self.belongs_to(buffer::LEAKED);
        self.slot.keep();
    }
}
