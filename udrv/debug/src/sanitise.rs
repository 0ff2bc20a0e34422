//! A checker of DMA: what driver and device do to memory that is not theirs.
//!
//! A [`Sanitised`] device does not get the driver's buffers but copies of them (it *bounces*): data is copied to the device
//! when a buffer is submitted, and back when it is completed. What the device has not been given, or has not written, is
//! poison ([`POISON`]), so that a driver or device that uses it anyway computes nonsense rather than something plausible. A
//! copy that changes when the device has no right to change it is a [`Finding`].
//!
//! Bounced are buffers of the runtime's pool that change hands ([`Moment::Streams`]); memory that both use at the same time
//! is the driver's own, and only its mappings are checked. A write is noticed at the next register access, interrupt,
//! hand-over, unmapping, or at the close, so the finding's place in time is not the write's.

use crate::around::{Around, Call, Device, Layer, Signal};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use udrv_backend::{Backend, DmaAccess, DmaMap, Error, IrqIndex, Moment, RegionIndex, Result, Width};

/// What fills memory that nobody has written.
pub const POISON: u8 = 0xa5;
/// How many unmapped copies are kept to see whether they are written.
const QUARANTINE: usize = 64;

/// What is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// The device wrote memory that had been unmapped.
    UseAfterUnmap,
    /// The driver mapped the same memory twice, and the device may write it.
    Overlap,
    /// The device was closed with memory mapped.
    Leak,
    /// The device wrote memory that it may only read.
    WrongDirection,
    /// The device wrote a buffer that the driver had not submitted, or had completed.
    NotOwner,
    /// The driver unmapped a buffer that it had submitted and not completed.
    UnmappedInFlight,
}

/// Something that was not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub rule: Rule,
    /// Bus address: of the first byte that was written, or of the mapping.
    pub iova: u64,
    /// Bytes: to the last one that was written, or of the mapping.
    pub size: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, iova, size } = self;
        let what = match rule {
            Rule::UseAfterUnmap => "the device wrote memory that had been unmapped",
            Rule::Overlap => "memory that the device may write was mapped twice",
            Rule::Leak => "memory was still mapped when the device was closed",
            Rule::WrongDirection => "the device wrote memory that it may only read",
            Rule::NotOwner => "the device wrote a buffer that was the driver's",
            Rule::UnmappedInFlight => "a buffer was unmapped that was the device's",
        };
        write!(f, "{what}: {size:#x} bytes at {iova:#x}")
    }
}

/// What was found so far; also after the device is closed.
#[derive(Debug, Clone, Default)]
pub struct Findings(Arc<Mutex<Vec<Finding>>>);

impl Findings {
    /// In the order in which they were found.
    #[must_use]
    pub fn all(&self) -> Vec<Finding> {
        lock(&self.0).clone()
    }

    fn add(&self, rule: Rule, iova: u64, size: u64) {
        lock(&self.0).push(Finding { rule, iova, size });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device whose DMA is checked.
pub type Sanitised<B> = Around<B, Sanitiser>;

/// What a [`Sanitised`] device knows of its memory.
#[derive(Default)]
pub struct Sanitiser {
    findings: Findings,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// Bus address and bytes of mappings that will be of buffers that change hands.
    announced: BTreeSet<(u64, u64)>,
    mappings: Vec<Mapping>,
    unmapped: VecDeque<(u64, Copy)>,
}

struct Mapping {
    iova: u64,
    size: u64,
    access: DmaAccess,
    /// The driver's memory.
    file: File,
    offset: u64,
    copy: Option<Copy>,
}

/// What the device has instead of the driver's memory.
struct Copy {
    file: File,
    /// What is in it unless the device has written since.
    known: Vec<u8>,
    with_device: bool,
}

impl<B: Backend> Sanitised<B> {
    /// Around `inner`; what is found is in the second.
    ///
    /// # Errors
    /// [`Error::Os`] if the thread that passes interrupts on cannot be started.
    pub fn new(inner: B) -> Result<(Self, Findings)> {
        let findings = Findings::default();
        let sanitiser = Sanitiser { findings: findings.clone(), memory: Mutex::default() };
        Ok((Self::wrap(inner, sanitiser)?, findings))
    }
}

impl Copy {
    fn new(size: u64) -> Result<Self> {
        let os = |error: std::io::Error| Error::os("making a copy of a DMA buffer", error);
        let size = usize::try_from(size).map_err(|_| os(std::io::ErrorKind::FileTooLarge.into()))?;
        let file: File = memfd_create(c"udrv-bounce", MFdFlags::MFD_CLOEXEC).map_err(|errno| os(errno.into()))?.into();
        let mut it = Self { file, known: Vec::new(), with_device: false };
        it.fill(vec![POISON; size]).map_err(os)?;
        Ok(it)
    }

    fn fill(&mut self, bytes: Vec<u8>) -> std::io::Result<()> {
        self.file.write_all_at(&bytes, 0)?;
        self.known = bytes;
        Ok(())
    }

    /// From the first byte that is not as known to the last, which are known from now on.
    fn changes(&mut self) -> Option<(u64, u64)> {
        let mut now = vec![0; self.known.len()];
        self.file.read_exact_at(&mut now, 0).ok()?;
        // Nearly always, and compared in no time.
        if now == self.known {
            return None;
        }
        let differs = |(known, now): (&u8, &u8)| known != now;
        let first = self.known.iter().zip(&now).position(differs)?;
        let last = self.known.iter().zip(&now).rposition(differs)?;
        self.known = now;
        Some((first as u64, (last - first + 1) as u64))
    }
}

impl Mapping {
    fn is(&self, iova: u64, size: u64) -> bool {
        (self.iova, self.size) == (iova, size)
    }

    /// What the device wrote, which it may not.
    fn check(&mut self, findings: &Findings) {
        let Some(copy) = &mut self.copy else { return };
        let rule = match (copy.with_device, self.access.contains(DmaAccess::WRITE)) {
            (true, true) => return,
            (_, false) => Rule::WrongDirection,
            (false, true) => Rule::NotOwner,
        };
        if let Some((start, size)) = copy.changes() {
            findings.add(rule, self.iova + start, size);
        }
    }

    fn lend(&mut self) -> std::io::Result<()> {
        let Some(copy) = &mut self.copy else { return Ok(()) };
        let mut bytes = vec![POISON; copy.known.len()];
        if self.access.contains(DmaAccess::READ) {
            self.file.read_exact_at(&mut bytes, self.offset)?;
        }
        copy.fill(bytes)?;
        copy.with_device = true;
        Ok(())
    }

    fn take_back(&mut self) -> std::io::Result<()> {
        let Some(copy) = &mut self.copy else { return Ok(()) };
        if self.access.contains(DmaAccess::WRITE) {
            let _written = copy.changes();
            self.file.write_all_at(&copy.known, self.offset)?;
        }
        copy.with_device = false;
        Ok(())
    }

    /// Whether it is the same memory as another, in part.
    fn shares(&self, map: &DmaMap<'_>, id: Option<(u64, u64)>) -> bool {
        let ends = (self.offset.saturating_add(self.size), map.offset.saturating_add(map.size));
        id.is_some() && identity(&self.file) == id && self.offset < ends.1 && map.offset < ends.0
    }
}

/// Which file it is.
fn identity(file: &File) -> Option<(u64, u64)> {
    file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Sanitiser {
    fn check(&self) {
        let mut memory = lock(&self.memory);
        memory.mappings.iter_mut().for_each(|mapping| mapping.check(&self.findings));
        for (iova, copy) in &mut memory.unmapped {
            if let Some((start, size)) = copy.changes() {
                self.findings.add(Rule::UseAfterUnmap, *iova + start, size);
            }
        }
    }

    /// Maps a copy if the memory is to change hands, else what the driver has.
    fn map(&self, device: &impl Backend, map: &DmaMap<'_>, make: impl FnOnce() -> Result<()>) -> Result<()> {
        let file = map.file.try_clone_to_owned().map_err(|error| Error::os("keeping a DMA mapping's file", error))?;
        let &DmaMap { iova, size, access, offset, .. } = map;
        let mut mapping = Mapping { iova, size, access, file: file.into(), offset, copy: None };
        let is_bounced = lock(&self.memory).announced.remove(&(iova, size));
        match device.dma() {
            Some(dma) if is_bounced => {
                let copy = mapping.copy.insert(Copy::new(size)?);
                dma.map(&DmaMap { file: copy.file.as_fd(), offset: 0, ..*map })?;
            }
            _ => make()?,
        }
        let id = identity(&mapping.file);
        let mut memory = lock(&self.memory);
        let writes = |other: &Mapping| (access | other.access).contains(DmaAccess::WRITE);
        if memory.mappings.iter().any(|other| writes(other) && other.shares(map, id)) {
            self.findings.add(Rule::Overlap, iova, size);
        }
        memory.mappings.push(mapping);
        Ok(())
    }

    fn unmapped(&self, iova: u64, size: u64) {
        let mut memory = lock(&self.memory);
        let Some(at) = memory.mappings.iter().position(|mapping| mapping.is(iova, size)) else { return };
        let Some(mut copy) = memory.mappings.swap_remove(at).copy else { return };
        if copy.with_device {
            self.findings.add(Rule::UnmappedInFlight, iova, size);
        }
        // What came between the last look and the unmapping was allowed, or will be seen as what follows.
        let _last = copy.changes();
        if memory.unmapped.len() == QUARANTINE {
            memory.unmapped.pop_front();
        }
        memory.unmapped.push_back((iova, copy));
    }
}

impl Layer for Sanitiser {
    const LISTENS: bool = true;

    fn read<B: Backend>(
        &self,
        device: &Device<'_, B>,
        (region, offset, width): (RegionIndex, u64, Width),
    ) -> Result<u64> {
        let value = device.inner.read(region, offset, width);
        self.check();
        value
    }

    fn write<B: Backend>(
        &self,
        device: &Device<'_, B>,
        (region, offset, width): (RegionIndex, u64, Width),
        value: u64,
    ) -> Result<()> {
        self.check();
        device.inner.write(region, offset, width, value)
    }

    fn call<B: Backend>(
        &self,
        device: &Device<'_, B>,
        call: Call<'_>,
        make: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        match call {
            Call::Map(map) => self.map(device.inner, map, make),
            Call::Unmap(iova, size) => {
                self.check();
                make()?;
                self.unmapped(iova, size);
                Ok(())
            }
            _ => make(),
        }
    }

    fn signalled(&self, _: IrqIndex, _: u32, _: u64) -> Signal {
        self.check();
        Signal::PASS
    }

    fn observe(&self, moment: Moment) {
        let (iova, size) = match moment {
            Moment::Streams { iova, size } => {
                lock(&self.memory).announced.insert((iova, size));
                return;
            }
            Moment::Lent { iova, size } | Moment::Returned { iova, size } => (iova, size),
            _ => return,
        };
        let mut memory = lock(&self.memory);
        let Some(mapping) = memory.mappings.iter_mut().find(|mapping| mapping.is(iova, size)) else { return };
        mapping.check(&self.findings);
        // Memory that was mapped can be copied; where it cannot, its owner sees poison.
        let _copied = if matches!(moment, Moment::Lent { .. }) { mapping.lend() } else { mapping.take_back() };
    }

    fn closed(&self) {
        self.check();
        for mapping in lock(&self.memory).mappings.drain(..) {
            self.findings.add(Rule::Leak, mapping.iova, mapping.size);
        }
    }
}
