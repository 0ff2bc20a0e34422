//! The userspace driver runtime: MMIO, DMA, interrupts, guest drivers.
