//! The kernel's VFIO calls (`linux/vfio.h`), each as a safe function over a descriptor.
//!
//! Here because vfio-ioctls hides the errno of several of them, maps all DMA readable and writable, and has a device type
//! whose drop panics once the device is gone. What is in a reply is decoded in [`crate::reply`]; nothing here decides
//! anything.
#![expect(unsafe_code, reason = "ioctl takes an untyped pointer")]

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_TYPE,
    vfio_device_info, vfio_group_status, vfio_iommu_type1_dma_map, vfio_iommu_type1_info, vfio_irq_info,
    vfio_region_info,
};

type Request = libc::c_ulong;

/// `_IO(VFIO_TYPE, VFIO_BASE + number)`: no direction and no size, on every architecture but MIPS, PowerPC and SPARC.
const fn request(number: u32) -> Request {
    ((VFIO_TYPE as Request) << 8) | (VFIO_BASE + number) as Request
}

const SET_IOMMU: Request = request(2);
const GROUP_GET_STATUS: Request = request(3);
const GROUP_SET_CONTAINER: Request = request(4);
const GROUP_GET_DEVICE_FD: Request = request(6);
const DEVICE_GET_INFO: Request = request(7);
const DEVICE_GET_REGION_INFO: Request = request(8);
const DEVICE_GET_IRQ_INFO: Request = request(9);
const DEVICE_SET_IRQS: Request = request(10);
const DEVICE_RESET: Request = request(11);
const IOMMU_GET_INFO: Request = request(12);
const IOMMU_MAP_DMA: Request = request(13);

/// No reply of the kernel's is longer: the longest chain, of IOVA ranges, has a few dozen entries.
const LONGEST_REPLY: usize = 1 << 20;

/// Calls with a pointer to `argument`.
///
/// # Safety
/// `request` must take such a pointer, access no more than `T` (which, where it begins with `argsz`, must hold its size
/// or less), and keep nothing of it.
unsafe fn call<T: ?Sized>(fd: BorrowedFd<'_>, request: Request, argument: *mut T) -> io::Result<i32> {
    // SAFETY: as the caller promises; the descriptor is open.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, argument.cast::<u8>()) } {
        -1 => Err(io::Error::last_os_error()),
        done => Ok(done),
    }
}

/// Chooses the container's IOMMU model. It must have a group.
pub(crate) fn set_iommu(container: BorrowedFd<'_>, kind: u32) -> io::Result<()> {
    // SAFETY: VFIO_SET_IOMMU takes an integer.
    match unsafe { libc::ioctl(container.as_raw_fd(), SET_IOMMU, libc::c_ulong::from(kind)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// `VFIO_GROUP_FLAGS_*`.
pub(crate) fn group_status(group: BorrowedFd<'_>) -> io::Result<u32> {
    let mut status = vfio_group_status { argsz: size_of::<vfio_group_status>() as u32, flags: 0 };
    // SAFETY: VFIO_GROUP_GET_STATUS fills a vfio_group_status.
    unsafe { call(group, GROUP_GET_STATUS, &raw mut status) }?;
    Ok(status.flags)
}

/// Puts a group into a container.
pub(crate) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
    let mut container: RawFd = container.as_raw_fd();
    // SAFETY: VFIO_GROUP_SET_CONTAINER reads one int.
    unsafe { call(group, GROUP_SET_CONTAINER, &raw mut container) }?;
    Ok(())
}

/// Opens a device of a group by its name in sysfs.
pub(crate) fn device_fd(group: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: VFIO_GROUP_GET_DEVICE_FD reads a string that ends in NUL.
    let fd = unsafe { call(group, GROUP_GET_DEVICE_FD, name.as_ptr().cast_mut()) }?;
    // SAFETY: the kernel has just made this descriptor for us (with close-on-exec set).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Flags, and how many regions and interrupt indices there are.
pub(crate) fn device_info(device: BorrowedFd<'_>) -> io::Result<vfio_device_info> {
    let mut info = vfio_device_info { argsz: size_of::<vfio_device_info>() as u32, ..Default::default() };
    // SAFETY: VFIO_DEVICE_GET_INFO fills a vfio_device_info of `argsz` bytes.
    unsafe { call(device, DEVICE_GET_INFO, &raw mut info) }?;
    Ok(info)
}

/// The `vfio_region_info` of one region with its capabilities behind it.
pub(crate) fn region_info(device: BorrowedFd<'_>, index: u32) -> io::Result<Vec<u8>> {
    let mut head = [0; size_of::<vfio_region_info>()];
    let at = std::mem::offset_of!(vfio_region_info, index);
    head[at..at + 4].copy_from_slice(&index.to_ne_bytes());
    with_capabilities(device, DEVICE_GET_REGION_INFO, &head)
}

/// The `vfio_iommu_type1_info` of a container with its capabilities behind it.
pub(crate) fn iommu_info(container: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    with_capabilities(container, IOMMU_GET_INFO, &[0; size_of::<vfio_iommu_type1_info>()])
}

/// Asks twice: first for the length, which the kernel puts into `argsz`, then for all of it.
fn with_capabilities(fd: BorrowedFd<'_>, request: Request, head: &[u8]) -> io::Result<Vec<u8>> {
    let mut reply = head.to_vec();
    loop {
        let length = reply.len();
        reply[..4].copy_from_slice(&(length as u32).to_ne_bytes());
        // SAFETY: both requests fill at most `argsz` bytes, and that is what the buffer has.
        unsafe { call(fd, request, reply.as_mut_slice()) }?;
        let wanted = reply.first_chunk().map_or(0, |argsz| u32::from_ne_bytes(*argsz)) as usize;
        if wanted <= length {
            return Ok(reply);
        }
        if wanted > LONGEST_REPLY {
            return Err(io::Error::from_raw_os_error(libc::EOVERFLOW));
        }
        reply = head.to_vec();
        reply.resize(wanted, 0);
    }
}

/// Flags and number of vectors of one interrupt index.
pub(crate) fn irq_info(device: BorrowedFd<'_>, index: u32) -> io::Result<vfio_irq_info> {
    let mut info = vfio_irq_info { argsz: size_of::<vfio_irq_info>() as u32, index, ..Default::default() };
    // SAFETY: VFIO_DEVICE_GET_IRQ_INFO fills a vfio_irq_info.
    unsafe { call(device, DEVICE_GET_IRQ_INFO, &raw mut info) }?;
    Ok(info)
}

/// What [`set_irqs`] does to its vectors.
pub(crate) enum IrqAction<'a> {
    /// Gives each its trigger; -1 for none. As many as there are vectors.
    Arm(&'a [RawFd]),
    /// `VFIO_IRQ_SET_ACTION_*` on `count` vectors, without data.
    Bare { action: u32, count: u32 },
}

impl IrqAction<'_> {
    /// Tears the whole index down.
    pub(crate) const DISABLE: Self = Self::Bare { action: VFIO_IRQ_SET_ACTION_TRIGGER, count: 0 };
}

/// One VFIO_DEVICE_SET_IRQS. What it returns beyond 0 is how many vectors the kernel could have given, having given none.
pub(crate) fn set_irqs(device: BorrowedFd<'_>, index: u32, start: u32, action: &IrqAction<'_>) -> io::Result<i32> {
    let (flags, count, fds) = match *action {
        IrqAction::Arm(fds) => (VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, fds.len() as u32, fds),
        IrqAction::Bare { action, count } => (VFIO_IRQ_SET_DATA_NONE | action, count, &[][..]),
    };
    // struct vfio_irq_set: argsz, flags, index, start, count, and the data: all of 32 bits here.
    let mut set = vec![0, flags, index, start, count];
    set.extend(fds.iter().map(|fd| fd.cast_unsigned()));
    set[0] = size_of_val(set.as_slice()) as u32;
    // SAFETY: the kernel reads `argsz` bytes, which is the length of the buffer.
    unsafe { call(device, DEVICE_SET_IRQS, set.as_mut_slice()) }
}

/// Resets the device.
pub(crate) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: VFIO_DEVICE_RESET ignores its argument.
    unsafe { call(device, DEVICE_RESET, std::ptr::null_mut::<u8>()) }?;
    Ok(())
}

/// Pins a range of this process's memory and maps it for the container's devices. `flags` are `VFIO_DMA_MAP_FLAG_*`.
pub(crate) fn map_dma(container: BorrowedFd<'_>, flags: u32, vaddr: u64, iova: u64, size: u64) -> io::Result<()> {
    let argsz = size_of::<vfio_iommu_type1_dma_map>() as u32;
    let mut map = vfio_iommu_type1_dma_map { argsz, flags, vaddr, iova, size };
    // SAFETY: VFIO_IOMMU_MAP_DMA reads a vfio_iommu_type1_dma_map. That `vaddr` may be written by the device from now on
    // is the business of `crate::dma`, which only passes shared mappings of its own that nothing else points into.
    unsafe { call(container, IOMMU_MAP_DMA, &raw mut map) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_of_the_kernels_header() {
        // `_IO(';', 100 + n)`, as a C program prints them.
        assert_eq!(SET_IOMMU, 0x3b66);
        assert_eq!(GROUP_GET_STATUS, 0x3b67);
        assert_eq!(GROUP_SET_CONTAINER, 0x3b68);
        assert_eq!(GROUP_GET_DEVICE_FD, 0x3b6a);
        assert_eq!(DEVICE_GET_INFO, 0x3b6b);
        assert_eq!(DEVICE_GET_REGION_INFO, 0x3b6c);
        assert_eq!(DEVICE_GET_IRQ_INFO, 0x3b6d);
        assert_eq!(DEVICE_SET_IRQS, 0x3b6e);
        assert_eq!(DEVICE_RESET, 0x3b6f);
        assert_eq!(IOMMU_GET_INFO, 0x3b70);
        assert_eq!(IOMMU_MAP_DMA, 0x3b71);
    }

    #[test]
    fn call_on_a_descriptor_that_is_no_vfio_is_an_error() {
        let null = std::fs::File::open("/dev/null").expect("/dev/null");
        let fd = std::os::fd::AsFd::as_fd(&null);
        assert_eq!(group_status(fd).expect_err("no group").raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(region_info(fd, 0).expect_err("no device").raw_os_error(), Some(libc::ENOTTY));
    }
}
