//! `udrv`: run guest drivers and look at devices.

mod address;
mod capability;
mod faults;
mod info;
mod nvme;
mod progress;
mod run;
mod stop;
mod trace;
mod uart;
mod usb;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "udrv",
    version,
    about = "Run native drivers as ordinary processes",
    after_help = "Device addresses:\n  pci:0000:03:00.0     kernel VFIO, in this process (bind it first: stub-driver bind)\n  \
unix:PATH            the stub, or any other vfio-user server\n  model:NAME           edu, nvme or uart16550: software, in this process\n  \
replay:FILE          what udrv run --record has recorded\n\n\
Examples:\n  udrv run edu --device model:edu\n  udrv run edu --device unix:/run/udrv/edu.sock --irq signal\n  \
udrv run nvme --device pci:0000:04:00.0 read --lba 0 --blocks 2048 --output first-mib.img\n  udrv run uart16550 --device unix:/run/udrv/0000:00:08.0.sock --link /tmp/serial\n  udrv info unix:/run/udrv/0000:03:00.0.sock"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a guest driver on a device.
    Run(run::RunArgs),
    /// Run a guest driver once for each fault of a catalogue, and show which it survives.
    Faults(faults::FaultsArgs),
    /// Look at what `udrv run --record` has recorded.
    Trace(trace::TraceArgs),
    /// Show regions, interrupts and capabilities of a device.
    Info(info::InfoArgs),
    /// USB devices.
    Usb(usb::UsbArgs),
}

/// Something with the device or its driver is wrong.
const FAILED: u8 = 1;
/// The command line is wrong (as clap has it).
const USAGE: u8 = 2;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => return usage(&error.to_string()),
    };
    let outcome = match command {
        Command::Run(args) => run::run(args),
        Command::Faults(args) => faults::run(&args),
        Command::Trace(args) => trace::run(args),
        Command::Info(args) => info::run(&args),
        Command::Usb(args) => usb::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not with `#`: our errors say in their own text what caused them.
            eprintln!("udrv: {error}");
            let wrong_address = matches!(error.downcast_ref(), Some(udrv_backend::Error::BadAddress { .. }));
            ExitCode::from(if wrong_address { USAGE } else { FAILED })
        }
    }
}

/// clap's error in one line: its first paragraph.
fn usage(error: &str) -> ExitCode {
    let what = error.split("\n\n").next().unwrap_or(error).trim_start_matches("error: ");
    let words: Vec<_> = what.split_whitespace().collect();
    eprintln!("udrv: {}; see udrv --help", words.join(" "));
    ExitCode::from(USAGE)
}
