//! `udrv irqs`: what each interrupt source of another process has seen, its state, and who holds it back.

use super::{Who, is, say};
use anyhow::{Result, bail};
use clap::Args;
use std::time::Duration;
use udrv::clock::{self, Deadline};
use udrv_inspect::{SectionState, Snapshot, SourceState, monotonic};

/// Between two looks of `--watch`.
const PERIOD: Duration = Duration::from_secs(1);

#[derive(Args)]
#[command(after_help = "Columns, counted since each source was registered:\n  \
raised        signals of the device, as the kernel or the server counted them\n  \
delivered     runs of the source's handlers\n  \
merged        signals that were delivered together with an earlier one\n  \
spurious      deliveries that no handler knew what to do with\n  \
deferred      deliveries that a section with interrupts off held back\n  \
max deferral  the longest such wait, until the handlers ran\n  \
max handler   the longest run of the handlers\n  \
a second      with --watch: signals since the last look\n\
raised is delivered, merged and what is pending. Behind the source: how it is delivered, and its state now.\n\n\
Examples:\n  udrv irqs\n  udrv irqs unix:/run/udrv/edu.sock --watch\n  udrv irqs --pid 4711 --json")]
pub struct IrqsArgs {
    /// The device's address; all devices of the process without it.
    #[arg(value_name = "ADDR")]
    device: Option<String>,
    #[command(flatten)]
    who: Who,
    /// Show it again every second, until the driver ends. With --json, one line each time.
    #[arg(long)]
    watch: bool,
}

pub fn run(args: &IrqsArgs) -> Result<()> {
    let found = args.who.find(args.device.as_deref())?;
    let stop = udrv::host::Stop::default();
    if args.watch {
        crate::stop::on_signal(stop.clone())?;
    }
    let mut now = Some(found.snapshot.clone());
    let mut before = None;
    while let Some(mut snapshot) = now {
        if let Some(address) = &args.device {
            keep_only(&mut snapshot, address);
        }
        let at = clock::now();
        if args.who.json {
            say(&as_json(&snapshot)?)?;
        } else {
            let since = before.as_ref().map(|(then, before)| (at.saturating_duration_since(*then), before));
            if since.is_some() {
                say("")?;
            }
            say(&table(&snapshot, since))?;
        }
        if !args.watch {
            return Ok(());
        }
        before = Some((at, snapshot));
        let next = Deadline::after(PERIOD);
        while next.remaining().is_some() && !stop.is_requested() {
            rustix::event::poll(&mut [], Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 }))?;
        }
        let is_there = std::fs::exists(format!("/proc/{}", found.pid)).unwrap_or(false);
        now = if is_there && !stop.is_requested() { found.look() } else { None };
    }
    if stop.is_requested() { Ok(()) } else { bail!("process {} has ended", found.pid) }
}

fn keep_only(snapshot: &mut Snapshot, address: &str) {
    snapshot.devices.retain(|device| is(device, address));
    let devices = &snapshot.devices;
    snapshot.sources.retain(|source| devices.iter().any(|device| Some(device.slot) == source.device));
    let sources = &snapshot.sources;
    snapshot.sections.retain(|section| sources.iter().any(|source| source.domain == section.domain));
}

fn as_json(snapshot: &Snapshot) -> Result<String> {
    let Snapshot { pid, records_sections, is_held, sources, sections, .. } = snapshot;
    let value = serde_json::json!({ "pid": pid, "records_sections": records_sections, "is_held": is_held,
        "sources": sources, "sections": sections });
    Ok(value.to_string())
}

/// A table, as `udrv run --irqs` has it, and what holds the sources back.
pub fn as_text(snapshot: &Snapshot) -> String {
    table(snapshot, None)
}

/// As [`as_text`], with signals a second if there was a look before: how long ago, and what it saw.
fn table(snapshot: &Snapshot, before: Option<(Duration, &Snapshot)>) -> String {
    if snapshot.sources.is_empty() {
        return "no interrupt has a handler".into();
    }
    let heading = ["raised", "delivered", "merged", "spurious", "deferred"].map(|word| format!("{word:>12}")).concat();
    let rate = if before.is_some() { format!("{:>12}", "a second") } else { String::new() };
    let mut lines = vec![format!("{heading}{:>14}{:>14}{rate}  source", "max deferral", "max handler")];
    for source in &snapshot.sources {
        let rate = before.map(|(since, before)| format!("{:>12}", a_second(source, before, since)));
        lines.push(source_line(source, &rate.unwrap_or_default()));
    }
    lines.extend(snapshot.sections.iter().map(section_line));
    if !snapshot.records_sections {
        lines.push(
            "sections are not recorded in this build of the driver: use a debug build, or the feature `checks`".into(),
        );
    }
    lines.join("\n")
}

/// Signals of a source a second, `since` the look that saw `before`; `-` of one that it did not see, and of timers, which it
/// cannot tell apart.
fn a_second(source: &SourceState, before: &Snapshot, since: Duration) -> String {
    let same = |it: &&SourceState| {
        (it.device, it.index, it.vector, it.domain) == (source.device, source.index, source.vector, source.domain)
    };
    let known = before.sources.iter().find(same).filter(|it| it.device.is_some());
    let raised = known.and_then(|it| source.raised.checked_sub(it.raised));
    raised.map_or_else(|| "-".into(), |raised| format!("{:.0}", raised as f64 / since.as_secs_f64().max(0.001)))
}

fn source_line(source: &SourceState, rate: &str) -> String {
    let SourceState { raised, delivered, merged, spurious, deferred, .. } = source;
    let counts: String =
        [raised, delivered, merged, spurious, deferred].iter().map(|count| format!("{count:>12}")).collect();
    let time = |nanoseconds| format!("{:.1?}", Duration::from_nanos(nanoseconds));
    let (off, run) = (time(source.longest_deferral_ns), time(source.longest_handler_ns));
    format!("{counts}{off:>14}{run:>14}{rate}  {} ({}; {})", source.name, source.delivery, state(source))
}

/// Enabled or not, pending or not, in its handler or not.
fn state(source: &SourceState) -> String {
    let mut words = vec![match source.disabled {
        0 => "enabled".to_owned(),
        depth => format!("disabled {depth} deep"),
    }];
    if source.stormed {
        words.push("masked after a storm, until rearmed".into());
    }
    if source.pending > 0 {
        words.push(format!("{} pending", source.pending));
    }
    if let Some(thread) = source.in_handler {
        words.push(format!("in its handler on thread {thread}"));
    }
    words.join(", ")
}

fn section_line(section: &SectionState) -> String {
    let age = Duration::from_nanos(monotonic().saturating_sub(section.since_ns));
    format!("off: thread {} has a section open, entered at {} {age:.1?} ago", section.thread, section.entered_at)
}
