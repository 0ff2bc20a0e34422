//! A trace as a picture: when what happened, and how long each interrupt took from being raised to its handler.

use super::event::{Event, What};
use super::read::Trace;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;
use udrv_backend::IrqIndex;

/// From the device's signal to the beginning of the handler, by source (index and vector), in the order of deliveries.
/// Of signals that were merged into one delivery the first counts.
#[must_use]
pub fn latencies(trace: &Trace) -> BTreeMap<(u32, u32), Vec<Duration>> {
    let mut raised: BTreeMap<(u32, u32), Duration> = BTreeMap::new();
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for event in &trace.events {
        match event.what {
            What::Irq { index, vector, .. } => {
                raised.entry((index.0, vector)).or_insert(event.time);
            }
            What::HandlerBegin { index, vector } => {
                if let Some(at) = raised.remove(&(index.0, vector)) {
                    found.entry((index.0, vector)).or_default().push(event.time.saturating_sub(at));
                }
            }
            _ => {}
        }
    }
    found
}

/// Pixels.
const LEFT: f64 = 150.0;
const WIDTH: f64 = 1000.0;
const ROW: f64 = 22.0;
const BARS: f64 = 120.0;

/// One row of the timeline: marks (pixels) of what has no length worth showing, bars of what has.
#[derive(Default)]
struct Row {
    marks: BTreeSet<u32>,
    bars: Vec<(f64, f64)>,
    count: usize,
}

/// The whole trace as one SVG document: a row for each region's reads and writes, for interrupts raised, handler runs, their
/// threaded halves, bottom halves, interrupts-off sections and buffers in flight; below it a histogram of [`latencies`] for each source.
#[must_use]
pub fn plot(trace: &Trace) -> String {
    let end = trace.events.iter().map(|event| event.time).max().unwrap_or_default().as_secs_f64().max(1e-9);
    let rows = rows(&trace.events, end);
    let latencies = latencies(trace);
    let below = 40.0 + ROW * rows.len() as f64;
    let height = below + latencies.len() as f64 * (BARS + 50.0) + 30.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"4\" y=\"16\">{}: {} events in {end:.6} s</text>\n",
        LEFT + WIDTH + 20.0,
        escaped(&trace.device.address),
        trace.events.len(),
    );
    for (place, (name, row)) in rows.iter().enumerate() {
        row.draw(&mut svg, name, 30.0 + ROW * place as f64);
    }
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{below}\">0</text>");
    let _ = writeln!(svg, "<text x=\"{}\" y=\"{below}\" text-anchor=\"end\">{end:.6} s</text>", LEFT + WIDTH);
    for (place, (source, times)) in latencies.iter().enumerate() {
        histogram(&mut svg, *source, times, below + 20.0 + place as f64 * (BARS + 50.0));
    }
    svg.push_str("</svg>\n");
    svg
}

fn rows(events: &[Event], end: f64) -> BTreeMap<String, Row> {
    let x = |time: Duration| LEFT + time.as_secs_f64() / end * WIDTH;
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    let mut open: BTreeMap<(u8, u64), Vec<f64>> = BTreeMap::new();
    for event in events {
        let at = x(event.time);
        let thread = u64::from(event.thread);
        let (name, key, begins) = match event.what {
            What::Read { region, .. } => (format!("1 read {region}"), None, true),
            What::Write { region, .. } => (format!("1 write {region}"), None, true),
            What::Irq { index, vector, .. } => (format!("2 raised {index} {vector}"), None, true),
            What::HandlerBegin { .. } => ("3 handlers".into(), Some((0, thread)), true),
            What::HandlerEnd { .. } => ("3 handlers".into(), Some((0, thread)), false),
            What::ThreadedBegin { .. } => ("4 threaded handlers".into(), Some((3, thread)), true),
            What::ThreadedEnd { .. } => ("4 threaded handlers".into(), Some((3, thread)), false),
            What::BottomHalfBegin { .. } => ("5 bottom halves".into(), Some((4, thread)), true),
            What::BottomHalfEnd { .. } => ("5 bottom halves".into(), Some((4, thread)), false),
            What::SectionBegin { .. } => ("6 interrupts off".into(), Some((1, thread)), true),
            What::SectionEnd { .. } => ("6 interrupts off".into(), Some((1, thread)), false),
            What::Lend { iova, .. } => ("7 DMA in flight".into(), Some((2, iova)), true),
            What::Return { iova, .. } => ("7 DMA in flight".into(), Some((2, iova)), false),
            _ => continue,
        };
        let row = rows.entry(name).or_default();
        match (key, begins) {
            (None, _) => {
                row.marks.insert(at as u32);
                row.count += 1;
            }
            (Some(key), true) => {
                open.entry(key).or_default().push(at);
                row.count += 1;
            }
            (Some(key), false) => row.bars.extend(open.get_mut(&key).and_then(Vec::pop).map(|from| (from, at))),
        }
    }
    rows
}

impl Row {
    /// Bars that would be one pixel are drawn as one.
    fn draw(&self, svg: &mut String, name: &str, y: f64) {
        let name = name.get(2..).unwrap_or_default();
        let _ = writeln!(svg, "<text x=\"4\" y=\"{}\">{} ({})</text>", y + 13.0, escaped(name), self.count);
        let mut path = String::new();
        for mark in &self.marks {
            let _ = write!(path, "M{mark} {y}v16");
        }
        let _ = writeln!(svg, "<path d=\"{path}\" stroke=\"#246\"/>");
        let mut drawn = BTreeSet::new();
        for (from, to) in &self.bars {
            let width = (to - from).max(1.0);
            if drawn.insert((*from as u32, width as u32)) {
                let _ = writeln!(
                    svg,
                    "<rect x=\"{from:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"16\" fill=\"#c60\" fill-opacity=\"0.6\"/>"
                );
            }
        }
    }
}

/// Powers of two of nanoseconds.
fn histogram(svg: &mut String, (index, vector): (u32, u32), times: &[Duration], y: f64) {
    let bucket = |time: &Duration| time.as_nanos().max(1).ilog2();
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for time in times {
        *counts.entry(bucket(time)).or_default() += 1;
    }
    let most = counts.values().max().copied().unwrap_or(1) as f64;
    let first = counts.keys().next().copied().unwrap_or(0);
    let _ = writeln!(
        svg,
        "<text x=\"4\" y=\"{}\">{} {vector}: raised to handler, {} deliveries</text>",
        y + 14.0,
        IrqIndex(index),
        times.len()
    );
    for (bucket, count) in counts {
        let x = LEFT + f64::from(bucket - first) * 60.0;
        let height = count as f64 / most * (BARS - 30.0);
        let (top, base) = (y + BARS - height, y + BARS);
        let _ = writeln!(svg, "<rect x=\"{x}\" y=\"{top:.1}\" width=\"56\" height=\"{height:.1}\" fill=\"#246\"/>");
        let _ = writeln!(svg, "<text x=\"{x}\" y=\"{:.1}\">{count}</text>", top - 3.0);
        let from = Duration::from_nanos(1 << bucket.min(63));
        let _ = writeln!(svg, "<text x=\"{x}\" y=\"{}\">&#8805; {from:.0?}</text>", base + 13.0);
    }
}

/// Text of a recording may be anything.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
