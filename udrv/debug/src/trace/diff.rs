//! Where two runs part.

use super::event::{Event, What};
use super::read::Trace;
use std::collections::BTreeMap;

/// The first access that is not the same; `None` for a run that had ended by then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Divergence {
    /// In the first run.
    pub first: Option<Event>,
    /// In the second.
    pub second: Option<Event>,
}

/// Compares what each thread did to each region. Threads are matched by the order in which they appear; of reads of one
/// register that follow each other, which is how a driver polls, only the last counts. Times do not matter.
#[must_use]
pub fn diff(first: &Trace, second: &Trace) -> Option<Divergence> {
    let (first, second) = (streams(first), streams(second));
    let keys: std::collections::BTreeSet<_> = first.keys().chain(second.keys()).collect();
    let none = Vec::new();
    let part = |key| {
        let [one, other] = [&first, &second].map(|streams| streams.get(key).unwrap_or(&none));
        let same = one.iter().zip(other).take_while(|(one, other)| one.what == other.what).count();
        let found = Divergence { first: one.get(same).cloned(), second: other.get(same).cloned() };
        (found.first.is_some() || found.second.is_some()).then_some(found)
    };
    let place = |found: &Divergence| {
        let numbers = [&found.first, &found.second].map(|event| event.as_ref().map_or(u64::MAX, |event| event.number));
        numbers.into_iter().min()
    };
    keys.into_iter().filter_map(part).min_by_key(place)
}

fn streams(trace: &Trace) -> BTreeMap<(usize, u32), Vec<Event>> {
    let mut threads = Vec::new();
    let mut streams: BTreeMap<_, Vec<Event>> = BTreeMap::new();
    for event in &trace.events {
        let (What::Read { region, offset, .. } | What::Write { region, offset, .. }) = event.what else { continue };
        let thread = threads.iter().position(|thread| *thread == event.thread).unwrap_or_else(|| {
            threads.push(event.thread);
            threads.len() - 1
        });
        let stream = streams.entry((thread, region.0)).or_default();
        let polled = |last: &Event| matches!(last.what, What::Read { offset: at, .. } if at == offset);
        if matches!(event.what, What::Read { .. }) && stream.last().is_some_and(polled) {
            stream.pop();
        }
        stream.push(event.clone());
    }
    streams
}
