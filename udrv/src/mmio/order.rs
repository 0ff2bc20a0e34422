//! Order between memory that a device reads by DMA and the registers that tell it so.
//!
//! Register accesses of one thread reach the device in program order; ordinary memory is another matter. A driver that
//! fills a descriptor and rings a doorbell needs [`dma_wmb`] between the two; one that sees a device's "done" mark and
//! reads what it has written needs [`dma_rmb`] between the two. [`InFlight`](crate::dma::InFlight) contains both, so only
//! drivers of shared rings ([`Coherent`](crate::dma::Coherent)) call them.
//!
//! | | x86-64 | arm64 | elsewhere |
//! |---|---|---|---|
//! | [`dma_wmb`] | compiler only: stores are seen in order, uncached ones included | `dmb oshst` | full fence |
//! | [`dma_rmb`] | compiler only: loads are not reordered with loads | `dmb oshld` | full fence |
//! | [`dma_mb`] | `mfence` | `dmb osh` | full fence |
//!
//! Sources: Intel SDM volume 3, "Memory Ordering" (TSO; a store to uncacheable memory is not passed by earlier stores);
//! Arm ARM, "Data Memory Barrier"; Linux `Documentation/memory-barriers.txt`, "Cache coherency vs DMA". A fence of the
//! standard library is not enough on arm64: it reaches the inner shareable domain, a device is in the outer one.
#![expect(unsafe_code, reason = "barriers that the language has no word for")]

/// What was stored before it is seen by the device before what is stored after it: descriptors, then the doorbell.
#[inline(always)]
pub fn dma_wmb() {
    #[cfg(target_arch = "x86_64")]
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier instruction; it touches no register and no memory.
    unsafe {
        std::arch::asm!("dmb oshst", options(nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

/// What is loaded after it is no older than what was loaded before it: the "done" mark, then the data.
#[inline(always)]
pub fn dma_rmb() {
    #[cfg(target_arch = "x86_64")]
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier instruction; it touches no register and no memory.
    unsafe {
        std::arch::asm!("dmb oshld", options(nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

/// Both, and stores before it before loads after it: for a driver that announces that it sleeps, then looks once more.
#[inline(always)]
pub fn dma_mb() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a barrier instruction; it touches no register and no memory.
    unsafe {
        std::arch::asm!("mfence", options(nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier instruction; it touches no register and no memory.
    unsafe {
        std::arch::asm!("dmb osh", options(nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}
