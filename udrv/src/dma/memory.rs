//! Memory that another process or a device can be given: a file without a name, mapped here.
#![expect(unsafe_code, reason = "maps its memfd and copies through raw pointers")]

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use udrv_backend::register::Word;
use udrv_backend::{Error, Result};

/// The size of the huge pages that are tried for.
pub(super) const HUGE: usize = 2 << 20;

/// One memfd and its mapping. All access is by bounds-checked copies through raw pointers.
pub(super) struct Memory {
    file: OwnedFd,
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: `base` is only read and written through bounds-checked raw copies, in ranges that one buffer owns.
unsafe impl Send for Memory {}
// SAFETY: as above; there is no state but the memory itself, which the device changes at any time anyway.
unsafe impl Sync for Memory {}

impl Memory {
    /// `size` bytes, a multiple of the page size and not 0. Pages that are never touched cost nothing.
    pub(super) fn new(size: usize) -> Result<Self> {
        Self::make(size, MFdFlags::empty())
    }

    /// `size` bytes, a multiple of [`HUGE`], in huge pages; `None` if the kernel has not so many free.
    pub(super) fn huge(size: usize) -> Option<Self> {
        Self::make(size, MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB).ok()
    }

    fn make(size: usize, kind: MFdFlags) -> Result<Self> {
        let os = |errno: nix::errno::Errno| Error::os(format!("getting {size} bytes of memory for DMA"), errno);
        let file = memfd_create(c"udrv-dma", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | kind).map_err(os)?;
        let length = i64::try_from(size).map_err(|_| os(nix::errno::Errno::EOVERFLOW))?;
        nix::unistd::ftruncate(&file, length).map_err(os)?;
        // A server is given this file. One that shortened it would make our next access a SIGBUS.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(os)?;
        let length = NonZeroUsize::new(size).ok_or_else(|| os(nix::errno::Errno::EINVAL))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh shared mapping at an address the kernel chooses replaces nothing.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &file, 0) }.map_err(os)?;
        Ok(Self { file, base: base.cast(), size })
    }

    #[inline]
    fn at(&self, offset: usize, length: usize) -> Result<NonNull<u8>> {
        match offset.checked_add(length) {
            // SAFETY: the range lies in the mapping.
            Some(end) if end <= self.size => Ok(unsafe { self.base.add(offset) }),
            _ => Err(refused(0, length, "the copy goes beyond its memory")),
        }
    }

    pub(super) fn zero(&self, offset: usize, length: usize) -> Result<()> {
        let at = self.at(offset, length)?;
        // SAFETY: `at` checked the range; no reference points into it.
        unsafe { at.write_bytes(0, length) };
        Ok(())
    }

    pub(super) fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        let at = self.at(offset, data.len())?;
        // SAFETY: `at` checked the destination; the source is an ordinary slice and cannot overlap the mapping, to
        // which no reference exists.
        unsafe { at.copy_from_nonoverlapping(NonNull::from(data).cast(), data.len()) };
        Ok(())
    }

    pub(super) fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        let at = self.at(offset, into.len())?;
        // SAFETY: as in `write`, the other way round.
        unsafe { at.copy_to_nonoverlapping(NonNull::from(&mut *into).cast(), into.len()) };
        Ok(())
    }

    /// One volatile load.
    #[inline]
    pub(super) fn load<W: Word>(&self, offset: usize) -> Result<W> {
        let at = self.words::<W>(offset, 1)?;
        // SAFETY: in bounds and aligned by `words`; W is an integer, valid for every bit pattern.
        Ok(unsafe { at.read_volatile() })
    }

    /// One volatile store.
    #[inline]
    pub(super) fn store<W: Word>(&self, offset: usize, value: W) -> Result<()> {
        let at = self.words::<W>(offset, 1)?;
        // SAFETY: in bounds and aligned by `words`.
        unsafe { at.write_volatile(value) };
        Ok(())
    }

    /// Volatile loads, one after the other.
    #[inline]
    pub(super) fn load_all<W: Word, const N: usize>(&self, offset: usize) -> Result<[W; N]> {
        let first = self.words::<W>(offset, N)?;
        Ok(std::array::from_fn(|index| {
            // SAFETY: `index` is below N, and `words` checked so many.
            let at = unsafe { first.add(index) };
            // SAFETY: in bounds as above, aligned by `words`; W is an integer, valid for every bit pattern.
            unsafe { at.read_volatile() }
        }))
    }

    /// Volatile stores, one after the other.
    #[inline]
    pub(super) fn store_all<W: Word, const N: usize>(&self, offset: usize, values: [W; N]) -> Result<()> {
        let first = self.words::<W>(offset, N)?;
        for (index, value) in values.into_iter().enumerate() {
            // SAFETY: `index` is below N, and `words` checked so many.
            let at = unsafe { first.add(index) };
            // SAFETY: in bounds as above, aligned by `words`.
            unsafe { at.write_volatile(value) };
        }
        Ok(())
    }

    /// Where `count` words are.
    #[inline]
    fn words<W: Word>(&self, offset: usize, count: usize) -> Result<NonNull<W>> {
        let width = size_of::<W>();
        if !offset.is_multiple_of(width) {
            return Err(refused(offset, width, "the access is not aligned to its width"));
        }
        Ok(self.at(offset, width * count)?.cast())
    }
}

#[cold]
const fn refused(at: usize, length: usize, why: &'static str) -> Error {
    Error::DmaRange { iova: at as u64, size: length as u64, why }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `make`; no pointer into it outlives `self`.
        if let Err(errno) = unsafe { munmap(self.base.cast(), self.size) } {
            tracing::error!(%errno, "unmapping DMA memory");
        }
    }
}
