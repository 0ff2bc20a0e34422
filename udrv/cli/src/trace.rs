//! `udrv trace`: recordings shown, compared, exported.

use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use udrv::debug::trace::{Event, Outcome, Trace, What, diff, perfetto};
use udrv_backend::register::RegisterMap;
use udrv_backend::{RegionIndex, Width};

#[derive(Args)]
pub struct TraceArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the events, registers by name and bits.
    Show(ShowArgs),
    /// Find where two runs part: in which access, whatever their times. Exit code 1 if they do.
    Diff {
        /// A recording.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
    /// Convert for another program.
    Export {
        /// The recording.
        trace: PathBuf,
        /// Into this file, which ui.perfetto.dev opens.
        #[arg(long, value_name = "FILE")]
        perfetto: PathBuf,
    },
}

#[derive(Args)]
struct ShowArgs {
    /// The recording.
    trace: PathBuf,
    /// Only accesses to registers whose name contains this.
    #[arg(long, value_name = "NAME")]
    register: Option<String>,
    /// Only accesses to region 0 (BAR 0) at these byte offsets, such as 0x80..0xa0.
    #[arg(long, value_name = "START..END", value_parser = offsets)]
    range: Option<(u64, u64)>,
    /// Only from this many seconds on.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    from: Option<Duration>,
    /// Only until this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    to: Option<Duration>,
    /// Only interrupts.
    #[arg(long)]
    irq: bool,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected seconds, such as 0.25".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn offsets(text: &str) -> std::result::Result<(u64, u64), String> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let range = text.split_once("..").and_then(|(start, end)| Some((number(start)?, number(end)?)));
    range.filter(|(start, end)| start < end).ok_or_else(|| "expected START..END, such as 0x80..0xa0".into())
}

pub fn run(args: TraceArgs) -> Result<()> {
    match args.command {
        Command::Show(args) => show(&args),
        Command::Diff { first, second } => compare(&first, &second),
        Command::Export { trace, perfetto: to } => {
            let document = perfetto(&Trace::open(&trace)?, Some(&MAP));
            std::fs::write(&to, document.to_string()).map_err(|error| anyhow!("writing {}: {error}", to.display()))
        }
    }
}

/// The one driver there is so far; with a second, a trace will have to name its own.
const MAP: RegisterMap = udrv_edu::registers::MAP;

fn show(args: &ShowArgs) -> Result<()> {
    let trace = Trace::open(&args.trace)?;
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colour = !unwanted && std::io::stdout().is_terminal();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for event in trace.events.iter().filter(|event| wanted(event, args)) {
        let line = if args.json { as_json(&trace, event).to_string() } else { as_text(&trace, event, colour) };
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    if trace.lost > 0 {
        eprintln!("udrv: {} events more were not recorded: the file was full", trace.lost);
    }
    Ok(())
}

fn wanted(event: &Event, args: &ShowArgs) -> bool {
    let time = args.from.is_none_or(|from| event.time >= from) && args.to.is_none_or(|to| event.time <= to);
    let access = match event.what {
        What::Read { region, offset, .. } | What::Write { region, offset, .. } => Some((region, offset)),
        _ => None,
    };
    let name = args.register.as_ref().is_none_or(|name| {
        let found = access.and_then(|(region, offset)| MAP.find(region, offset));
        found.is_some_and(|(register, _)| register.name.contains(name.as_str()))
    });
    let range = args.range.is_none_or(|(start, end)| {
        access.is_some_and(|(region, offset)| region == RegionIndex::BAR0 && (start..end).contains(&offset))
    });
    time && name && range && (!args.irq || matches!(event.what, What::Irq { .. }))
}

/// A register's name, and its value in bits. A part of one is named with its place; it has no bits.
fn decode(region: RegionIndex, offset: u64, width: Width, value: u64) -> (String, Option<String>) {
    match MAP.find(region, offset) {
        Some((register, 0)) if width == register.width => {
            let bits = (!register.bits().is_empty() && value != 0).then(|| register.decode(value));
            (register.name.to_owned(), bits)
        }
        Some((register, byte)) => (format!("{} byte {byte}", register.name), None),
        None => (format!("{offset:#x}"), None),
    }
}

fn as_text(trace: &Trace, event: &Event, colour: bool) -> String {
    let paint = |code: &str, text: &str| if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
    let access = |kind: &str, region, offset, width: Width, value, outcome| {
        let (name, bits) = decode(region, offset, width, value);
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
            access("read ", *region, *offset, *width, *value, *outcome)
        }
        What::Write { region, offset, width, value, outcome } => {
            access(&paint("36", "write"), *region, *offset, *width, *value, *outcome)
        }
        What::Irq { index, vector, count } => paint("33", &format!("irq   {index} vector {vector}, {count} signals")),
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
        What::Thread { name } => format!("thread {name}"),
    };
    let time = event.time.as_secs_f64();
    format!("{:>7} {time:>12.6} {:<16} {what}", event.number, trace.thread_name(event.thread))
}

fn as_json(trace: &Trace, event: &Event) -> serde_json::Value {
    let access = |kind, region: RegionIndex, offset, width: Width, value: u64, outcome| {
        let (name, bits) = decode(region, offset, width, value);
        let (done, errno) = match outcome {
            Outcome::Done => (true, None),
            Outcome::Unfinished => (false, None),
            Outcome::Failed(errno) => (false, Some(errno)),
        };
        json!({ "kind": kind, "region": region.0, "offset": offset, "width": width.bytes() * 8, "value": value,
            "register": name, "bits": bits, "done": done, "errno": errno })
    };
    let mut object = match &event.what {
        What::Read { region, offset, width, value, outcome } => {
            access("read", *region, *offset, *width, *value, *outcome)
        }
        What::Write { region, offset, width, value, outcome } => {
            access("write", *region, *offset, *width, *value, *outcome)
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
            json!({ "kind": "map", "iova": iova, "size": size, "done": *outcome == Outcome::Done })
        }
        What::Unmap { iova, size } => json!({ "kind": "unmap", "iova": iova, "size": size }),
        What::Data { iova, bytes } => json!({ "kind": "data", "iova": iova, "bytes": bytes }),
        What::Reset => json!({ "kind": "reset" }),
        What::Thread { name } => json!({ "kind": "thread", "name": name }),
    };
    if let Some(fields) = object.as_object_mut() {
        fields.insert("number".into(), event.number.into());
        fields.insert("time".into(), event.time.as_secs_f64().into());
        fields.insert("thread".into(), trace.thread_name(event.thread).into());
    }
    object
}

fn compare(first: &Path, second: &Path) -> Result<()> {
    let [one, other] = [Trace::open(first)?, Trace::open(second)?];
    let Some(found) = diff(&one, &other) else {
        println!("the same");
        return Ok(());
    };
    let tell = |path: &Path, trace: &Trace, event: Option<&Event>| {
        let event = event.map_or_else(|| "had ended".to_owned(), |event| as_text(trace, event, false));
        println!("{}: {event}", path.display());
    };
    tell(first, &one, found.first.as_ref());
    tell(second, &other, found.second.as_ref());
    bail!("{} and {} part there", first.display(), second.display())
}
