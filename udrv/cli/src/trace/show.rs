//! `udrv trace show`: events as lines of text or JSON.

use super::ShowArgs;
use anyhow::{Result, bail};
use serde_json::json;
use std::io::{IsTerminal as _, Write as _};
use udrv::debug::trace::{Event, Names, Outcome, Place, Trace, What};
use udrv_backend::register::{RegisterInfo, RegisterMap};
use udrv_backend::{RegionIndex, Width};

pub(super) fn show(args: &ShowArgs) -> Result<()> {
    let trace = Trace::open(&args.trace)?;
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let shown = Shown::new(&trace, args.map.choose(&trace.device), !unwanted && std::io::stdout().is_terminal());
    if let (Some(name), Some(map)) = (&args.register, shown.map) {
        let names: Vec<&str> = map.registers.iter().map(|register| register.name).collect();
        if !names.iter().any(|known| known.contains(name.as_str())) {
            bail!("no register of {} has `{name}` in its name: they are {}", map.device, names.join(", "));
        }
    }
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for event in trace.events.iter().filter(|event| shown.is_wanted(event, args)) {
        let line = if args.json { shown.json(event).to_string() } else { shown.text(event) };
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    if trace.lost > 0 {
        eprintln!("udrv: {} events more were not recorded: the file was full", trace.lost);
    }
    Ok(())
}

/// How the events of one recording are shown.
pub(super) struct Shown {
    names: Names,
    map: Option<&'static RegisterMap>,
    colour: bool,
}

impl Shown {
    pub(super) fn new(trace: &Trace, map: Option<&'static RegisterMap>, colour: bool) -> Self {
        Self { names: trace.names(), map, colour }
    }

    /// Pieces of files' names are shown where the names are used.
    pub(super) fn is_wanted(&self, event: &Event, args: &ShowArgs) -> bool {
        if matches!(event.what, What::File { .. }) {
            return false;
        }
        let time = args.from.is_none_or(|from| event.time >= from) && args.to.is_none_or(|to| event.time <= to);
        let access = match event.what {
            What::Read { region, offset, .. } => Some((false, region, offset)),
            What::Write { region, offset, .. } => Some((true, region, offset)),
            _ => None,
        };
        let name = args.register.as_ref().is_none_or(|name| {
            let found = access.and_then(|(is_write, region, offset)| self.find(is_write, region, offset));
            found.is_some_and(|(register, _)| register.name.contains(name.as_str()))
        });
        let range = args.range.is_none_or(|(start, end)| {
            access.is_some_and(|(_, region, offset)| {
                region.0 == args.region.unwrap_or(0) && (start..end).contains(&offset)
            })
        });
        let region = args.region.is_none_or(|wanted| access.is_some_and(|(_, region, _)| region.0 == wanted));
        let irq = matches!(
            event.what,
            What::Irq { .. }
                | What::HandlerBegin { .. }
                | What::HandlerEnd { .. }
                | What::ThreadedBegin { .. }
                | What::ThreadedEnd { .. }
                | What::BottomHalfBegin { .. }
                | What::BottomHalfEnd { .. }
        );
        time && name && range && region && (!args.irq || irq)
    }

    fn find(&self, is_write: bool, region: RegionIndex, offset: u64) -> Option<(&'static RegisterInfo, u64)> {
        let find = if is_write { RegisterMap::find_written } else { RegisterMap::find };
        find(self.map?, region, offset)
    }

    /// A register's name, and its value in bits. A part of one is named with its place; it has no bits.
    fn decode(
        &self,
        is_write: bool,
        (region, offset): (RegionIndex, u64),
        width: Width,
        value: u64,
    ) -> (String, Option<String>) {
        match self.find(is_write, region, offset) {
            Some((register, 0)) if width == register.width => {
                let bits = (!register.bits().is_empty() && value != 0).then(|| register.decode(value));
                (register.name.to_owned(), bits)
            }
            Some((register, byte)) => (format!("{} byte {byte}", register.name), None),
            None => (format!("{offset:#x}"), None),
        }
    }

    pub(super) fn text(&self, event: &Event) -> String {
        let paint =
            |code: &str, text: &str| if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
        let access = |is_write, region: RegionIndex, offset, width: Width, value, outcome| {
            let (name, bits) = self.decode(is_write, (region, offset), width, value);
            let kind = if is_write { paint("36", "write") } else { "read ".into() };
            let bits = bits.map(|bits| format!("  {bits}")).unwrap_or_default();
            let value = match outcome {
                Outcome::Done => format!("{value:#0digits$x}{bits}", digits = 2 + 2 * width.bytes() as usize),
                Outcome::Unfinished => paint("31", "did not end"),
                Outcome::Failed(errno) => paint("31", &std::io::Error::from_raw_os_error(errno).to_string()),
            };
            format!("{kind} {:<6} {name:<24} {value}", region.to_string())
        };
        let what = match &event.what {
            What::Read { region, offset, width, value, outcome } => {
                access(false, *region, *offset, *width, *value, *outcome)
            }
            What::Write { region, offset, width, value, outcome } => {
                access(true, *region, *offset, *width, *value, *outcome)
            }
            What::Irq { index, vector, count } => {
                paint("33", &format!("irq   {index} vector {vector}, {count} signals"))
            }
            What::Arm { index, start, count } => format!("arm   {index} {count} vectors from {start}"),
            What::Disarm { index } => format!("off   {index}"),
            What::Mask { index, vector, masked } => {
                format!("{} {index} vector {vector}", if *masked { "mask " } else { "open " })
            }
            What::Map { iova, size, outcome: Outcome::Done } => format!("map   {iova:#x}+{size:#x}"),
            What::Map { iova, outcome, .. } => paint("31", &format!("map   {iova:#x} {outcome:?}")),
            What::Unmap { iova, size } => format!("unmap {iova:#x}+{size:#x}"),
            What::Data { iova, bytes } => format!("data  {iova:#x} {bytes:02x?}"),
            What::Reset => "reset".to_owned(),
            What::SectionBegin { at, .. } => format!("irqs off, at {}", self.names.place(*at)),
            What::SectionEnd { .. } => "irqs on".to_owned(),
            What::HandlerBegin { index, vector } => paint("33", &format!("run   {index} vector {vector}")),
            What::HandlerEnd { index, vector, handled } => {
                format!("ran   {index} vector {vector}{}", if *handled { "" } else { ", not for it" })
            }
            What::ThreadedBegin { index, vector } => {
                paint("33", &format!("run   {index} vector {vector}, threaded half"))
            }
            What::ThreadedEnd { index, vector } => format!("ran   {index} vector {vector}, threaded half"),
            What::BottomHalfBegin { at, .. } => paint("33", &format!("run   bottom half of {}", self.names.place(*at))),
            What::BottomHalfEnd { .. } => "ran   bottom half".to_owned(),
            What::Lend { iova, size } => format!("lend  {iova:#x}+{size:#x}"),
            What::Return { iova, size } => format!("back  {iova:#x}+{size:#x}"),
            What::Thread { name } => format!("thread {name}"),
            What::File { file, bytes, .. } => format!("file  {file}: {:?}", String::from_utf8_lossy(bytes)),
        };
        let time = event.time.as_secs_f64();
        format!("{:>7} {time:>12.6} {:<16} {what}", event.number, self.names.thread(event.thread))
    }

    pub(super) fn json(&self, event: &Event) -> serde_json::Value {
        let access = |is_write, region: RegionIndex, offset, width: Width, value: u64, outcome| {
            let (name, bits) = self.decode(is_write, (region, offset), width, value);
            let kind = if is_write { "write" } else { "read" };
            let (done, errno) = match outcome {
                Outcome::Done => (true, None),
                Outcome::Unfinished => (false, None),
                Outcome::Failed(errno) => (false, Some(errno)),
            };
            json!({ "kind": kind, "region": region.0, "offset": offset, "width_bits": width.bytes() * 8, "value": value,
                "register": name, "bits": bits, "done": done, "errno": errno })
        };
        let placed = |kind, domain: &u64, at: Place| json!({ "kind": kind, "domain": domain, "file": self.names.file(at), "line": at.line });
        let mut object = match &event.what {
            What::Read { region, offset, width, value, outcome } => {
                access(false, *region, *offset, *width, *value, *outcome)
            }
            What::Write { region, offset, width, value, outcome } => {
                access(true, *region, *offset, *width, *value, *outcome)
            }
            What::Irq { index, vector, count } => {
                json!({ "kind": "irq", "index": index.0, "vector": vector, "signals": count })
            }
            What::Arm { index, start, count } => {
                json!({ "kind": "arm", "index": index.0, "start": start, "count": count })
            }
            What::Disarm { index } => json!({ "kind": "disarm", "index": index.0 }),
            What::Mask { index, vector, masked } => {
                json!({ "kind": "mask", "index": index.0, "vector": vector, "masked": masked })
            }
            What::Map { iova, size, outcome } => {
                json!({ "kind": "map", "iova": iova, "size_bytes": size, "done": *outcome == Outcome::Done })
            }
            What::Unmap { iova, size } => json!({ "kind": "unmap", "iova": iova, "size_bytes": size }),
            What::Data { iova, bytes } => json!({ "kind": "data", "iova": iova, "bytes": bytes }),
            What::Reset => json!({ "kind": "reset" }),
            What::SectionBegin { domain, at } => placed("irqs_off", domain, *at),
            What::SectionEnd { domain } => json!({ "kind": "irqs_on", "domain": domain }),
            What::HandlerBegin { index, vector } => json!({ "kind": "handler", "index": index.0, "vector": vector }),
            What::HandlerEnd { index, vector, handled } => {
                json!({ "kind": "handled", "index": index.0, "vector": vector, "handled": handled })
            }
            What::ThreadedBegin { index, vector } => json!({ "kind": "threaded", "index": index.0, "vector": vector }),
            What::ThreadedEnd { index, vector } => {
                json!({ "kind": "threaded_end", "index": index.0, "vector": vector })
            }
            What::BottomHalfBegin { domain, at } => placed("bottom_half", domain, *at),
            What::BottomHalfEnd { domain } => json!({ "kind": "bottom_half_end", "domain": domain }),
            What::Lend { iova, size } => json!({ "kind": "lend", "iova": iova, "size_bytes": size }),
            What::Return { iova, size } => json!({ "kind": "return", "iova": iova, "size_bytes": size }),
            What::Thread { name } => json!({ "kind": "thread", "name": name }),
            What::File { file, start, bytes } => {
                json!({ "kind": "file", "file": file, "start": start, "name": String::from_utf8_lossy(bytes) })
            }
        };
        if let Some(fields) = object.as_object_mut() {
            fields.insert("number".into(), event.number.into());
            fields.insert("time_s".into(), event.time.as_secs_f64().into());
            fields.insert("thread".into(), self.names.thread(event.thread).into());
        }
        object
    }
}
