//! `cargo xtask demo | test | bench | fuzz | stress | new-device | vm`: everything a newcomer or CI runs.

mod bench;
mod clock;
mod demo;
mod fuzz;
mod new_device;
mod stress;
mod stub;
mod test;
mod vm;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use std::process::{Command, ExitCode};

#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask", about = "Demo, tests and virtual machine of udrv")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Show the kit at work: a device in one process, its driver in another.
    Demo,
    /// Run every check and test, the virtual machines included (what CI runs).
    Test(test::TestArgs),
    /// Measure, side by side with peers.
    Bench(bench::BenchArgs),
    /// Stress the interrupt gate: sections at random against very many interrupts.
    Stress(stress::StressArgs),
    /// Let libFuzzer look for bytes that break a decoder.
    Fuzz(fuzz::FuzzArgs),
    /// Lay out a device's folder: registers, driver, model, tests, page.
    NewDevice(new_device::NewDeviceArgs),
    /// Boot the virtual machine.
    Vm(vm::VmArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Demo => demo::run(),
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Stress(args) => stress::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::NewDevice(args) => new_device::run(&args),
        Task::Vm(args) => vm::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The cargo that runs us.
fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs `command`, with its output on ours.
fn succeed(command: &mut Command) -> Result<()> {
    let said = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot start {said}"))?;
    if !status.success() {
        bail!("{said} failed ({status})");
    }
    Ok(())
}
