//! The faults of registers and interrupts.

use super::{Book, Broken, Fault, PENDING, RAISE, duplicate, is_socket, throwaway};
use std::os::fd::AsFd as _;
use udrv_backend::{
    Backend, DeviceInfo, Dma, Error, IrqIndex, IrqInfo, MapRegion, RegionFile, RegionFlags, RegionIndex, RegionInfo,
    Reset, Result, Trigger, Width,
};

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
            Fault::QueueIsBounded if fires > 40 => Ok(()),
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
