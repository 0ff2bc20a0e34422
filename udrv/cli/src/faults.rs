//! `udrv faults DRIVER`: a driver against every fault of a catalogue.

use crate::drivers::{self, PciDriver};
use crate::run::Paint;
use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use udrv::debug::fault::{FaultPlan, Faulty};
use udrv::host::{Ended, Host, Report};

/// Longest run with a fault; the drivers' own deadlines are 10 s at most.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args)]
#[command(
    after_help = "Examples:\n  udrv faults edu --device model:edu\n  udrv faults nvme --device model:nvme --json\n  \
udrv faults uart16550 --device model:uart16550 --seeds 99\n\nThe driver works the device, and leaves what is stored on it as \
it is. Exit code 1 if it did not survive a fault, or is not as good as before afterwards."
)]
pub struct FaultsArgs {
    /// The driver: edu, nvme or uart16550.
    #[arg(value_parser = drivers::named)]
    driver: &'static PciDriver,
    /// The device's address; it is opened anew for each fault.
    #[arg(long)]
    device: String,
    /// Plans from seeds 0 to NUMBER instead of the catalogue.
    #[arg(long, value_name = "NUMBER")]
    seeds: Option<u64>,
    /// One JSON object a line: each plan with how the driver ended, then the sum.
    #[arg(long)]
    json: bool,
}

/// How a driver came out of one plan.
enum Verdict {
    Finished,
    Failed(String),
    Panicked(String),
    Hung,
}

impl Verdict {
    /// As a driver should: by an error, or without any.
    const fn is_survival(&self) -> bool {
        matches!(self, Self::Finished | Self::Failed(_))
    }

    /// In one word, and what is to be said of it.
    fn words(&self) -> (&'static str, String) {
        match self {
            Self::Finished => ("finished", "finished".into()),
            Self::Failed(error) => ("failed", error.clone()),
            Self::Panicked(message) => ("panicked", format!("panicked: {message}")),
            Self::Hung => ("hung", format!("did not end within {PATIENCE:?}")),
        }
    }
}

pub fn run(args: &FaultsArgs) -> Result<()> {
    let map = args.driver.map;
    let plans = match args.seeds {
        Some(last) => (0..=last).map(|seed| FaultPlan::from_seed(seed, map)).collect(),
        None => FaultPlan::catalogue(map),
    };
    note_panics();
    let mut broke = 0;
    for plan in &plans {
        let verdict = attempt(args, plan.clone())?;
        broke += usize::from(!verdict.is_survival());
        // A reader that has seen enough does not end it: the exit code is worth something, too.
        _ = writeln!(
            std::io::stdout(),
            "{}",
            if args.json { as_json(plan, &verdict).to_string() } else { row(plan, &verdict) }
        );
    }
    let after = attempt(args, FaultPlan::default())?;
    let is_sound = matches!(after, Verdict::Finished);
    let (driver, count) = (map.device, plans.len());
    if args.json {
        let sum = json!({ "driver": driver, "faults": count, "survived": count - broke, "sound_after": is_sound });
        _ = writeln!(std::io::stdout(), "{sum}");
    }
    if !is_sound {
        bail!("{} is not as good as before the faults: {}", args.device, after.words().1);
    }
    if broke > 0 {
        bail!("the {driver} driver did not survive {broke} of {count} faults");
    }
    if !args.json {
        _ = writeln!(std::io::stdout(), "the {driver} driver survived {count} faults; without any it works as before");
    }
    Ok(())
}

fn row(plan: &FaultPlan, verdict: &Verdict) -> String {
    let paint = Paint::for_stdout();
    let what: Vec<_> = plan.faults.iter().map(ToString::to_string).collect();
    let survived = if verdict.is_survival() { paint.good("survived") } else { paint.bad("BROKE   ") };
    format!("{survived}  {:<52}  {}", what.join(", "), verdict.words().1)
}

fn as_json(plan: &FaultPlan, verdict: &Verdict) -> Value {
    let what: Vec<_> = plan.faults.iter().map(ToString::to_string).collect();
    let (ended, text) = verdict.words();
    let error = if matches!(verdict, Verdict::Finished) { Value::Null } else { text.into() };
    json!({ "faults": plan.faults, "what": what.join(", "), "survived": verdict.is_survival(), "ended": ended, "error": error })
}

/// What panicked last, on whichever thread: a handler's panic does not end the driver, and is no survival.
static PANICKED: Mutex<Option<String>> = Mutex::new(None);

fn note_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let (payload, message) = (panic.payload(), String::from("no message"));
        let message = payload.downcast_ref().map_or(message, |text: &&str| (*text).into());
        let message = payload.downcast_ref().cloned().unwrap_or(message);
        *PANICKED.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
        before(panic);
    }));
}

/// One run.
fn attempt(args: &FaultsArgs, plan: FaultPlan) -> Result<Verdict> {
    let device = Arc::new(Faulty::new(crate::address::open(&args.device)?, plan)?);
    let mut host = Host::new();
    (args.driver.exercise)(&mut host, device)?;
    let (sender, receiver) = mpsc::channel();
    let wait = std::thread::Builder::new().name("faults".into()).spawn(move || {
        let reports = host.join();
        // Nobody listens any more when it took too long.
        let _late = sender.send(reports.into_iter().next());
    })?;
    let Ok(report) = receiver.recv_timeout(PATIENCE) else { return Ok(Verdict::Hung) };
    let _ended = wait.join();
    if let Some(message) = PANICKED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Ok(Verdict::Panicked(message));
    }
    Ok(match report {
        Some(Report { ended: Ended::Panicked(message), .. }) => Verdict::Panicked(message),
        Some(Report { ended: Ended::Failed(error), .. }) => Verdict::Failed(error.to_string()),
        _ => Verdict::Finished,
    })
}
