//! How far a recording has been played.

use crate::trace::{Actor, Actors, Event, Outcome, Trace, What};
use crate::watch::Watch;
use std::backtrace::Backtrace;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::thread::ThreadId;
use udrv_backend::{DmaMap, Error, IrqIndex, RegionIndex, Result, Trigger, Width};
use udrv_signal::Sink;

/// What a driver does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) region: RegionIndex,
    pub(super) offset: u64,
    pub(super) width: Width,
    /// The value, if it is a write.
    pub(super) written: Option<u64>,
}

impl Access {
    /// What was done then.
    fn recorded(event: &Event) -> Option<(Self, u64, Outcome)> {
        match event.what {
            What::Read { region, offset, width, value, outcome } => {
                Some((Self { region, offset, width, written: None }, value, outcome))
            }
            What::Write { region, offset, width, value, outcome } => {
                Some((Self { region, offset, width, written: Some(value) }, value, outcome))
            }
            _ => None,
        }
    }

    /// A write that failed is recorded without its value.
    fn is(&self, recorded: &(Self, u64, Outcome)) -> bool {
        let (then, _, outcome) = recorded;
        let place = |access: &Self| (access.region, access.offset, access.width, access.written.is_some());
        *self == *then || (matches!(outcome, Outcome::Failed(_)) && place(self) == place(then))
    }

    fn describe(&self) -> String {
        let Self { region, offset, width, written } = self;
        match written {
            Some(value) => format!("{width} write of {value:#x} to {region} {offset:#x}"),
            None => format!("{width} read of {region} {offset:#x}"),
        }
    }
}

pub(super) struct Script {
    address: String,
    events: Vec<Event>,
    done: Vec<bool>,
    /// Whether it is a read of the register that the same thread read just before in that region.
    repeats: Vec<bool>,
    /// The first that is neither done nor a poll that may be left out.
    cursor: usize,
    /// Interrupts that have not been signalled.
    signals: VecDeque<usize>,
    /// Accesses that are not done, by who made them and region, in order.
    streams: BTreeMap<(Actor, u32), VecDeque<usize>>,
    /// Which thread does now what a recorded one did: the first that did something of it.
    owners: HashMap<Actor, ThreadId>,
    /// What each thread read last, while it has made no other access to that region.
    last: HashMap<(ThreadId, u32), (Access, u64)>,
    recent: VecDeque<String>,
    triggers: BTreeMap<(u32, u32), Sink>,
    /// Vectors that were signalled and are not armed.
    held: BTreeSet<(u32, u32)>,
    memory: Watch,
    diverged: Option<(String, String)>,
}

impl Script {
    pub(super) fn new(trace: Trace, address: String) -> Self {
        let events = trace.events;
        let mut streams: BTreeMap<_, VecDeque<usize>> = BTreeMap::new();
        let mut repeats = vec![false; events.len()];
        let mut before: BTreeMap<(Actor, u32), Access> = BTreeMap::new();
        let mut actors = Actors::default();
        for ((index, event), repeat) in events.iter().enumerate().zip(&mut repeats) {
            let actor = actors.of(event);
            let Some((access, ..)) = Access::recorded(event) else { continue };
            let key = (actor, access.region.0);
            *repeat = access.written.is_none() && before.insert(key, access) == Some(access);
            streams.entry(key).or_default().push_back(index);
        }
        let done = vec![false; events.len()];
        let is_signal = |(_, event): &(usize, &Event)| matches!(event.what, What::Irq { .. });
        let signals = events.iter().enumerate().filter(is_signal).map(|(index, _)| index).collect();
        Self {
            address,
            events,
            done,
            repeats,
            cursor: 0,
            signals,
            streams,
            owners: HashMap::new(),
            last: HashMap::new(),
            recent: VecDeque::new(),
            triggers: BTreeMap::new(),
            held: BTreeSet::new(),
            memory: Watch::default(),
            diverged: None,
        }
    }

    pub(super) fn left(&self) -> usize {
        let polls = |index: &&usize| !self.repeats.get(**index).copied().unwrap_or(false);
        self.streams.values().flatten().filter(polls).count()
    }

    /// Makes one access; `sound` is what the region's bounds say of it.
    pub(super) fn access(&mut self, access: Access, sound: Result<()>) -> Result<u64> {
        if let Some((found, expected)) = &self.diverged {
            return Err(self.protocol(found.clone(), expected.clone()));
        }
        let key = (std::thread::current().id(), access.region.0);
        let Some((stream, skipped)) = self.find(&access) else {
            sound?;
            return match self.last.get(&key) {
                Some((last, value)) if *last == access && access.written.is_none() => Ok(*value),
                _ => Err(self.diverge(&access)),
            };
        };
        // Handlers are nobody's: they run on whichever thread delivers.
        if stream.0 != Actor::Handlers {
            self.owners.entry(stream.0).or_insert(key.0);
        }
        let made: Vec<usize> =
            self.streams.get_mut(&stream).map(|indices| indices.drain(..=skipped).collect()).unwrap_or_default();
        for index in &made {
            self.finish(*index);
        }
        let event = made.last().and_then(|index| self.events.get(*index));
        let (_, value, outcome) = event.and_then(Access::recorded).unwrap_or((access, 0, Outcome::Unfinished));
        self.last.insert(key, (access, value));
        self.recent.push_back(access.describe());
        if self.recent.len() > 10 {
            self.recent.pop_front();
        }
        self.advance();
        match outcome {
            Outcome::Done => Ok(value),
            Outcome::Failed(errno) => {
                sound?;
                Err(Error::os(access.describe() + ", as recorded", std::io::Error::from_raw_os_error(errno)))
            }
            Outcome::Unfinished => {
                Err(Error::Gone { device: self.address.clone(), why: "the recording ends in this access".into() })
            }
        }
    }

    /// The recorded access that this is: the earliest of those that are next in what a thread did to the region, and how
    /// many polls before it are left out. One that came after an interrupt that has not been signalled yet is the last choice:
    /// it may be of that interrupt's handler. What another thread of now has begun is left to it if possible: two threads may
    /// be about to read the same register.
    fn find(&self, access: &Access) -> Option<((Actor, u32), usize)> {
        let me = std::thread::current().id();
        let in_stream = |(key, stream): (&(Actor, u32), &VecDeque<usize>)| {
            for (skipped, index) in stream.iter().enumerate() {
                let recorded = Access::recorded(self.events.get(*index)?)?;
                if access.is(&recorded) {
                    return Some((*index, *key, skipped));
                }
                if !*self.repeats.get(*index)? {
                    return None;
                }
            }
            None
        };
        let found = self.streams.iter().filter(|((_, region), _)| *region == access.region.0).filter_map(in_stream);
        let is_anothers = |actor: Actor| self.owners.get(&actor).is_some_and(|owner| *owner != me);
        let signalled = self.signals.front().copied().unwrap_or(usize::MAX);
        found
            .min_by_key(|(index, key, _)| (*index > signalled, is_anothers(key.0), *index))
            .map(|(_, key, skipped)| (key, skipped))
    }

    fn diverge(&mut self, access: &Access) -> Error {
        let in_region = self.streams.iter().filter(|((_, region), _)| *region == access.region.0);
        let next = in_region.filter_map(|(_, stream)| stream.front()).min().and_then(|index| self.events.get(*index));
        let expected = next.and_then(|event| Some((event.number, Access::recorded(event)?.0)));
        let expected = expected.map_or_else(
            || "nothing more in this region".to_owned(),
            |(number, access)| format!("{} (event {number})", access.describe()),
        );
        let line = source_line().map(|line| format!(" at {line}")).unwrap_or_default();
        let before: Vec<_> = self.recent.iter().map(String::as_str).collect();
        let found = format!("{}{line}, after {}", access.describe(), before.join(", "));
        let error = self.protocol(found.clone(), expected.clone());
        self.diverged = Some((found, expected));
        error
    }

    fn protocol(&self, found: String, expected: String) -> Error {
        Error::Protocol { peer: format!("the driver of {}", self.address), found, expected }
    }

    fn finish(&mut self, index: usize) {
        if let Some(done) = self.done.get_mut(index) {
            *done = true;
        }
    }

    /// Does what the device did before the next access that is still to be made. Polls hold nothing up: they may be left
    /// out.
    fn advance(&mut self) {
        while let Some(event) = self.events.get(self.cursor) {
            let done = [&self.done, &self.repeats].iter().any(|which| which.get(self.cursor) == Some(&true));
            match &event.what {
                _ if done => {}
                What::Irq { index, vector, count } => {
                    self.signals.pop_front();
                    let vector = (index.0, *vector);
                    match self.triggers.get(&vector) {
                        Some(sink) => {
                            sink.signal(*count);
                        }
                        // For when it is armed: the driver may do that later than then.
                        None => drop(self.held.insert(vector)),
                    }
                }
                What::Data { iova, bytes } => {
                    // Memory that the driver has taken back by now is not missed.
                    let _unmapped = self.memory.write(*iova, bytes);
                }
                What::Read { .. } | What::Write { .. } | What::Map { .. } => return,
                _ => {}
            }
            self.cursor += 1;
        }
    }

    pub(super) fn arm(&mut self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        let sinks: Vec<_> = triggers.iter().map(|trigger| trigger.map(Sink::new).transpose()).collect::<Result<_>>()?;
        for (vector, sink) in (start..).zip(sinks) {
            let vector = (index.0, vector);
            match sink {
                Some(sink) => {
                    if self.held.remove(&vector) {
                        sink.signal(1);
                    }
                    self.triggers.insert(vector, sink)
                }
                None => self.triggers.remove(&vector),
            };
        }
        self.advance();
        Ok(())
    }

    pub(super) fn disarm(&mut self, index: IrqIndex) {
        self.triggers.retain(|(of, _), _| *of != index.0);
    }

    pub(super) fn map(&mut self, map: &DmaMap<'_>) -> Result<()> {
        let is = |event: &Event| match event.what {
            What::Map { iova, size, outcome } if iova == map.iova => size == map.size || outcome != Outcome::Done,
            _ => false,
        };
        let mut candidates = self.events.iter().zip(&self.done).enumerate();
        let found = candidates.find(|(_, (event, done))| !**done && is(event)).map(|(index, _)| index);
        let Some(index) = found else {
            let found = format!("a DMA mapping of {:#x} bytes at {:#x}", map.size, map.iova);
            return Err(self.protocol(found, "one that was recorded".into()));
        };
        self.finish(index);
        if let Some(What::Map { outcome: Outcome::Failed(errno), .. }) = self.events.get(index).map(|event| &event.what)
        {
            let errno = std::io::Error::from_raw_os_error(*errno);
            return Err(Error::os(format!("mapping {:#x}, as recorded", map.iova), errno));
        }
        self.memory.map(map)?;
        self.advance();
        Ok(())
    }

    pub(super) fn unmap(&mut self, iova: u64, size: u64) {
        self.memory.unmap(iova, size);
    }
}

/// The line of the driver that made this access: the first that is in none of the libraries in between.
fn source_line() -> Option<String> {
    let folder = std::env::current_dir().unwrap_or_default();
    first_place(&Backtrace::force_capture().to_string(), file!(), &folder.to_string_lossy())
}

/// As [`std::panic::Location`] has places: relative to the workspace that `this` file's name is relative to. The backtrace has
/// full names, but for what is in the current folder.
fn first_place(backtrace: &str, this: &str, folder: &str) -> Option<String> {
    let ours = ["/rustc/", "/udrv/debug/src/", "/udrv/backend/src/", "/udrv/src/mmio/"];
    let place = |line: &str| {
        let at = line.trim().strip_prefix("at ")?;
        Some(at.strip_prefix("./").map_or_else(|| at.to_owned(), |inside| format!("{folder}/{inside}")))
    };
    let places: Vec<String> = backtrace.lines().filter_map(place).collect();
    let root = places.iter().find_map(|at| at.split_once(this)).map_or("", |(root, _)| root);
    let drivers = places.iter().find(|at| !ours.iter().any(|part| at.contains(part)))?;
    Some(drivers.strip_prefix(root).unwrap_or(drivers).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_is_relative_to_the_workspace_wherever_it_runs_and_full_outside() {
        let this = "udrv/debug/src/replay/script.rs";
        let of = |own: &str, drivers: &str, folder| {
            let frames = ["/rustc/1/library/std/src/backtrace.rs:1:2", own, drivers, "/w/tests/later.rs:1:1"];
            let text: String =
                frames.iter().map(|at| format!("   3: some::function\n             at {at}\n")).collect();
            first_place(&text, this, folder).expect("a place")
        };
        let own = format!("/w/{this}:9:9");
        assert_eq!(of(&format!("./{this}:9:9"), "./devices/a/driver.rs:5:7", "/w"), "devices/a/driver.rs:5:7");
        assert_eq!(of(&own, "/w/devices/a/driver.rs:5:7", "/elsewhere"), "devices/a/driver.rs:5:7");
        assert_eq!(of(&own, "./tests/a.rs:5:7", "/w/devices/a"), "devices/a/tests/a.rs:5:7");
        assert_eq!(of(&own, "/other/a.rs:5:7", "/w"), "/other/a.rs:5:7");
        assert_eq!(first_place("", this, "/w"), None);
    }
}
