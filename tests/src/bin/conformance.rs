//! `conformance ADDR`: runs the suite of `udrv_backend::conformance` against a device.

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;
use udrv_backend::conformance::{Knowledge, Outcome, Subject, checks};
use udrv_backend::pci::Config;
use udrv_backend::{AnyBackend, Backend};

/// Checks every promise of the Backend trait against one device, which it takes for itself
#[derive(Debug, Parser)]
struct Args {
    /// pci:BDF, unix:PATH, model:edu, model:uart16550 or model:vectors
    device: String,
    /// Only checks whose name contains this
    #[arg(long)]
    filter: Option<String>,
    /// One JSON object a check instead of text
    #[arg(long)]
    json: bool,
}

fn open(address: &str) -> udrv_backend::Result<AnyBackend> {
    match address {
        "model:edu" => Ok(Arc::new(udrv_edu::model::edu())),
        "model:uart16550" => Ok(Arc::new(udrv_uart16550::model::uart16550())),
        "model:vectors" => Ok(Arc::new(udrv_tests::vectors::vectors()?)),
        other => udrv::open(other),
    }
}

/// What is known of the device with these IDs.
fn knowledge(device: &dyn Backend) -> udrv_backend::Result<Knowledge> {
    Ok(match Config::new(device).id()? {
        (0x1234, 0x11e8) => udrv_edu::conformance::KNOWLEDGE,
        (0x1b36, 0x0002) => udrv_uart16550::conformance::KNOWLEDGE,
        (0x1234, 0xf00d) => udrv_tests::vectors::KNOWLEDGE,
        _ => Knowledge::default(),
    })
}

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: Vec<&'static str>,
    not_applicable: usize,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let known = {
        let device = open(&args.device)?;
        knowledge(&*device).with_context(|| format!("reading the IDs of {}", args.device))?
    };
    let device = args.device.clone();
    let subject = Subject { open: &move || open(&device), knowledge: known };
    let wanted = |name: &str| args.filter.as_deref().is_none_or(|filter| name.contains(filter));
    let checks: Vec<_> = checks().into_iter().filter(|check| wanted(check.name)).collect();
    if checks.is_empty() {
        bail!("no check's name contains `{}`", args.filter.unwrap_or_default());
    }
    let mut tally = Tally::default();
    for check in &checks {
        let start = udrv_backend::clock::now();
        let outcome = check.run(&subject);
        report(&args, check.name, check.promise, &outcome, start);
        match outcome {
            Outcome::Passed => tally.passed += 1,
            Outcome::NotApplicable(_) => tally.not_applicable += 1,
            Outcome::Failed(_) => tally.failed.push(check.name),
        }
    }
    let Tally { passed, failed, not_applicable } = tally;
    if !args.json {
        let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
        println!(
            "\n{}: {verdict}. {passed} passed; {} failed; {not_applicable} not applicable",
            args.device,
            failed.len()
        );
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(args: &Args, name: &str, promise: &str, outcome: &Outcome, start: Instant) {
    let (word, why) = match outcome {
        Outcome::Passed => ("ok", None),
        Outcome::NotApplicable(why) => ("not applicable", Some(why)),
        Outcome::Failed(why) => ("FAILED", Some(why)),
    };
    let milliseconds = start.elapsed().as_millis() as u64;
    if args.json {
        let line = serde_json::json!({
            "device": args.device, "check": name, "promise": promise, "outcome": word, "why": why,
            "milliseconds": milliseconds,
        });
        println!("{line}");
        return;
    }
    match (outcome, why) {
        (Outcome::Failed(why), _) => println!("check {name} ... {word}\n    promise: {promise}\n    found:   {why}"),
        (_, Some(why)) => println!("check {name} ... {word} ({why})"),
        (_, None) => println!("check {name} ... {word} ({milliseconds} ms)"),
    }
}
