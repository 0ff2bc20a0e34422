//! Where two runs part.
//!
//! What a driver may do otherwise than in a replay it may do here: poll more or fewer times, access one region earlier or later
//! than another, map memory and arm interrupts at other times. Beyond that, what the device answered is compared as well.
//!
//! With one exception, since the second of two runs finds a device as the first has left it: what a register holds before the
//! driver first writes it is the last driver's. In such a register bits that were then different may stay so, until they are
//! written alike. A register that is only read is compared from the beginning.

use super::event::{Actors, Event, Outcome, What};
use super::read::Trace;
use std::collections::{BTreeMap, BTreeSet};
use udrv_backend::{RegionIndex, Width};

/// The first access that is not the same; `None` for a run that had ended by then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Divergence {
    /// In the first run.
    pub first: Option<Event>,
    /// In the second.
    pub second: Option<Event>,
}

/// Compares what each thread, and handlers on whichever, did to each region. Threads are matched by the order in which they
/// appear; of reads of one register that follow each other, which is how a driver polls, only the last counts. Times do not
/// matter.
#[must_use]
pub fn diff(first: &Trace, second: &Trace) -> Option<Divergence> {
    let (first, second) = (streams(first), streams(second));
    let keys: BTreeSet<_> = first.keys().chain(second.keys()).collect();
    let none = Vec::new();
    let part = |key| {
        let [one, other] = [&first, &second].map(|streams| streams.get(key).unwrap_or(&none));
        let mut left = Left::new(one, other);
        let same = one.iter().zip(other).take_while(|(one, other)| left.allows(one, other)).count();
        let [first, second] = [one, other].map(|stream| stream.get(same).map(|access| access.event.clone()));
        (first.is_some() || second.is_some()).then_some(Divergence { first, second })
    };
    let place = |found: &Divergence| {
        let numbers = [&found.first, &found.second].map(|event| event.as_ref().map_or(u64::MAX, |event| event.number));
        numbers.into_iter().min()
    };
    keys.into_iter().filter_map(part).min_by_key(place)
}

type Place = (RegionIndex, u64, Width);

/// One access.
struct Access<'a> {
    event: &'a Event,
    place: Place,
    is_write: bool,
    value: u64,
    outcome: Outcome,
}

impl<'a> Access<'a> {
    fn of(event: &'a Event) -> Option<Self> {
        match event.what {
            What::Read { region, offset, width, value, outcome } => {
                Some(Self { event, place: (region, offset, width), is_write: false, value, outcome })
            }
            What::Write { region, offset, width, value, outcome } => {
                Some(Self { event, place: (region, offset, width), is_write: true, value, outcome })
            }
            _ => None,
        }
    }
}

/// What two runs found different because it was left to them so.
struct Left {
    /// Registers that both write, and neither has so far.
    unwritten: BTreeSet<Place>,
    /// Bits of registers that may differ.
    bits: BTreeMap<Place, u64>,
}

impl Left {
    fn new(one: &[Access<'_>], other: &[Access<'_>]) -> Self {
        let [one, other] = [one, other].map(|stream| -> BTreeSet<_> {
            stream.iter().filter(|access| access.is_write).map(|access| access.place).collect()
        });
        Self { unwritten: &one & &other, bits: BTreeMap::new() }
    }

    /// Whether two accesses are the same but for what was left.
    fn allows(&mut self, one: &Access<'_>, other: &Access<'_>) -> bool {
        if (one.place, one.is_write, one.outcome) != (other.place, other.is_write, other.outcome) {
            return false;
        }
        let differing = one.value ^ other.value;
        let bits = self.bits.entry(one.place).or_default();
        if !one.is_write && self.unwritten.contains(&one.place) {
            *bits = differing;
            return true;
        }
        let is_allowed = differing & !*bits == 0;
        if one.is_write {
            *bits = differing;
            self.unwritten.remove(&one.place);
        }
        is_allowed
    }
}

/// By who made them, in the order in which they appear, and region.
fn streams(trace: &Trace) -> BTreeMap<(usize, RegionIndex), Vec<Access<'_>>> {
    let (mut seen, mut actors) = (BTreeMap::new(), Actors::default());
    let mut streams: BTreeMap<_, Vec<Access<'_>>> = BTreeMap::new();
    for event in &trace.events {
        let actor = actors.of(event);
        let Some(access) = Access::of(event) else { continue };
        let next = seen.len();
        let number = *seen.entry(actor).or_insert(next);
        let stream = streams.entry((number, access.place.0)).or_default();
        let polled = |last: &Access<'_>| !last.is_write && last.place == access.place;
        if !access.is_write && stream.last().is_some_and(polled) {
            stream.pop();
        }
        stream.push(access);
    }
    streams
}
