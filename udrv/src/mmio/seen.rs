//! Accesses as others see them: in the inspection page's ring, and by a debugger that stops at one.
//!
//! An access by message is always seen: it costs a system call anyway. One to a mapped register is the bare load or store,
//! and is seen only where the checks are compiled (debug builds, feature `checks`).

use udrv_backend::{Backend, RegionIndex, Width};
use udrv_inspect::Device;

/// Whether accesses to mapped registers are seen.
pub(crate) const MAPPED_IS_SHOWN: bool = cfg!(any(debug_assertions, feature = "checks"));

/// One region of a device.
pub(super) struct Seen {
    device: Device,
    pub(super) region: RegionIndex,
}

impl Seen {
    pub(super) fn new(backend: &(impl Backend + ?Sized), region: RegionIndex) -> Self {
        Self { device: Device::of(backend), region }
    }

    /// After the read.
    pub(super) fn read(&self, offset: u64, width: Width, value: u64) {
        self.device.has_read(self.region, width, offset, value);
        register_is_read(self.region.0, offset, value);
    }

    /// Before the write.
    pub(super) fn write(&self, offset: u64, width: Width, value: u64) {
        self.device.writes(self.region, width, offset, value);
        register_is_written(self.region.0, offset, value);
    }
}

/// Called after each read, for a debugger to stop at: `udrv break-on-read`. By C's rules, so that it finds the arguments in
/// builds without debug information.
#[inline(never)]
extern "C" fn register_is_read(region: u32, offset: u64, value: u64) {
    std::hint::black_box((region, offset, value));
}

/// Called before each write: `udrv break-on-write`.
#[inline(never)]
extern "C" fn register_is_written(region: u32, offset: u64, value: u64) {
    std::hint::black_box((region, offset, value));
}
