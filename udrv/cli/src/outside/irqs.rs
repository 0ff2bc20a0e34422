//! `udrv irqs`: what each interrupt source of another process has seen, its state, and who holds it back.

use super::{Who, is, say};
use anyhow::{Result, bail};
use clap::Args;
use std::time::Duration;
use udrv::clock::Deadline;
use udrv_inspect::{SectionState, Snapshot, SourceState, monotonic};

/// Between two looks of `--watch`.
const PERIOD: Duration = Duration::from_secs(1);

#[derive(Args)]
pub struct IrqsArgs {
    /// The device's address; all devices of the process without it.
    #[arg(value_name = "ADDR")]
    device: Option<String>,
    #[command(flatten)]
    who: Who,
    /// Show it again every second, until the driver ends.
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
    while let Some(mut snapshot) = now {
        if let Some(address) = &args.device {
            keep_only(&mut snapshot, address);
        }
        say(&if args.who.json { as_json(&snapshot)? } else { as_text(&snapshot) })?;
        if !args.watch {
            return Ok(());
        }
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
    let heading = ["raised", "delivered", "merged", "spurious", "deferred", "longest off", "longest run"];
    let heading: String = heading.iter().map(|word| format!("{word:>12}")).collect();
    let mut lines = vec![format!("{heading}  source")];
    lines.extend(snapshot.sources.iter().map(source_line));
    lines.extend(snapshot.sections.iter().map(section_line));
    if !snapshot.records_sections {
        lines.push(
            "sections are not recorded in this build of the driver: use a debug build, or the feature `checks`".into(),
        );
    }
    lines.join("\n")
}

fn source_line(source: &SourceState) -> String {
    let SourceState { raised, delivered, merged, spurious, deferred, .. } = source;
    let counts: String =
        [raised, delivered, merged, spurious, deferred].iter().map(|count| format!("{count:>12}")).collect();
    let time = |nanoseconds| format!("{:.1?}", Duration::from_nanos(nanoseconds));
    let (off, run) = (time(source.longest_deferral_ns), time(source.longest_handler_ns));
    format!("{counts}{off:>12}{run:>12}  {} ({}; {})", source.name, source.delivery, state(source))
}

/// Enabled or not, pending or not, in its handler or not.
fn state(source: &SourceState) -> String {
    let mut words = vec![match source.disabled {
        0 => "enabled".to_owned(),
        depth => format!("disabled {depth} deep"),
    }];
    if source.stormed {
        words.push("masked after a storm".into());
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
