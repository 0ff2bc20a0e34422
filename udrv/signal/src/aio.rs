//! The kernel signals an eventfd for us, as it does for its own devices: without waiting, full or not, blocking or not.
//!
//! No write does that: the flags belong to the open file, which the other side shares, and `RWF_NOWAIT` is refused. But an
//! asynchronous request can name an eventfd that the kernel adds 1 to when it is done (`IOCB_FLAG_RESFD`, io_submit(2)), and
//! reading nothing from memory of ours is done before io_submit returns.
#![expect(unsafe_code, reason = "these system calls have no safe wrapper")]

use nix::sys::memfd::{MFdFlags, memfd_create};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

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

/// `aio_context_t`, which the kernel ends with the process.
struct Context {
    id: libc::c_ulong,
    nothing: OwnedFd,
}

/// Requests in one call, and results that wait to be taken.
const AT_ONCE: usize = 64;

/// One a process: there is a limit to those of the machine (`fs.aio-max-nr`).
static CONTEXT: Mutex<Option<Context>> = Mutex::new(None);

/// Adds up to `count` to the eventfd: how many. Fewer only if it is none, or the kernel has no asynchronous I/O (left).
pub(crate) fn signal(event: BorrowedFd<'_>, count: u64) -> u64 {
    let mut context = CONTEXT.lock().unwrap_or_else(PoisonError::into_inner);
    // Tried again where it failed: that may have been the machine's limit.
    if context.is_none() {
        *context = Context::new();
    }
    let Some(context) = &*context else { return 0 };
    let mut left = count;
    while left > 0 {
        match context.submit(event, left.min(AT_ONCE as u64) as usize) {
            0 => break,
            done => left -= done,
        }
    }
    count - left
}

impl Context {
    fn new() -> Option<Self> {
        let nothing = memfd_create(c"udrv-signal", MFdFlags::MFD_CLOEXEC).ok()?;
        let mut id: libc::c_ulong = 0;
        // SAFETY: io_setup(2) takes a number and writes one aio_context_t, an unsigned long.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, AT_ONCE, &raw mut id) };
        (made == 0).then_some(Self { id, nothing })
    }

    /// As many signals as were taken; 0 if none can be.
    fn submit(&self, event: BorrowedFd<'_>, count: usize) -> u64 {
        let request = Request {
            opcode: IOCB_CMD_PREAD,
            file: self.nothing.as_raw_fd().cast_unsigned(),
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
