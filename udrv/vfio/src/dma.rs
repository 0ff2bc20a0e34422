//! DMA: mappings of files of memory, made here for the kernel to pin, and never touched.
//!
//! The file may come from a hostile client. It must be memory (a memfd, tmpfs or hugetlbfs file): pinning a page of
//! anything else asks its file system, which may be the client itself (FUSE) and never answer. Its length is checked, so
//! that what is too short is an error that says so; if it shrinks afterwards the kernel's pinning fails, and as nothing
//! here reads or writes the mapping there is no SIGBUS.
#![expect(unsafe_code, reason = "mmap and munmap")]

use crate::attach::Attached;
use crate::{descriptor, reply, uapi};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::resource::{Resource, getrlimit};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};
use udrv_backend::{DmaAccess, DmaLimits, DmaMap, Error, Result};
use vfio_bindings::bindings::vfio::{VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE};
use vfio_ioctls::VfioError;

/// The container's address space.
pub(crate) struct Space {
    pub(crate) limits: DmaLimits,
    /// By bus address.
    mappings: Mutex<BTreeMap<u64, Mapping>>,
}

/// A shared mapping of a file, which nothing in this process reads or writes. Unmapped when dropped.
struct Mapping {
    address: NonNull<c_void>,
    size: usize,
}

// SAFETY: the address is only passed to the kernel, from any thread.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(map: &DmaMap<'_>) -> Result<Self> {
        let refused = |why| Error::DmaRange { iova: map.iova, size: map.size, why };
        if !descriptor::is_memory(map.file) {
            return Err(refused("its file is not memory: it must be a memfd, or a file of tmpfs or hugetlbfs"));
        }
        let status = nix::sys::stat::fstat(map.file).map_err(|errno| Error::os("sizing a file for DMA", errno))?;
        let end = map.offset.checked_add(map.size).and_then(|end| i64::try_from(end).ok());
        if end.is_none_or(|end| status.st_size < end) {
            return Err(refused("its file is shorter than the range"));
        }
        let length = usize::try_from(map.size).ok().and_then(NonZeroUsize::new).ok_or(refused("its size overflows"))?;
        // The kernel pins for reading or for writing: the mapping need not allow more.
        let protection = if map.access.contains(DmaAccess::WRITE) {
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE
        } else {
            ProtFlags::PROT_READ
        };
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a new shared mapping at an address the kernel chooses replaces nothing.
        let address = unsafe { mmap(None, length, protection, flags, map.file, map.offset as i64) }
            .map_err(|errno| Error::os(format!("mapping {:#x} bytes of a file for DMA", map.size), errno))?;
        Ok(Self { address, size: length.get() })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping made in `new`, into which nothing in this process points.
        if let Err(errno) = unsafe { munmap(self.address, self.size) } {
            tracing::error!(%errno, "unmapping memory that was used for DMA");
        }
    }
}

impl Space {
    pub(crate) fn query(attached: &Attached) -> Result<Self> {
        let address = || format!("pci:{}", attached.pci.bdf);
        let info = uapi::iommu_info(attached.container_fd())
            .map_err(|error| Error::os(format!("{}: asking for its IOMMU's limits", address()), error))?;
        let limits = reply::dma_limits(&info).ok_or_else(|| Error::Protocol {
            peer: format!("the kernel's IOMMU driver behind {}", address()),
            found: format!("{} bytes without a page size", info.len()),
            expected: "a vfio_iommu_type1_info".into(),
        })?;
        Ok(Self { limits, mappings: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Mapping>> {
        self.mappings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`udrv_backend::Dma::map`].
    pub(crate) fn map(&self, attached: &Attached, map: &DmaMap<'_>) -> Result<()> {
        self.limits.check(map)?;
        if map.access.is_empty() {
            let why = "the device may neither read nor write it";
            return Err(Error::DmaRange { iova: map.iova, size: map.size, why });
        }
        let last = map.iova + (map.size - 1);
        let mut mappings = self.lock();
        let before = mappings.range(..=last).next_back();
        if before.is_some_and(|(&start, mapping)| start >= map.iova || start + (mapping.size as u64 - 1) >= map.iova) {
            return Err(Error::DmaOverlap { iova: map.iova, size: map.size });
        }
        if mappings.len() >= self.limits.max_mappings as usize {
            let limit = self.limits.max_mappings;
            let doing = format!("mapping for DMA beyond {limit} mappings (dma_entry_limit of vfio_iommu_type1)");
            return Err(Error::os(doing, io::Error::from_raw_os_error(libc::ENOSPC)));
        }
        let mapping = Mapping::new(map)?;
        let mut flags = 0;
        if map.access.contains(DmaAccess::READ) {
            flags |= VFIO_DMA_MAP_FLAG_READ;
        }
        if map.access.contains(DmaAccess::WRITE) {
            flags |= VFIO_DMA_MAP_FLAG_WRITE;
        }
        let vaddr = mapping.address.addr().get() as u64;
        uapi::map_dma(attached.container_fd(), flags, vaddr, map.iova, map.size).map_err(|error| {
            let mapped = mappings.values().map(|mapping| mapping.size as u64).sum();
            refused_by_kernel(attached, map, mapped, error)
        })?;
        mappings.insert(map.iova, mapping);
        Ok(())
    }

    /// As [`udrv_backend::Dma::unmap`].
    pub(crate) fn unmap(&self, attached: &Attached, iova: u64, size: u64) -> Result<()> {
        let mut mappings = self.lock();
        match mappings.get(&iova) {
            Some(mapping) if mapping.size as u64 == size => {
                unmap_in_kernel(attached, iova, mapping.size)?;
                mappings.remove(&iova);
                Ok(())
            }
            _ => Err(Error::DmaNotMapped { iova, size }),
        }
    }

    /// Takes back everything; goes on where a mapping fails, which then lives until the container is closed.
    pub(crate) fn unmap_all(&self, attached: &Attached) -> Result<()> {
        let mappings = std::mem::take(&mut *self.lock());
        mappings.iter().map(|(iova, mapping)| unmap_in_kernel(attached, *iova, mapping.size)).fold(Ok(()), Result::and)
    }
}

fn unmap_in_kernel(attached: &Attached, iova: u64, size: usize) -> Result<()> {
    attached.container.vfio_dma_unmap(iova, size).map_err(|error| {
        let errno = match error {
            VfioError::IommuDmaUnmap(error) => error.errno(),
            // The kernel unmapped another length than it was told to: mappings and bookkeeping no longer agree.
            _ => libc::EIO,
        };
        let doing = format!("pci:{}: unmapping iova {iova:#x}+{size:#x}", attached.pci.bdf);
        Error::os(doing, io::Error::from_raw_os_error(errno))
    })
}

fn refused_by_kernel(attached: &Attached, map: &DmaMap<'_>, mapped: u64, error: io::Error) -> Error {
    let bdf = attached.pci.bdf;
    match error.raw_os_error() {
        Some(libc::EEXIST) => Error::DmaOverlap { iova: map.iova, size: map.size },
        Some(libc::ENOMEM) => {
            let limit = match getrlimit(Resource::RLIMIT_MEMLOCK) {
                Ok((limit, _)) if limit == libc::RLIM_INFINITY => "unlimited".into(),
                Ok((limit, _)) => format!("{} KiB", limit / 1024),
                Err(_) => "unknown".into(),
            };
            let needed = mapped.saturating_add(map.size).div_ceil(1024);
            let doing = format!(
                "pci:{bdf}: mapping {:#x} bytes for DMA: RLIMIT_MEMLOCK is {limit} and this device needs {needed} KiB \
                 (raise it: `ulimit -l {needed}`, LimitMEMLOCK= in a systemd unit, or memlock in \
                 /etc/security/limits.conf)",
                map.size
            );
            Error::os(doing, error)
        }
        _ => Error::os(format!("pci:{bdf}: mapping {:#x} bytes at iova {:#x} for DMA", map.size, map.iova), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::fs::File;
    use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

    fn memory(size: i64) -> OwnedFd {
        let memory = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).expect("a memfd");
        nix::unistd::ftruncate(&memory, size).expect("sized");
        memory
    }

    fn map(file: BorrowedFd<'_>, iova: u64, size: u64) -> DmaMap<'_> {
        DmaMap { iova, size, access: DmaAccess::READ, file, offset: 0 }
    }

    fn why(error: Result<impl Sized>) -> &'static str {
        match error.err().expect("refused") {
            Error::DmaRange { why, .. } => why,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn file_shorter_than_the_range_is_refused() {
        let file = memory(0x1fff);
        assert!(why(Mapping::new(&map(file.as_fd(), 0, 0x2000))).contains("shorter"));
        let beyond = DmaMap { offset: !0xfff, ..map(file.as_fd(), 0, 0x1000) };
        assert!(why(Mapping::new(&beyond)).contains("shorter"));
        assert!(Mapping::new(&map(file.as_fd(), 0, 0x1000)).is_ok());
    }

    #[test]
    fn file_that_is_no_memory_is_refused() {
        let file = File::open("/proc/self/maps").expect("/proc");
        assert!(why(Mapping::new(&map(file.as_fd(), 0, 0x1000))).contains("not memory"));
    }
}
