//! Interrupts placed at the accesses of drivers on a real edu device: `schedules ADDRESS`.
//!
//! The edu driver survives an interrupt before each of its accesses, and a planted bug is found, shrunk to one interrupt, and
//! replayed. Ends with status 1 at the first thing that is not so.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use std::sync::Arc;
use std::time::Duration;
use udrv::mmio::{ByMessage, Io as _};
use udrv_backend::{AnyBackend, RegionIndex};
use udrv_edu::registers::{INTERRUPT_ACKNOWLEDGE, InterruptStatus};
use udrv_tests::schedules::{edu_works, on, taking};

/// Much longer than an interrupt takes, under emulation too: what it costs is paid only where none comes.
const ARRIVAL: Duration = Duration::from_millis(200);

fn main() -> Result<()> {
    let address = std::env::args().nth(1).context("usage: schedules ADDRESS")?;
    let device = udrv::open(&address)?;
    // The same device in each run, without what the run before has left in it.
    let fresh = move || -> AnyBackend {
        let io = ByMessage::new(Arc::clone(&device), RegionIndex::BAR0);
        if let Err(error) = io.write(INTERRUPT_ACKNOWLEDGE, InterruptStatus::all()) {
            eprintln!("schedules: acknowledging before a run: {error}");
        }
        Arc::clone(&device)
    };
    let schedules = on(fresh).arriving_within(ARRIVAL).depth(1);

    let Err(failure) = schedules.explore(|run| taking(run, false)) else { bail!("the planted bug was not found") };
    println!("planted bug: {failure}");
    ensure!(failure.schedule.placements().len() == 1, "it was not shrunk to one interrupt");
    let Err(again) = schedules.replay(&failure.schedule, |run| taking(run, false)) else { bail!("it does not replay") };
    ensure!(again.error == failure.error, "replayed, it fails otherwise: {again}");

    let explored = schedules.explore(|run| taking(run, true)).map_err(|failure| anyhow!("in a section: {failure}"))?;
    println!("the same in a section: {explored:?}");
    let explored = schedules.explore(edu_works).map_err(|failure| anyhow!("the edu driver: {failure}"))?;
    println!("the edu driver: {explored:?}");
    ensure!(explored.runs > 2 * explored.accesses, "not every access was tried: {explored:?}");
    Ok(())
}
