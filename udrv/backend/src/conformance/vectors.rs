//! Ranges of vectors: which are armed by a call, and which it must leave alone.

use super::signal::{Signal, triggers};
use super::{Check, Step, Subject, armable, armable_with, ensure, refuses};
use crate::{Backend, Error, IrqIndex, IrqInfo, Trigger};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "range_past_the_last_vector_is_refused_whole",
        promise: "a range that does not fit is NoSuchIrq, with nothing changed, sums that overflow included",
        body: past_the_last,
    },
    Check { name: "empty_range_changes_nothing", promise: "no trigger given is no trigger changed", body: empty },
    Check {
        name: "every_vector_signals_its_own_trigger",
        promise: "all vectors of an index can be armed by one call, each with its trigger",
        body: all_at_once,
    },
    Check {
        name: "vectors_armed_in_any_order_are_signalled",
        promise: "triggers may be set for any start and count, in any order",
        body: any_order,
    },
    Check {
        name: "vectors_outside_a_range_keep_their_trigger",
        promise: "vectors outside the range keep their trigger",
        body: outside_kept,
    },
    Check {
        name: "hole_is_silent_and_its_neighbours_are_not",
        promise: "None leaves a hole that never fires",
        body: hole,
    },
];

/// Most vectors tried at once: each costs a descriptor.
const MOST: u32 = 64;

/// Fires each vector in turn and checks that its own signal comes, alone, wherever there is one.
pub(super) fn each_fires_alone(device: &dyn Backend, index: IrqIndex, signals: &[Option<&Signal>]) -> Step {
    // Arming some may have signalled others.
    for signal in signals.iter().flatten() {
        signal.taken()?;
    }
    for (vector, own) in signals.iter().enumerate() {
        device.fire_irq(index, vector as u32)?;
        if let Some(own) = own {
            let count = own.comes(&format!("{index} vector {vector} fired"))?;
            ensure!(count == 1, "{index} vector {vector} fired once gave {count} signals");
        }
        for (other, signal) in signals.iter().enumerate().filter(|(other, _)| *other != vector) {
            let count = signal.map_or(Ok(0), Signal::taken)?;
            ensure!(count == 0, "{index} vector {vector} fired, vector {other} was signalled");
        }
    }
    Ok(())
}

/// Runs `body` for every index of at least `count` vectors, and disables it after.
fn each_index(subject: &Subject<'_>, count: u32, body: impl Fn(&dyn Backend, IrqInfo) -> Step) -> Step {
    let device = subject.opened()?;
    for info in armable_with(&*device, count)? {
        body(&*device, IrqInfo { count: info.count.min(MOST), ..info })?;
        device.disable_irq(info.index)?;
    }
    Ok(())
}

fn past_the_last(subject: &Subject<'_>) -> Step {
    let device = subject.opened()?;
    for info in armable(&*device)? {
        let (index, count) = (info.index, info.count);
        let armed = Signal::eventfd()?;
        device.set_triggers(index, 0, &[armed.trigger()])?;
        let refused = Signal::eventfd()?;
        let many: Vec<Option<Trigger<'_>>> = vec![refused.trigger(); count as usize + 1];
        for (start, length) in [(0, count + 1), (1, count), (count, 1), (u32::MAX, 1), (u32::MAX - count, count + 1)] {
            let range = many.get(..length as usize).unwrap_or_default();
            let outcome = device.set_triggers(index, start, range);
            refuses!(outcome, Error::NoSuchIrq { .. }, "arming {length} vectors of {index} from {start}, of {count}");
        }
        device.fire_irq(index, 0)?;
        let signals = armed.comes(&format!("{index} vector 0 after refused ranges"))?;
        ensure!(signals == 1, "{index} vector 0 fired once gave {signals} signals");
        for vector in 1..count.min(MOST) {
            device.fire_irq(index, vector)?;
        }
        ensure!(refused.taken()? == 0, "{index}: part of a refused range was armed");
        device.disable_irq(index)?;
    }
    Ok(())
}

fn empty(subject: &Subject<'_>) -> Step {
    each_index(subject, 1, |device, info| {
        device.set_triggers(info.index, 0, &[])?;
        let signal = Signal::eventfd()?;
        device.set_triggers(info.index, 0, &[signal.trigger()])?;
        device.set_triggers(info.index, 0, &[])?;
        each_fires_alone(device, info.index, &[Some(&signal)])
    })
}

fn all_at_once(subject: &Subject<'_>) -> Step {
    each_index(subject, 2, |device, info| {
        let signals = Signal::eventfds(info.count)?;
        device.set_triggers(info.index, 0, &triggers(&signals))?;
        each_fires_alone(device, info.index, &signals.iter().map(Some).collect::<Vec<_>>())
    })
}

fn any_order(subject: &Subject<'_>) -> Step {
    each_index(subject, 2, |device, info| {
        let (index, count) = (info.index, info.count);
        let signals = Signal::eventfds(count)?;
        let all = triggers(&signals);
        // The last one, the first one, then all between them.
        for (start, end) in [(count - 1, count), (0, 1), (1, count - 1)] {
            let range = all.get(start as usize..end as usize).unwrap_or_default();
            device.set_triggers(index, start, range)?;
        }
        each_fires_alone(device, index, &signals.iter().map(Some).collect::<Vec<_>>())
    })
}

fn outside_kept(subject: &Subject<'_>) -> Step {
    each_index(subject, 2, |device, info| {
        let signals = Signal::eventfds(info.count)?;
        device.set_triggers(info.index, 0, &triggers(&signals))?;
        let new = Signal::eventfd()?;
        let last = info.count - 1;
        device.set_triggers(info.index, last, &[new.trigger()])?;
        let mut expected: Vec<_> = signals.iter().map(Some).collect();
        expected.pop();
        expected.push(Some(&new));
        each_fires_alone(device, info.index, &expected)
    })
}

fn hole(subject: &Subject<'_>) -> Step {
    each_index(subject, 2, |device, info| {
        let signals = Signal::eventfds(info.count)?;
        // Every second vector is a hole, in one call; then one more is made where a trigger was.
        let mut expected: Vec<_> =
            signals.iter().enumerate().map(|(n, signal)| (n % 2 == 0).then_some(signal)).collect();
        let with_holes: Vec<_> = expected.iter().map(|signal| signal.and_then(Signal::trigger)).collect();
        device.set_triggers(info.index, 0, &with_holes)?;
        each_fires_alone(device, info.index, &expected)?;
        device.set_triggers(info.index, 0, &[None])?;
        if let Some(first) = expected.first_mut() {
            *first = None;
        }
        each_fires_alone(device, info.index, &expected)?;
        for (vector, signal) in signals.iter().enumerate() {
            ensure!(signal.taken()? == 0, "{} vector {vector} was signalled, a hole", info.index);
        }
        Ok(())
    })
}
