//! `stub-driver status`: what a running stub serves, and to whom.

use crate::serve::{
    CONTROL_SOCKET, DeviceStatus, HoldStatus, LeaseStatus, Reply, Request, SOCKET_DIR, Status, Waiting,
};
use anyhow::{Context as _, Result, bail};
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use udrv_backend::IrqIndex;

/// How long the stub may take to answer. It may be closing a device.
const PATIENCE: Duration = Duration::from_secs(15);

/// Longest answer believed, bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// `stub-driver status`
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Where the stub has its sockets.
    #[arg(long, value_name = "DIR", default_value = SOCKET_DIR)]
    socket_dir: PathBuf,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs it.
///
/// # Errors
/// One line if no stub runs there, or what answers is none.
pub fn run(args: &StatusArgs) -> Result<()> {
    let path = args.socket_dir.join(CONTROL_SOCKET);
    let status = ask(&path)?;
    let text = if args.json { serde_json::to_string_pretty(&status)? } else { describe(&status) };
    writeln!(std::io::stdout(), "{text}").context("printing")
}

fn ask(path: &Path) -> Result<Status> {
    let shown = path.display();
    let mut stream = udrv_channel::connect(path, PATIENCE).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            anyhow::anyhow!("no stub runs at {shown}; start one with `stub-driver serve`, or name its --socket-dir")
        }
        ErrorKind::PermissionDenied => anyhow::anyhow!("{shown} is not yours; ask as root or as the stub's owner"),
        _ => anyhow::anyhow!("connecting to {shown}: {error}"),
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_string(&Request::Status)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).with_context(|| format!("asking {shown}"))?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_ANSWER))
        .read_line(&mut answer)
        .with_context(|| format!("no answer of {shown} within {PATIENCE:?}"))?;
    if answer.is_empty() {
        bail!("{shown} closed the connection: its devices are served to another user");
    }
    match serde_json::from_str(&answer).with_context(|| format!("{shown} does not speak as a stub"))? {
        Reply::Ok(status) => Ok(status),
        Reply::Error(why) => bail!("{shown}: {why}"),
    }
}

fn describe(status: &Status) -> String {
    let lines = status.devices.iter().map(|device| {
        let DeviceStatus { address, socket, owner, mmap, lease, .. } = device;
        let mapped = if *mmap { ", registers can be mapped" } else { "" };
        let lease = lease.as_ref().map_or("  free".into(), describe_lease);
        format!("{address}  {}  user {owner}{mapped}\n{lease}", socket.display())
    });
    std::iter::once(format!("stub, process {}", status.pid)).chain(lines).collect::<Vec<_>>().join("\n")
}

fn describe_lease(lease: &LeaseStatus) -> String {
    let LeaseStatus { pid, uid, lease_s, messages, reads, writes, irqs_set, errors, dma_bytes, hold } = lease;
    let hold = hold.as_ref().map(describe_hold).unwrap_or_default();
    format!(
        "  process {pid} of user {uid} for {lease_s:.1} s: {messages} messages, {reads} reads, {writes} writes, \
{irqs_set} irqs set, {dma_bytes} bytes of DMA mapped, {errors} errors{hold}"
    )
}

fn describe_hold(hold: &HoldStatus) -> String {
    let HoldStatus { held_s, tracer_pid, waiting } = hold;
    let by =
        tracer_pid.map_or_else(|| "stopped by a signal".into(), |pid| format!("held by its debugger, process {pid},"));
    let waiting: Vec<_> = waiting
        .iter()
        .map(|Waiting { index, vector, count }| format!("{count} of {} vector {vector}", IrqIndex(*index)))
        .collect();
    let waiting = if waiting.is_empty() { "none".into() } else { waiting.join(", ") };
    format!("\n  {by} for {held_s:.1} s; interrupts waiting: {waiting}")
}
