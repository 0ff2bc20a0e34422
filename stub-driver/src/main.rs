//! `stub-driver`: the command line of the host side.

use clap::{Parser, Subcommand};
use std::io::IsTerminal as _;
use std::process::ExitCode;
use stub_driver::{bind, doctor, list, serve, status, usb};

#[derive(Parser)]
#[command(
    name = "stub-driver",
    version,
    about = "Takes PCI and USB devices from the kernel and serves them to unprivileged drivers",
    after_help = "Examples:\n  stub-driver list\n  stub-driver doctor 0000:03:00.0\n  stub-driver serve pci:0000:03:00.0 --owner alice\n  \
stub-driver serve usb:1-2 --owner alice\n  stub-driver serve model:edu --socket-dir /tmp/udrv\n\nThen, as that user: udrv info unix:/run/udrv/0000:03:00.0.sock"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show PCI devices, their groups, and what keeps each from being taken.
    List(list::ListArgs),
    /// Check what this machine, or one device, lacks; each failing line says what to do.
    Doctor(doctor::DoctorArgs),
    /// Take a device from its kernel driver.
    Bind(bind::BindArgs),
    /// Give a device back to the driver it had.
    Release(bind::ReleaseArgs),
    /// Serve devices over sockets until told to end (SIGTERM, SIGINT).
    Serve(serve::ServeArgs),
    /// Show what a running stub serves, and to whom.
    Status(status::StatusArgs),
    /// USB devices.
    Usb(usb::UsbArgs),
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(
            tracing_subscriber::EnvFilter::builder()
                .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
                .from_env_lossy(),
        )
        .init();
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return misused(&error),
    };
    let outcome = match command {
        Command::List(args) => list::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bind(args) => bind::bind(&args),
        Command::Release(args) => bind::release(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Usb(args) => usb::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stub-driver: {error:#}");
            if !error.is::<doctor::Failed>() {
                tell_as_json(&format!("{error:#}"));
            }
            ExitCode::FAILURE
        }
    }
}

/// An error for programs: where a command was asked for JSON, it is JSON, too.
fn tell_as_json(error: &str) {
    if std::env::args_os().any(|word| word == "--json") {
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
    match std::error::Error::source(error) {
        Some(wrong) if error.kind() == ErrorKind::ValueValidation => {
            eprintln!("stub-driver: {wrong}");
            tell_as_json(&wrong.to_string());
        }
        _ => {
            let text = error.to_string();
            let mut paragraphs =
                text.split("\n\n").map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
            let what = paragraphs.next().unwrap_or_default();
            let usage = paragraphs.find(|paragraph| paragraph.starts_with("Usage:"));
            let usage = usage.unwrap_or_else(|| "See stub-driver --help".into());
            let what = what.trim_start_matches("error: ");
            eprintln!("stub-driver: {what}. {usage}");
            tell_as_json(what);
        }
    }
    ExitCode::from(2)
}
