//! Two drivers in one host, each with interrupts of its own: a disk that is written and read back for as long as bytes go over a
//! serial line whose other end sends them back.
//!
//! It writes to the last MiB of namespace 1, and nowhere else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::host::{Context, Ended, Host};
use udrv::irq::Delivery;
use udrv_backend::{AnyBackend, Error, Result};
use udrv_nvme::driver::{Controller, QueueConfig, Task, Work};
use udrv_uart16550::driver::{Serial, SerialConfig, Settings, Uart};

/// Bytes over the line, each way.
pub const SERIAL: usize = 32 << 10;
/// For the next byte to come back.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of the disk at a time.
const PIECE: usize = 64 << 10;
/// The scratch area, bytes.
const SCRATCH: u64 = 1 << 20;

/// What came of it.
#[derive(Debug)]
pub struct Done {
    /// Pieces of 64 KiB that were written to the disk and read back.
    pub disk_rounds: u64,
    /// Interrupts that the serial port was served for.
    pub serial_interrupts: u64,
}

/// Sets a flag when dropped, whatever way the serial driver ends.
struct SetAtEnd(Arc<AtomicBool>);

impl Drop for SetAtEnd {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Runs both until the serial line is done.
///
/// # Errors
/// What either driver failed of, in its words.
pub fn run(nvme: AnyBackend, uart: AnyBackend) -> std::result::Result<Done, String> {
    let serial_done = Arc::new(AtomicBool::new(false));
    let (rounds, interrupts) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let disk = {
        let (serial_done, rounds) = (Arc::clone(&serial_done), Arc::clone(&rounds));
        move |controller: &mut Controller, _: &Context| work_disk(controller, &serial_done, &rounds)
    };
    let serial = {
        let (end, interrupts) = (SetAtEnd(serial_done), Arc::clone(&interrupts));
        move |uart: &Uart, context: &Context| {
            let _end = end;
            echo(uart, context)?;
            interrupts.store(uart.irq_stats().delivered, Ordering::Release);
            Ok(())
        }
    };
    let serial = SerialConfig { settings: Settings::default(), wake: Box::new(|| {}), job: Box::new(serial) };
    let mut host = Host::new();
    let disk = Work { queues: 1, job: Box::new(disk) };
    host.start::<Task>(nvme, Delivery::Thread, disk).map_err(|error| error.to_string())?;
    host.start::<Serial>(uart, Delivery::Thread, serial).map_err(|error| error.to_string())?;
    for report in host.join() {
        match report.ended {
            Ended::Returned => {}
            Ended::Failed(error) => return Err(format!("{}: {error}", report.device)),
            Ended::Panicked(message) => return Err(format!("{} panicked: {message}", report.device)),
        }
        report.quiesced.map_err(|error| format!("{} is not quiet: {error}", report.device))?;
    }
    Ok(Done { disk_rounds: rounds.load(Ordering::Acquire), serial_interrupts: interrupts.load(Ordering::Acquire) })
}

/// Bytes that tell where they are.
fn pattern(seed: u32, length: usize) -> Vec<u8> {
    (0..length as u32).map(|at| (at.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn differs(what: &str) -> Error {
    Error::Protocol { peer: what.into(), found: "other bytes".into(), expected: "those that were written".into() }
}

fn work_disk(controller: &mut Controller, done: &AtomicBool, rounds: &AtomicU64) -> Result<()> {
    let namespace = controller.namespace(1)?;
    let mut queue = controller.io_queue(QueueConfig::default())?;
    let start = namespace.blocks - SCRATCH / namespace.block_size;
    let mut came = vec![0; PIECE];
    for round in 0u32.. {
        let at = start + u64::from(round) % (SCRATCH / PIECE as u64) * (PIECE as u64 / namespace.block_size);
        let bytes = pattern(round, PIECE);
        queue.write(&namespace, at, &bytes)?;
        queue.read(&namespace, at, &mut came)?;
        if came != bytes {
            return Err(differs("the disk"));
        }
        rounds.fetch_add(1, Ordering::AcqRel);
        if done.load(Ordering::Acquire) {
            break;
        }
    }
    Ok(())
}

fn echo(uart: &Uart, context: &Context) -> Result<()> {
    let bytes = pattern(7, SERIAL);
    let (mut left, mut came) = (bytes.as_slice(), Vec::<u8>::with_capacity(SERIAL));
    let mut piece = [0; 512];
    while came.len() < bytes.len() && !context.should_stop() {
        // No more under way than the other end's buffers hold.
        let ahead = bytes.len() - left.len() - came.len();
        let (now, _) = left.split_at(left.len().min(1024usize.saturating_sub(ahead)));
        let (_, rest) = left.split_at(uart.write(now)?);
        left = rest;
        uart.wait_readable(Deadline::after(PATIENCE))?;
        let length = uart.read(&mut piece)?;
        came.extend(piece.iter().take(length));
    }
    if came == bytes { Ok(()) } else { Err(differs("the serial line")) }
}
