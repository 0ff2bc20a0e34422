//! Several threads at one device, and what is left when it is closed.

use super::dma::{Bench, bytes_of, pattern};
use super::signal::Signal;
use super::{Check, Scratch, Step, Stop, Subject, armable, ensure};
use crate::{Backend, IrqIndex, RegionIndex, Width};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "concurrent_calls_do_not_disturb_each_other",
        promise: "a backend is Sync: accesses, triggers and mappings from several threads at once all succeed",
        body: concurrent,
    },
    Check {
        name: "drop_closes_every_trigger",
        promise: "dropping the backend disarms every vector: its duplicates of the descriptors are closed",
        body: triggers,
    },
    Check {
        name: "drop_with_everything_live_leaves_the_device_usable",
        promise: "a device dropped armed, masked, asserted and mapped can be opened and used again",
        body: reusable,
    },
    Check {
        name: "drop_unmaps_memory",
        promise: "dropping the backend unmaps all memory: the device reaches none of it, and its addresses are free",
        body: memory,
    },
];

fn concurrent(subject: &Subject<'_>) -> Step {
    const ROUNDS: u32 = 20;
    let device = subject.opened()?;
    let expected = device.read(RegionIndex::CONFIG, 0, Width::Bits32)?;
    let read = || -> Step {
        for _ in 0..ROUNDS {
            let id = device.read(RegionIndex::CONFIG, 0, Width::Bits32)?;
            ensure!(id == expected, "vendor and device ID read {id:#x}: expected {expected:#x}");
        }
        Ok(())
    };
    let scratch = subject.knowledge.scratch;
    let write = || -> Step {
        for round in 0..u64::from(ROUNDS) {
            for &Scratch { region, offset, width, .. } in scratch {
                device.write(region, offset, width, round)?;
                let came = device.read(region, offset, width)?;
                ensure!(came == round, "{region} at {offset:#x}: wrote {round:#x}, read {came:#x}");
            }
        }
        Ok(())
    };
    let index = armable(&*device).ok().and_then(|infos| infos.first().map(|info| info.index));
    let fire = || -> Step {
        let Some(index) = index else { return Ok(()) };
        for _ in 0..ROUNDS {
            let signal = Signal::eventfd()?;
            device.set_triggers(index, 0, &[signal.trigger()])?;
            device.fire_irq(index, 0)?;
            signal.comes(&format!("{index} fired among other calls"))?;
        }
        Ok(device.disable_irq(index)?)
    };
    let bench = device.dma().is_some().then(|| Bench::over(subject, &device)).transpose()?;
    let map = || -> Step {
        let Some(bench) = &bench else { return Ok(()) };
        for _ in 0..ROUNDS {
            bench.map(0, 1)??;
            bench.unmap(0, 1)??;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(read), scope.spawn(write), scope.spawn(fire), scope.spawn(map), scope.spawn(read)];
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(Stop::Failed("a thread panicked in the backend".into())))
        })
    })
}

fn triggers(subject: &Subject<'_>) -> Step {
    let device = subject.opened()?;
    let infos = armable(&*device)?;
    drop(device);
    for info in infos {
        let device = subject.opened()?;
        let mut signal = Signal::socket()?;
        device.set_triggers(info.index, info.count - 1, &[signal.trigger()])?;
        signal.close_trigger();
        device.fire_irq(info.index, info.count - 1)?;
        signal.comes(&format!("{} fired", info.index))?;
        drop(device);
        signal.ends(&format!("{} after the drop", info.index))?;
    }
    Ok(())
}

fn reusable(subject: &Subject<'_>) -> Step {
    let device = subject.opened()?;
    let Some(index) = armable(&*device)?.first().map(|info| info.index) else { return Ok(()) };
    let old = Signal::eventfd()?;
    device.set_triggers(index, 0, &[old.trigger()])?;
    if let Some(interrupt) = subject.knowledge.interrupt {
        (interrupt.raise)(&*device, 0)?;
        old.comes("an interrupt raised and left so")?;
    }
    if index == IrqIndex::INTX {
        device.mask_irq(index, 0)?;
    }
    let bench = device.dma().is_some().then(|| Bench::over(subject, &device)).transpose()?;
    if let Some(bench) = &bench {
        bench.map(0, 1)??;
    }
    drop(bench);
    drop(device);

    let device = subject.opened()?;
    device.fire_irq(index, 0)?;
    let new = Signal::eventfd()?;
    device.set_triggers(index, 0, &[new.trigger()])?;
    if let Some(interrupt) = subject.knowledge.interrupt {
        (interrupt.raise)(&*device, 0)?;
        new.comes("an interrupt raised after the device was opened again")?;
        (interrupt.acknowledge)(&*device)?;
    }
    device.fire_irq(index, 0)?;
    new.comes("a vector fired after the device was opened again")?;
    ensure!(old.taken()? == 0, "a trigger of the first opening was signalled in the second");
    Ok(())
}

fn memory(subject: &Subject<'_>) -> Step {
    let bench = Bench::new(subject)?;
    bench.map(0, 2)??;
    bench.fill(0, &pattern(8))?;
    let old = bench.close();
    let bench = Bench::new(subject)?;
    if let Some(transfer) = subject.knowledge.transfer {
        (transfer.to_memory)(&*bench.device, bench.base)?;
        ensure!(bytes_of(&old, 0)? == pattern(8), "the device wrote to memory of its last opening");
    }
    bench.map(1, 2)??;
    bench.map(0, 1)??;
    bench.unmap(0, 1)??;
    Ok(bench.unmap(1, 2)??)
}
