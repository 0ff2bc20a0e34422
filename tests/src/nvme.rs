//! What an NVMe controller must do for its driver: one suite, for the model, the stub before it, and real VFIO.
//!
//! It writes to the last MiB of namespace 1, and nowhere else.

use std::time::Duration;
use udrv::dma::{FromDevice, ToDevice};
use udrv::irq::{Delivery, IrqDomain};
use udrv::mmio::Window;
use udrv_backend::{AnyBackend, Error, RegionIndex, Result};
use udrv_nvme::command::Outcome;
use udrv_nvme::driver::{Controller, Data, Namespace, QueueConfig, Range, Wait};

/// One check: what it says when it fails.
type Check = fn(&mut Controller) -> Result<()>;

/// All checks, each on a controller brought up anew.
pub const CHECKS: &[(&str, Check)] = &[
    ("identify", identify),
    ("feature_set_reads_back", features),
    ("blocks_read_are_blocks_written, by interrupt and polled", round_trips),
    ("prp_lists_of_every_alignment", alignments),
    ("batch_rung_once_ends_whole", batch),
    ("block_beyond_the_end_is_refused", beyond_the_end),
    ("write_zeroes_and_trim", zeroes_and_trim),
    ("smart_counts_commands", smart),
    ("two_queues_at_once", two_queues),
    ("reset_in_mid_io_answers_every_command", reset_in_mid_io),
];

/// The scratch area, bytes.
const SCRATCH: u64 = 1 << 20;

/// Runs all of them; the name of the first that failed, and why.
///
/// # Errors
/// What failed.
pub fn run(open: &dyn Fn() -> Result<AnyBackend>) -> std::result::Result<(), String> {
    for (name, check) in CHECKS {
        let outcome = open().and_then(|device| {
            let irqs = IrqDomain::new(Delivery::Thread)?;
            let window = Window::open(&device, RegionIndex::BAR0)?;
            let mut controller = Controller::attach(&device, window, &irqs, 2)?;
            check(&mut controller)?;
            controller.shut_down()
        });
        outcome.map_err(|error| format!("{name}: {error}"))?;
        println!("ok {name}");
    }
    Ok(())
}

fn wrong(found: impl Into<String>, expected: &str) -> Error {
    Error::Protocol { peer: "the controller".into(), found: found.into(), expected: expected.into() }
}

fn ensure(holds: bool, found: &str, expected: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(wrong(found, expected)) }
}

fn scratch(controller: &Controller) -> Result<(Namespace, u64)> {
    let namespace = controller.namespace(1)?;
    Ok((namespace, namespace.blocks - SCRATCH / namespace.block_size))
}

/// Bytes that tell where they are.
fn pattern(seed: u32, length: usize) -> Vec<u8> {
    (0..length as u32).map(|at| (at.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn config(wait: Wait) -> QueueConfig {
    QueueConfig { depth: 16, wait, timeout: Duration::from_secs(20) }
}

fn identify(controller: &mut Controller) -> Result<()> {
    ensure(!controller.info().serial.is_empty(), "no serial number", "one")?;
    let ids = controller.namespace_ids()?;
    ensure(ids.first() == Some(&1), "no namespace 1", "it first in the list")?;
    for id in ids {
        let namespace = controller.namespace(id)?;
        ensure(namespace.bytes() > SCRATCH, "a namespace too small for this", "more than 1 MiB")?;
    }
    ensure(controller.namespace(u32::MAX - 5).is_err(), "a namespace that is not there", "an error")
}

fn features(controller: &mut Controller) -> Result<()> {
    const WRITE_CACHE: u8 = 0x06;
    for value in [0, 1] {
        controller.set_feature(WRITE_CACHE, value)?;
        ensure(controller.feature(WRITE_CACHE)? == value, "another value of Volatile Write Cache", "the one set")?;
    }
    ensure(controller.feature(0x7f).is_err(), "a feature that is not there", "an error")
}

fn round_trips(controller: &mut Controller) -> Result<()> {
    let (namespace, first) = scratch(controller)?;
    // Two queues have been asked for: the same one is made again.
    for (seed, wait) in [(1, Wait::Interrupt), (2, Wait::Polled)] {
        let mut queue = controller.io_queue(config(wait))?;
        let sent = pattern(seed, SCRATCH as usize);
        queue.write(&namespace, first, &sent)?;
        queue.flush(&namespace)?;
        let mut came = vec![0; sent.len()];
        queue.read(&namespace, first, &mut came)?;
        ensure(came == sent, "other bytes than were written", "the same")?;
        ensure(wait == Wait::Polled || queue.interrupts() > 0, "no interrupt", "some")?;
    }
    Ok(())
}

/// Every number of entries (none, one, a list), from the start, the middle and the end of a page.
fn alignments(controller: &mut Controller) -> Result<()> {
    let (namespace, first) = scratch(controller)?;
    let mut queue = controller.io_queue(config(Wait::Polled))?;
    let block = namespace.block_size as usize;
    let most = queue.max_transfer().min(SCRATCH as usize);
    let sent = pattern(3, most);
    queue.write(&namespace, first, &sent)?;
    for start in [0, 4, 2048, 4092] {
        for length in [block, 4096, 8192, 12_288, most] {
            let buffer = controller.pool().alloc::<FromDevice>(start + length)?;
            queue.submit_read(&namespace, first, buffer, start..start + length)?;
            let mut came = vec![0; start + length];
            let mut outcome = None;
            queue.wait(|done| {
                if let Data::Read(buffer) = done.data {
                    outcome = Some(buffer.read(0, &mut came).map(|()| done.outcome));
                }
            })?;
            let ended = outcome.transpose()?;
            let same = came.get(start..) == sent.get(..length) && came.iter().take(start).all(|byte| *byte == 0);
            let found = format!("{ended:?}, or other bytes, for {length} bytes from {start} on");
            ensure(ended == Some(Outcome::SUCCESS) && same, &found, "the bytes written, there only")?;
        }
    }
    Ok(())
}

fn batch(controller: &mut Controller) -> Result<()> {
    let (namespace, first) = scratch(controller)?;
    let mut queue = controller.io_queue(config(Wait::Polled))?;
    let block = namespace.block_size as usize;
    for round in 0..10 {
        for index in 0..16 {
            let mut buffer = controller.pool().alloc::<ToDevice>(block)?;
            buffer.write(0, &pattern(round * 16 + index, block))?;
            queue.submit_write(&namespace, first + u64::from(index), buffer, 0..block)?;
        }
        ensure(!queue.has_room(), "room for a seventeenth command", "none")?;
        queue.ring()?;
        let mut good = 0;
        while queue.outstanding() > 0 {
            queue.wait(|done| good += u32::from(done.outcome.is_success()))?;
        }
        ensure(good == 16, "a command that failed", "sixteen that did not")?;
        let mut came = vec![0; 16 * block];
        queue.read(&namespace, first, &mut came)?;
        let sent: Vec<u8> = (0..16).flat_map(|index| pattern(round * 16 + index, block)).collect();
        ensure(came == sent, "other bytes than were written", "the same")?;
    }
    Ok(())
}

fn beyond_the_end(controller: &mut Controller) -> Result<()> {
    let (namespace, _) = scratch(controller)?;
    let mut queue = controller.io_queue(config(Wait::Interrupt))?;
    let mut block = vec![0; namespace.block_size as usize];
    queue.read(&namespace, namespace.blocks - 1, &mut block)?;
    let refused = queue.read(&namespace, namespace.blocks, &mut block).map_err(|error| error.to_string());
    let told = matches!(&refused, Err(why) if why.contains("LBA Out of Range (SCT 0h, SC 80h)"));
    ensure(told, &format!("{refused:?}"), "LBA Out of Range")?;
    // The queue is none the worse.
    queue.read(&namespace, 0, &mut block)
}

fn zeroes_and_trim(controller: &mut Controller) -> Result<()> {
    let (namespace, first) = scratch(controller)?;
    let mut queue = controller.io_queue(config(Wait::Interrupt))?;
    let block = namespace.block_size as usize;
    let mut expected = pattern(5, 64 * block);
    queue.write(&namespace, first, &expected)?;
    queue.write_zeroes(&namespace, Range { lba: first + 1, blocks: 7 })?;
    expected.iter_mut().skip(block).take(7 * block).for_each(|byte| *byte = 0);
    let mut came = vec![0; 64 * block];
    queue.read(&namespace, first, &mut came)?;
    ensure(came == expected, "other bytes after Write Zeroes", "zeros in seven blocks, the others as before")?;
    // What is deallocated may read as anything; what is not must stay.
    queue.trim(&namespace, &[Range { lba: first + 16, blocks: 8 }, Range { lba: first + 40, blocks: 1 }])?;
    queue.read(&namespace, first, &mut came)?;
    for index in (0..64).filter(|index| !(16..24).contains(index) && *index != 40) {
        let part = index * block..(index + 1) * block;
        ensure(came.get(part.clone()) == expected.get(part), "a block changed that was not trimmed", "as before")?;
    }
    Ok(())
}

fn smart(controller: &mut Controller) -> Result<()> {
    let (namespace, first) = scratch(controller)?;
    let before = controller.smart()?;
    let mut queue = controller.io_queue(config(Wait::Interrupt))?;
    let mut block = vec![0; namespace.block_size as usize];
    for _ in 0..5 {
        queue.read(&namespace, first, &mut block)?;
    }
    let after = controller.smart()?;
    ensure(after.host_reads - before.host_reads == 5, "another number of Host Read Commands", "5 more")?;
    ensure(after.temperature > 200 && after.critical_warning == 0, "a controller that is ill", "a healthy one")?;
    controller.error_log().map(drop)
}

fn two_queues(controller: &mut Controller) -> Result<()> {
    let (namespace, first) = scratch(controller)?;
    let blocks = SCRATCH / namespace.block_size / 2;
    let (one, two) = (controller.io_queue(config(Wait::Interrupt))?, controller.io_queue(config(Wait::Interrupt))?);
    ensure(controller.io_queue(config(Wait::Polled)).is_err(), "a third queue pair", "two, as asked for")?;
    let work = |mut queue: udrv_nvme::driver::IoQueue, lba: u64, seed: u32| -> Result<()> {
        for round in 0..8 {
            let sent = pattern(seed + round, 65_536);
            queue.write(&namespace, lba, &sent)?;
            let mut came = vec![0; sent.len()];
            queue.read(&namespace, lba, &mut came)?;
            ensure(came == sent, "other bytes than this thread wrote", "the same")?;
        }
        ensure(queue.interrupts() > 0, "no interrupt of its own", "some")
    };
    let panicked = |_| wrong("a panic", "none");
    std::thread::scope(|scope| {
        let other = scope.spawn(|| work(two, first + blocks, 1000));
        work(one, first, 2000)?;
        other.join().map_err(panicked)?
    })
}

/// The controller is reset while sixteen reads are outstanding: all are answered, and the queue goes on.
fn reset_in_mid_io(controller: &mut Controller) -> Result<()> {
    let (namespace, first) = scratch(controller)?;
    let mut queue = controller.io_queue(config(Wait::Interrupt))?;
    let length = queue.max_transfer().min(SCRATCH as usize / 16);
    let sent = pattern(7, SCRATCH as usize);
    queue.write(&namespace, first, &sent)?;
    for _ in 0..5 {
        for index in 0..16 {
            let buffer = controller.pool().alloc::<FromDevice>(length)?;
            queue.submit_read(&namespace, first + index * length as u64 / namespace.block_size, buffer, 0..length)?;
        }
        queue.ring()?;
        controller.reset()?;
        let (mut answered, mut strange) = (0, 0);
        while queue.outstanding() > 0 {
            queue.wait(|done| {
                answered += 1;
                strange += u32::from(done.outcome != Outcome::ABORTED_BY_HOST || !matches!(done.data, Data::Read(_)));
            })?;
        }
        ensure(answered == 16, "commands that were not answered", "sixteen answers")?;
        ensure(strange == 0, "another answer than Command Aborted By Host, with the buffer", "that")?;
        let mut came = vec![0; sent.len()];
        queue.read(&namespace, first, &mut came)?;
        ensure(came == sent, "other bytes after the reset", "those written before")?;
    }
    ensure(controller.pool().leaks().is_empty(), "a buffer that was lost", "none")
}
