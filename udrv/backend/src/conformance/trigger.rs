//! One vector and its trigger: armed, replaced, taken away, fired.

use super::signal::{Signal, triggers};
use super::{Check, Step, Subject, armable, ensure, not_applicable, refuses};
use crate::{Backend, Error, IrqFlags, IrqIndex};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "irq_beyond_the_last_is_refused",
        promise: "an index beyond DeviceInfo::irqs is NoSuchIrq in every call, and so is a vector that an index lacks",
        body: irq_beyond,
    },
    Check {
        name: "fired_vector_is_signalled",
        promise: "fire_irq signals the vector's trigger as if the device had raised it",
        body: fired,
    },
    Check {
        name: "fired_socket_is_signalled",
        promise: "a trigger is any descriptor that 8 bytes can be written to, such as one end of a socketpair",
        body: fired_socket,
    },
    Check {
        name: "unarmed_vector_fires_without_error",
        promise: "firing a vector that has no trigger is no error",
        body: fired_unarmed,
    },
    Check {
        name: "descriptor_is_kept_by_the_backend",
        promise: "the backend keeps its own duplicate of each descriptor",
        body: descriptor_kept,
    },
    Check {
        name: "many_signals_merge_and_none_is_lost",
        promise: "n interrupts are seen as at least one signal and at most n, and the next one is seen again",
        body: merged,
    },
    Check {
        name: "full_descriptor_is_not_waited_for",
        promise: "a descriptor that is full has a signal waiting already; the backend never waits for room",
        body: full,
    },
    Check {
        name: "replaced_trigger_is_silent",
        promise: "a vector armed anew signals its new trigger only",
        body: replaced,
    },
    Check { name: "trigger_taken_away_is_silent", promise: "None disarms one vector", body: taken_away },
    Check {
        name: "disabled_irq_is_silent_until_armed_again",
        promise: "disable_irq disarms every vector, is no error when none is armed, and arming works again after it",
        body: disabled,
    },
    Check {
        name: "armed_index_excludes_the_others",
        promise: "while one of INTx, MSI and MSI-X is armed, arming another is refused with nothing changed",
        body: exclusive,
    },
    Check {
        name: "masking_what_cannot_be_masked_is_refused",
        promise: "without IrqFlags::MASKABLE mask_irq and unmask_irq are NotSupported",
        body: not_maskable,
    },
    Check {
        name: "unarmed_vector_has_no_mask",
        promise: "masking a vector that has no trigger is no error and changes nothing: arming begins unmasked",
        body: unarmed_mask,
    },
];

/// Runs `body` for every index that has vectors, with a signal armed on its vector 0.
fn each_armed(
    subject: &Subject<'_>,
    signal: fn() -> crate::Result<Signal>,
    body: impl Fn(&dyn Backend, IrqIndex, &mut Signal) -> Step,
) -> Step {
    let device = subject.opened()?;
    for info in armable(&*device)? {
        let mut signal = signal()?;
        device.set_triggers(info.index, 0, &[signal.trigger()])?;
        body(&*device, info.index, &mut signal)?;
        device.disable_irq(info.index)?;
    }
    Ok(())
}

fn irq_beyond(subject: &Subject<'_>) -> Step {
    let device = subject.opened()?;
    let signal = Signal::eventfd()?;
    for index in [device.info().irqs, device.info().irqs + 1, u32::MAX].map(IrqIndex) {
        refuses!(device.irq(index), Error::NoSuchIrq { .. }, "info of {index}");
        refuses!(device.disable_irq(index), Error::NoSuchIrq { .. }, "disabling {index}");
    }
    for index in (0..device.info().irqs).map(IrqIndex).chain([IrqIndex(device.info().irqs), IrqIndex(u32::MAX)]) {
        let count = device.irq(index).map_or(0, |info| info.count);
        for vector in [count, count + 1, u32::MAX] {
            let armed = device.set_triggers(index, vector, &[signal.trigger()]);
            refuses!(armed, Error::NoSuchIrq { .. }, "arming {index} vector {vector} of {count}");
            refuses!(
                device.fire_irq(index, vector),
                Error::NoSuchIrq { .. },
                "firing {index} vector {vector} of {count}"
            );
            refuses!(device.mask_irq(index, vector), Error::NoSuchIrq { .. }, "masking {index} vector {vector}");
            refuses!(device.unmask_irq(index, vector), Error::NoSuchIrq { .. }, "unmasking {index} vector {vector}");
        }
        if index.0 < device.info().irqs {
            device.disable_irq(index)?;
        }
    }
    Ok(())
}

fn fired(subject: &Subject<'_>) -> Step {
    each_armed(subject, Signal::eventfd, |device, index, signal| {
        for _ in 0..2 {
            device.fire_irq(index, 0)?;
            let count = signal.comes(&format!("{index} fired"))?;
            ensure!(count == 1, "{index} fired once gave {count} signals");
        }
        Ok(())
    })
}

fn fired_socket(subject: &Subject<'_>) -> Step {
    each_armed(subject, Signal::socket, |device, index, signal| {
        for _ in 0..2 {
            device.fire_irq(index, 0)?;
            let count = signal.comes(&format!("{index} fired into a socket"))?;
            ensure!(count == 1, "{index} fired once gave {count} signals");
        }
        Ok(())
    })
}

fn fired_unarmed(subject: &Subject<'_>) -> Step {
    let device = subject.opened()?;
    for info in armable(&*device)? {
        for vector in 0..info.count.min(32) {
            device.fire_irq(info.index, vector)?;
        }
        // What was fired unarmed is gone: it does not come later.
        let signal = Signal::eventfd()?;
        device.set_triggers(info.index, 0, &[signal.trigger()])?;
        ensure!(signal.taken()? == 0, "{}: a signal from before it was armed", info.index);
        device.disable_irq(info.index)?;
    }
    Ok(())
}

fn descriptor_kept(subject: &Subject<'_>) -> Step {
    each_armed(subject, Signal::socket, |device, index, signal| {
        signal.close_trigger();
        device.fire_irq(index, 0)?;
        signal.comes(&format!("{index} fired after its caller closed the descriptor")).map(drop)
    })
}

fn merged(subject: &Subject<'_>) -> Step {
    const FIRES: u64 = 20;
    for kind in [Signal::eventfd, Signal::socket] {
        each_armed(subject, kind, |device, index, signal| {
            for _ in 0..FIRES {
                device.fire_irq(index, 0)?;
            }
            let mut total = signal.comes(&format!("{index} fired {FIRES} times"))?;
            // A socket is written to by whoever forwards: what is still under way is waited for by one more signal.
            device.fire_irq(index, 0)?;
            total += signal.comes(&format!("{index} fired once more"))?;
            ensure!((2..=FIRES + 1).contains(&total), "{index}: {} fires gave {total} signals", FIRES + 1);
            Ok(())
        })?;
    }
    Ok(())
}

fn full(subject: &Subject<'_>) -> Step {
    each_armed(subject, Signal::narrow_socket, |device, index, signal| {
        // The smallest buffer holds a few; whoever waits for room in it waits for ever.
        for _ in 0..60 {
            device.fire_irq(index, 0)?;
        }
        signal.comes(&format!("{index} fired into a full socket"))?;
        device.fire_irq(index, 0)?;
        signal.comes(&format!("{index} fired after the socket was drained")).map(drop)
    })
}

fn replaced(subject: &Subject<'_>) -> Step {
    each_armed(subject, Signal::eventfd, |device, index, old| {
        let new = Signal::eventfd()?;
        device.set_triggers(index, 0, &[new.trigger()])?;
        device.fire_irq(index, 0)?;
        new.comes(&format!("{index} fired with its new trigger"))?;
        ensure!(old.taken()? == 0, "{index}: the old trigger was signalled");
        Ok(())
    })
}

fn taken_away(subject: &Subject<'_>) -> Step {
    each_armed(subject, Signal::socket, |device, index, signal| {
        device.set_triggers(index, 0, &[None])?;
        device.fire_irq(index, 0)?;
        signal.stays_quiet(&format!("{index} fired after its trigger was taken away"))?;
        // And closed: the backend keeps nothing of it.
        signal.close_trigger();
        signal.ends(&format!("{index}: a trigger taken away"))
    })
}

fn disabled(subject: &Subject<'_>) -> Step {
    each_armed(subject, Signal::eventfd, |device, index, old| {
        device.disable_irq(index)?;
        device.disable_irq(index)?;
        device.fire_irq(index, 0)?;
        let new = Signal::eventfd()?;
        device.set_triggers(index, 0, &[new.trigger()])?;
        device.fire_irq(index, 0)?;
        let count = new.comes(&format!("{index} armed again"))?;
        ensure!(count == 1, "{index} fired once after it was armed again gave {count} signals");
        ensure!(old.taken()? == 0, "{index}: a disabled trigger was signalled");
        Ok(())
    })
}

fn exclusive(subject: &Subject<'_>) -> Step {
    let device = subject.opened()?;
    let exclusive = [IrqIndex::INTX, IrqIndex::MSI, IrqIndex::MSIX];
    let kinds: Vec<_> = armable(&*device)?.into_iter().filter(|info| exclusive.contains(&info.index)).collect();
    if kinds.len() < 2 {
        return not_applicable("the device has fewer than two of INTx, MSI and MSI-X");
    }
    for first in &kinds {
        let armed = Signal::eventfd()?;
        device.set_triggers(first.index, 0, &[armed.trigger()])?;
        for second in kinds.iter().filter(|second| second.index != first.index) {
            let other = Signal::eventfd()?;
            let outcome = device.set_triggers(second.index, 0, &[other.trigger()]);
            ensure!(outcome.is_err(), "{} was armed while {} was", second.index, first.index);
            device.fire_irq(second.index, 0)?;
            device.fire_irq(first.index, 0)?;
            armed.comes(&format!("{} fired after {} was refused", first.index, second.index))?;
            ensure!(other.taken()? == 0, "{}: a refused trigger was signalled", second.index);
        }
        device.disable_irq(first.index)?;
    }
    Ok(())
}

fn not_maskable(subject: &Subject<'_>) -> Step {
    let device = subject.opened()?;
    let rigid = |info: &crate::IrqInfo| !info.flags.contains(IrqFlags::MASKABLE);
    let infos: Vec<_> = armable(&*device)?.into_iter().filter(rigid).collect();
    if infos.is_empty() {
        return not_applicable("every interrupt of the device can be masked");
    }
    for info in infos {
        refuses!(device.mask_irq(info.index, 0), Error::NotSupported { .. }, "masking {}", info.index);
        refuses!(device.unmask_irq(info.index, 0), Error::NotSupported { .. }, "unmasking {}", info.index);
    }
    Ok(())
}

fn unarmed_mask(subject: &Subject<'_>) -> Step {
    let interrupt = subject.interrupt()?;
    let device = subject.opened()?;
    let maskable = |info: &crate::IrqInfo| info.flags.contains(IrqFlags::MASKABLE);
    let infos: Vec<_> = armable(&*device)?.into_iter().filter(maskable).collect();
    if infos.is_empty() {
        return not_applicable("no interrupt of the device can be masked");
    }
    for info in infos {
        let index = info.index;
        device.mask_irq(index, 0)?;
        let first = Signal::eventfd()?;
        device.set_triggers(index, 0, &[first.trigger()])?;
        (interrupt.raise)(&*device, 0)?;
        first.comes(&format!("{index} armed after it was masked unarmed"))?;
        (interrupt.acknowledge)(&*device)?;
        // What it was masked to while armed is forgotten with its trigger.
        device.mask_irq(index, 0)?;
        device.disable_irq(index)?;
        device.unmask_irq(index, 0)?;
        let signals = [Signal::eventfd()?];
        device.set_triggers(index, 0, &triggers(&signals))?;
        (interrupt.raise)(&*device, 0)?;
        let [second] = &signals;
        second.comes(&format!("{index} armed again after it was disabled masked"))?;
        (interrupt.acknowledge)(&*device)?;
        device.disable_irq(index)?;
    }
    Ok(())
}
