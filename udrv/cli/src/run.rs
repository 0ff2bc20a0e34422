//! `udrv run`: which driver; the edu driver's part.

use crate::surround::{DeviceArgs, Surrounded, conclude};
use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use std::io::{IsTerminal as _, Write as _};
use std::sync::mpsc;
use std::time::Duration;
use udrv::host::{Host, Report, Stop};
use udrv::irq::{Delivery, IrqsOff, accounts, are_checked, irqs_off};
use udrv::rt::{self, Processors};
use udrv_backend::IrqIndex;
use udrv_edu::driver::{Finding, Tour, TourConfig};

#[derive(Args)]
pub struct RunArgs {
    /// Run the driver before all ordinary threads (SCHED_FIFO), with its memory kept in, and on these processors if any are
    /// named (--rt=1, --rt=0,2-3). Takes root, or the rights that it names where they are missing.
    #[arg(long, global = true, value_name = "CPUS", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    rt: Option<String>,
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
    /// USB serial port, CDC-ACM or FTDI: a terminal that other programs open.
    UsbSerial(crate::usb::serial::SerialArgs),
    /// USB sound: play a WAV file or a tone, record.
    UsbAudio(crate::usb::audio::AudioArgs),
    /// NVMe: identify, health, blocks read to a file and written from one.
    Nvme(crate::nvme::NvmeArgs),
    /// 16550 serial port: a pseudo-terminal that other programs open.
    #[command(name = "uart16550")]
    Uart(crate::uart::UartArgs),
}

#[derive(Args)]
struct EduArgs {
    #[command(flatten)]
    device: DeviceArgs,
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
    #[arg(long, default_value_t = 1, conflicts_with = "record")]
    rounds: usize,
    /// Show what each interrupt source has seen, every second and at the end.
    #[arg(long)]
    irqs: bool,
    /// Show how long interrupts were off, and which lines turned them off (only where the checks are compiled).
    #[arg(long)]
    irqsoff: bool,
    /// That as one line of JSON.
    #[arg(long, requires = "irqsoff")]
    json: bool,
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
    if let Some(processors) = &args.rt {
        // Before the driver's threads are started, which inherit it.
        rt::enter(&processors.parse::<Processors>()?)?;
    }
    match args.driver {
        DriverArgs::Edu(args) => edu(&args),
        DriverArgs::Nvme(args) => {
            let stop = Stop::default();
            crate::stop::on_signal(stop.clone())?;
            crate::nvme::run(args, &stop)
        }
        DriverArgs::Uart(args) => {
            let stop = Stop::default();
            crate::stop::on_signal(stop.clone())?;
            crate::uart::run(&args, &stop)
        }
        // These give their device back on a signal, each in its own way.
        DriverArgs::UsbAudio(args) => crate::usb::conclude(crate::usb::audio::run(&args)),
        DriverArgs::UsbSerial(args) => crate::usb::conclude(crate::usb::serial::run(&args)),
        DriverArgs::UsbKeyboard(args) => crate::usb::conclude(crate::usb::keyboard::run(&args)),
        DriverArgs::UsbStorage(args) => crate::usb::conclude(crate::usb::storage::run(&args)),
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
    if args.irqsoff && !are_checked() {
        bail!(
            "--irqsoff: this build does not record how long interrupts are off: build it with --features udrv/checks, and leave UDRV_CHECKS unset"
        );
    }
    let Surrounded { device, findings } = args.device.open(&udrv_edu::registers::MAP)?;
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
    let (irqs, irqsoff, json) = (args.irqs, args.irqsoff, args.json);
    // A reader that has seen enough (`| head -1`) is no error, and no reason to leave the tour unfinished.
    let tell = Box::new(move |finding| {
        _ = writeln!(std::io::stdout(), "{}", describe(&finding, paint));
        // The last finding, with the registrations still there.
        if irqs && matches!(finding, Finding::Interrupts(_)) {
            _ = writeln!(std::io::stdout(), "{}", accounts());
        }
        if irqsoff && matches!(finding, Finding::Interrupts(_)) {
            let off = irqs_off();
            _ = if json {
                writeln!(std::io::stdout(), "{}", off_as_json(&off))
            } else {
                write!(std::io::stdout(), "{off}")
            };
        }
    });
    let mut host = Host::stopped_by(stop.clone());
    host.start::<Tour>(device, delivery, TourConfig { irq, samples: args.samples, tell })?;
    let reports = if irqs { join_showing_irqs(host) } else { host.join() };
    conclude("edu", reports, findings.as_ref())
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

fn off_as_json(off: &IrqsOff) -> serde_json::Value {
    let buckets = off.histogram.iter().enumerate().filter(|(_, sections)| **sections > 0);
    let buckets: Vec<_> = buckets.map(|(n, sections)| json!({"from_ns": 1_u64 << n, "sections": sections})).collect();
    let places = off.places.iter().map(|place| {
        json!({
            "at": place.at.to_string(), "sections": place.sections, "longest_ns": place.longest.as_nanos() as u64,
            "over_budget": place.over_budget, "preempted": place.preempted,
        })
    });
    json!({"irqs_off": {"histogram": buckets, "places": places.collect::<Vec<_>>()}})
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
