//! [`Mapping`]: memory for transfers that the kernel has allocated and mapped, so that nothing is copied on the way.
#![expect(unsafe_code, reason = "memory that libusb maps has no safe binding")]

use libusb1_sys as ffi;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

unsafe extern "system" {
    /// libusb 1.0.21 and later; libusb1-sys does not name it.
    fn libusb_dev_mem_alloc(handle: *mut ffi::libusb_device_handle, length: libc::size_t) -> *mut libc::c_uchar;
}

/// Memory from a device's node, for transfers of that device; for others it is memory like any other.
///
/// It stands by itself: it outlives the device, whose node the kernel closes with the last of its mappings.
pub(crate) struct Mapping {
    begin: NonNull<u8>,
    length: usize,
}

// SAFETY: it owns its memory, which any thread may reach.
unsafe impl Send for Mapping {}
// SAFETY: shared, it gives shared references only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `None` where the kernel does not map, or has no such memory left (`usbfs_memory_mb` counts it).
    pub(super) fn new(handle: &rusb::DeviceHandle<rusb::Context>, length: usize) -> Option<Self> {
        if length == 0 {
            return None;
        }
        // SAFETY: the handle is open for as long as the reference; gives null, or as much memory, zeroed and mapped for nobody
        // else.
        let begin = unsafe { libusb_dev_mem_alloc(handle.as_raw(), length) };
        NonNull::new(begin).map(|begin| Self { begin, length })
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped and initialised from `new` to `drop`. The host controller writes to it only while a transfer is in
        // flight with it, and then libusb has the buffer, and nobody a reference.
        unsafe { std::slice::from_raw_parts(self.begin.as_ptr(), self.length) }
    }
}

impl DerefMut for Mapping {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; and `self` is borrowed for as long.
        unsafe { std::slice::from_raw_parts_mut(self.begin.as_ptr(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // libusb_dev_mem_free is this on Linux, but for a handle that would have to be open still.
        // SAFETY: mapped by `new` with this length, unmapped nowhere else, and no reference is left.
        let unmapped = unsafe { libc::munmap(self.begin.as_ptr().cast(), self.length) };
        if unmapped != 0 {
            tracing::error!(error = %std::io::Error::last_os_error(), "unmapping a buffer");
        }
    }
}
