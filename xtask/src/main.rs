//! `cargo xtask demo | test | vm`: everything a newcomer or CI runs.

mod bench;
mod demo;
mod vm;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use std::process::Command;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, demo, test and virtual machine of udrv")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Show the kit at work: a device in one process, its driver in another.
    Demo,
    /// Run every check and test, the virtual machine included (what CI runs).
    Test,
    /// Measure, side by side with peers.
    Bench(bench::BenchArgs),
    /// Boot the virtual machine.
    Vm(vm::VmArgs),
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Demo => demo::run(),
        Task::Test => test(),
        Task::Bench(args) => bench::run(&args),
        Task::Vm(args) => vm::run(&args),
    }
}

fn test() -> Result<()> {
    cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
    cargo(&["test", "--workspace", "--locked"])?;
    cargo(&["build", "--workspace", "--bins", "--locked"])?;
    let results = vm::run_scenarios(&vm::repo_root())?;
    let failed: Vec<&str> = results
        .iter()
        .filter(|result| matches!(result.outcome, vm::Outcome::Failed(_)))
        .map(|result| result.name.as_str())
        .collect();
    if !failed.is_empty() {
        bail!("failed in the virtual machine: {}", failed.join(", "));
    }
    Ok(())
}

/// Runs cargo with `args`, inheriting the terminal.
fn cargo(args: &[&str]) -> Result<()> {
    eprintln!("$ cargo {}", args.join(" "));
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(args)
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("cargo {} failed ({status})", args.join(" "));
    }
    Ok(())
}
