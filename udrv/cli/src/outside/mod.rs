//! Looking at a driver from another process, by its inspection page, also while it stands in a debugger: what these commands
//! print in a shell, the debugger's commands print, since they call them.

pub mod bundle;
mod crash;
pub mod irqs;
pub mod raise;
mod reach;
pub mod registers;
pub mod show;

use anyhow::{Result, anyhow, bail};
use clap::Args;
use udrv_inspect::{DeviceState, Found, find, find_all};

/// Which process.
#[derive(Args)]
pub struct Who {
    /// The process to look at; needed only if several have such a device.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
}

impl Who {
    /// The process that has the device with this address, or the only one there is.
    pub fn find(&self, address: Option<&str>) -> Result<Found> {
        let has = |found: &Found| {
            let mut devices = found.snapshot.devices.iter();
            address.map_or(!found.snapshot.devices.is_empty(), |wanted| devices.any(|device| is(device, wanted)))
        };
        if let Some(pid) = self.pid {
            let found = find(pid)?;
            return match address {
                Some(address) if !has(&found) => {
                    bail!("process {pid} does not have {address}: udrv devices shows what is driven")
                }
                _ => Ok(found),
            };
        }
        let mut all: Vec<_> = find_all().into_iter().filter(has).collect();
        match (all.pop(), all.as_slice()) {
            (Some(only), []) => Ok(only),
            (Some(last), others) => {
                let pids: Vec<_> = others.iter().chain([&last]).map(|found| found.pid.to_string()).collect();
                bail!("processes {} have such a device: say which with --pid", pids.join(", "))
            }
            (None, _) => {
                let what = address.map_or_else(|| "a device".to_owned(), str::to_owned);
                bail!("no process that you may look at drives {what}: start its driver first, or ask as its user")
            }
        }
    }
}

/// Whether a device has this address: as its driver opened it, or as the stub that serves it has it.
fn is(device: &DeviceState, address: &str) -> bool {
    let served_as = |name: &str| {
        let socket = device.address.strip_prefix("unix:").map(std::path::Path::new);
        socket.and_then(|socket| socket.file_stem()).is_some_and(|stem| stem == name)
    };
    device.address == address || address.strip_prefix("pci:").is_some_and(served_as)
}

/// The device meant, among those of a process.
pub fn device<'a>(found: &'a Found, address: Option<&str>) -> Result<&'a DeviceState> {
    let mut devices = found.snapshot.devices.iter().filter(|device| address.is_none_or(|wanted| is(device, wanted)));
    let first = devices.next().ok_or_else(|| anyhow!("process {} has no such device", found.pid))?;
    match devices.next() {
        None => Ok(first),
        Some(second) => bail!("process {} has {} and {}: say which", found.pid, first.address, second.address),
    }
}

/// Splits `[DEVICE] [WORD...]`: an address has a colon, nothing else here has.
pub fn split(words: &[String]) -> (Option<&str>, &[String]) {
    match words.split_first() {
        Some((first, rest)) if first.contains(':') => (Some(first), rest),
        _ => (None, words),
    }
}

/// Prints something that a device has many of as one JSON object, which says whose they are.
pub fn say_of<T: serde::Serialize>(found: &Found, device: &DeviceState, what: &str, all: &[T]) -> Result<()> {
    say(&serde_json::json!({ "pid": found.pid, "address": device.address, what: all }).to_string())
}

/// Prints a line. That nobody reads on ends the command, and is then no failure.
pub fn say(line: &str) -> Result<()> {
    use std::io::Write as _;
    // It may come from another process, which has no say over our terminal.
    let line: String = line.chars().map(|it| if it.is_control() && it != '\n' { '?' } else { it }).collect();
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
