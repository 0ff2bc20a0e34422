//! `udrv raise`: an interrupt that the device did not raise.

use super::reach::{Control, duplicate};
use super::{Who, split};
use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use std::path::Path;

#[derive(Args)]
pub struct RaiseArgs {
    /// The device's address, if there are several; and the vector.
    #[arg(value_name = "ADDR | VECTOR", required = true)]
    words: Vec<String>,
    #[command(flatten)]
    who: Who,
}

pub fn run(args: &RaiseArgs) -> Result<()> {
    let (address, rest) = split(&args.words);
    let [vector] = rest else { bail!("expected one vector; see udrv raise --help") };
    let vector: u32 = vector.parse().map_err(|_| anyhow!("`{vector}` is no vector: expected a number"))?;
    let found = args.who.find(address)?;
    let device = super::device(&found, address)?;
    let of_it = |source: &&udrv_inspect::SourceState| source.device == Some(device.slot) && source.vector == vector;
    let source = found.snapshot.sources.iter().find(of_it);
    let source = source.ok_or_else(|| anyhow!("{} has no handler for vector {vector}", device.address))?;
    if let Some(eventfd) = source.eventfd {
        let eventfd = duplicate(found.pid, eventfd)?;
        rustix::io::write(&eventfd, &1u64.to_ne_bytes()).with_context(|| format!("signalling {}", source.name))?;
        return Ok(());
    }
    let socket = device.address.strip_prefix("unix:").map(Path::new);
    match socket.and_then(|socket| Some((socket, Control::beside(socket)?))) {
        Some((socket, control)) => control.raise(socket, source.index, vector),
        None => bail!("{} is delivered by signal, and no stub serves it: use --irq thread or poll", source.name),
    }
}
