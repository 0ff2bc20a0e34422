//! `udrv`: run guest drivers and look at devices.

mod address;
mod capability;
mod debug;
mod drivers;
mod faults;
mod info;
mod nbd;
mod nvme;
mod outside;
mod progress;
mod run;
mod stop;
mod surround;
mod trace;
mod uart;
mod usb;

use clap::{Parser, Subcommand};
use std::io::IsTerminal as _;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "udrv",
    version,
    about = "Run native drivers as ordinary processes",
    after_help = "Device addresses:\n  pci:0000:03:00.0     kernel VFIO, in this process (bind it first: stub-driver bind)\n  \
unix:PATH            the stub, or any other vfio-user server\n  model:NAME           edu, nvme or uart16550: software, in this process\n  \
replay:FILE          what udrv run --record has recorded\n  usb:BUS-PORT         for the usb-* drivers; also usb:VID:PID[:SERIAL], and model:NAME of each (see its --help)\n\n\
Examples:\n  udrv run edu --device model:edu\n  udrv run edu --device unix:/run/udrv/edu.sock --irq signal\n  \
udrv run nvme --device pci:0000:04:00.0 read --lba 0 --blocks 2048 --output first-mib.img\n  udrv run nvme --device pci:0000:04:00.0 --export nbd:/run/udrv/disk.sock\n  udrv run uart16550 --device unix:/run/udrv/0000:00:08.0.sock --link /tmp/serial\n  udrv info unix:/run/udrv/0000:03:00.0.sock"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a guest driver on a device.
    Run(run::RunArgs),
    /// Run a driver in a debugger that shows devices, registers, interrupts and DMA.
    Debug(debug::DebugArgs),
    /// Run a guest driver once for each fault of a catalogue, and show which it survives.
    Faults(faults::FaultsArgs),
    /// Look at what `udrv run --record` has recorded.
    Trace(trace::TraceArgs),
    /// Show regions, interrupts and capabilities of a device.
    Info(info::InfoArgs),
    /// USB devices.
    Usb(usb::UsbArgs),
    /// Show what interrupts a running driver of another process has seen, and which sections hold them back.
    Irqs(outside::irqs::IrqsArgs),
    /// Show which devices are driven, and by which processes.
    Devices(outside::show::DevicesArgs),
    /// Show the registers of a device that is driven, by name and bits, also while its driver stands in a debugger.
    Regs(outside::registers::RegsArgs),
    /// Write a register of a device that is driven, behind its driver's back.
    Poke(outside::registers::PokeArgs),
    /// Show the DMA buffers of a running driver.
    Dma(outside::show::DmaArgs),
    /// Show the last register accesses of a running driver.
    Accesses(outside::show::AccessesArgs),
    /// Show what a stub has kept of a driver that panicked, crashed or was killed.
    Inspect(outside::bundle::InspectArgs),
    /// Let a running driver have an interrupt that its device did not raise.
    Raise(outside::raise::RaiseArgs),
}

/// Something with the device or its driver is wrong.
const FAILED: u8 = 1;
/// The command line is wrong (as clap has it).
const USAGE: u8 = 2;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return misused(&error),
    };
    let outcome = match command {
        Command::Run(args) => run::run(args),
        Command::Debug(args) => debug::run(&args),
        Command::Faults(args) => faults::run(&args),
        Command::Trace(args) => trace::run(args),
        Command::Info(args) => info::run(&args),
        Command::Usb(args) => usb::run(&args),
        Command::Irqs(args) => outside::irqs::run(&args),
        Command::Devices(args) => outside::show::devices(&args),
        Command::Regs(args) => outside::registers::regs(&args),
        Command::Poke(args) => outside::registers::poke(&args),
        Command::Dma(args) => outside::show::dma(&args),
        Command::Accesses(args) => outside::show::accesses(&args),
        Command::Inspect(args) => outside::bundle::run(&args),
        Command::Raise(args) => outside::raise::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // A pager that was left, or `head`.
        Err(error) if error.downcast_ref().map(std::io::Error::kind) == Some(std::io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            let text = whole(&error);
            eprintln!("udrv: {text}");
            tell_as_json(&text);
            let wrong_address = matches!(error.downcast_ref(), Some(udrv_backend::Error::BadAddress { .. }));
            ExitCode::from(if wrong_address { USAGE } else { FAILED })
        }
    }
}

/// An error with what caused it, which our own errors have in their text already.
fn whole(error: &anyhow::Error) -> String {
    error
        .chain()
        .skip(1)
        .map(ToString::to_string)
        .fold(error.to_string(), |text, cause| if text.contains(&cause) { text } else { format!("{text}: {cause}") })
}

/// An error for programs: where a command was asked for JSON, it is JSON, too.
fn tell_as_json(error: &str) {
    // What is behind `--` is another program's.
    if std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json") {
        use std::io::Write as _;
        let _gone = writeln!(std::io::stdout(), "{}", serde_json::json!({ "error": error }));
    }
}

/// clap's error in one line, as every other error: what is wrong, and the command's usage. Help and version are as clap has them.
fn misused(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    let is_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand || !error.use_stderr();
    if is_help {
        error.exit();
    }
    let text = error.to_string();
    let mut paragraphs = text.split("\n\n").map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    let what = paragraphs.next().unwrap_or_default();
    let usage =
        paragraphs.find(|paragraph| paragraph.starts_with("Usage:")).unwrap_or_else(|| "See udrv --help".into());
    let what = what.trim_start_matches("error: ");
    eprintln!("udrv: {what}. {usage}");
    tell_as_json(what);
    ExitCode::from(USAGE)
}
