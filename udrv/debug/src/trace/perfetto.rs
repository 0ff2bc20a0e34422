//! A trace for ui.perfetto.dev, in the Trace Event Format (JSON), which it opens.

use super::event::{Event, Outcome, What};
use super::read::Trace;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use udrv_backend::register::RegisterMap;

/// Tracks: one a region for accesses, one for interrupts, one for DMA mappings.
const IRQS: u32 = 1000;
const DMA: u32 = 1001;

/// The whole trace as one JSON document. Times are in microseconds, as the format has them.
#[must_use]
pub fn perfetto(trace: &Trace, map: Option<&RegisterMap>) -> Value {
    let mut tracks = BTreeMap::from([(IRQS, "interrupts".to_owned()), (DMA, "DMA mappings".to_owned())]);
    let mut events = Vec::new();
    let mut mapped = BTreeMap::new();
    for event in &trace.events {
        let at = micros(event);
        let instant = |track: u32, name: String, args: Value| json!({ "ph": "i", "s": "t", "pid": 1, "tid": track, "ts": at, "name": name, "args": args });
        match &event.what {
            What::Read { region, offset, value, .. } | What::Write { region, offset, value, .. } => {
                tracks.entry(region.0).or_insert_with(|| format!("accesses to {region}"));
                let kind = if matches!(event.what, What::Read { .. }) { "read" } else { "write" };
                let register = map.and_then(|map| map.find(*region, *offset)).map(|(register, _)| register);
                let name = register.map_or_else(|| format!("{offset:#x}"), |register| register.name.to_owned());
                let decoded = register.map_or_else(|| format!("{value:#x}"), |register| register.decode(*value));
                let args = json!({ "value": format!("{value:#x}"), "bits": decoded, "number": event.number,
                    "thread": trace.thread_name(event.thread) });
                events.push(instant(region.0, format!("{kind} {name}"), args));
            }
            What::Irq { index, vector, count } => {
                events.push(instant(IRQS, format!("{index} {vector}"), json!({ "signals": count })));
            }
            What::Map { iova, size, outcome: Outcome::Done } => {
                mapped.insert((*iova, *size), at);
                events.push(span("b", *iova, *size, at));
            }
            What::Unmap { iova, size } => {
                mapped.remove(&(*iova, *size));
                events.push(span("e", *iova, *size, at));
            }
            _ => {}
        }
    }
    let end = trace.events.last().map_or(0.0, micros);
    events.extend(mapped.into_keys().map(|(iova, size)| span("e", iova, size, end)));
    let names = tracks.into_iter().map(
        |(track, name)| json!({ "ph": "M", "pid": 1, "tid": track, "name": "thread_name", "args": { "name": name } }),
    );
    events.extend(names);
    json!({ "displayTimeUnit": "ns", "otherData": { "device": trace.device.address }, "traceEvents": events })
}

fn span(phase: &str, iova: u64, size: u64, at: f64) -> Value {
    json!({ "ph": phase, "cat": "dma", "pid": 1, "tid": DMA, "id": format!("{iova:#x}"), "ts": at,
        "name": format!("{iova:#x}+{size:#x}") })
}

fn micros(event: &Event) -> f64 {
    event.time.as_nanos() as f64 / 1000.0
}
