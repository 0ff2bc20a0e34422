//! `udrv inspect BUNDLE`: what a stub has kept of a driver that panicked, crashed or was killed.

use super::{irqs, say, show};
use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use serde::Deserialize;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use udrv_inspect::Snapshot;

/// Accesses shown.
const LAST: usize = 10;

#[derive(Args)]
pub struct InspectArgs {
    /// The bundle: a file that the stub has named in its log, in the folder `bundles` beside its sockets.
    bundle: PathBuf,
    /// The driver's core: shows where each of its threads was.
    #[arg(long, value_name = "FILE")]
    core: Option<PathBuf>,
    /// Open gdb on the core, after showing the rest.
    #[arg(long, requires = "core")]
    gdb: bool,
    /// Print it as JSON.
    #[arg(long, conflicts_with = "core")]
    json: bool,
}

#[derive(Deserialize)]
struct Bundle {
    bundle: u32,
    address: String,
    why: String,
    pid: u32,
    uid: u32,
    program: Option<PathBuf>,
    registers: Vec<Value>,
    state: Snapshot,
}

#[derive(Deserialize)]
struct Value {
    name: String,
    offset: u64,
    width: u64,
    value: Option<u64>,
    bits: Option<String>,
    error: Option<String>,
}

pub fn run(args: &InspectArgs) -> Result<()> {
    let shown = args.bundle.display();
    let text = std::fs::read_to_string(&args.bundle).map_err(|error| anyhow!("reading {shown}: {error}"))?;
    let bundle: Bundle = serde_json::from_str(&text).map_err(|error| anyhow!("{shown} is no bundle: {error}"))?;
    if bundle.bundle != 1 {
        bail!("{shown} is of version {}, this udrv knows 1", bundle.bundle);
    }
    if args.json {
        return say(&text);
    }
    tell(&bundle)?;
    match &args.core {
        Some(core) => backtrace(&bundle, core, args.gdb),
        None => Ok(()),
    }
}

fn tell(bundle: &Bundle) -> Result<()> {
    let Bundle { address, why, pid, uid, program, registers, state, .. } = bundle;
    let program =
        program.as_ref().map_or_else(|| "a program that is gone".into(), |program| program.display().to_string());
    say(&format!("{address}: {why}: process {pid} of user {uid}, {program}"))?;
    if let Some(panic) = &state.panic {
        say(panic.trim_end())?;
    }
    say("\nregisters afterwards, without those whose reading changes the device")?;
    for Value { name, offset, width, value, bits, error } in registers {
        let digits = 2 + (*width / 4).min(16) as usize;
        let value = value.map_or_else(|| error.clone().unwrap_or_default(), |value| format!("{value:#0digits$x}"));
        let line = format!("{name:<26} {offset:#06x}  {value}  {}", bits.as_deref().unwrap_or_default());
        say(line.trim_end())?;
    }
    say("\ninterrupts")?;
    say(&irqs::as_text(state))?;
    let last = state.accesses.len().saturating_sub(LAST);
    say(&format!("\nthe last {} register accesses", state.accesses.len() - last))?;
    for access in state.accesses.iter().skip(last) {
        say(&show::access_line(state, access))?;
    }
    Ok(())
}

/// Where the threads were, by gdb.
fn backtrace(bundle: &Bundle, core: &std::path::Path, stay: bool) -> Result<()> {
    let program = bundle.program.as_ref().context("the bundle does not say which program it was")?;
    let mut gdb = Command::new("gdb");
    gdb.arg("-q");
    if !stay {
        gdb.args(["-batch", "-ex", "thread apply all backtrace"]);
    }
    gdb.arg(program).arg(core);
    Err(anyhow!("starting gdb: {}; install it (Debian, Ubuntu: apt install gdb)", gdb.exec()))
}
