//! `udrv devices`, `udrv dma`, `udrv accesses`.

use super::{Who, device, say, say_of, split};
use anyhow::Result;
use clap::Args;
use udrv_backend::RegionIndex;
use udrv_inspect::{Access, BufferState, Snapshot, find, find_all};

#[derive(Args)]
pub struct DevicesArgs {
    /// The process to look at; all that you may look at without it.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct DmaArgs {
    /// The device's address; needed only if there are several.
    #[arg(value_name = "ADDR")]
    device: Option<String>,
    #[command(flatten)]
    who: Who,
}

#[derive(Args)]
pub struct AccessesArgs {
    /// The device's address, if there are several, and how many accesses [default: 20].
    #[arg(value_name = "ADDR | N")]
    words: Vec<String>,
    #[command(flatten)]
    who: Who,
}

pub fn devices(args: &DevicesArgs) -> Result<()> {
    let all = match args.pid {
        Some(pid) => vec![find(pid)?],
        None => find_all(),
    };
    let mut told = Vec::new();
    for found in all {
        for device in &found.snapshot.devices {
            let driver = device.registers.as_ref().map(|registers| registers.driver.as_str());
            let of_it = |slot: u64| slot == device.slot;
            let irqs = found.snapshot.sources.iter().filter(|source| source.device.is_some_and(of_it)).count();
            let buffers = found.snapshot.buffers.iter().filter(|buffer| of_it(buffer.device)).count();
            if args.json {
                told.push(serde_json::json!({ "pid": found.pid, "address": device.address, "driver": driver,
                    "registers": device.registers, "irqs": irqs, "buffers": buffers,
                    "is_held": found.snapshot.is_held }));
            } else {
                let driver = driver.unwrap_or("a driver without a register map");
                let (address, pid) = (&device.address, found.pid);
                say(&format!("{address}  {driver}, process {pid}, {irqs} interrupts, {buffers} DMA buffers"))?;
            }
        }
    }
    if args.json { say(&serde_json::json!({ "devices": told }).to_string()) } else { Ok(()) }
}

pub fn dma(args: &DmaArgs) -> Result<()> {
    let found = args.who.find(args.device.as_deref())?;
    let device = device(&found, args.device.as_deref())?;
    let buffers: Vec<_> = found.snapshot.buffers.iter().filter(|buffer| buffer.device == device.slot).collect();
    if args.who.json {
        return say_of(&found, device, "buffers", &buffers);
    }
    say_buffers(&buffers)
}

/// A table.
pub fn say_buffers(buffers: &[&BufferState]) -> Result<()> {
    say(&format!("{:<22} {:>10}  {:<24} owner", "bus address", "bytes", "the device"))?;
    for BufferState { iova, size, length, device_reads, device_writes, owner, .. } in buffers {
        let may = match (device_reads, device_writes) {
            (true, true) => "reads and writes",
            (true, false) => "reads",
            (false, true) => "writes",
            (false, false) => "has no access",
        };
        let owner = format!("{owner:?}").to_lowercase();
        say(&format!("{:<22} {length:>10}  {may:<24} {owner}", format!("{iova:#x}+{size:#x}")))?;
    }
    Ok(())
}

pub fn accesses(args: &AccessesArgs) -> Result<()> {
    let (address, rest) = split(&args.words);
    let most: usize = rest
        .first()
        .map_or(Ok(20), |word| word.parse().map_err(|_| anyhow::anyhow!("`{word}` is no number of accesses")))?;
    let found = args.who.find(address)?;
    let device = device(&found, address)?;
    let mut all: Vec<_> = found.snapshot.accesses.iter().filter(|access| access.device == device.slot).collect();
    all.drain(..all.len().saturating_sub(most));
    if args.who.json {
        return say_of(&found, device, "accesses", &all);
    }
    for access in &all {
        say(&access_line(&found.snapshot, access))?;
    }
    if all.is_empty() && !found.snapshot.records_mapped {
        let advice = "use a debug build of the driver, or start it with `udrv debug --by-message`";
        say(&format!("accesses to mapped registers are not recorded in this build: {advice}"))?;
    }
    Ok(())
}

/// One access in words: number, time, thread, what, where, value with its bits.
pub fn access_line(snapshot: &Snapshot, access: &Access) -> String {
    let Access { number, time_ns, thread, region, offset, width, is_write, value, .. } = access;
    let registers = snapshot.device(access.device).and_then(|device| device.registers.as_ref());
    let register = registers.and_then(|map| map.accessed(*region, *offset, *width, *is_write));
    let name = register.map_or_else(|| format!("{offset:#x}"), |register| register.name.clone());
    let bits = register.map(|register| register.decode(*value)).unwrap_or_default();
    let digits = 2 + (*width / 4) as usize;
    let kind = if *is_write { "write" } else { "read " };
    let time = *time_ns as f64 / 1e9;
    let region = RegionIndex(*region);
    let line = format!("{number:>7} {time:>14.6} {thread:>7} {kind} {region} {name:<24} {value:#0digits$x}  {bits}");
    line.trim_end().to_owned()
}
