//! Polled reads of 4 KiB, one at a time, for callgrind to count: `cargo xtask bench nvme` runs it. What the driver does is in the
//! functions `counted_`; a doorbell of an I/O queue is a store to memory there, and what the device does is done between them.
//!   valgrind --tool=callgrind --toggle-collect='*counted_*' nvme-instructions READS \[shadow\]

use anyhow::{Context as _, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use udrv::dma::{Buffer, FromDevice};
use udrv::irq::{Delivery, IrqDomain};
use udrv::mmio::{ByMessage, Io};
use udrv_backend::register::Word;
use udrv_backend::{AnyBackend, Backend, RegionIndex, Width};
use udrv_model::ModelBackend;
use udrv_nvme::driver::{Controller, Data, Done, IoQueue, Namespace, QueueConfig, Wait};
use udrv_nvme::model::{Backing, NvmeModel};

/// The doorbells of queue pair 1, as the driver has left them.
static TAIL: AtomicU32 = AtomicU32::new(0);
static HEAD: AtomicU32 = AtomicU32::new(0);
const TAIL_AT: u64 = 0x1008;
const HEAD_AT: u64 = 0x100c;

/// The registers, without those two.
struct Registers(ByMessage<dyn Backend>);

impl Io for Registers {
    fn load<W: Word>(&self, offset: u64) -> udrv_backend::Result<W> {
        self.0.load(offset)
    }
    #[inline(always)]
    fn store<W: Word>(&self, offset: u64, value: W) -> udrv_backend::Result<()> {
        match offset {
            TAIL_AT => TAIL.store(value.into_raw() as u32, Ordering::Relaxed),
            HEAD_AT => HEAD.store(value.into_raw() as u32, Ordering::Relaxed),
            _ => return self.0.store(offset, value),
        }
        Ok(())
    }
}

#[inline(never)]
fn counted_submit(
    queue: &mut IoQueue<Registers>,
    namespace: &Namespace,
    lba: u64,
    buffer: Buffer<FromDevice>,
) -> udrv_backend::Result<()> {
    queue.submit_read(namespace, lba, buffer, 0..4096)?;
    queue.ring()
}

#[inline(never)]
fn counted_wait(queue: &mut IoQueue<Registers>, came: &mut Option<Buffer<FromDevice>>) -> udrv_backend::Result<usize> {
    queue.wait(|Done { outcome, data, .. }| {
        if let Data::Read(buffer) = data
            && outcome.is_success()
        {
            *came = Some(buffer);
        }
    })
}

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let reads: u64 = words.next().context("usage: nvme-instructions READS [shadow]")?.parse()?;
    let shadow = words.next().is_some_and(|word| word == "shadow");
    let model = NvmeModel::new(vec![Backing::memory(1 << 20, 512)?], Arc::default());
    let model = if shadow { model } else { model.without_shadow_doorbells() };
    let device: AnyBackend = Arc::new(ModelBackend::new("nvme", model));
    let registers = Registers(ByMessage::new(Arc::clone(&device), RegionIndex::BAR0));
    let mut controller = Controller::attach(&device, registers, &IrqDomain::new(Delivery::Thread)?, 1)?;
    let namespace = controller.namespace(1)?;
    let config = QueueConfig { depth: 32, wait: Wait::Polled, timeout: Duration::from_secs(60) };
    let mut queue = controller.io_queue(config)?;
    let mut buffer = Some(controller.pool().alloc::<FromDevice>(4096)?);
    for read in 0..reads {
        let lent = buffer.take().context("a read failed")?;
        counted_submit(&mut queue, &namespace, read * 8 % namespace.blocks, lent)?;
        for (at, doorbell) in [(HEAD_AT, &HEAD), (TAIL_AT, &TAIL)] {
            let value = doorbell.load(Ordering::Relaxed);
            device.write(RegionIndex::BAR0, at, Width::Bits32, value.into())?;
        }
        counted_wait(&mut queue, &mut buffer)?;
    }
    Ok(())
}
