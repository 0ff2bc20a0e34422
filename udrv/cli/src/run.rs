//! `udrv run edu`.

use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use std::io::{IsTerminal as _, Write as _};
use udrv::host::{Ended, Host, Report, Stop};
use udrv::irq::Delivery;
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
    let edu = match args.driver {
        DriverArgs::Edu(edu) => edu,
        DriverArgs::UsbKeyboard(args) => return crate::usb::keyboard::run(&args),
        DriverArgs::UsbStorage(args) => return crate::usb::storage::run(&args),
    };
    let stop = Stop::default();
    crate::stop::on_signal(stop.clone())?;
    for _ in 0..edu.rounds.max(1) {
        tour(&edu, &stop)?;
        if stop.is_requested() {
            break;
        }
    }
    Ok(())
}

fn tour(args: &EduArgs, stop: &Stop) -> Result<()> {
    let device = crate::address::open(&args.device)?;
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
    // A reader that has seen enough (`| head -1`) is no error, and no reason to leave the tour unfinished.
    let tell = Box::new(move |finding| _ = writeln!(std::io::stdout(), "{}", describe(&finding, paint)));
    let mut host = Host::stopped_by(stop.clone());
    host.start::<Tour>(device, delivery, TourConfig { irq, samples: args.samples, tell })?;
    for Report { device, ended, quiesced } in host.join() {
        match ended {
            Ended::Returned => {}
            Ended::Failed(error) => bail!("the edu driver of {device} failed: {error}"),
            Ended::Panicked(message) => bail!("the edu driver of {device} panicked: {message}"),
        }
        quiesced.map_err(|error| anyhow!("{device} was not made quiet after its driver: {error}"))?;
    }
    Ok(())
}

/// Whether to colour: a terminal, and no wish against it (no-color.org).
#[derive(Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn for_stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(!unwanted && std::io::stdout().is_terminal())
    }

    fn good(self, text: &str) -> String {
        if self.0 { format!("\x1b[32m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn bad(self, text: &str) -> String {
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
