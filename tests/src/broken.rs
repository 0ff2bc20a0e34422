//! Backends with one fault each, so that it can be seen which checks of the conformance suite notice it.
//!
//! The fault is put around a sound backend; where it needs to know what was armed or mapped, the wrapper keeps book.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use udrv_backend::{
    AnyBackend, Backend, DeviceInfo, Dma, DmaAccess, DmaLimits, DmaMap, Error, IrqIndex, IrqInfo, MapRegion,
    RegionFile, RegionFlags, RegionIndex, RegionInfo, Reset, Result, Trigger, Width,
};

/// What is wrong with a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are sentences")]
pub enum Fault {
    None,
    AddressIsEmpty,
    EmptyRegionIsReadable,
    RegionBeyondTheLastExists,
    IrqInfoNamesAnother,
    LastRegisterIsOutOfBounds,
    ReadBoundIsOffByOne,
    WriteOffsetIsCutTo32Bits,
    UnalignedReadIsDone,
    UnalignedWriteIsDone,
    WideValueIsTruncated,
    HalfWordsAreSwapped,
    UpperHalfIsDropped,
    MappableAreaIsTooLong,
    RegionFileIsTheWrongPart,
    VectorBeyondTheLastFires,
    FireSignalsTwice,
    SocketIsNoTrigger,
    UnarmedFireIsLatched,
    DescriptorIsBorrowed,
    SixthFireCountsTwice,
    QueueIsBounded,
    ReplacedTriggerIsSignalledToo,
    TriggerTakenAwayIsKeptOpen,
    DisabledTriggerIsSignalled,
    SeveralKindsAreArmed,
    MessagesCanBeMasked,
    MaskOutlivesItsTrigger,
    RangePastTheEndIsCut,
    RangeSumOverflows,
    EmptyRangeDisarms,
    TriggersAreArmedInReverse,
    ArmingForgetsHigherVectors,
    ArmingForgetsLowerVectors,
    HolesAreClosedUp,
    MessagesComeFromTheNextVector,
    EleventhMessageIsLost,
    LineIsNotAutomasked,
    LineAssertedBeforeArmingIsLost,
    UnmaskDoesNotLookAtTheLine,
    UnmaskSignalsAQuietLine,
    MaskIsIgnored,
    FireMasksTheLine,
    NoMappingIsPossible,
    ReadOnlyMappingIsRefused,
    EnclosingMappingIsAccepted,
    DoubleMappingIsAccepted,
    LongUnmapIsAccepted,
    OverflowingMappingIsAccepted,
    MappingOutOfReachIsAccepted,
    LastPageIsRefused,
    ShortFileIsRefusedTooLate,
    MappingsAreFew,
    FileOffsetIsIgnored,
    UnmapIsForgotten,
    AccessIsIgnored,
    ResetKeepsARegister,
    ResetDisarmsMessages,
    ResetLeavesTheLineMasked,
    ResetUnmaps,
    OnlyOneThreadIsServed,
    DropLeavesTriggersOpen,
    /// Not the wrapper's: the device is not closed between two openings.
    DropDoesNothing,
    Panics,
}

/// A backend with a fault.
pub struct Broken {
    inner: AnyBackend,
    fault: Fault,
    info: DeviceInfo,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    armed: BTreeMap<(IrqIndex, u32), OwnedFd>,
    /// No longer armed, and signalled or kept all the same.
    ghosts: Vec<OwnedFd>,
    latched: Vec<(IrqIndex, u32)>,
    /// The caller's descriptor, and what it was.
    borrowed: BTreeMap<(IrqIndex, u32), String>,
    mask: bool,
    fires: u32,
    raises: u32,
    mapped: BTreeMap<u64, u64>,
    /// Unmapped, as far as the caller knows.
    forgotten: Vec<(u64, u64)>,
    thread: Option<ThreadId>,
}

const RAISE: u64 = 0x100;
const PENDING: u64 = 0x108;

fn duplicate(trigger: Trigger<'_>) -> OwnedFd {
    trigger.try_clone_to_owned().expect("a descriptor to spare")
}

fn is_socket(fd: Trigger<'_>) -> bool {
    nix::sys::socket::getsockopt(&fd, nix::sys::socket::sockopt::SockType).is_ok()
}

fn throwaway() -> OwnedFd {
    nix::sys::eventfd::EventFd::from_value_and_flags(0, nix::sys::eventfd::EfdFlags::EFD_NONBLOCK)
        .expect("an eventfd")
        .into()
}

impl Broken {
    /// A sound backend, broken.
    #[must_use]
    pub fn new(inner: AnyBackend, fault: Fault) -> Self {
        let mut info = inner.info().clone();
        if fault == Fault::AddressIsEmpty {
            info.address.clear();
        }
        Self { inner, fault, info, book: Mutex::default() }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn count(&self, index: IrqIndex) -> u32 {
        self.inner.irq(index).map_or(0, |info| info.count)
    }

    fn inner_dma(&self) -> &dyn Dma {
        self.inner.dma().expect("the sound backend has DMA")
    }

    /// Hands triggers on, and keeps book of them.
    fn arm(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        let fits = u64::from(start) + triggers.len() as u64 <= u64::from(self.count(index));
        if self.is(Fault::MessagesComeFromTheNextVector) && index != IrqIndex::INTX && fits {
            for (vector, trigger) in (start..).zip(triggers) {
                self.inner.set_triggers(index, self.next(index, vector), &[*trigger])?;
            }
        } else {
            self.inner.set_triggers(index, start, triggers)?;
        }
        let mut book = self.book();
        for (vector, trigger) in (start..).zip(triggers) {
            let old = match trigger {
                Some(trigger) => {
                    let link = std::fs::read_link(format!("/proc/self/fd/{}", trigger.as_raw_fd())).expect("our own");
                    let link = format!("{} {}", trigger.as_raw_fd(), link.display());
                    book.borrowed.insert((index, vector), link);
                    book.armed.insert((index, vector), duplicate(*trigger))
                }
                None => book.armed.remove(&(index, vector)),
            };
            let keep = match trigger {
                Some(_) => self.is(Fault::ReplacedTriggerIsSignalledToo),
                None => self.is(Fault::TriggerTakenAwayIsKeptOpen),
            };
            book.ghosts.extend(old.filter(|_| keep));
        }
        Ok(())
    }

    fn next(&self, index: IrqIndex, vector: u32) -> u32 {
        (vector + 1) % self.count(index)
    }

    fn haunt(&self) {
        for ghost in &self.book().ghosts {
            let file = File::from(duplicate(ghost.as_fd()));
            // Its reader may have gone.
            let _ = (&file).write_all(&1u64.to_ne_bytes());
        }
    }

    fn fire(&self, index: IrqIndex, vector: u32) -> Result<()> {
        match self.fault {
            Fault::MessagesComeFromTheNextVector if index != IrqIndex::INTX && vector < self.count(index) => {
                self.inner.fire_irq(index, self.next(index, vector))
            }
            _ => self.inner.fire_irq(index, vector),
        }
    }
}

impl Backend for Broken {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn region(&self, region: RegionIndex) -> Result<RegionInfo> {
        match self.fault {
            Fault::RegionBeyondTheLastExists if region.0 == self.info.regions => {
                let flags = RegionFlags::empty();
                Ok(RegionInfo { index: region, size: 0, flags, mappable: Vec::new() })
            }
            fault => {
                let mut info = self.inner.region(region)?;
                if fault == Fault::EmptyRegionIsReadable && region == RegionIndex::ROM {
                    info.flags = RegionFlags::READ;
                }
                if fault == Fault::MappableAreaIsTooLong {
                    info.mappable.iter_mut().for_each(|area| area.size += 4096);
                }
                Ok(info)
            }
        }
    }

    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        let mut info = self.inner.irq(index)?;
        if self.is(Fault::IrqInfoNamesAnother) && index == IrqIndex::ERR {
            info.index = IrqIndex::REQ;
        }
        Ok(info)
    }

    fn read(&self, region: RegionIndex, offset: u64, width: Width) -> Result<u64> {
        let size = self.inner.region(region)?.size;
        match self.fault {
            Fault::LastRegisterIsOutOfBounds if region == RegionIndex::CONFIG && offset == size - width.bytes() => {
                Err(Error::OutOfRegion { region, offset, length: width.bytes(), size })
            }
            Fault::ReadBoundIsOffByOne if size > 0 && offset == size => Ok(0),
            Fault::UnalignedReadIsDone if offset == 1 && width > Width::Bits8 => Ok(0),
            Fault::HalfWordsAreSwapped if region == RegionIndex::CONFIG && width == Width::Bits16 && offset < 4 => {
                self.inner.read(region, offset ^ 2, width)
            }
            Fault::OnlyOneThreadIsServed => {
                let here = std::thread::current().id();
                if *self.book().thread.get_or_insert(here) != here {
                    return Err(Error::NotSupported { what: "a second thread", by: "this backend".into() });
                }
                self.inner.read(region, offset, width)
            }
            Fault::Panics if offset == !7 => std::panic::resume_unwind(Box::new("an overflow")),
            _ => self.inner.read(region, offset, width),
        }
    }

    fn write(&self, region: RegionIndex, offset: u64, width: Width, value: u64) -> Result<()> {
        match self.fault {
            Fault::WriteOffsetIsCutTo32Bits if region == RegionIndex(2) => {
                self.inner.write(region, offset & 0xffff_ffff, width, value)
            }
            Fault::UnalignedWriteIsDone if offset < 64 && !offset.is_multiple_of(width.bytes()) => Ok(()),
            Fault::WideValueIsTruncated => self.inner.write(region, offset, width, value & width.all_ones()),
            Fault::UpperHalfIsDropped if width == Width::Bits64 && region == RegionIndex::BAR0 && offset < 64 => {
                self.inner.write(region, offset, width, value & 0xffff_ffff)
            }
            Fault::EleventhMessageIsLost if (region, offset, value) == (RegionIndex::BAR0, RAISE, 0) => {
                self.book().raises += 1;
                if self.book().raises == 11 { Ok(()) } else { self.inner.write(region, offset, width, value) }
            }
            Fault::LineIsNotAutomasked if (region, offset) == (RegionIndex::BAR0, RAISE) => {
                let asserted = self.inner.read(RegionIndex::BAR0, PENDING, Width::Bits32)? != 0;
                self.inner.write(region, offset, width, value)?;
                if asserted { self.inner.unmask_irq(IrqIndex::INTX, 0) } else { Ok(()) }
            }
            _ => self.inner.write(region, offset, width, value),
        }
    }

    fn set_triggers(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        let count = self.count(index);
        let end = u64::from(start) + triggers.len() as u64;

        let mut triggers = triggers.to_vec();
        match self.fault {
            Fault::RangePastTheEndIsCut if start < count && end > u64::from(count) => {
                let kept = triggers.get(..(count - start) as usize).unwrap_or_default();
                self.arm(index, start, kept)?;
                return self.inner.set_triggers(index, start, &triggers);
            }
            Fault::RangeSumOverflows if end > u64::from(u32::MAX) && index.0 < self.info.irqs => return Ok(()),
            Fault::SocketIsNoTrigger => {
                triggers.iter_mut().for_each(|trigger| *trigger = trigger.filter(|fd| !is_socket(*fd)));
            }
            Fault::EmptyRangeDisarms if triggers.is_empty() => return self.disable_irq(index),
            Fault::TriggersAreArmedInReverse => triggers.reverse(),
            Fault::HolesAreClosedUp => triggers.sort_by_key(Option::is_none),
            Fault::ArmingForgetsHigherVectors if end < u64::from(count) && !triggers.is_empty() => {
                self.inner.set_triggers(index, end as u32, &vec![None; count as usize - end as usize])?;
            }
            Fault::ArmingForgetsLowerVectors if end <= u64::from(count) => {
                self.inner.set_triggers(index, 0, &vec![None; start as usize])?;
            }
            Fault::LineAssertedBeforeArmingIsLost if index == IrqIndex::INTX && (start, end) == (0, 1) => {
                // Its signal goes nowhere, and has masked it.
                self.inner.set_triggers(index, start, &[Some(throwaway().as_fd())])?;
            }
            _ => {}
        }
        match self.arm(index, start, &triggers) {
            Err(Error::Unavailable { .. }) if self.is(Fault::SeveralKindsAreArmed) => return Ok(()),
            outcome => outcome?,
        }
        let mask = self.book().mask && index == IrqIndex::INTX;
        if mask && triggers.iter().any(Option::is_some) {
            self.inner.mask_irq(index, 0)?;
        }
        let latched: Vec<_> = std::mem::take(&mut self.book().latched);
        latched.into_iter().try_for_each(|(index, vector)| self.inner.fire_irq(index, vector))
    }

    fn disable_irq(&self, index: IrqIndex) -> Result<()> {
        self.inner.disable_irq(index)?;
        let mut book = self.book();
        let Book { armed, ghosts, fires, .. } = &mut *book;
        *fires = 0;
        let keys: Vec<_> = armed.keys().copied().filter(|(of, _)| *of == index).collect();
        let old = keys.into_iter().filter_map(|key| armed.remove(&key));
        if self.is(Fault::DisabledTriggerIsSignalled) {
            ghosts.extend(old.filter(|fd| !is_socket(fd.as_fd())));
        } else {
            old.for_each(drop);
        }
        Ok(())
    }

    fn mask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        match self.fault {
            Fault::MessagesCanBeMasked if vector < self.count(index) => self.inner.mask_irq(index, vector).or(Ok(())),
            Fault::MaskIsIgnored if index == IrqIndex::INTX && vector == 0 => Ok(()),
            Fault::MaskOutlivesItsTrigger if index == IrqIndex::INTX => {
                let unarmed = self.book().armed.is_empty();
                self.inner.mask_irq(index, vector)?;
                self.book().mask |= unarmed;
                Ok(())
            }
            _ => self.inner.mask_irq(index, vector),
        }
    }

    fn unmask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        match self.fault {
            Fault::MessagesCanBeMasked if vector < self.count(index) => self.inner.unmask_irq(index, vector).or(Ok(())),
            Fault::UnmaskDoesNotLookAtTheLine => {
                let own = self.book().armed.get(&(index, vector)).map(|fd| duplicate(fd.as_fd()));
                let Some(own) = own else { return self.inner.unmask_irq(index, vector) };
                self.inner.set_triggers(index, vector, &[Some(throwaway().as_fd())])?;
                self.inner.unmask_irq(index, vector)?;
                self.inner.set_triggers(index, vector, &[Some(own.as_fd())])
            }
            Fault::UnmaskSignalsAQuietLine => {
                self.inner.unmask_irq(index, vector)?;
                match self.inner.read(RegionIndex::BAR0, PENDING, Width::Bits32)? {
                    0 => self.inner.fire_irq(index, vector),
                    _ => Ok(()),
                }
            }
            _ => self.inner.unmask_irq(index, vector),
        }
    }

    fn fire_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        let fires = {
            let mut book = self.book();
            book.fires += u32::from(vector == 0);
            book.fires
        };
        let unarmed = !self.book().armed.contains_key(&(index, vector));
        match self.fault {
            Fault::VectorBeyondTheLastFires if index.0 < self.info.irqs && vector == self.count(index) => Ok(()),
            Fault::FireSignalsTwice => self.fire(index, vector).and_then(|()| self.fire(index, vector)),
            Fault::SixthFireCountsTwice if fires == 6 => {
                self.fire(index, vector).and_then(|()| self.fire(index, vector))
            }
            Fault::QueueIsBounded if fires > 100 => Ok(()),
            Fault::UnarmedFireIsLatched if unarmed && vector < self.count(index) => {
                self.book().latched.push((index, vector));
                Ok(())
            }
            Fault::DescriptorIsBorrowed if !unarmed => {
                let link = self.book().borrowed.get(&(index, vector)).cloned().unwrap_or_default();
                let number = link.split(' ').next().unwrap_or_default();
                let now = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap_or_default();
                if link.ends_with(&*now.to_string_lossy()) && !now.as_os_str().is_empty() {
                    return self.fire(index, vector);
                }
                Ok(())
            }
            Fault::FireMasksTheLine if index == IrqIndex::INTX => {
                self.fire(index, vector)?;
                self.inner.mask_irq(index, vector)
            }
            Fault::ReplacedTriggerIsSignalledToo | Fault::DisabledTriggerIsSignalled => {
                self.haunt();
                self.fire(index, vector)
            }
            _ => self.fire(index, vector),
        }
    }

    fn dma(&self) -> Option<&dyn Dma> {
        Some(self)
    }

    fn resettable(&self) -> Option<&dyn Reset> {
        Some(self)
    }

    fn mappable(&self) -> Option<&dyn MapRegion> {
        Some(self)
    }
}

impl MapRegion for Broken {
    fn region_file(&self, region: RegionIndex) -> Result<RegionFile<'_>> {
        let mapper = self.inner.mappable().expect("the sound backend can map");
        let offset = if self.is(Fault::RegionFileIsTheWrongPart) { 4096 } else { 0 };
        mapper.region_file(region).map(|file| RegionFile { offset: file.offset + offset, ..file })
    }
}

impl Dma for Broken {
    fn limits(&self) -> DmaLimits {
        let mut limits = self.inner_dma().limits();
        if self.is(Fault::NoMappingIsPossible) {
            limits.max_mappings = 0;
        }
        limits
    }

    fn map(&self, map: &DmaMap<'_>) -> Result<()> {
        const PAGE: u64 = 4096;
        let top = self.inner_dma().limits().iova_ranges.last().map_or(0, |range| *range.end());
        let wanted = *map;
        let refused = Err(Error::DmaRange { iova: map.iova, size: map.size, why: "a fault" });
        let mut map = wanted;
        match self.fault {
            Fault::ReadOnlyMappingIsRefused if map.access == DmaAccess::READ => return refused,
            Fault::OverflowingMappingIsAccepted if map.iova.checked_add(map.size).is_none() => return Ok(()),
            Fault::MappingOutOfReachIsAccepted if map.iova == top + 1 => return Ok(()),
            Fault::LastPageIsRefused if map.iova + (PAGE - 1) == top && map.size == PAGE => return refused,
            Fault::MappingsAreFew if self.book().mapped.len() >= 100 => return refused,
            Fault::FileOffsetIsIgnored if map.offset.is_multiple_of(PAGE) && map.offset < 1 << 32 => map.offset = 0,
            Fault::AccessIsIgnored => map.access = DmaAccess::READ | DmaAccess::WRITE,
            Fault::UnmapIsForgotten => {
                // Only now, when its place may be wanted.
                let forgotten = std::mem::take(&mut self.book().forgotten);
                forgotten.into_iter().try_for_each(|(iova, size)| self.inner_dma().unmap(iova, size))?;
            }
            _ => {}
        }
        let outcome = self.inner_dma().map(&map);
        match (&outcome, self.fault) {
            (Err(Error::DmaOverlap { .. }), Fault::DoubleMappingIsAccepted) => return Ok(()),
            (Err(Error::DmaOverlap { .. }), Fault::EnclosingMappingIsAccepted) if map.size == 8 * PAGE => return Ok(()),
            (Ok(()), Fault::ShortFileIsRefusedTooLate) => {
                let file = File::from(map.file.try_clone_to_owned().expect("a descriptor to spare"));
                if file.metadata().is_ok_and(|data| data.len() < map.offset + map.size) {
                    return refused;
                }
            }
            _ => {}
        }
        outcome?;
        self.book().mapped.insert(map.iova, map.size);
        Ok(())
    }

    fn unmap(&self, iova: u64, size: u64) -> Result<()> {
        match self.fault {
            Fault::LongUnmapIsAccepted if size == 3 * 4096 => Ok(()),
            Fault::UnmapIsForgotten => {
                let mut book = self.book();
                if book.mapped.get(&iova) != Some(&size) {
                    return Err(Error::DmaNotMapped { iova, size });
                }
                book.mapped.remove(&iova);
                book.forgotten.push((iova, size));
                Ok(())
            }
            _ => {
                self.inner_dma().unmap(iova, size)?;
                self.book().mapped.remove(&iova);
                Ok(())
            }
        }
    }
}

impl Reset for Broken {
    fn reset(&self) -> Result<()> {
        let kept = self.inner.read(RegionIndex::BAR0, 8, Width::Bits32)?;
        self.inner.resettable().expect("the sound backend can be reset").reset()?;
        match self.fault {
            Fault::ResetKeepsARegister => self.inner.write(RegionIndex::BAR0, 8, Width::Bits32, kept),
            Fault::ResetDisarmsMessages => {
                self.inner.disable_irq(IrqIndex::MSI)?;
                self.inner.disable_irq(IrqIndex::MSIX)
            }
            Fault::ResetLeavesTheLineMasked => self.inner.mask_irq(IrqIndex::INTX, 0),
            Fault::ResetUnmaps => {
                let mapped = std::mem::take(&mut self.book().mapped);
                mapped.into_iter().try_for_each(|(iova, size)| self.inner_dma().unmap(iova, size))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        if self.is(Fault::DropLeavesTriggersOpen) {
            std::mem::take(&mut self.book().armed).into_values().for_each(std::mem::forget);
        }
    }
}
