//! Where buffers come from.

use super::buffer::{Block, Buffer, Coherent, Direction};
use super::memory::{HUGE, Memory};
use super::ranges::Ranges;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use udrv_backend::{AnyBackend, DmaAccess, DmaLimits, DmaMap, Error, Moment, Observe, Result};

/// Memory for one device's DMA. Cheap to clone; clones are the same pool.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    backend: AnyBackend,
    /// Ordinary pages, for whatever is not in huge pages of its own.
    memory: Arc<Memory>,
    size: u64,
    limits: DmaLimits,
    used: Mutex<Used>,
    /// Who looks on.
    observer: Option<Arc<dyn Observe>>,
    /// The device's place in the inspection page.
    shown: udrv_inspect::Device,
}

/// What memory is for.
#[derive(Clone, Copy)]
struct Use {
    /// What the device may do.
    access: DmaAccess,
    /// Whether it changes hands, rather than being used by driver and device at the same time.
    streams: bool,
}

struct Used {
    pages: Ranges,
    iovas: Ranges,
    bytes: u64,
    mappings: u32,
    leaks: Vec<Leak>,
}

/// Memory that was dropped while the device owned it. It stays mapped until the device is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leak {
    /// Where the device finds it.
    pub iova: u64,
    /// Its length in bytes, in whole pages.
    pub size: u64,
}

impl Pool {
    /// A pool of `size` bytes (rounded up to pages) for a device that can emit addresses of `address_bits` bits.
    ///
    /// # Errors
    /// [`Error::NotSupported`] if the device has no DMA; [`Error::DmaRange`], [`Error::Os`].
    pub fn new(backend: AnyBackend, size: usize, address_bits: u32) -> Result<Self> {
        let Some(dma) = backend.dma() else {
            return Err(Error::NotSupported { what: "DMA", by: backend.info().address.clone() });
        };
        let limits = DmaLimits { page_size: dma.limits().page_size.max(4096), ..dma.limits() };
        let refused = |why| Error::DmaRange { iova: 0, size: size as u64, why };
        if !limits.page_size.is_power_of_two() {
            return Err(refused("the page size is no power of two"));
        }
        let overflows = || refused("a pool of that size overflows the address space");
        let bytes = (size.max(1) as u64).checked_next_multiple_of(limits.page_size).ok_or_else(overflows)?;
        let memory = Arc::new(Memory::new(usize::try_from(bytes).map_err(|_| overflows())?)?);
        let mut pages = Ranges::default();
        pages.free(0..=bytes - 1);
        let iovas = reachable(&limits, address_bits);
        let used = Mutex::new(Used { pages, iovas, bytes: 0, mappings: 0, leaks: Vec::new() });
        let observer = backend.observer();
        let shown = udrv_inspect::Device::of(&*backend);
        Ok(Self { inner: Arc::new(Inner { backend, memory, size: bytes, limits, used, observer, shown }) })
    }

    /// A zeroed buffer of `length` bytes, mapped for the device, contiguous on the bus.
    ///
    /// # Errors
    /// [`Error::DmaRange`] if the pool or the reachable bus addresses are used up; what the backend says otherwise.
    pub fn alloc<D: Direction>(&self, length: usize) -> Result<Buffer<D>> {
        self.alloc_aligned(length, 1)
    }

    /// As [`Pool::alloc`], at a bus address that is a multiple of `align` bytes, a power of two. Every buffer is aligned
    /// to the page size in any case.
    ///
    /// # Errors
    /// As [`Pool::alloc`].
    pub fn alloc_aligned<D: Direction>(&self, length: usize, align: u64) -> Result<Buffer<D>> {
        Ok(Buffer::new(self.inner.alloc(length, align, Use { access: D::ACCESS, streams: true })?))
    }

    /// Zeroed memory that driver and device use at the same time, such as a ring of descriptors.
    ///
    /// # Errors
    /// As [`Pool::alloc`].
    pub fn alloc_coherent(&self, length: usize) -> Result<Coherent> {
        Ok(Coherent::new(self.inner.alloc(
            length,
            1,
            Use { access: DmaAccess::READ | DmaAccess::WRITE, streams: false },
        )?))
    }

    /// Buffers that were dropped while the device owned them.
    #[must_use]
    pub fn leaks(&self) -> Vec<Leak> {
        self.inner.used().leaks.clone()
    }
}

/// The bus addresses that the backend can map and the device can emit.
fn reachable(limits: &DmaLimits, address_bits: u32) -> Ranges {
    let page = limits.page_size;
    let mask = 1u64.checked_shl(address_bits).map_or(u64::MAX, |end| end - 1);
    let mut free = Ranges::default();
    for range in &limits.iova_ranges {
        // Bus address 0 is legal, but many devices take it for "none".
        let Some(first) = (*range.start()).max(page).checked_next_multiple_of(page) else { continue };
        let last = (*range.end()).min(mask);
        if first <= last {
            free.free(first..=last);
        }
    }
    free
}

/// What `length` bytes take in huge pages and in ordinary ones, each `None` where that is more than `room`. Large buffers
/// are tried in huge pages of their own: an IOMMU has them in one entry of its TLB.
fn sizes(length: u64, page: u64, room: u64) -> (Option<u64>, Option<u64>) {
    let huge = HUGE as u64;
    let within = |unit| length.max(1).checked_next_multiple_of(unit).filter(|size| *size <= room);
    (if length >= huge && page <= huge { within(huge) } else { None }, within(page))
}

impl Inner {
    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alloc(self: &Arc<Self>, length: usize, align: u64, purpose: Use) -> Result<Block> {
        let page = self.limits.page_size;
        let refused = |why| Error::DmaRange { iova: 0, size: length as u64, why };
        if !align.is_power_of_two() {
            return Err(refused("its alignment is no power of two"));
        }
        let no_room = || refused("the pool has no such room: make it larger");
        let mut used = self.used();
        let (huge, ordinary) = sizes(length as u64, page, self.size.saturating_sub(used.bytes));
        let ordinary = ordinary.ok_or_else(no_room)?;
        if used.mappings >= self.limits.max_mappings {
            return Err(refused("the device takes no more mappings: use fewer, larger buffers"));
        }
        let own = huge.and_then(|size| Some((Memory::huge(size as usize)?, size)));
        let is_huge = own.is_some();
        let (memory, offset, size) = match own {
            Some((memory, size)) => (Arc::new(memory), 0, size),
            None => (Arc::clone(&self.memory), used.pages.take(ordinary, page).ok_or_else(no_room)?, ordinary),
        };
        let align = if is_huge { align.max(HUGE as u64) } else { align.max(page) };
        // Before the device can see what the last owner left.
        let mapped = memory
            .zero(offset as usize, size as usize)
            .and_then(|()| self.map(&mut used, &memory, (offset, size), align, purpose));
        match mapped {
            Ok(iova) => {
                used.bytes += size;
                used.mappings += 1;
                drop(used);
                let (pool, offset) = (Arc::clone(self), offset as usize);
                let shown = udrv_inspect::Buffer::new(&self.shown, iova, size, length as u64, purpose.access.bits());
                let shown = Some(shown);
                Ok(Block { pool, memory, offset, iova, size, length, is_huge, with_device: false, shown })
            }
            Err(error) => {
                if !is_huge {
                    used.pages.free(offset..=offset + size - 1);
                }
                Err(error)
            }
        }
    }

    /// Finds a bus address and maps it. Another pool of the same device may have mapped there: then further on.
    fn map(
        &self,
        used: &mut Used,
        memory: &Memory,
        (offset, size): (u64, u64),
        align: u64,
        Use { access, streams }: Use,
    ) -> Result<u64> {
        let none = || Error::DmaRange { iova: 0, size, why: "no free bus address in reach of the device" };
        let gone = || Error::DmaRange { iova: 0, size, why: "the device has lost its DMA" };
        let dma = self.backend.dma().ok_or_else(gone)?;
        let mut step = size;
        loop {
            let iova = used.iovas.take(step, align).ok_or_else(none)?;
            if let (true, Some(observer)) = (streams, &self.observer) {
                observer.observe(Moment::Streams { iova, size });
            }
            match dma.map(&DmaMap { iova, size, access, file: memory.as_fd(), offset }) {
                Ok(()) => {
                    if step > size {
                        used.iovas.free(iova + size..=iova + step - 1);
                    }
                    return Ok(iova);
                }
                // What was taken stays taken: it is somebody else's. The steps grow, so that a large one is passed soon.
                Err(Error::DmaOverlap { .. }) => step = step.checked_mul(2).ok_or_else(none)?,
                Err(error) => {
                    used.iovas.free(iova..=iova + step - 1);
                    return Err(error);
                }
            }
        }
    }

    /// Takes a block back from the device, or notes that it cannot be.
    pub(super) fn release(&self, block: &Block) {
        let unmapped = self.backend.dma().map_or(Ok(()), |dma| dma.unmap(block.iova, block.size));
        let mut used = self.used();
        match unmapped {
            Ok(()) => {
                used.iovas.free(block.iova..=block.iova + (block.size - 1));
                if !block.is_huge {
                    used.pages.free(block.offset as u64..=block.offset as u64 + (block.size - 1));
                }
                used.bytes -= block.size;
                used.mappings -= 1;
            }
            // The pages stay reserved: the device may still reach them.
            Err(error) => tracing::warn!(%error, iova = block.iova, "a DMA buffer could not be unmapped"),
        }
    }

    /// A block was handed over.
    #[inline]
    pub(super) fn observe_hand_over(&self, block: &Block) {
        let Some(observer) = &self.observer else { return };
        let &Block { iova, size, with_device, .. } = block;
        observer.observe(if with_device { Moment::Lent { iova, size } } else { Moment::Returned { iova, size } });
    }

    /// Notes that a block is the device's for good.
    pub(super) fn leak(&self, block: &Block) {
        self.used().leaks.push(Leak { iova: block.iova, size: block.size });
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for Leak { iova, size } in &self.used().leaks {
            let device = &self.backend.info().address;
            tracing::warn!(device, "DMA memory at {iova:#x} ({size} bytes) was dropped while the device owned it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HUGE_PAGE: u64 = HUGE as u64;

    #[test]
    fn large_buffer_beyond_the_room_is_had_in_no_pages() {
        assert_eq!(sizes(2 * HUGE_PAGE, 4096, 2 * HUGE_PAGE - 1), (None, None));
    }

    #[test]
    fn large_buffer_whose_rounding_exceeds_the_room_is_had_in_ordinary_pages() {
        assert_eq!(sizes(HUGE_PAGE + 1, 4096, HUGE_PAGE + 4096), (None, Some(HUGE_PAGE + 4096)));
    }

    #[test]
    fn large_buffer_within_the_room_is_had_in_either() {
        assert_eq!(sizes(HUGE_PAGE + 1, 4096, 2 * HUGE_PAGE), (Some(2 * HUGE_PAGE), Some(HUGE_PAGE + 4096)));
    }
}
