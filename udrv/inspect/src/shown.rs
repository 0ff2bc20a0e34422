//! What has a slot in the page: devices with their register maps, domains, sections, sources, buffers, accesses.

use crate::layout::{self, access, buffer, device, domain, head, section, source};
use crate::page::{Names, Page, Slot, monotonic, page, thread};
use crate::registers::Registers;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use udrv_backend::register::RegisterMap;
use udrv_backend::{Backend, RegionIndex, Width};

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
