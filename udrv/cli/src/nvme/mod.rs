//! `udrv run nvme`.

mod bench;
mod copy;
mod export;
mod requests;

use crate::surround::{DeviceArgs, Surrounded, conclude};
use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use copy::Copy;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;
use udrv::host::{Context, Host, Stop};
use udrv::irq::Delivery;
use udrv_backend::Error;
use udrv_nvme::driver::{Controller, Namespace, QueueConfig, Task, Wait, Work as DriverWork};

/// Transfers that are under way at a time.
const DEPTH: u16 = 8;

#[derive(Args)]
pub struct NvmeArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// How completions are waited for.
    #[arg(long, value_enum, default_value = "interrupt")]
    wait: WaitMode,
    /// How long a command may take before it is aborted, seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    #[command(flatten)]
    export: ExportArgs,
    #[command(subcommand)]
    work: Option<Work>,
}

#[derive(Args)]
struct ExportArgs {
    /// Serve the namespace as a block device, until interrupted: nbd:SOCKET, a path.
    #[arg(long, value_name = "nbd:SOCKET")]
    export: Option<String>,
    /// The namespace to export.
    #[arg(long, default_value_t = 1, requires = "export")]
    namespace: u32,
    /// Clients that may be connected at a time, each with a queue pair of its own if the controller gives so many.
    #[arg(long, default_value_t = 4, requires = "export", value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
    /// Refuse writes.
    #[arg(long, requires = "export")]
    read_only: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum WaitMode {
    /// By the queue's MSI-X vector.
    Interrupt,
    /// By looking at memory.
    Polled,
    /// By looking for 50 us, then by interrupt.
    Hybrid,
}

#[derive(Subcommand)]
enum Work {
    /// Show the controller and its namespaces.
    Identify,
    /// Show the controller's health and the errors it has logged.
    Smart,
    /// Read blocks into a file.
    Read {
        #[command(flatten)]
        place: Place,
        /// How many blocks [default: all that follow].
        #[arg(long)]
        blocks: Option<u64>,
        /// The file, which is made or overwritten.
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Measure transfers a second.
    Bench(bench::BenchArgs),
    /// Write a file to blocks, and flush.
    Write {
        #[command(flatten)]
        place: Place,
        /// The file: whole blocks.
        #[arg(long, value_name = "FILE")]
        input: PathBuf,
    },
}

#[derive(Args, Clone, Copy)]
struct Place {
    /// The namespace.
    #[arg(long, default_value_t = 1)]
    namespace: u32,
    /// The first block.
    #[arg(long, default_value_t = 0)]
    lba: u64,
}

/// What is to be done, once the command line has been understood.
enum Plan {
    Work(Work),
    Export(export::Export),
}

impl Plan {
    fn new(work: Option<Work>, args: ExportArgs) -> Result<Self> {
        match (work, args.export) {
            (Some(work), None) => Ok(Self::Work(work)),
            (None, Some(address)) => {
                let Some(socket) = address.strip_prefix("nbd:").filter(|path| !path.is_empty()) else {
                    return Err(Error::BadAddress { given: address, expected: "nbd:SOCKET, a path" }.into());
                };
                let ExportArgs { namespace, connections, read_only, .. } = args;
                Ok(Self::Export(export::Export { socket: socket.into(), namespace, connections, read_only }))
            }
            _ => bail!(
                "one thing is to be done: identify, smart, read, write, bench, or --export; see udrv run nvme --help"
            ),
        }
    }
}

pub fn run(args: NvmeArgs, stop: &Stop) -> Result<()> {
    let plan = Plan::new(args.work, args.export)?;
    let Surrounded { device, findings } = args.device.open(&udrv_nvme::registers::MAP)?;
    let wait = match args.wait {
        WaitMode::Interrupt => Wait::Interrupt,
        WaitMode::Polled => Wait::Polled,
        WaitMode::Hybrid => Wait::Hybrid(Duration::from_micros(50)),
    };
    let config = QueueConfig { depth: DEPTH, wait, timeout: Duration::from_secs(args.timeout) };
    let (is_export, queues) = match &plan {
        Plan::Work(Work::Bench(bench)) => (false, bench.queues),
        Plan::Work(_) => (false, 1),
        Plan::Export(export) => (true, export.connections),
    };
    let mut host = Host::stopped_by(stop.clone());
    let job = move |controller: &mut Controller, context: &Context| match plan {
        Plan::Work(work) => perform(controller, context, config, work),
        Plan::Export(export) => export.serve(controller, context, config),
    };
    // One queue's thread waits for its vector itself; several have a thread that wakes them.
    let delivery = if queues == 1 { Delivery::Poll } else { Delivery::Thread };
    host.start::<Task>(device, delivery, DriverWork { queues, job: Box::new(job) })?;
    conclude("nvme", host.join(), findings.as_ref())?;
    // An export ends by being stopped, and by nothing else.
    if stop.is_requested() && !is_export {
        bail!("stopped before it was done");
    }
    Ok(())
}

fn perform(controller: &mut Controller, context: &Context, config: QueueConfig, work: Work) -> Result<(), Error> {
    match work {
        Work::Identify => identify(controller),
        Work::Smart => smart(controller),
        Work::Bench(bench) => bench.run(controller, context, config),
        Work::Read { place, blocks, output } => {
            let file = File::create(&output).map_err(|error| os("making", &output, error))?;
            let mut copy = Copy::new(controller, context, config, place)?;
            let left = copy.namespace.blocks.saturating_sub(place.lba);
            copy.read(blocks.unwrap_or(left).saturating_mul(copy.namespace.block_size), &file, &output)
        }
        Work::Write { place, input } => {
            let file = File::open(&input).map_err(|error| os("opening", &input, error))?;
            let length = file.metadata().map_err(|error| os("asking for the length of", &input, error))?.len();
            Copy::new(controller, context, config, place)?.write(length, &file, &input)
        }
    }
}

fn os(doing: &str, path: &Path, error: std::io::Error) -> Error {
    Error::os(format!("{doing} {}", path.display()), error)
}

fn identify(controller: &Controller) -> Result<(), Error> {
    let info = controller.info();
    println!("model      {}\nserial     {}\nfirmware   {}", info.model, info.serial, info.firmware);
    println!("version    {}.{}", info.version >> 16, info.version >> 8 & 0xff);
    println!("transfers  up to {} KiB", controller.max_transfer() >> 10);
    println!("doorbells  {}", if info.has_shadow_doorbells { "in memory, and registers" } else { "registers" });
    println!("commands   {:?}, write cache: {}", info.optional, if info.has_write_cache { "yes" } else { "no" });
    for id in controller.namespace_ids()? {
        let namespace = controller.namespace(id)?;
        let Namespace { blocks, block_size, .. } = namespace;
        println!("namespace  {id}: {blocks} blocks of {block_size} bytes, {} MiB", namespace.bytes() >> 20);
    }
    Ok(())
}

fn smart(controller: &Controller) -> Result<(), Error> {
    let smart = controller.smart()?;
    let celsius = i32::from(smart.temperature) - 273;
    println!("critical warning   {:#04x}", smart.critical_warning);
    println!("temperature        {celsius} degrees Celsius");
    println!("available spare    {} %", smart.available_spare);
    println!("percentage used    {} %", smart.percentage_used);
    println!("data units         {} read, {} written", smart.data_units_read, smart.data_units_written);
    println!("host commands      {} reads, {} writes", smart.host_reads, smart.host_writes);
    println!("power              {} cycles, {} hours", smart.power_cycles, smart.power_on_hours);
    println!("unsafe shutdowns   {}", smart.unsafe_shutdowns);
    println!("media errors       {}", smart.media_errors);
    for entry in controller.error_log()? {
        println!("error {}: {}, queue {}, block {}", entry.count, entry.outcome, entry.queue, entry.lba);
    }
    Ok(())
}
