//! `udrv inspect BUNDLE`: what a stub has kept of a driver that panicked, crashed or was killed.

use super::crash::{self, Then};
use super::{irqs, say, show};
use anyhow::{Result, anyhow, bail};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use std::path::PathBuf;
use udrv_inspect::Snapshot;

/// Accesses shown.
const LAST: usize = 10;

#[derive(Args)]
#[command(after_help = "Examples:\n  udrv inspect /run/udrv/bundles/edu-1764379621000-4711.json\n  \
udrv inspect edu-1764379621000-4711.json --core core.4711 --gdb\n\n\
In gdb, `udrv regs`, `udrv irqs`, `udrv trace` and `udrv dma` then show what the bundle has.")]
pub struct InspectArgs {
    /// The bundle: a file that the stub has named in its log, in the folder `bundles` beside its sockets.
    bundle: PathBuf,
    /// The driver's core: shows where each of its threads was.
    #[arg(long, value_name = "FILE")]
    core: Option<PathBuf>,
    /// Open gdb on the core, after showing the rest.
    #[arg(long, requires = "core")]
    gdb: bool,
    /// The program that the core is of [default: that of the bundle].
    #[arg(long, value_name = "FILE", requires = "core")]
    program: Option<PathBuf>,
    /// Show only this part.
    #[arg(long, value_enum, value_name = "PART", default_value = "all", conflicts_with = "json")]
    show: Part,
    /// Print it as JSON.
    #[arg(long, conflicts_with = "core")]
    json: bool,
}

/// A part of a bundle.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Everything but DMA.
    All,
    /// The registers, without those whose reading changes the device.
    Registers,
    /// What each interrupt had seen, and the open sections.
    Irqs,
    /// The last register accesses.
    Accesses,
    /// The DMA buffers.
    Dma,
}

/// What the stub has written.
#[derive(Deserialize)]
pub struct Bundle {
    bundle: u32,
    address: String,
    why: String,
    pub pid: u32,
    uid: u32,
    pub program: Option<PathBuf>,
    pub folder: Option<PathBuf>,
    registers: Vec<Value>,
    state: Snapshot,
}

#[derive(Deserialize)]
struct Value {
    name: String,
    offset: u64,
    width_bits: u64,
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
    match args.show {
        Part::All => tell(&bundle)?,
        Part::Registers => registers(&bundle)?,
        Part::Irqs => say(&irqs::as_text(&bundle.state))?,
        Part::Accesses => accesses(&bundle, usize::MAX)?,
        Part::Dma => show::say_buffers(&bundle.state.buffers.iter().collect::<Vec<_>>())?,
    }
    match &args.core {
        Some(core) => {
            let then = if args.gdb { Then::Stay } else { Then::End };
            crash::open(&bundle, (core, args.program.as_deref()), &args.bundle, &then)
        }
        None if args.show == Part::All => crash::hint(&bundle, &args.bundle).map_or(Ok(()), |hint| say(&hint)),
        None => Ok(()),
    }
}

fn tell(bundle: &Bundle) -> Result<()> {
    let Bundle { address, why, pid, uid, program, state, .. } = bundle;
    let program =
        program.as_ref().map_or_else(|| "a program that is gone".into(), |program| program.display().to_string());
    say(&format!("{address}: {why}: process {pid} of user {uid}, {program}"))?;
    if let Some(panic) = &state.panic {
        say(panic.trim_end())?;
    }
    say("\nregisters afterwards, without those whose reading changes the device")?;
    registers(bundle)?;
    say("\ninterrupts")?;
    say(&irqs::as_text(state))?;
    say(&format!("\nthe last {} register accesses", state.accesses.len().min(LAST)))?;
    accesses(bundle, LAST)
}

fn registers(bundle: &Bundle) -> Result<()> {
    for Value { name, offset, width_bits, value, bits, error } in &bundle.registers {
        let digits = 2 + (*width_bits / 4).min(16) as usize;
        let value = value.map_or_else(|| error.clone().unwrap_or_default(), |value| format!("{value:#0digits$x}"));
        let line = format!("{name:<26} {offset:#06x}  {value}  {}", bits.as_deref().unwrap_or_default());
        say(line.trim_end())?;
    }
    Ok(())
}

fn accesses(bundle: &Bundle, most: usize) -> Result<()> {
    let all = &bundle.state.accesses;
    all.iter()
        .skip(all.len().saturating_sub(most))
        .try_for_each(|access| say(&show::access_line(&bundle.state, access)))
}
