//! USB devices: passed to unprivileged drivers on this machine, and exported to others.

pub mod export;
pub mod serve;
pub mod session;
pub mod usbip;

use anyhow::Result;

/// `stub-driver usb`
#[derive(Debug, clap::Args)]
pub struct UsbArgs {
    #[command(subcommand)]
    command: UsbCommand,
}

#[derive(Debug, clap::Subcommand)]
enum UsbCommand {
    /// Take a USB device from its kernel driver and pass it to one driver after the other, until told to end.
    Serve(serve::ServeArgs),
    /// Export USB devices and models over USB/IP, until told to end.
    Export(export::ExportArgs),
}

/// Runs it.
///
/// # Errors
/// What keeps it from serving.
pub fn run(args: &UsbArgs) -> Result<()> {
    match &args.command {
        UsbCommand::Serve(args) => serve::run(args),
        UsbCommand::Export(args) => export::run(args),
    }
}
