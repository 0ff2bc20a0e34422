//! `udrv`: run guest drivers and look at devices.

mod address;
mod info;
mod run;
mod usb;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "udrv",
    version,
    about = "Run native drivers as ordinary processes",
    after_help = "Device addresses:\n  pci:0000:03:00.0     kernel VFIO, in this process (bind it first: stub-driver bind)\n  \
unix:PATH            the stub, or any other vfio-user server\n  model:edu            software, in this process\n\n\
Examples:\n  udrv run edu --device model:edu\n  udrv run edu --device unix:/run/udrv/edu.sock --irq signal\n  \
udrv info unix:/run/udrv/0000:03:00.0.sock"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a guest driver on a device.
    Run(run::RunArgs),
    /// Show regions, interrupts and capabilities of a device.
    Info(info::InfoArgs),
    /// USB devices.
    Usb(usb::UsbArgs),
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Info(args) => info::run(&args),
        Command::Usb(args) => usb::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("udrv: {error:#}");
            ExitCode::FAILURE
        }
    }
}
