//! DMA buffers: memory from a memfd, a bus address in reach of the device, direction and ownership in the type.
//!
//! A [`Buffer`] belongs to the driver; [`Buffer::submit`] turns it into an [`InFlight`], which belongs to the device and
//! offers no access; [`InFlight::complete`] takes it back. Each buffer is its own mapping with just the access its
//! direction needs, so that an IOMMU stops a device that transfers the wrong way. Contents are copied in and out: the
//! other side may be another process, so no Rust reference ever points into them.
#![expect(unsafe_code, reason = "the pool maps its memfd and copies through raw pointers")]

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd as _, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use udrv_backend::{Backend, DmaAccess, DmaLimits, DmaMap, Error, Result};

/// Which way a buffer's data goes.
pub trait Direction: Send + 'static {
    /// What the device may do with it.
    const ACCESS: DmaAccess;
}
/// The device reads it.
#[derive(Debug)]
pub enum ToDevice {}
/// The device writes it.
#[derive(Debug)]
pub enum FromDevice {}
/// Both.
#[derive(Debug)]
pub enum Bidirectional {}

impl Direction for ToDevice {
    const ACCESS: DmaAccess = DmaAccess::READ;
}
impl Direction for FromDevice {
    const ACCESS: DmaAccess = DmaAccess::WRITE;
}
impl Direction for Bidirectional {
    const ACCESS: DmaAccess = DmaAccess::READ.union(DmaAccess::WRITE);
}

/// Memory for one device's DMA.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    backend: Arc<dyn Backend>,
    memory: OwnedFd,
    base: NonNull<c_void>,
    size: usize,
    limits: DmaLimits,
    /// Highest bus address that the device can emit.
    mask: u64,
    used: Mutex<Used>,
}

// SAFETY: `base` is only read and written through bounds-checked raw copies, in ranges that one Buffer owns.
unsafe impl Send for Inner {}
// SAFETY: as above; the bookkeeping is behind a mutex.
unsafe impl Sync for Inner {}

#[derive(Default)]
struct Used {
    /// Offset in the pool to length.
    pages: BTreeMap<u64, u64>,
    /// Bus address to length.
    iovas: BTreeMap<u64, u64>,
    /// Buffers whose `InFlight` was dropped, and which the device may therefore still use.
    leaked: usize,
}

impl Pool {
    /// A pool of `size` bytes (rounded up to pages) for a device that can emit addresses of `address_bits` bits.
    ///
    /// # Errors
    /// [`Error::NotSupported`] if the device has no DMA; [`Error::Os`].
    pub fn new(backend: Arc<dyn Backend>, size: usize, address_bits: u32) -> Result<Self> {
        let Some(dma) = backend.dma() else {
            return Err(Error::NotSupported { what: "DMA", by: backend.info().address.clone() });
        };
        let limits = dma.limits();
        let page = limits.page_size.max(4096) as usize;
        let size = size.max(1).checked_next_multiple_of(page).ok_or(Error::DmaRange {
            iova: 0,
            size: size as u64,
            why: "a pool of that size overflows the address space",
        })?;
        let memory = memfd_create(c"udrv-dma", MFdFlags::MFD_CLOEXEC)
            .map_err(|errno| Error::os("creating the memory of a DMA pool", errno))?;
        nix::unistd::ftruncate(&memory, size as i64)
            .map_err(|errno| Error::os(format!("sizing a DMA pool to {size} bytes"), errno))?;
        let length = NonZeroUsize::new(size).expect("rounded up from at least 1");
        // SAFETY: a fresh shared mapping at an address the kernel chooses replaces nothing.
        let base = unsafe {
            mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, &memory, 0)
        }
        .map_err(|errno| Error::os(format!("mapping a DMA pool of {size} bytes"), errno))?;
        let mask = 1u64.checked_shl(address_bits).map_or(u64::MAX, |end| end - 1);
        let used = Mutex::default();
        Ok(Self { inner: Arc::new(Inner { backend, memory, base, size, limits, mask, used }) })
    }

    /// A zeroed buffer of `length` bytes, mapped for the device.
    ///
    /// # Errors
    /// [`Error::DmaRange`] if the pool or the reachable bus addresses are used up; what the backend says otherwise.
    pub fn alloc<D: Direction>(&self, length: usize) -> Result<Buffer<D>> {
        let inner = &self.inner;
        let page = inner.limits.page_size.max(4096);
        let refused = |why| Error::DmaRange { iova: 0, size: length as u64, why };
        let size = (length.max(1) as u64).checked_next_multiple_of(page).ok_or(refused("its length overflows"))?;
        let mut used = inner.used();
        let pool = 0..=inner.size as u64 - 1;
        let offset = first_gap(&used.pages, &pool, size).ok_or(refused("the pool has no such room: make it larger"))?;
        let in_reach = |range: &std::ops::RangeInclusive<u64>| {
            // Bus address 0 is legal, but many devices take it for "none".
            let low = (*range.start()).max(page).checked_next_multiple_of(page)?;
            let high = (*range.end()).min(inner.mask);
            (low <= high).then_some(low..=high)
        };
        let iova = inner
            .limits
            .iova_ranges
            .iter()
            .filter_map(in_reach)
            .find_map(|range| first_gap(&used.iovas, &range, size))
            .ok_or(refused("no free bus address in reach of the device"))?;
        let dma = inner.backend.dma().ok_or(refused("the device has lost its DMA"))?;
        dma.map(&DmaMap { iova, size, access: D::ACCESS, file: inner.memory.as_fd(), offset })?;
        used.pages.insert(offset, size);
        used.iovas.insert(iova, size);
        drop(used);
        let mut buffer =
            Buffer { inner: Arc::clone(inner), offset, iova, size, length, returned: true, direction: PhantomData };
        buffer.fill(0);
        Ok(buffer)
    }

    /// Buffers dropped while the device still owned them: they stay mapped until the pool's device is closed.
    #[must_use]
    pub fn leaked(&self) -> usize {
        self.inner.used().leaked
    }
}

/// The lowest start of `size` free addresses in `range`.
fn first_gap(used: &BTreeMap<u64, u64>, range: &std::ops::RangeInclusive<u64>, size: u64) -> Option<u64> {
    let mut candidate = *range.start();
    for (&start, &length) in used {
        let last = candidate.checked_add(size - 1)?;
        if last < start {
            break;
        }
        candidate = candidate.max(start.checked_add(length)?);
    }
    (candidate.checked_add(size - 1)? <= *range.end()).then_some(candidate)
}

impl Inner {
    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let leaked = self.used().leaked;
        if leaked > 0 {
            tracing::warn!(leaked, device = self.backend.info().address, "DMA buffers were dropped in flight");
        }
        // SAFETY: the range is the mapping made in `Pool::new`; no Buffer is left, since each holds an Arc of this.
        if let Err(errno) = unsafe { munmap(self.base, self.size) } {
            tracing::error!(%errno, "unmapping a DMA pool");
        }
    }
}

/// Memory that the driver owns.
pub struct Buffer<D: Direction> {
    inner: Arc<Inner>,
    offset: u64,
    iova: u64,
    size: u64,
    length: usize,
    returned: bool,
    direction: PhantomData<D>,
}

impl<D: Direction> Buffer<D> {
    /// Where the device finds it, on the bus.
    #[must_use]
    pub const fn iova(&self) -> u64 {
        self.iova
    }

    /// Length in bytes, as asked for.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether its length is 0.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn at(&self, offset: usize, length: usize) -> Result<NonNull<u8>> {
        match offset.checked_add(length) {
            Some(end) if end <= self.length => {
                // SAFETY: offset lies in this buffer, which lies in the pool's mapping.
                Ok(unsafe { self.inner.base.cast::<u8>().add(self.offset as usize + offset) })
            }
            _ => Err(Error::DmaRange {
                iova: self.iova.saturating_add(offset as u64),
                size: length as u64,
                why: "the copy goes beyond its buffer",
            }),
        }
    }

    fn fill(&mut self, byte: u8) {
        let at = self.at(0, self.length).expect("the whole buffer fits itself");
        // SAFETY: `at` checked the range; nobody else owns it.
        unsafe { at.write_bytes(byte, self.length) };
    }

    /// Copies `data` into the buffer at byte `offset`.
    ///
    /// # Errors
    /// [`Error::DmaRange`] if it does not fit.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Result<()> {
        let at = self.at(offset, data.len())?;
        // SAFETY: `at` checked the destination; the source is an ordinary slice and cannot overlap the mapping, to
        // which no reference exists.
        unsafe { at.copy_from_nonoverlapping(NonNull::from(data).cast(), data.len()) };
        Ok(())
    }

    /// Copies bytes from `offset` out of the buffer.
    ///
    /// # Errors
    /// [`Error::DmaRange`] if they are not all there.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        let at = self.at(offset, into.len())?;
        // SAFETY: as in `write`, the other way round.
        unsafe { at.copy_to_nonoverlapping(NonNull::from(&mut *into).cast(), into.len()) };
        Ok(())
    }

    /// Hands it to the device.
    #[must_use = "dropping what is in flight leaks it: complete it"]
    pub const fn submit(mut self) -> InFlight<D> {
        self.returned = false;
        InFlight { buffer: self }
    }
}

impl<D: Direction> Drop for Buffer<D> {
    fn drop(&mut self) {
        let mut used = self.inner.used();
        if !self.returned {
            used.leaked += 1;
            return;
        }
        let unmapped = self.inner.backend.dma().map_or(Ok(()), |dma| dma.unmap(self.iova, self.size));
        match unmapped {
            Ok(()) => {
                used.pages.remove(&self.offset);
                used.iovas.remove(&self.iova);
            }
            // The pages stay reserved: the device may still reach them.
            Err(error) => tracing::warn!(%error, "a DMA buffer could not be unmapped"),
        }
    }
}

/// A buffer that the device owns. Dropping it leaks the memory, which stays mapped: the device may still write there.
pub struct InFlight<D: Direction> {
    buffer: Buffer<D>,
}

impl<D: Direction> InFlight<D> {
    /// Where the device finds it, on the bus.
    #[must_use]
    pub const fn iova(&self) -> u64 {
        self.buffer.iova
    }

    /// Takes it back, once the device has said that it is done with it (or has been reset).
    #[must_use]
    pub fn complete(self) -> Buffer<D> {
        let mut buffer = self.buffer;
        buffer.returned = true;
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::first_gap;
    use std::collections::BTreeMap;

    #[test]
    fn gap_between_neighbours_is_found_and_never_overlaps() {
        let used = BTreeMap::from([(0x1000, 0x1000), (0x3000, 0x1000)]);
        assert_eq!(first_gap(&used, &(0x1000..=0x8fff), 0x1000), Some(0x2000));
        assert_eq!(first_gap(&used, &(0x1000..=0x8fff), 0x2000), Some(0x4000));
        assert_eq!(first_gap(&used, &(0x1000..=0x3fff), 0x2000), None);
        assert_eq!(first_gap(&BTreeMap::new(), &(0..=u64::MAX), 1), Some(0));
    }
}
