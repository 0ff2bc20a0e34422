//! `udrv run`: which driver; the edu driver's part.

use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;
use udrv::debug::fault::Faulty;
use udrv::debug::sanitise::{Findings, Sanitised};
use udrv::debug::trace::{Options, Recorder};
use udrv::host::{Ended, Host, Report, Stop};
use udrv::irq::{Delivery, accounts};
use udrv_backend::IrqIndex;
use udrv_edu::driver::{Finding, Tour, TourConfig};

#[derive(Args)]
pub struct RunArgs {
    #[command(subcommand)]
    driver: DriverArgs,
}

#[derive(Subcommand)]
enum DriverArgs {
    /// The education device: factorials by interrupt, DMA both ways, latencies.
    Edu(EduArgs),
    /// USB mass storage, bulk-only: read and write blocks.
    UsbStorage(crate::usb::storage::StorageArgs),
    /// USB keyboard, boot protocol: show the keys.
    UsbKeyboard(crate::usb::keyboard::KeyboardArgs),
    /// NVMe: identify, health, blocks read to a file and written from one.
    Nvme(crate::nvme::NvmeArgs),
}

#[derive(Args)]
struct EduArgs {
    /// The device's address.
    #[arg(long)]
    device: String,
    /// How interrupts reach the driver.
    #[arg(long, value_enum, default_value = "thread")]
    irq: IrqMode,
    /// Which interrupt to use; the best the device has if not given.
    #[arg(long, value_enum)]
    vector: Option<Vector>,
    /// How many interrupts to time.
    #[arg(long, default_value_t = 1000)]
    samples: usize,
    /// Run it this many times, for load.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// What is wrong with the device: a file of `[[fault]]` tables, or seed:NUMBER.
    #[arg(long, value_name = "PLAN")]
    faults: Option<String>,
    /// Record what passes between driver and device into this file (see udrv trace). Registers are then not mapped.
    #[arg(long, value_name = "FILE", conflicts_with = "rounds")]
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
    /// Show what each interrupt source has seen, every second and at the end.
    #[arg(long)]
    irqs: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum IrqMode {
    /// A thread waits on eventfds.
    Thread,
    /// SIGIO to the driver's thread.
    Signal,
    /// The driver's thread looks for itself.
    Poll,
}

#[derive(Clone, Copy, ValueEnum)]
enum Vector {
    /// Message-signalled.
    Msi,
    /// The pin.
    Intx,
}

pub fn run(args: RunArgs) -> Result<()> {
    match args.driver {
        DriverArgs::Edu(args) => edu(&args),
        DriverArgs::Nvme(args) => {
            let stop = Stop::default();
            crate::stop::on_signal(stop.clone())?;
            crate::nvme::run(args, &stop)
        }
        // These give their device back on a signal, each in its own way.
        DriverArgs::UsbKeyboard(args) => crate::usb::keyboard::run(&args),
        DriverArgs::UsbStorage(args) => crate::usb::storage::run(&args),
    }
}

fn edu(edu: &EduArgs) -> Result<()> {
    let stop = Stop::default();
    crate::stop::on_signal(stop.clone())?;
    for _ in 0..edu.rounds.max(1) {
        tour(edu, &stop)?;
        if stop.is_requested() {
            break;
        }
    }
    Ok(())
}

fn tour(args: &EduArgs, stop: &Stop) -> Result<()> {
    let mut device = crate::address::open(&args.device)?;
    if let Some(plan) = &args.faults {
        device = Arc::new(Faulty::new(device, crate::faults::plan(plan)?)?);
    }
    if let Some(file) = &args.record {
        let options = Options { events: args.record_events, dma_contents: args.record_dma };
        device = Arc::new(Recorder::new(device, file, options)?);
    }
    let mut findings = None;
    if args.sanitise_dma {
        let (sanitised, found) = Sanitised::new(device)?;
        (device, findings) = (Arc::new(sanitised), Some(found));
    }
    let delivery = match args.irq {
        IrqMode::Thread => Delivery::Thread,
        IrqMode::Signal => Delivery::Signal,
        IrqMode::Poll => Delivery::Poll,
    };
    let irq = args.vector.map(|vector| match vector {
        Vector::Msi => IrqIndex::MSI,
        Vector::Intx => IrqIndex::INTX,
    });
    let paint = Paint::for_stdout();
    let irqs = args.irqs;
    // A reader that has seen enough (`| head -1`) is no error, and no reason to leave the tour unfinished.
    let tell = Box::new(move |finding| {
        _ = writeln!(std::io::stdout(), "{}", describe(&finding, paint));
        // The last finding, with the registrations still there.
        if irqs && matches!(finding, Finding::Interrupts(_)) {
            _ = writeln!(std::io::stdout(), "{}", accounts());
        }
    });
    let mut host = Host::stopped_by(stop.clone());
    host.start::<Tour>(device, delivery, TourConfig { irq, samples: args.samples, tell })?;
    let reports = if irqs { join_showing_irqs(host) } else { host.join() };
    for Report { device, ended, quiesced } in reports {
        match ended {
            Ended::Returned => {}
            Ended::Failed(error) => bail!("the edu driver of {device} failed: {error}"),
            Ended::Panicked(message) => bail!("the edu driver of {device} panicked: {message}"),
        }
        quiesced.map_err(|error| anyhow!("{device} was not made quiet after its driver: {error}"))?;
    }
    findings.map_or(Ok(()), |findings| tell_findings(&findings))
}

fn tell_findings(findings: &Findings) -> Result<()> {
    let found = findings.all();
    for finding in &found {
        _ = writeln!(std::io::stdout(), "DMA        {finding}");
    }
    if !found.is_empty() {
        bail!("the DMA checker has {} findings", found.len());
    }
    Ok(())
}

/// Shows the interrupts every second until the drivers have ended.
fn join_showing_irqs(host: Host) -> Vec<Report> {
    let (ended, end) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while end.recv_timeout(Duration::from_secs(1)) == Err(mpsc::RecvTimeoutError::Timeout) {
                println!("{}", accounts());
            }
        });
        let reports = host.join();
        drop(ended);
        reports
    })
}

/// Whether to colour: a terminal, and no wish against it (no-color.org).
#[derive(Clone, Copy)]
pub(crate) struct Paint(bool);

impl Paint {
    pub(crate) fn for_stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(!unwanted && std::io::stdout().is_terminal())
    }

    pub(crate) fn good(self, text: &str) -> String {
        if self.0 { format!("\x1b[32m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(crate) fn bad(self, text: &str) -> String {
        if self.0 { format!("\x1b[31m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn describe(finding: &Finding, paint: Paint) -> String {
    match finding {
        Finding::Identified { identification, irq, mapped } => format!(
            "{}  identification {identification:#010x}, liveness checked, interrupts by {irq}, registers {}",
            paint.good("found    "),
            if *mapped { "mapped" } else { "by message" }
        ),
        Finding::Factorial { n, value } => format!("{}  {n}! = {value}, by interrupt", paint.good("factorial")),
        Finding::Dma { bytes } => {
            format!("{}  {bytes} bytes to the device and back, equal", paint.good("DMA      "))
        }
        Finding::Section { during, after } => {
            let held = if *during { paint.bad("ran the handler inside it") } else { "held its interrupt back".into() };
            let done = if *after { "delivered it at its end".into() } else { paint.bad("left it undelivered") };
            format!("{}  interrupts-off {held}, {done}", paint.good("section  "))
        }
        Finding::Latency { p50, p99, samples } => format!(
            "{}  raise to seen: p50 {:.1} us, p99 {:.1} us ({samples} interrupts)",
            paint.good("latency  "),
            p50.as_secs_f64() * 1e6,
            p99.as_secs_f64() * 1e6
        ),
        Finding::Interrupts(stats) => format!(
            "{}  {} raised, {} delivered, {} spurious, {} arrived in a section",
            paint.good("irqs     "),
            stats.raised,
            stats.delivered,
            stats.spurious,
            stats.deferred
        ),
    }
}
