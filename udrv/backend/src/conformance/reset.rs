//! What a reset changes, and what it must not.

use super::dma::{Bench, pattern, relay};
use super::signal::Signal;
use super::vectors::each_fires_alone;
use super::{Check, Scratch, Step, Subject, armable, ensure, not_applicable, refuses};
use crate::{AnyBackend, Error, IrqFlags, IrqIndex};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "reset_gives_registers_their_reset_value",
        promise: "registers take their reset values",
        body: registers,
    },
    Check {
        name: "reset_keeps_triggers_armed",
        promise: "after a reset the triggers are armed as before, holes included",
        body: triggers,
    },
    Check {
        name: "reset_leaves_the_line_unmasked",
        promise: "INTx is unmasked after a reset, whatever it was before",
        body: line,
    },
    Check { name: "reset_keeps_memory_mapped", promise: "DMA mappings stay mapped", body: mappings },
];

fn reset(subject: &Subject<'_>, device: &AnyBackend) -> Step {
    let Some(resettable) = device.resettable() else { return not_applicable("the device has no reset method") };
    resettable.reset()?;
    // Configuration space may or may not have been restored: a driver sets it up again.
    subject.prepare(&**device)
}

fn registers(subject: &Subject<'_>) -> Step {
    let device = subject.opened()?;
    let known: Vec<_> = subject.knowledge.scratch.iter().filter(|scratch| scratch.reset.is_some()).collect();
    if device.resettable().is_some() && known.is_empty() {
        return not_applicable("no register's reset value is known");
    }
    for &&Scratch { region, offset, width, reset } in &known {
        let other = !reset.unwrap_or_default() & width.all_ones();
        device.write(region, offset, width, other)?;
    }
    self::reset(subject, &device)?;
    for &&Scratch { region, offset, width, reset } in &known {
        let (came, expected) = (device.read(region, offset, width)?, reset.unwrap_or_default());
        ensure!(came == expected, "{region} at {offset:#x} reads {came:#x} after the reset: expected {expected:#x}");
    }
    Ok(())
}

fn triggers(subject: &Subject<'_>) -> Step {
    let device = subject.opened()?;
    for info in armable(&*device)? {
        let index = info.index;
        let signals = Signal::eventfds(info.count.min(64))?;
        let holes = |vector: usize| vector % 3 == 1;
        let armed: Vec<_> = signals.iter().enumerate().map(|(n, s)| s.trigger().filter(|_| !holes(n))).collect();
        device.set_triggers(index, 0, &armed)?;
        reset(subject, &device)?;
        reset(subject, &device)?;
        let expected: Vec<_> = signals.iter().enumerate().map(|(n, signal)| (!holes(n)).then_some(signal)).collect();
        each_fires_alone(&*device, index, &expected)?;
        for signal in &signals {
            ensure!(signal.taken()? == 0, "{index}: a hole was signalled");
        }
        if let (Some(interrupt), Some(first)) = (subject.knowledge.interrupt, signals.first())
            && index.0 <= IrqIndex::MSIX.0
        {
            (interrupt.raise)(&*device, 0)?;
            first.comes(&format!("{index} raised by the device after a reset"))?;
            (interrupt.acknowledge)(&*device)?;
        }
        device.disable_irq(index)?;
    }
    Ok(())
}

fn line(subject: &Subject<'_>) -> Step {
    let interrupt = subject.interrupt()?;
    let device = subject.opened()?;
    let level = |info: &crate::IrqInfo| info.index == IrqIndex::INTX && info.flags.contains(IrqFlags::AUTOMASKED);
    if !armable(&*device)?.iter().any(level) {
        return not_applicable("the device has no pin interrupt");
    }
    for asserted in [false, true] {
        let signal = Signal::eventfd()?;
        device.set_triggers(IrqIndex::INTX, 0, &[signal.trigger()])?;
        if asserted {
            // Masked by its own signal.
            (interrupt.raise)(&*device, 0)?;
            signal.comes("a line asserted before the reset")?;
        } else {
            device.mask_irq(IrqIndex::INTX, 0)?;
        }
        reset(subject, &device)?;
        signal.taken()?;
        (interrupt.raise)(&*device, 0)?;
        signal.comes("a line asserted after a reset")?;
        (interrupt.acknowledge)(&*device)?;
        device.disable_irq(IrqIndex::INTX)?;
    }
    Ok(())
}

fn mappings(subject: &Subject<'_>) -> Step {
    let bench = Bench::new(subject)?;
    bench.map(0, 2)??;
    reset(subject, &bench.device)?;
    refuses!(bench.map(1, 1)?, Error::DmaOverlap { .. }, "a mapping over one from before the reset");
    if let Some(transfer) = subject.knowledge.transfer {
        bench.fill(0, &pattern(7))?;
        relay(&bench, transfer, 0, bench.page)?;
        ensure!(bench.bytes(bench.page)? == pattern(7), "the device no longer reaches its memory");
    }
    Ok(bench.unmap(0, 2)??)
}
