//! A trace for ui.perfetto.dev, in the Trace Event Format (JSON), which it opens.
//!
//! Processes of the document are kinds of tracks: what the device sees (one track a region, one for interrupts, mappings,
//! buffers in flight), and by thread handler runs, their threaded halves, bottom halves, interrupts-off sections.

use super::event::{Event, Outcome, What};
use super::names::Names;
use super::stream::Stream;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Seek, Write};
use std::time::Duration;
use udrv_backend::register::RegisterMap;
use udrv_backend::{Error, Result};

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

/// The most tracks, and the most spans that have begun and not ended, since these are held: twice as many as VFIO maps at a time
/// (`dma_entry_limit`), and no process has as many threads.
const MOST: usize = 1 << 17;

/// Writes the whole trace as one JSON document. Times are in microseconds, as the format has them.
///
/// # Errors
/// [`Error::Os`] if it cannot be written; [`Error::Protocol`] if the recording has more tracks, or more that has begun and not
/// ended, than fit into memory; as [`Stream::each`].
pub fn perfetto<R: Read + Seek>(trace: &mut Stream<R>, map: Option<&RegisterMap>, to: &mut impl Write) -> Result<()> {
    let os = |error: io::Error| Error::os("writing a document for Perfetto", error);
    let names = trace.names().clone();
    let mut document = Document {
        to,
        map,
        names: &names,
        is_first: true,
        tracks: BTreeSet::new(),
        open: BTreeMap::new(),
        spans: BTreeSet::new(),
    };
    let address = json!(trace.device().address);
    write!(document.to, "{{\"displayTimeUnit\":\"ns\",\"otherData\":{{\"device\":{address}}},\"traceEvents\":[")
        .map_err(os)?;
    let mut is_too_much = false;
    let added = trace.each(|event| {
        document.add(event).map_err(os)?;
        is_too_much = document.tracks.len().max(document.spans.len()) > MOST;
        // Told below, by who knows the recording's name.
        if is_too_much { Err(os(io::ErrorKind::OutOfMemory.into())) } else { Ok(()) }
    });
    if is_too_much {
        let found = format!("more than {MOST} threads, mappings or buffers in flight");
        return Err(trace.excess(found, "as many as one process has"));
    }
    added?;
    document.close(trace.end()).and_then(|()| document.to.write_all(b"\n]}\n")).map_err(os)
}

struct Document<'a, W> {
    to: &'a mut W,
    map: Option<&'a RegisterMap>,
    names: &'a Names,
    /// Nothing has been written.
    is_first: bool,
    tracks: BTreeSet<(u32, u32)>,
    /// Slices that have begun, by track.
    open: BTreeMap<(u32, u32), u32>,
    /// Spans that have begun: category, bus address, bytes.
    spans: BTreeSet<(&'static str, u64, u64)>,
}

impl<W: Write> Document<'_, W> {
    fn write(&mut self, event: &Value) -> io::Result<()> {
        let before = if std::mem::take(&mut self.is_first) { "\n" } else { ",\n" };
        write!(self.to, "{before}{event}")
    }

    fn add(&mut self, event: &Event) -> io::Result<()> {
        let at = micros(event.time);
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
                self.instant(region.0, at, &format!("{kind} {name}"), args)
            }
            What::Irq { index, vector, count } => {
                self.instant(IRQS, at, &format!("raised {index} {vector}"), json!({ "signals": count }))
            }
            What::HandlerBegin { index, vector } => {
                self.instant(IRQS, at, &format!("delivered {index} {vector}"), json!({}))?;
                self.begin((HANDLERS, event.thread), at, &format!("{index} {vector}"))
            }
            What::HandlerEnd { .. } => self.end((HANDLERS, event.thread), at),
            What::ThreadedBegin { index, vector } => {
                self.begin((THREADED, event.thread), at, &format!("{index} {vector}"))
            }
            What::ThreadedEnd { .. } => self.end((THREADED, event.thread), at),
            What::BottomHalfBegin { at: place, .. } => {
                let name = format!("bottom half of {}", self.names.place(*place));
                self.begin((BOTTOM_HALVES, event.thread), at, &name)
            }
            What::BottomHalfEnd { .. } => self.end((BOTTOM_HALVES, event.thread), at),
            What::SectionBegin { at: place, .. } => {
                let name = format!("interrupts off, {}", self.names.place(*place));
                self.begin((SECTIONS, event.thread), at, &name)
            }
            What::SectionEnd { .. } => self.end((SECTIONS, event.thread), at),
            What::Map { iova, size, outcome: Outcome::Done } => self.span(("mapped", *iova, *size), at, true),
            What::Unmap { iova, size } => self.span(("mapped", *iova, *size), at, false),
            What::Lend { iova, size } => self.span(("in flight", *iova, *size), at, true),
            What::Return { iova, size } => self.span(("in flight", *iova, *size), at, false),
            _ => Ok(()),
        }
    }

    fn instant(&mut self, track: u32, at: f64, name: &str, args: Value) -> io::Result<()> {
        self.tracks.insert((DEVICE, track));
        self.write(&json!({ "ph": "i", "s": "t", "pid": DEVICE, "tid": track, "ts": at, "name": name, "args": args }))
    }

    fn begin(&mut self, track: (u32, u32), at: f64, name: &str) -> io::Result<()> {
        self.tracks.insert(track);
        *self.open.entry(track).or_default() += 1;
        self.write(&json!({ "ph": "B", "pid": track.0, "tid": track.1, "ts": at, "name": name }))
    }

    /// An end whose beginning was not recorded is left out.
    fn end(&mut self, track: (u32, u32), at: f64) -> io::Result<()> {
        let Some(depth) = self.open.get_mut(&track).filter(|depth| **depth > 0) else { return Ok(()) };
        *depth -= 1;
        self.write(&json!({ "ph": "E", "pid": track.0, "tid": track.1, "ts": at }))
    }

    fn span(&mut self, span: (&'static str, u64, u64), at: f64, begins: bool) -> io::Result<()> {
        let changed = if begins { self.spans.insert(span) } else { self.spans.remove(&span) };
        if !changed {
            return Ok(());
        }
        self.tracks.insert((DEVICE, DMA));
        let (category, iova, size) = span;
        self.write(&json!({ "ph": if begins { "b" } else { "e" }, "cat": category, "pid": DEVICE, "tid": DMA,
            "id": format!("{iova:#x}"), "ts": at, "name": format!("{category} {iova:#x}+{size:#x}") }))
    }

    /// Ends what has not ended, and names the tracks.
    fn close(&mut self, end: Duration) -> io::Result<()> {
        let end = micros(end);
        for (track, depth) in std::mem::take(&mut self.open) {
            for _ in 0..depth {
                self.write(&json!({ "ph": "E", "pid": track.0, "tid": track.1, "ts": end }))?;
            }
        }
        while let Some(span) = self.spans.first().copied() {
            self.span(span, end, false)?;
        }
        for (kind, name) in KINDS {
            self.write(&json!({ "ph": "M", "pid": kind, "name": "process_name", "args": { "name": name } }))?;
        }
        for (kind, track) in std::mem::take(&mut self.tracks) {
            let name = match (kind, track) {
                (DEVICE, IRQS) => "interrupts".into(),
                (DEVICE, DMA) => "DMA".into(),
                (DEVICE, region) => format!("accesses to {}", udrv_backend::RegionIndex(region)),
                (_, thread) => self.names.thread(thread),
            };
            let args = json!({ "name": name });
            self.write(&json!({ "ph": "M", "pid": kind, "tid": track, "name": "thread_name", "args": args }))?;
        }
        Ok(())
    }
}

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}
