//! What the gate's protocol is made of: atomics, a lock, and the two-sided barrier.
//!
//! `gate.rs`, `parking.rs`, `pending.rs` and `mark.rs` use nothing else, so that the model checker can compile the same files
//! against its own version of this module (`tests/gate_model.rs`).
#![expect(unsafe_code, reason = "membarrier(2) and prefetching have no safe wrappers")]

pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
pub(super) use std::sync::{Mutex, MutexGuard};
use std::sync::{OnceLock, PoisonError};
use std::time::Duration;

/// Places of threads, and so slots: as many as a byte tells apart. The last is nobody's.
pub(super) const SLOTS: usize = 256;

/// Changes to the protocol that the model checker must notice; nothing here ever makes them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutant {
    /// No barrier between opening a section and looking for a delivery.
    NoFenceAtDisable,
    /// No barrier between closing a section and looking for what is pending.
    NoFenceAtEnable,
    /// The summary bit is cleared after its word was looked at.
    ClearAfterCheck,
    /// The sleeper is woken first and finds no mark.
    WakeBeforeMark,
    /// A section's end looks for what is pending only, not for who has just taken it.
    EndForgetsTheHolder,
    /// A section's end does not wait for the delivery it meets.
    EndDoesNotWait,
    /// A delivery that withdraws from a section does not look whether somebody has left a mark to it.
    WithdrawalForgetsTheOthers,
    /// Whoever was held back by a section sleeps without looking whether that is still open.
    SleepTrustsTheSection,
    /// No barrier between announcing a sleep and looking for what is pending.
    NoFenceAtSleep,
    /// No barrier between saying that one waits and looking whether one must.
    NoFenceAtWait,
}

#[inline(always)]
pub(super) const fn mutant(_which: Mutant) -> bool {
    false
}

/// A full fence just after an atomic read-modify-write, which is one itself where it is a locked instruction: there only the
/// compiler is kept from reordering.
#[inline(always)]
pub(super) fn fence_after_rmw() {
    if cfg!(target_arch = "x86_64") {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

/// Where something is that is about to be written: to be fetched for that while something else is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ahead(*const ());

impl Ahead {
    pub(super) fn of<T>(what: &T) -> Self {
        Self(std::ptr::from_ref(what).cast())
    }

    /// It need not be there any more.
    #[inline(always)]
    pub(super) fn fetch(self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: PREFETCHW is a hint: it faults on no address and changes no memory (Intel SDM vol. 2, PREFETCHW).
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_ET0 }>(self.0.cast());
        }
    }
}

/// A full barrier between two threads, of which one side is taken often ([`Barrier::light`]) and the other rarely
/// ([`Barrier::heavy`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Barrier {
    /// The rare side makes every running thread of the process execute a full fence (membarrier(2)); the frequent side
    /// only keeps the compiler from reordering.
    Membarrier,
    /// Both sides fence ([`Barrier::light`] is not used): for kernels without membarrier, and sandboxes that forbid it.
    Fence,
}

impl Barrier {
    /// The better one of those that this kernel has. The answer is the same for the life of the process.
    pub(super) fn of_this_kernel() -> Self {
        static PROBED: OnceLock<Barrier> = OnceLock::new();
        *PROBED.get_or_init(|| match membarrier(REGISTER_PRIVATE_EXPEDITED) {
            Ok(()) => Self::Membarrier,
            Err(error) => {
                tracing::info!(%error, "no membarrier: interrupts-off sections use a full fence");
                Self::Fence
            }
        })
    }

    /// Whether the frequent side does without a fence.
    pub(super) fn is_asymmetric(self) -> bool {
        self == Self::Membarrier
    }

    /// The frequent side's, where that is so.
    #[inline(always)]
    pub(super) fn light() {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    }

    #[cold]
    pub(super) fn heavy(self) {
        if self == Self::Membarrier
            && let Err(error) = membarrier(PRIVATE_EXPEDITED)
        {
            // The other side has no fence: going on could run a handler inside a section.
            tracing::error!(%error, "membarrier failed after it was registered");
            std::process::abort();
        }
        fence(Ordering::SeqCst);
    }
}

// linux/membarrier.h
const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

fn membarrier(command: libc::c_int) -> std::io::Result<()> {
    // SAFETY: membarrier(2) takes two integers (and a third that these commands ignore) and touches no memory.
    let answer = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    if answer == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// A condition variable whose waits may have a limit. Poisoning is ignored: every change to the state it guards is
/// complete before its lock is released, a panic included.
#[derive(Default)]
pub(super) struct Condvar(std::sync::Condvar);

impl Condvar {
    pub(super) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>, limit: Option<Duration>) -> MutexGuard<'a, T> {
        match limit {
            None => self.0.wait(guard).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => self.0.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner).0,
        }
    }

    pub(super) fn notify_all(&self) {
        self.0.notify_all();
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
