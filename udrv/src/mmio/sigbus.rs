//! What keeps a vanished device from killing its driver: SIGBUS inside a mapping becomes all ones.
//!
//! The kernel raises SIGBUS for an access to a device that was unplugged, whose memory decoding is off, or whose server
//! truncated the file. The handler here, installed before the first mapping is made, puts a page of 0xff in place of the
//! page that faulted and marks the mapping as gone; the access is then repeated by the processor and reads all ones, as
//! it would from an empty slot. A SIGBUS anywhere else goes to the handler that stood before, or kills as it always did.
//!
//! The handler reads a list of mappings that only grows, without a lock: its nodes are reused and never freed. It calls
//! nothing but `mmap`, `sigaction` and `raise`, which are system calls.
#![expect(unsafe_code, reason = "a signal handler that replaces pages by raw system calls")]

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags};
use std::os::fd::{IntoRawFd as _, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use udrv_backend::{Error, Result};

/// One mapping, or room for one.
struct Node {
    /// Odd while base and length change.
    version: AtomicUsize,
    base: AtomicUsize,
    /// 0 for a node that is free.
    length: AtomicUsize,
    gone: AtomicBool,
    next: Option<&'static Node>,
}

/// All nodes, newest first.
static NODES: AtomicPtr<Node> = AtomicPtr::new(ptr::null_mut());

/// Held by whoever changes [`NODES`] or a node, never by the handler.
static WRITER: Mutex<()> = Mutex::new(());

/// What the handler needs, set before it is installed.
struct Installed {
    previous: libc::sigaction,
    ours: libc::sigaction,
    /// A file of one page of 0xff; open as long as the process lives.
    all_ones: RawFd,
    page_size: usize,
}

static INSTALLED: OnceLock<Installed> = OnceLock::new();

fn nodes() -> impl Iterator<Item = &'static Node> {
    // SAFETY: the pointer is null or comes from a leaked box (`Guard::new`): valid, and never written through, for ever.
    let first: Option<&'static Node> = unsafe { NODES.load(SeqCst).as_ref() };
    std::iter::successors(first, |node| node.next)
}

impl Node {
    /// Whether the mapping contains `address`. A node that is being changed contains nothing: nobody can be accessing a
    /// mapping that is not yet made, or unmapped.
    fn contains(&self, address: usize) -> bool {
        let before = self.version.load(SeqCst);
        let (base, length) = (self.base.load(SeqCst), self.length.load(SeqCst));
        let steady = before.is_multiple_of(2) && self.version.load(SeqCst) == before;
        steady && address.wrapping_sub(base) < length
    }

    fn set(&self, base: usize, length: usize, _writer: &MutexGuard<'_, ()>) {
        self.version.fetch_add(1, SeqCst);
        self.base.store(base, SeqCst);
        self.length.store(length, SeqCst);
        self.gone.store(false, SeqCst);
        self.version.fetch_add(1, SeqCst);
    }
}

/// A mapping in which SIGBUS becomes all ones, until this is dropped.
pub(super) struct Guard(&'static Node);

impl Guard {
    /// Watches `length` bytes at `base`, the start of a mapping. [`install`] must have succeeded.
    pub(super) fn new(base: NonNull<u8>, length: usize) -> Self {
        let writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner);
        let node = nodes().find(|node| node.length.load(SeqCst) == 0).unwrap_or_else(|| {
            let next = nodes().next();
            let (version, base, length) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
            let node: &'static Node =
                Box::leak(Box::new(Node { version, base, length, gone: AtomicBool::new(false), next }));
            NODES.store(ptr::from_ref(node).cast_mut(), SeqCst);
            node
        });
        node.set(base.as_ptr() as usize, length, &writer);
        Self(node)
    }

    /// Whether an access to the mapping has failed.
    pub(super) fn is_gone(&self) -> bool {
        self.0.gone.load(SeqCst)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.set(0, 0, &writer);
    }
}

/// Installs the handler, once a process.
pub(super) fn install() -> Result<()> {
    let _writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner);
    if INSTALLED.get().is_some() {
        return Ok(());
    }
    let os = |errno: nix::errno::Errno| Error::os("preparing for devices that vanish", errno);
    let page_size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).map_err(os)?.unwrap_or(4096) as usize;
    let page = memfd_create(c"udrv-all-ones", MFdFlags::MFD_CLOEXEC).map_err(os)?;
    let written = nix::sys::uio::pwrite(&page, &vec![0xff; page_size], 0).map_err(os)?;
    if written != page_size {
        return Err(os(nix::errno::Errno::EIO));
    }
    // SAFETY: all-zero is a valid sigaction: default action, no flags, empty mask.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action only asks; `previous` is live.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &mut previous) } != 0 {
        return Err(os(nix::errno::Errno::last()));
    }
    // SAFETY: as above.
    let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
    ours.sa_sigaction = on_sigbus as *const () as usize;
    // On the alternate stack if there is one: the handler that we may have to call expects it.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // Before the handler is installed, which reads it.
    let installed = INSTALLED.get_or_init(|| Installed { previous, ours, all_ones: page.into_raw_fd(), page_size });
    if act(&installed.ours) { Ok(()) } else { Err(os(nix::errno::Errno::last())) }
}

/// Makes `action` what SIGBUS does. Async-signal-safe.
fn act(action: &libc::sigaction) -> bool {
    // SAFETY: `action` is live, and its handler async-signal-safe (see the head of this file).
    unsafe { libc::sigaction(libc::SIGBUS, action, ptr::null_mut()) == 0 }
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(installed) = INSTALLED.get() else { return };
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo.
    let info_ref = unsafe { &*info };
    // Positive codes are faults; others were sent by a process and carry no address (sigaction(2)).
    // A memory error found in the background (BUS_MCEERR_AO) is news, not an access that comes again.
    let fault = info_ref.si_code > 0 && info_ref.si_code != libc::BUS_MCEERR_AO;
    if fault {
        // SAFETY: a SIGBUS that is a fault carries the address.
        let address = unsafe { info_ref.si_addr() } as usize;
        if replace_page(installed, address) {
            return;
        }
    }
    pass_on(&installed.previous, fault, || call(&installed.previous, (signal, info, context)));
    if !fault {
        // The handler of Rust's runtime puts the default action in its own place, counting on a fault to come again.
        act(&installed.ours);
    }
}

/// Does with a SIGBUS that is not ours what would have been done without us.
fn pass_on(previous: &libc::sigaction, fault: bool, call: impl FnOnce()) {
    match previous.sa_sigaction {
        libc::SIG_IGN if !fault => {}
        // A fault cannot be ignored.
        libc::SIG_DFL | libc::SIG_IGN => die(fault),
        _ => call(),
    }
}

type Arguments = (libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

fn call(previous: &libc::sigaction, (signal, info, context): Arguments) {
    let handler = previous.sa_sigaction;
    if previous.sa_flags & libc::SA_SIGINFO != 0 {
        // SAFETY: the kernel would have called this address with these three arguments.
        let call: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            unsafe { std::mem::transmute(handler) };
        call(signal, info, context);
    } else {
        // SAFETY: without SA_SIGINFO the installed handler takes the signal number only.
        let call: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
        call(signal);
    }
}

/// Puts a page of ones where `address` is, if that is in a mapping of ours.
fn replace_page(installed: &Installed, address: usize) -> bool {
    let Some(node) = nodes().find(|node| node.contains(address)) else { return false };
    // Before the page is readable, so that whoever has read ones from it finds the mark set.
    node.gone.store(true, SeqCst);
    let page = (address & !(installed.page_size - 1)) as *mut libc::c_void;
    let protection = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE).bits();
    // Private: a store changes a copy, not the ones of others.
    let flags = (MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED).bits();
    // SAFETY: errno is this thread's own.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above; the code that was interrupted may be about to read it.
    let saved = unsafe { *errno };
    // SAFETY: the page is one of a mapping that the thread interrupted here is accessing, so that it stays ours while
    // this runs; it is only ever accessed volatile, through raw pointers, so no reference sees its contents change.
    let at = unsafe { libc::mmap(page, installed.page_size, protection, flags, installed.all_ones, 0) };
    // SAFETY: as above.
    unsafe { *errno = saved };
    at != libc::MAP_FAILED
}

/// The default action: the process is killed by this signal, with the core dump of where it came.
fn die(fault: bool) {
    // SAFETY: all-zero is a valid sigaction: the default action.
    let action: libc::sigaction = unsafe { std::mem::zeroed() };
    act(&action);
    // A fault comes again when the handler returns.
    if !fault {
        let mut bus = nix::sys::signal::SigSet::empty();
        bus.add(nix::sys::signal::Signal::SIGBUS);
        // It is blocked while its handler runs.
        let _now = bus.thread_unblock();
        // SAFETY: raise is async-signal-safe.
        unsafe { libc::raise(libc::SIGBUS) };
    }
}
