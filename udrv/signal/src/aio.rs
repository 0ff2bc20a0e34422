//! The kernel signals an eventfd for us, as it does for its own devices: without waiting, full or not, blocking or not.
//!
//! No write does that: the flags belong to the open file, which the other side shares, and `RWF_NOWAIT` is refused. But an
//! asynchronous request can name an eventfd that the kernel adds 1 to when it is done (`IOCB_FLAG_RESFD`, io_submit(2)), and
//! reading nothing from memory of ours is done before io_submit returns.
//!
//! The context that takes such requests belongs to the memory of a process: fork(2) copies the mapping of its ring, and
//! io_submit(2) of its number is EINVAL in the child. So the number stands on a page that a child gets wiped, and the child makes
//! a context of its own. There are no locks here: one that another thread held at the fork would be held in the child for ever.
#![expect(unsafe_code, reason = "these system calls have no safe wrapper")]

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd as _, BorrowedFd, IntoRawFd as _, RawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering};

// linux/aio_abi.h
const IOCB_CMD_PREAD: u16 = 0;
const IOCB_FLAG_RESFD: u32 = 1;

/// `struct iocb`. The two words behind `data` change places on big-endian machines; both are 0 here.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    signalled: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Done {
    data: u64,
    request: u64,
    result: [i64; 2],
}

/// What requests are handed to.
#[derive(Clone, Copy)]
struct Context {
    /// `aio_context_t`, an address, which the kernel ends with the process.
    id: u64,
    /// A file to read nothing from.
    nothing: RawFd,
}

/// Requests in one call, and results that wait to be taken.
const AT_ONCE: usize = 64;

/// Of [`NUMBER`]'s page. At least a machine's page.
const PAGE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Where the number of this process's context stands, 0 while there is none. One a process: there is a limit to those of the
/// machine (`fs.aio-max-nr`).
static NUMBER: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());

/// A memfd. A child has it from its parent, which does no harm: nothing is read from it.
static NOTHING: AtomicI32 = AtomicI32::new(-1);

/// Adds up to `count` to the eventfd: how many. Fewer only if it is none, or the kernel has no asynchronous I/O (left).
pub(crate) fn signal(event: BorrowedFd<'_>, count: u64) -> u64 {
    // Tried again where it failed: that may have been the machine's limit.
    let Some(context) = Context::own() else { return 0 };
    let mut left = count;
    while left > 0 {
        match context.submit(event, left.min(AT_ONCE as u64) as usize) {
            0 => break,
            done => left -= done,
        }
    }
    count - left
}

/// [`NUMBER`], on a page that is made when first asked for.
fn number() -> Option<&'static AtomicU64> {
    let mut number = NUMBER.load(Ordering::Acquire);
    if number.is_null() {
        let page = wiped_page()?;
        let ours = page.as_ptr().cast();
        let first = NUMBER.compare_exchange(null_mut(), ours, Ordering::AcqRel, Ordering::Acquire);
        number = first.err().unwrap_or(ours);
        if number != ours {
            // SAFETY: our own mapping, which nobody else has seen.
            let _unmapped = unsafe { munmap(page, PAGE.get()) };
        }
    }
    // SAFETY: what NUMBER holds is a page of zeros when it is made or wiped, which is aligned, and stays mapped.
    Some(unsafe { &*number })
}

/// A page of zeros, which in a child is one again.
fn wiped_page() -> Option<NonNull<std::ffi::c_void>> {
    let (protection, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
    // SAFETY: a new mapping, wherever the kernel likes.
    let page = unsafe { mmap_anonymous(None, PAGE, protection, flags) }.ok()?;
    // SAFETY: our own mapping, which nobody else has seen.
    if unsafe { madvise(page, PAGE.get(), MmapAdvise::MADV_WIPEONFORK) }.is_ok() {
        return Some(page);
    }
    // SAFETY: as above.
    let _unmapped = unsafe { munmap(page, PAGE.get()) };
    None
}

impl Context {
    /// This process's, made if it has none.
    fn own() -> Option<Self> {
        let (number, nothing) = (number()?, nothing()?);
        let id = match number.load(Ordering::Acquire) {
            0 => Self::make(number)?,
            id => id,
        };
        Some(Self { id, nothing })
    }

    fn make(number: &AtomicU64) -> Option<u64> {
        let mut id: libc::c_ulong = 0;
        // SAFETY: io_setup(2) takes a number and writes one aio_context_t, an unsigned long.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, AT_ONCE, &raw mut id) };
        if made != 0 {
            return None;
        }
        let first = number.compare_exchange(0, id, Ordering::AcqRel, Ordering::Acquire);
        if let Err(first) = first {
            // SAFETY: io_destroy(2) takes a number, and nobody else has seen this one.
            unsafe { libc::syscall(libc::SYS_io_destroy, id) };
            return Some(first);
        }
        Some(id)
    }

    /// As many signals as were taken; 0 if none can be.
    fn submit(&self, event: BorrowedFd<'_>, count: usize) -> u64 {
        let request = Request {
            opcode: IOCB_CMD_PREAD,
            file: self.nothing.cast_unsigned(),
            flags: IOCB_FLAG_RESFD,
            signalled: event.as_raw_fd().cast_unsigned(),
            ..Request::default()
        };
        let mut requests = [request; AT_ONCE];
        let mut pointers = [std::ptr::null_mut::<Request>(); AT_ONCE];
        for (pointer, request) in pointers.iter_mut().zip(&mut requests) {
            *pointer = request;
        }
        for _ in 0..2 {
            // SAFETY: io_submit(2) reads `count` pointers, at most as many as there are, to requests that live beyond the call
            // (and are written to by nobody later: each is done when it returns); they read no byte into no buffer.
            let taken = unsafe { libc::syscall(libc::SYS_io_submit, self.id, count.min(AT_ONCE), pointers.as_ptr()) };
            if let Ok(taken @ 1..) = u64::try_from(taken) {
                return taken;
            }
            if nix::errno::Errno::last() != nix::errno::Errno::EAGAIN {
                break;
            }
            // No room for one more result.
            self.take_results();
        }
        0
    }

    fn take_results(&self) {
        let mut done = [Done::default(); 4 * AT_ONCE];
        let none = std::ptr::null_mut::<libc::timespec>();
        // SAFETY: io_getevents(2) writes at most as many results as there is room for; it wants none, and so does not wait.
        unsafe { libc::syscall(libc::SYS_io_getevents, self.id, 0, done.len(), done.as_mut_ptr(), none) };
    }
}

/// [`NOTHING`], made when first asked for.
fn nothing() -> Option<RawFd> {
    let before = NOTHING.load(Ordering::Acquire);
    if before >= 0 {
        return Some(before);
    }
    let made = memfd_create(c"udrv-signal", MFdFlags::MFD_CLOEXEC).ok()?;
    match NOTHING.compare_exchange(-1, made.as_raw_fd(), Ordering::AcqRel, Ordering::Acquire) {
        // Kept for ever.
        Ok(_) => Some(made.into_raw_fd()),
        Err(first) => Some(first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_kernels_header() {
        assert_eq!((size_of::<Request>(), size_of::<Done>()), (64, 32));
        assert_eq!(std::mem::offset_of!(Request, file), 20);
        assert_eq!(std::mem::offset_of!(Request, signalled), 60);
    }
}
