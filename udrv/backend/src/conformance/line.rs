//! The device's own interrupts: messages, and the pin with its level and mask.

use super::signal::{Signal, triggers};
use super::{Check, Interrupt, Step, Subject, armable, ensure, not_applicable};
use crate::{AnyBackend, IrqFlags, IrqIndex};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "raised_message_signals_its_vector",
        promise: "a message that the device sends signals the trigger of its vector",
        body: message,
    },
    Check {
        name: "messages_merge_and_none_is_lost",
        promise: "n interrupts of the device are seen as at least one signal and at most n, and the next is seen again",
        body: messages_merge,
    },
    Check {
        name: "asserted_line_is_signalled_once",
        promise: "an AUTOMASKED vector is masked before it is signalled: no second signal until it is unmasked",
        body: automasked,
    },
    Check {
        name: "line_asserted_before_arming_is_signalled",
        promise: "a line that is asserted when it is armed is signalled",
        body: asserted_before,
    },
    Check {
        name: "line_still_asserted_is_signalled_again_on_unmask",
        promise: "a level interrupt that is still asserted when it is unmasked is signalled again",
        body: still_asserted,
    },
    Check {
        name: "line_acknowledged_is_quiet_on_unmask",
        promise: "a line that is no longer asserted when it is unmasked is not signalled (no spurious interrupt)",
        body: acknowledged,
    },
    Check {
        name: "masked_line_is_kept_back_until_unmask",
        promise: "until unmask_irq a masked vector's interrupts are kept back as one",
        body: masked,
    },
    Check {
        name: "fire_neither_heeds_nor_changes_the_mask",
        promise: "fire_irq signals once whatever the mask and the line's level are, and changes neither",
        body: fired_while_masked,
    },
];

/// A device whose pin is armed.
struct Line {
    device: AnyBackend,
    interrupt: Interrupt,
    signal: Signal,
}

impl Line {
    fn raise(&self) -> Step {
        Ok((self.interrupt.raise)(&*self.device, 0)?)
    }
    fn acknowledge(&self) -> Step {
        Ok((self.interrupt.acknowledge)(&*self.device)?)
    }
    fn mask(&self) -> Step {
        Ok(self.device.mask_irq(IrqIndex::INTX, 0)?)
    }
    fn unmask(&self) -> Step {
        Ok(self.device.unmask_irq(IrqIndex::INTX, 0)?)
    }
    /// Exactly one signal, and no other after it.
    fn one(&self, what: &str) -> Step {
        let count = self.signal.comes(what)?;
        ensure!(count == 1, "{what}: {count} signals came, expected one");
        self.signal.stays_quiet(&format!("{what}, after the first signal"))
    }
}

fn line(subject: &Subject<'_>) -> Step<Line> {
    let interrupt = subject.interrupt()?;
    let device = subject.opened()?;
    let level = |info: &crate::IrqInfo| info.index == IrqIndex::INTX && info.flags.contains(IrqFlags::AUTOMASKED);
    if !armable(&*device)?.iter().any(level) {
        return not_applicable("the device has no pin interrupt");
    }
    let signal = Signal::eventfd()?;
    device.set_triggers(IrqIndex::INTX, 0, &[signal.trigger()])?;
    Ok(Line { device, interrupt, signal })
}

/// The device's own message vectors of each message-signalled index.
fn each_message(subject: &Subject<'_>, body: impl Fn(&AnyBackend, Interrupt, IrqIndex, &[Signal]) -> Step) -> Step {
    let interrupt = subject.interrupt()?;
    let device = subject.opened()?;
    let infos = armable(&*device)?.into_iter().filter(|info| [IrqIndex::MSI, IrqIndex::MSIX].contains(&info.index));
    let infos: Vec<_> = infos.collect();
    if infos.is_empty() {
        return not_applicable("the device has no message-signalled interrupt");
    }
    for info in infos {
        let signals = Signal::eventfds(info.count.min(interrupt.vectors))?;
        device.set_triggers(info.index, 0, &triggers(&signals))?;
        // Arming some may have signalled others.
        for signal in &signals {
            signal.taken()?;
        }
        body(&device, interrupt, info.index, &signals)?;
        device.disable_irq(info.index)?;
    }
    Ok(())
}

fn message(subject: &Subject<'_>) -> Step {
    each_message(subject, |device, interrupt, index, signals| {
        for (vector, own) in signals.iter().enumerate() {
            (interrupt.raise)(&**device, vector as u32)?;
            let count = own.comes(&format!("{index} vector {vector} raised by the device"))?;
            ensure!(count == 1, "{index} vector {vector} raised once gave {count} signals");
            for (other, signal) in signals.iter().enumerate().filter(|(other, _)| *other != vector) {
                ensure!(signal.taken()? == 0, "{index} vector {vector} was raised, vector {other} was signalled");
            }
            (interrupt.acknowledge)(&**device)?;
        }
        Ok(())
    })
}

fn messages_merge(subject: &Subject<'_>) -> Step {
    const RAISES: u64 = 10;
    each_message(subject, |device, interrupt, index, signals| {
        let Some(signal) = signals.first() else { return Ok(()) };
        for _ in 0..RAISES {
            (interrupt.raise)(&**device, 0)?;
            (interrupt.acknowledge)(&**device)?;
        }
        let mut total = signal.comes(&format!("{index} raised {RAISES} times"))?;
        total += signal.settles()?;
        (interrupt.raise)(&**device, 0)?;
        total += signal.comes(&format!("{index} raised once more"))?;
        (interrupt.acknowledge)(&**device)?;
        ensure!(total <= RAISES + 1, "{index}: {} interrupts gave {total} signals", RAISES + 1);
        Ok(())
    })
}

fn automasked(subject: &Subject<'_>) -> Step {
    let line = line(subject)?;
    line.raise()?;
    line.one("a line asserted")?;
    // Neither more causes nor a fall and a rise get past the mask.
    line.raise()?;
    line.acknowledge()?;
    line.raise()?;
    line.signal.stays_quiet("a line that is masked")?;
    line.acknowledge()
}

fn asserted_before(subject: &Subject<'_>) -> Step {
    let Line { device, interrupt, signal } = line(subject)?;
    device.disable_irq(IrqIndex::INTX)?;
    (interrupt.raise)(&*device, 0)?;
    device.set_triggers(IrqIndex::INTX, 0, &[signal.trigger()])?;
    signal.comes("a line that was asserted when it was armed")?;
    Ok((interrupt.acknowledge)(&*device)?)
}

fn still_asserted(subject: &Subject<'_>) -> Step {
    let line = line(subject)?;
    line.raise()?;
    line.one("a line asserted")?;
    for _ in 0..3 {
        line.unmask()?;
        line.one("a line still asserted when it was unmasked")?;
    }
    line.acknowledge()
}

fn acknowledged(subject: &Subject<'_>) -> Step {
    let line = line(subject)?;
    for _ in 0..3 {
        line.raise()?;
        line.one("a line asserted")?;
        line.acknowledge()?;
        line.unmask()?;
        line.signal.stays_quiet("a line acknowledged and unmasked")?;
    }
    Ok(())
}

fn fired_while_masked(subject: &Subject<'_>) -> Step {
    let line = line(subject)?;
    line.mask()?;
    line.device.fire_irq(IrqIndex::INTX, 0)?;
    line.one("a masked line, fired")?;
    line.raise()?;
    line.signal.stays_quiet("a line asserted after it was fired, still masked")?;
    line.unmask()?;
    line.one("a line asserted while it was masked, now unmasked")?;
    line.acknowledge()?;
    line.unmask()?;
    // Fired unmasked, it is not masked either: the line's own signal comes.
    line.device.fire_irq(IrqIndex::INTX, 0)?;
    line.one("a line fired")?;
    line.raise()?;
    line.one("a line asserted after it was fired")?;
    line.acknowledge()
}

fn masked(subject: &Subject<'_>) -> Step {
    let line = line(subject)?;
    line.mask()?;
    line.mask()?;
    line.raise()?;
    line.signal.stays_quiet("a masked line")?;
    line.unmask()?;
    line.one("a line asserted while it was masked, now unmasked")?;
    line.acknowledge()
}
