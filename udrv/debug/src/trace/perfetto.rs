//! A trace for ui.perfetto.dev, in the Trace Event Format (JSON), which it opens.
//!
//! Processes of the document are kinds of tracks: what the device sees (one track a region, one for interrupts, mappings,
//! buffers in flight), and by thread handler runs, their threaded halves, bottom halves, interrupts-off sections.

use super::event::{Event, Outcome, What};
use super::names::Names;
use super::read::Trace;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use udrv_backend::register::RegisterMap;

/// Kinds of tracks.
const DEVICE: u32 = 1;
const HANDLERS: u32 = 2;
const SECTIONS: u32 = 3;
const THREADED: u32 = 4;
const BOTTOM_HALVES: u32 = 5;
/// Their names.
const KINDS: [(u32, &str); 5] = [
    (DEVICE, "device"),
    (HANDLERS, "handler runs"),
    (SECTIONS, "interrupts-off sections"),
    (THREADED, "threaded handler runs"),
    (BOTTOM_HALVES, "bottom halves"),
];
/// Tracks of the device that are no region.
const IRQS: u32 = 1000;
const DMA: u32 = 1001;

/// The whole trace as one JSON document. Times are in microseconds, as the format has them.
#[must_use]
pub fn perfetto(trace: &Trace, map: Option<&RegisterMap>) -> Value {
    let mut document = Document { names: trace.names(), map, ..Document::default() };
    for event in &trace.events {
        document.add(event);
    }
    document.close(trace.events.iter().map(micros).fold(0.0, f64::max));
    json!({ "displayTimeUnit": "ns", "otherData": { "device": trace.device.address }, "traceEvents": document.events })
}

#[derive(Default)]
struct Document<'map> {
    map: Option<&'map RegisterMap>,
    names: Names,
    events: Vec<Value>,
    tracks: BTreeSet<(u32, u32)>,
    /// Slices that have begun, by track.
    open: BTreeMap<(u32, u32), u32>,
    /// Spans that have begun: category, bus address, bytes.
    spans: BTreeSet<(&'static str, u64, u64)>,
}

impl Document<'_> {
    fn add(&mut self, event: &Event) {
        let at = micros(event);
        match &event.what {
            What::Read { region, offset, value, .. } | What::Write { region, offset, value, .. } => {
                let is_write = matches!(event.what, What::Write { .. });
                let (kind, find): (_, fn(&_, _, _) -> _) =
                    if is_write { ("write", RegisterMap::find_written) } else { ("read", RegisterMap::find) };
                let register = self.map.and_then(|map| find(map, *region, *offset)).map(|(register, _)| register);
                let name = register.map_or_else(|| format!("{offset:#x}"), |register| register.name.to_owned());
                let decoded = register.map_or_else(|| format!("{value:#x}"), |register| register.decode(*value));
                let args = json!({ "value": format!("{value:#x}"), "bits": decoded, "number": event.number,
                    "thread": self.names.thread(event.thread) });
                self.instant(region.0, at, &format!("{kind} {name}"), args);
            }
            What::Irq { index, vector, count } => {
                self.instant(IRQS, at, &format!("raised {index} {vector}"), json!({ "signals": count }));
            }
            What::HandlerBegin { index, vector } => {
                self.instant(IRQS, at, &format!("delivered {index} {vector}"), json!({}));
                self.begin((HANDLERS, event.thread), at, &format!("{index} {vector}"));
            }
            What::HandlerEnd { .. } => self.end((HANDLERS, event.thread), at),
            What::ThreadedBegin { index, vector } => {
                self.begin((THREADED, event.thread), at, &format!("{index} {vector}"));
            }
            What::ThreadedEnd { .. } => self.end((THREADED, event.thread), at),
            What::BottomHalfBegin { at: place, .. } => {
                let name = format!("bottom half of {}", self.names.place(*place));
                self.begin((BOTTOM_HALVES, event.thread), at, &name);
            }
            What::BottomHalfEnd { .. } => self.end((BOTTOM_HALVES, event.thread), at),
            What::SectionBegin { at: place, .. } => {
                let name = format!("interrupts off, {}", self.names.place(*place));
                self.begin((SECTIONS, event.thread), at, &name);
            }
            What::SectionEnd { .. } => self.end((SECTIONS, event.thread), at),
            What::Map { iova, size, outcome: Outcome::Done } => self.span(("mapped", *iova, *size), at, true),
            What::Unmap { iova, size } => self.span(("mapped", *iova, *size), at, false),
            What::Lend { iova, size } => self.span(("in flight", *iova, *size), at, true),
            What::Return { iova, size } => self.span(("in flight", *iova, *size), at, false),
            _ => {}
        }
    }

    fn instant(&mut self, track: u32, at: f64, name: &str, args: Value) {
        self.tracks.insert((DEVICE, track));
        self.events
            .push(json!({ "ph": "i", "s": "t", "pid": DEVICE, "tid": track, "ts": at, "name": name, "args": args }));
    }

    fn begin(&mut self, track: (u32, u32), at: f64, name: &str) {
        self.tracks.insert(track);
        *self.open.entry(track).or_default() += 1;
        self.events.push(json!({ "ph": "B", "pid": track.0, "tid": track.1, "ts": at, "name": name }));
    }

    /// An end whose beginning was not recorded is left out.
    fn end(&mut self, track: (u32, u32), at: f64) {
        let Some(depth) = self.open.get_mut(&track).filter(|depth| **depth > 0) else { return };
        *depth -= 1;
        self.events.push(json!({ "ph": "E", "pid": track.0, "tid": track.1, "ts": at }));
    }

    fn span(&mut self, span: (&'static str, u64, u64), at: f64, begins: bool) {
        let changed = if begins { self.spans.insert(span) } else { self.spans.remove(&span) };
        if !changed {
            return;
        }
        self.tracks.insert((DEVICE, DMA));
        let (category, iova, size) = span;
        self.events.push(json!({ "ph": if begins { "b" } else { "e" }, "cat": category, "pid": DEVICE, "tid": DMA,
            "id": format!("{iova:#x}"), "ts": at, "name": format!("{category} {iova:#x}+{size:#x}") }));
    }

    /// Ends what has not ended, and names the tracks.
    fn close(&mut self, end: f64) {
        for (track, depth) in std::mem::take(&mut self.open) {
            for _ in 0..depth {
                self.events.push(json!({ "ph": "E", "pid": track.0, "tid": track.1, "ts": end }));
            }
        }
        for span in self.spans.clone() {
            self.span(span, end, false);
        }
        for (kind, name) in KINDS {
            self.events.push(json!({ "ph": "M", "pid": kind, "name": "process_name", "args": { "name": name } }));
        }
        for (kind, track) in std::mem::take(&mut self.tracks) {
            let name = match (kind, track) {
                (DEVICE, IRQS) => "interrupts".into(),
                (DEVICE, DMA) => "DMA".into(),
                (DEVICE, region) => format!("accesses to {}", udrv_backend::RegionIndex(region)),
                (_, thread) => self.names.thread(thread),
            };
            let args = json!({ "name": name });
            self.events.push(json!({ "ph": "M", "pid": kind, "tid": track, "name": "thread_name", "args": args }));
        }
    }
}

fn micros(event: &Event) -> f64 {
    event.time.as_nanos() as f64 / 1000.0
}
