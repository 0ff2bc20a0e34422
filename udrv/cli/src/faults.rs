//! `udrv faults edu`: a driver against every fault of a catalogue.

use crate::run::Paint;
use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use std::sync::mpsc;
use std::time::Duration;
use udrv::debug::fault::{FaultPlan, Faulty};
use udrv::host::{Ended, Host, Report};
use udrv::irq::Delivery;
use udrv_edu::driver::{Tour, TourConfig};
use udrv_edu::registers::MAP;

/// Longest run with a fault; the driver's own deadlines are 5 s each.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct FaultsArgs {
    /// The driver.
    #[arg(value_enum)]
    driver: DriverName,
    /// The device's address; it is opened anew for each fault.
    #[arg(long)]
    device: String,
    /// Plans from seeds 0 to NUMBER instead of the catalogue.
    #[arg(long, value_name = "NUMBER")]
    seeds: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum DriverName {
    Edu,
}

/// A plan by its name on the command line.
pub fn plan(name: &str) -> Result<FaultPlan> {
    if let Some(seed) = name.strip_prefix("seed:") {
        let seed = seed.parse().with_context(|| format!("`{seed}` is no seed: expected seed:NUMBER"));
        return Ok(FaultPlan::from_seed(seed.map_err(|error| anyhow::anyhow!("{error}"))?, &MAP));
    }
    let text = std::fs::read_to_string(name);
    let text = text.map_err(|error| anyhow::anyhow!("reading the fault plan {name}: {error}"))?;
    FaultPlan::from_toml(&text).map_err(|error| anyhow::anyhow!("{name}: {error}"))
}

pub fn run(args: &FaultsArgs) -> Result<()> {
    let DriverName::Edu = args.driver;
    let paint = Paint::for_stdout();
    let plans = match args.seeds {
        Some(last) => (0..=last).map(|seed| FaultPlan::from_seed(seed, &MAP)).collect(),
        None => FaultPlan::catalogue(&MAP),
    };
    let mut broke = 0;
    for plan in &plans {
        let what: Vec<_> = plan.faults.iter().map(ToString::to_string).collect();
        let (survived, outcome) = judge(attempt(&args.device, plan.clone())?);
        broke += usize::from(!survived);
        let verdict = if survived { paint.good("survived") } else { paint.bad("BROKE   ") };
        println!("{verdict}  {:<52}  {outcome}", what.join(", "));
    }
    let (sound, outcome) = judge(attempt(&args.device, FaultPlan::default())?);
    if !sound || outcome != FINISHED {
        bail!("{} is not as good as before the faults: {outcome}", args.device);
    }
    if broke > 0 {
        bail!("the edu driver did not survive {broke} of {} faults", plans.len());
    }
    println!("the edu driver survived {} faults; without any it works as before", plans.len());
    Ok(())
}

const FINISHED: &str = "finished";

/// Whether the driver came out of it as a driver should, and in which words.
fn judge(report: Option<Report>) -> (bool, String) {
    match report {
        None => (false, format!("did not end within {PATIENCE:?}")),
        Some(Report { ended: Ended::Panicked(message), .. }) => (false, format!("panicked: {message}")),
        Some(Report { ended: Ended::Failed(error), .. }) => (true, error.to_string()),
        Some(Report { ended: Ended::Returned, .. }) => (true, FINISHED.into()),
    }
}

/// One run; `None` if it does not end.
fn attempt(address: &str, plan: FaultPlan) -> Result<Option<Report>> {
    let device = std::sync::Arc::new(Faulty::new(crate::address::open(address)?, plan)?);
    let mut host = Host::new();
    host.start::<Tour>(device, Delivery::Thread, TourConfig { irq: None, samples: 20, tell: Box::new(|_| {}) })?;
    let (sender, receiver) = mpsc::channel();
    let wait = std::thread::Builder::new().name("faults".into()).spawn(move || {
        let reports = host.join();
        // Nobody listens any more when it took too long.
        let _late = sender.send(reports.into_iter().next());
    })?;
    match receiver.recv_timeout(PATIENCE) {
        Ok(report) => {
            let _ended = wait.join();
            Ok(report)
        }
        Err(_) => Ok(None),
    }
}
