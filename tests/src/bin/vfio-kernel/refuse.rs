//! The real kernel, but for one request that it is made to refuse: no device of a virtual machine runs out of vectors when asked.
#![expect(unsafe_code, reason = "it stands in the C library's place")]

use std::sync::atomic::{AtomicI32, Ordering};

/// VFIO_DEVICE_SET_IRQS (linux/vfio.h).
const SET_IRQS: libc::c_ulong = 0x3b6e;

/// Those that are still passed on; then one is refused. Negative: none is.
static PASSED: AtomicI32 = AtomicI32::new(-1);

/// Lets the kernel's answer to the next but `passed` VFIO_DEVICE_SET_IRQS be ENOSPC, without asking it.
pub fn set_irqs_after(passed: i32) {
    PASSED.store(passed, Ordering::SeqCst);
}

/// Whether that has happened.
pub fn has_refused() -> bool {
    PASSED.load(Ordering::SeqCst) < 0
}

/// ioctl(2), in the place of the C library's: a program's own symbols come first.
///
/// # Safety
/// As ioctl(2): `argument` must be what `request` takes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: libc::c_int, request: libc::c_ulong, argument: *mut libc::c_void) -> libc::c_int {
    if request == SET_IRQS
        && PASSED.fetch_update(Ordering::SeqCst, Ordering::SeqCst, counted).is_ok_and(|left| left == 0)
    {
        nix::errno::Errno::ENOSPC.set();
        return -1;
    }
    // SAFETY: as the caller promises.
    unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) as libc::c_int }
}

fn counted(left: i32) -> Option<i32> {
    (left >= 0).then(|| left - 1)
}
