//! Which PCI device a driver gets, and what is put around it: faults, a recorder, a checker of DMA.

use anyhow::{Result, anyhow, bail};
use clap::Args;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use udrv::debug::fault::{FaultPlan, Faulty};
use udrv::debug::sanitise::{Findings, Sanitised};
use udrv::debug::trace::{Options, Recorder};
use udrv::host::{Ended, Report};
use udrv_backend::AnyBackend;
use udrv_backend::register::RegisterMap;

#[derive(Args)]
pub struct DeviceArgs {
    /// The device's address.
    #[arg(long)]
    pub device: String,
    /// What is wrong with the device: a file of `[[fault]]` tables, or seed:NUMBER.
    #[arg(long, value_name = "PLAN")]
    faults: Option<String>,
    /// Record what passes between driver and device into this file (see udrv trace). Registers are then not mapped.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Record also what the device writes into memory: what it takes to replay a driver that looks at it.
    #[arg(long, requires = "record")]
    record_dma: bool,
    /// Room for this many events in the recording, 32 bytes each; those that follow are only counted.
    #[arg(long, requires = "record", default_value_t = Options::default().events)]
    record_events: u64,
    /// Check DMA: the device gets copies of buffers, and writes where it may not are found.
    #[arg(long)]
    sanitise_dma: bool,
}

/// What the driver is given, and what is to be told of it at the end.
pub struct Surrounded {
    pub device: AnyBackend,
    pub findings: Option<Findings>,
}

impl DeviceArgs {
    /// Opens it; `map` is of its driver.
    pub fn open(&self, map: &RegisterMap) -> Result<Surrounded> {
        let mut device = crate::address::open(&self.device)?;
        if let Some(plan) = &self.faults {
            device = Arc::new(Faulty::new(device, named_plan(plan, map)?)?);
        }
        if let Some(file) = &self.record {
            let options = Options { events: self.record_events, dma_contents: self.record_dma };
            device = Arc::new(Recorder::new(device, file, options)?);
        }
        let mut findings = None;
        if self.sanitise_dma {
            let (sanitised, found) = Sanitised::new(device)?;
            (device, findings) = (Arc::new(sanitised), Some(found));
        }
        Ok(Surrounded { device, findings })
    }
}

/// A plan by its name on the command line.
fn named_plan(name: &str, map: &RegisterMap) -> Result<FaultPlan> {
    if let Some(seed) = name.strip_prefix("seed:") {
        let seed = seed.parse().map_err(|error| anyhow!("`{seed}` is no seed: {error}: expected seed:NUMBER"))?;
        return Ok(FaultPlan::from_seed(seed, map));
    }
    let text = std::fs::read_to_string(name).map_err(|error| anyhow!("reading the fault plan {name}: {error}"))?;
    FaultPlan::from_toml(&text).map_err(|error| anyhow!("{name}: {error}"))
}

/// How a driver's run ended, as the command's result, and what the checker of DMA has found, if there was one.
pub fn conclude(driver: &str, reports: Vec<Report>, findings: Option<&Findings>) -> Result<()> {
    // First: what it found may be why the driver failed.
    let found = findings.map(Findings::all).unwrap_or_default();
    for finding in &found {
        _ = writeln!(std::io::stdout(), "DMA        {finding}");
    }
    for Report { device, ended, quiesced } in reports {
        match ended {
            Ended::Returned => {}
            Ended::Failed(error) => bail!("the {driver} driver of {device} failed: {error}"),
            Ended::Panicked(message) => bail!("the {driver} driver of {device} panicked: {message}"),
        }
        quiesced.map_err(|error| anyhow!("{device} was not made quiet after its driver: {error}"))?;
    }
    if !found.is_empty() {
        bail!("the DMA checker has {} findings", found.len());
    }
    Ok(())
}
