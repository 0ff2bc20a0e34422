//! USB devices: taken for unprivileged drivers on this machine (`stub-driver serve` passes them on), and exported to others.

pub mod export;
mod flights;
pub mod session;
pub(crate) mod taken;

use anyhow::Result;

/// `stub-driver usb`
#[derive(Debug, clap::Args)]
pub struct UsbArgs {
    #[command(subcommand)]
    command: UsbCommand,
}

#[derive(Debug, clap::Subcommand)]
enum UsbCommand {
    /// Export USB devices and models over USB/IP, until told to end.
    Export(export::ExportArgs),
}

/// Runs it.
///
/// # Errors
/// What keeps it from serving.
pub fn run(args: &UsbArgs) -> Result<()> {
    match &args.command {
        UsbCommand::Export(args) => export::run(args),
    }
}
