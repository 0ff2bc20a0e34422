//! DMA through the real IOMMU.

use crate::{BAR0, open};
use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, setrlimit};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use udrv::dma::{FromDevice, Pool, ToDevice};
use udrv::irq::{Delivery, IrqDomain};
use udrv::mmio::Window;
use udrv_backend::{AnyBackend, Backend as _, Dma, DmaAccess, DmaMap, Error, IrqIndex};
use udrv_edu::driver::Edu;
use udrv_edu::registers::{BUFFER_OFFSET, DmaCommand};
use udrv_vfio::Bdf;

fn memory(size: i64) -> Result<OwnedFd> {
    let memory = memfd_create(c"test", MFdFlags::MFD_CLOEXEC)?;
    nix::unistd::ftruncate(&memory, size)?;
    Ok(memory)
}

fn map(dma: &dyn Dma, iova: u64, size: u64, file: &OwnedFd) -> udrv_backend::Result<()> {
    dma.map(&DmaMap { iova, size, access: DmaAccess::READ | DmaAccess::WRITE, file: file.as_fd(), offset: 0 })
}

/// Limits, overlaps, what was not mapped, and files that are too short.
pub fn bookkeeping(bdf: Bdf) -> Result<()> {
    let device = open(bdf)?;
    let dma = device.dma().context("no DMA")?;
    let limits = dma.limits();
    println!("limits: {limits:x?}");
    ensure!(limits.page_size == 4096 && limits.max_mappings > 1000, "unlikely limits");
    let msi_window = 0xfee0_0000;
    ensure!(!limits.iova_ranges.iter().any(|range| range.contains(&msi_window)), "the MSI window is not left out");
    let file = memory(0x4000)?;
    ensure!(matches!(map(dma, msi_window, 0x1000, &file), Err(Error::DmaRange { .. })), "mapped the MSI window");

    map(dma, 0x10_0000, 0x2000, &file)?;
    for (iova, size) in [(0x10_0000, 0x2000), (0x10_1000, 0x1000), (0xf_f000, 0x2000), (0xf_f000, 0x4000)] {
        let outcome = map(dma, iova, size, &file);
        ensure!(matches!(outcome, Err(Error::DmaOverlap { .. })), "{iova:#x}+{size:#x} gave {outcome:?}");
    }
    for (iova, size) in [(0x10_0000, 0x1000), (0x10_1000, 0x1000), (0x20_0000, 0x2000)] {
        let outcome = dma.unmap(iova, size);
        ensure!(matches!(outcome, Err(Error::DmaNotMapped { .. })), "{iova:#x}+{size:#x} gave {outcome:?}");
    }
    dma.unmap(0x10_0000, 0x2000)?;
    map(dma, 0x10_0000, 0x2000, &file).context("again, once unmapped")?;

    let empty = memory(0)?;
    ensure!(matches!(map(dma, 0x20_0000, 0x1000, &empty), Err(Error::DmaRange { .. })), "mapped an empty file");
    // Cut short behind our back: what the kernel has pinned stays, and we have not touched it.
    nix::unistd::ftruncate(&file, 0)?;
    dma.unmap(0x10_0000, 0x2000)?;
    Ok(())
}

/// What a user without CAP_IPC_LOCK is told.
pub fn memlock(bdf: Bdf) -> Result<()> {
    let device = open(bdf)?;
    let dma = device.dma().context("no DMA")?;
    setrlimit(Resource::RLIMIT_MEMLOCK, 64 << 10, 64 << 10)?;
    nix::unistd::setuid(65534.into())?;
    let file = memory(1 << 20)?;
    map(dma, 0x10_0000, 32 << 10, &file).context("within the limit")?;
    match map(dma, 0x20_0000, 64 << 10, &file) {
        Err(error @ Error::Os { .. }) => {
            let text = error.to_string();
            println!("{text}");
            let named = ["RLIMIT_MEMLOCK is 64 KiB", "needs 96 KiB", "ulimit -l 96"];
            ensure!(named.iter().all(|part| text.contains(part)), "not all of {named:?} are in it");
            Ok(())
        }
        other => bail!("beyond the limit gave {other:?}"),
    }
}

/// Transfers that the IOMMU stops. Edu reports none of them, so what arrived is what tells.
pub fn fault(bdf: Bdf) -> Result<()> {
    let device: AnyBackend = Arc::new(open(bdf)?);
    let irqs = IrqDomain::new(Delivery::Thread)?;
    let edu: Edu = Edu::attach(&device, Window::open(&device, BAR0)?, &irqs, IrqIndex::MSI)?;
    const UNMAPPED: u64 = 0x0800_0000;
    const LENGTH: usize = 256;
    let command = DmaCommand::START | DmaCommand::IRQ;
    let into_device = |byte: u8| -> Result<()> {
        let mut buffer = edu.pool().alloc::<ToDevice>(LENGTH)?;
        buffer.write(0, &[byte; LENGTH])?;
        edu.copy_to_device(buffer)?;
        Ok(())
    };
    let in_device = || -> Result<[u8; LENGTH]> {
        let mut bytes = [0; LENGTH];
        edu.copy_from_device(edu.pool().alloc::<FromDevice>(LENGTH)?)?.read(0, &mut bytes)?;
        Ok(bytes)
    };

    into_device(0xa5)?;
    ensure!(in_device()? == [0xa5; LENGTH], "a transfer that is allowed did not arrive");

    // Out of a mapping that is no more. Its memory still holds 0x5a, which must not be what the device got.
    let mut stale = edu.pool().alloc::<ToDevice>(LENGTH)?;
    stale.write(0, &[0x5a; LENGTH])?;
    let iova = stale.iova();
    drop(stale);
    edu.transfer(iova, BUFFER_OFFSET, LENGTH as u64, command)?;
    ensure!(!in_device()?.contains(&0x5a), "the device read memory that was unmapped");
    println!("read of {iova:#x}, unmapped: stopped; the device said it was done, and has none of the data");

    edu.transfer(UNMAPPED, BUFFER_OFFSET, LENGTH as u64, command)?;
    edu.transfer(BUFFER_OFFSET, UNMAPPED, LENGTH as u64, command | DmaCommand::TO_MEMORY)?;
    println!("read and write at {UNMAPPED:#x}, never mapped: stopped");

    // The wrong way: into memory that the device may only read.
    into_device(0xa5)?;
    let mut source = edu.pool().alloc::<ToDevice>(LENGTH)?;
    source.write(0, &[0x3c; LENGTH])?;
    edu.transfer(BUFFER_OFFSET, source.iova(), LENGTH as u64, command | DmaCommand::TO_MEMORY)?;
    let mut bytes = [0; LENGTH];
    source.read(0, &mut bytes)?;
    ensure!(bytes == [0x3c; LENGTH], "the device wrote to memory that it may only read");
    println!("write to {:#x}, mapped for reading only: stopped", source.iova());

    // And everything goes on.
    into_device(0x77)?;
    ensure!(in_device()? == [0x77; LENGTH], "after the faults, a transfer that is allowed did not arrive");
    ensure!(edu.factorial(5)? == 120, "after the faults, the factorial");
    Ok(())
}

/// Large buffers, with three huge pages reserved: the first is in two of them, the second, for which one is too few, in ordinary
/// ones; the device reaches the beginning and the end of both.
pub fn huge_pages(bdf: Bdf) -> Result<()> {
    let device: AnyBackend = Arc::new(open(bdf)?);
    let irqs = IrqDomain::new(Delivery::Thread)?;
    let edu: Edu = Edu::attach(&device, Window::open(&device, BAR0)?, &irqs, IrqIndex::MSI)?;
    const HUGE: u64 = 2 << 20;
    const SIZE: usize = 4 << 20;
    const LENGTH: usize = 256;
    let pool = Pool::new(Arc::clone(&device), 4 * SIZE, 64)?;
    let mut buffers = [pool.alloc::<ToDevice>(SIZE)?, pool.alloc::<ToDevice>(SIZE)?];
    let huge = buffers.each_ref().map(|buffer| buffer.is_huge());
    ensure!(huge == [true, false], "in huge pages: {huge:?}");
    ensure!(
        buffers[0].iova().is_multiple_of(HUGE),
        "bus address {:#x} is in the middle of a huge page",
        buffers[0].iova()
    );

    for (number, buffer) in (1u8..).zip(&mut buffers) {
        for (part, offset) in (1u8..).zip([0, SIZE / 2 - LENGTH, SIZE - LENGTH]) {
            let bytes = [number << 4 | part; LENGTH];
            buffer.write(offset, &bytes)?;
            let from = buffer.iova() + offset as u64;
            edu.transfer(from, BUFFER_OFFSET, LENGTH as u64, DmaCommand::START | DmaCommand::IRQ)?;
            let mut arrived = [0; LENGTH];
            edu.copy_from_device(edu.pool().alloc::<FromDevice>(LENGTH)?)?.read(0, &mut arrived)?;
            ensure!(arrived == bytes, "buffer {number} at {offset:#x}: {:#x} arrived", arrived[0]);
        }
        println!("{} bytes at {:#x}, huge pages: {}", buffer.len(), buffer.iova(), buffer.is_huge());
    }
    Ok(())
}
