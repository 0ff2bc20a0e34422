//! A region as memory of this process.
#![expect(unsafe_code, reason = "device memory is reached through raw pointers; each is bounds-checked here")]

use super::seen::{MAPPED_IS_SHOWN, Seen};
use super::{Io, sigbus};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use udrv_backend::register::Word;
use udrv_backend::{Backend, Error, RegionFlags, RegionIndex, RegionInfo, Result, SparseArea};
use volatile::VolatilePtr;

/// The first `SIZE` bytes of a region, mapped into this process.
///
/// An access whose offset is a constant is the bare load or store: the check of its bounds folds away. There is none for
/// a device that has vanished either: its reads give all ones, and [`Mapped::is_gone`] (or [`Io::alive`]) says so. A
/// driver asks where it waits, and when it reads all ones from a register that cannot hold them.
pub struct Mapped<const SIZE: usize> {
    base: NonNull<u8>,
    region: RegionIndex,
    device: String,
    /// Shown as in use; its accesses are seen where [`MAPPED_IS_SHOWN`] says so.
    seen: Seen,
    /// Dropped before the mapping, whose addresses may be somebody else's the moment it is unmapped.
    guard: sigbus::Guard,
    _mapping: Mapping,
}

/// Unmaps when dropped.
struct Mapping {
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: the pointer is only used for volatile accesses to memory that this value keeps mapped until it is dropped.
unsafe impl<const SIZE: usize> Send for Mapped<SIZE> {}
// SAFETY: volatile accesses to device memory carry no Rust-level exclusivity; the device orders them.
unsafe impl<const SIZE: usize> Sync for Mapped<SIZE> {}

impl<const SIZE: usize> Mapped<SIZE> {
    /// Maps the start of a region; `None` if it cannot be mapped for reading and writing.
    ///
    /// # Errors
    /// As [`udrv_backend::MapRegion::region_file`]; [`Error::Os`] if the kernel refuses the mapping.
    pub fn map(backend: &(impl Backend + ?Sized), region: RegionIndex) -> Result<Option<Self>> {
        let info = backend.region(region)?;
        let both = RegionFlags::READ | RegionFlags::WRITE;
        let fits = |area: &SparseArea| area.offset == 0 && area.size >= SIZE as u64;
        let possible = info.flags.contains(both) && info.mappable.iter().any(fits);
        let Some(mapper) = backend.mappable().filter(|_| possible) else { return Ok(None) };
        let file = mapper.region_file(region)?;
        let device = backend.info().address.clone();
        let os =
            |errno: nix::errno::Errno| Error::os(format!("mapping {SIZE:#x} bytes of {region} of {device}"), errno);
        let length = NonZeroUsize::new(SIZE).ok_or(os(nix::errno::Errno::EINVAL))?;
        let offset = i64::try_from(file.offset).map_err(|_| os(nix::errno::Errno::EOVERFLOW))?;
        sigbus::install()?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new shared mapping at an address the kernel chooses replaces nothing.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, file.file, offset) }.map_err(os)?;
        let base = base.cast();
        let mapping = Mapping { base, size: SIZE };
        let seen = Seen::new(backend, region);
        Ok(Some(Self { base, region, device, seen, guard: sigbus::Guard::new(base, SIZE), _mapping: mapping }))
    }

    /// Whether an access has failed because the device vanished. It stays so: map it anew once the device is back.
    ///
    /// Reads of the pages that failed give all ones. A store to such a page changes a private copy that later reads
    /// return; so this flag, not a register's contents, tells whether a device is there.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.guard.is_gone()
    }

    #[inline(always)]
    fn pointer<W: Word>(&self, offset: u64) -> Result<VolatilePtr<'_, W>> {
        let width = W::WIDTH.bytes();
        if offset > SIZE as u64 || SIZE as u64 - offset < width || !offset.is_multiple_of(width) {
            return Err(self.refused::<W>(offset));
        }
        // SAFETY: `offset + width <= SIZE` was checked, and `map` checked that SIZE bytes are mapped.
        let at = unsafe { self.base.add(offset as usize) }.cast::<W>();
        // SAFETY: in bounds as above; aligned, since base is page aligned and offset a multiple of the width; W is an
        // integer, valid for every bit pattern; the mapping lives as long as `self`.
        Ok(unsafe { VolatilePtr::new(at) })
    }

    #[cold]
    fn refused<W: Word>(&self, offset: u64) -> Error {
        let (index, flags, mappable) = (self.region, RegionFlags::empty(), Vec::new());
        let info = RegionInfo { index, size: SIZE as u64, flags, mappable };
        info.check(offset, W::WIDTH).expect_err("the access was found not to fit")
    }
}

impl<const SIZE: usize> Drop for Mapped<SIZE> {
    fn drop(&mut self) {
        if self.is_gone() {
            tracing::warn!(device = self.device, region = %self.region, "the device vanished while it was mapped");
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`; no pointer into it outlives the `Mapped` that this is a part of.
        if let Err(errno) = unsafe { munmap(self.base.cast(), self.size) } {
            tracing::error!(%errno, "unmapping a region");
        }
    }
}

impl<const SIZE: usize> Io for Mapped<SIZE> {
    #[inline(always)]
    fn load<W: Word>(&self, offset: u64) -> Result<W> {
        let value = self.pointer::<W>(offset)?.read();
        if MAPPED_IS_SHOWN {
            self.seen.read(offset, W::WIDTH, value.into_raw());
        }
        Ok(value)
    }

    #[inline(always)]
    fn store<W: Word>(&self, offset: u64, value: W) -> Result<()> {
        let pointer = self.pointer::<W>(offset)?;
        if MAPPED_IS_SHOWN {
            self.seen.write(offset, W::WIDTH, value.into_raw());
        }
        pointer.write(value);
        Ok(())
    }

    fn alive(&self) -> Result<()> {
        if !self.is_gone() {
            return Ok(());
        }
        let why = format!("an access to its mapped {} failed (SIGBUS): unplugged, or memory decoding off", self.region);
        Err(Error::Gone { device: self.device.clone(), why })
    }
}
