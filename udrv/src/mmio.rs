//! Register access: by message through a backend, or mapped.
//!
//! Both forms implement [`Io`], so a driver generic over it compiles to the bare load or store on [`Mapped`], where the
//! size is part of the type and the bounds check of a constant offset folds away.
#![expect(unsafe_code, reason = "device memory is reached through raw pointers; each is bounds-checked here")]

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;
use udrv_backend::register::{Readable, ReadableWithEffect, Register, Value, Word, Writable};
use udrv_backend::{Backend, Error, RegionIndex, RegionInfo, Result, SparseArea};
use volatile::VolatilePtr;

/// Access to one region.
pub trait Io: Send + Sync {
    /// One read of `W`'s width at a byte offset.
    ///
    /// # Errors
    /// As [`Backend::read`].
    fn load<W: Word>(&self, offset: u64) -> Result<W>;
    /// One write of `W`'s width at a byte offset.
    ///
    /// # Errors
    /// As [`Backend::write`].
    fn store<W: Word>(&self, offset: u64, value: W) -> Result<()>;

    /// Reads a register that a read does not change.
    ///
    /// # Errors
    /// As [`Io::load`].
    #[inline(always)]
    fn read<V: Value, A: Readable>(&self, register: Register<V, A>) -> Result<V> {
        Ok(V::from_word(self.load(register.offset)?))
    }

    /// Reads a register that a read changes: exclusive, so that two readers cannot steal from each other.
    ///
    /// # Errors
    /// As [`Io::load`].
    #[inline(always)]
    fn read_effect<V: Value, A: ReadableWithEffect>(&mut self, register: Register<V, A>) -> Result<V> {
        Ok(V::from_word(self.load(register.offset)?))
    }

    /// Writes a register.
    ///
    /// # Errors
    /// As [`Io::store`].
    #[inline(always)]
    fn write<V: Value, A: Writable>(&self, register: Register<V, A>, value: V) -> Result<()> {
        self.store(register.offset, value.into_word())
    }
}

/// A region reached by one backend call an access.
pub struct ByMessage<B: ?Sized> {
    backend: Arc<B>,
    region: RegionIndex,
}

impl<B: Backend + ?Sized> ByMessage<B> {
    /// Over one region of a backend.
    pub const fn new(backend: Arc<B>, region: RegionIndex) -> Self {
        Self { backend, region }
    }
}

impl<B: Backend + ?Sized> Io for ByMessage<B> {
    fn load<W: Word>(&self, offset: u64) -> Result<W> {
        self.backend.read(self.region, offset, W::WIDTH).map(W::from_raw)
    }
    fn store<W: Word>(&self, offset: u64, value: W) -> Result<()> {
        self.backend.write(self.region, offset, W::WIDTH, value.into_raw())
    }
}

/// The first `SIZE` bytes of a region, mapped into this process.
pub struct Mapped<const SIZE: usize> {
    base: NonNull<u8>,
    region: RegionIndex,
}

// SAFETY: the pointer is only used for volatile accesses to memory that this value keeps mapped until it is dropped.
unsafe impl<const SIZE: usize> Send for Mapped<SIZE> {}
// SAFETY: volatile accesses to device memory carry no Rust-level exclusivity; the device orders them.
unsafe impl<const SIZE: usize> Sync for Mapped<SIZE> {}

impl<const SIZE: usize> Mapped<SIZE> {
    /// Maps the start of a region; `None` if the backend cannot map it.
    ///
    /// # Errors
    /// As [`udrv_backend::MapRegion::region_file`]; [`Error::Os`] if the kernel refuses the mapping.
    pub fn map(backend: &(impl Backend + ?Sized), region: RegionIndex) -> Result<Option<Self>> {
        let info = backend.region(region)?;
        let wanted = SparseArea { offset: 0, size: SIZE as u64 };
        let fits = |area: &SparseArea| area.offset == 0 && area.size >= wanted.size;
        let Some(mapper) = backend.mappable().filter(|_| info.mappable.iter().any(fits)) else {
            return Ok(None);
        };
        let file = mapper.region_file(region)?;
        let os = |errno: nix::errno::Errno| Error::os(format!("mapping {SIZE:#x} bytes of {region}"), errno);
        let length = NonZeroUsize::new(SIZE).ok_or(os(nix::errno::Errno::EINVAL))?;
        let offset = i64::try_from(file.offset).map_err(|_| os(nix::errno::Errno::EOVERFLOW))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new shared mapping at an address the kernel chooses replaces nothing.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, file.file, offset) }.map_err(os)?;
        Ok(Some(Self { base: base.cast(), region }))
    }

    #[inline(always)]
    fn pointer<W: Word>(&self, offset: u64) -> Result<VolatilePtr<'_, W>> {
        let width = W::WIDTH.bytes();
        if offset > SIZE as u64 || SIZE as u64 - offset < width || !offset.is_multiple_of(width) {
            let info = RegionInfo {
                index: self.region,
                size: SIZE as u64,
                flags: udrv_backend::RegionFlags::empty(),
                mappable: Vec::new(),
            };
            return Err(info.check(offset, W::WIDTH).expect_err("the access was found not to fit"));
        }
        // SAFETY: `offset + width <= SIZE` was checked, and `map` checked that SIZE bytes are mapped.
        let at = unsafe { self.base.add(offset as usize) }.cast::<W>();
        // SAFETY: in bounds as above; aligned, since base is page aligned and offset a multiple of the width; W is an
        // integer, valid for every bit pattern; the mapping lives as long as `self`.
        Ok(unsafe { VolatilePtr::new(at) })
    }
}

impl<const SIZE: usize> Drop for Mapped<SIZE> {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`; no pointer into it outlives `self`.
        if let Err(errno) = unsafe { munmap(self.base.cast(), SIZE) } {
            tracing::error!(%errno, region = %self.region, "unmapping a region");
        }
    }
}

impl<const SIZE: usize> Io for Mapped<SIZE> {
    #[inline(always)]
    fn load<W: Word>(&self, offset: u64) -> Result<W> {
        Ok(self.pointer::<W>(offset)?.read())
    }
    #[inline(always)]
    fn store<W: Word>(&self, offset: u64, value: W) -> Result<()> {
        self.pointer::<W>(offset)?.write(value);
        Ok(())
    }
}

/// A region however it can be reached: mapped where that is possible, by message otherwise.
pub enum Window<const SIZE: usize> {
    /// By loads and stores.
    Mapped(Mapped<SIZE>),
    /// By backend calls.
    ByMessage(ByMessage<dyn Backend>),
}

impl<const SIZE: usize> Window<SIZE> {
    /// Opens the start of a region.
    ///
    /// # Errors
    /// [`Error::OutOfRegion`] if the region has less than `SIZE` bytes; as [`Mapped::map`].
    pub fn open(backend: &Arc<dyn Backend>, region: RegionIndex) -> Result<Self> {
        backend.region(region)?.check_range(0, SIZE as u64)?;
        Ok(match Mapped::map(&**backend, region)? {
            Some(mapped) => Self::Mapped(mapped),
            None => Self::ByMessage(ByMessage::new(Arc::clone(backend), region)),
        })
    }
}

impl<const SIZE: usize> Io for Window<SIZE> {
    #[inline(always)]
    fn load<W: Word>(&self, offset: u64) -> Result<W> {
        match self {
            Self::Mapped(io) => io.load(offset),
            Self::ByMessage(io) => io.load(offset),
        }
    }
    #[inline(always)]
    fn store<W: Word>(&self, offset: u64, value: W) -> Result<()> {
        match self {
            Self::Mapped(io) => io.store(offset, value),
            Self::ByMessage(io) => io.store(offset, value),
        }
    }
}
