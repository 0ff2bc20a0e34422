//! The command: serves what was asked for until it is told to end.

use super::config::{self, Plan, Planned};
use super::control::ControlServer;
use super::device::{self, DeviceAddress};
use super::server::DeviceServer;
use super::socket;
use crate::bind::Binder;
use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use std::io::Write as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;

/// Where sockets are unless told otherwise.
pub(crate) const SOCKET_DIR: &str = "/run/udrv";

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// `stub-driver serve`
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// What to serve: pci:0000:03:00.0, usb:BUS-PORT or usb:VID:PID[:SERIAL], model:edu, model:nvme or model:uart16550.
    #[arg(value_name = "DEVICE", required_unless_present = "config")]
    pub(super) devices: Vec<DeviceAddress>,
    /// Where the sockets are made [default: the file's, or /run/udrv].
    #[arg(long, value_name = "DIR")]
    pub(super) socket_dir: Option<PathBuf>,
    /// Whom to serve, by name or number [default: the file's, or whoever runs this].
    #[arg(long, value_name = "USER")]
    pub(super) owner: Option<String>,
    /// Let clients map registers. Of a PCI device they are then given the VFIO descriptor, which allows all of it.
    #[arg(long, requires = "devices")]
    pub(super) mmap: bool,
    /// A TOML file that lists devices to serve, beside those given here.
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Take a PCI device from its driver only while a client has it (as it always is with a USB device).
    #[arg(long, requires = "devices")]
    pub(super) per_lease: bool,
    /// How much memory a client of a PCI device may have mapped for DMA, which then stays in RAM [default: half of this
    /// machine's, shared evenly among the PCI devices].
    #[arg(long, requires = "devices", value_name = "MIB")]
    pub(super) dma_limit: Option<u64>,
    /// Whether a client that stands, in a debugger or by a signal, has its interrupts held back until it goes on, and its
    /// clock and the deadlines against it stand still.
    #[arg(long, value_enum, requires = "devices", value_name = "WHETHER", default_value = "on")]
    pub(super) hold: Switch,
    /// Record what passes between each client and its device into this folder: one file a lease, of which the last 16 of a
    /// device are kept (see udrv trace). Registers are then not mapped.
    #[arg(long, value_name = "DIR", conflicts_with = "mmap")]
    pub(super) record: Option<PathBuf>,
    /// Record also what the device writes into memory.
    #[arg(long, requires = "record")]
    pub(super) record_dma: bool,
}

/// Serves until SIGTERM, SIGINT or SIGHUP.
///
/// # Errors
/// Why a device cannot be served; nothing is then served, and what was taken is given back.
pub fn run(args: &ServeArgs) -> Result<()> {
    let plan = config::plan(args)?;
    // Blocked before the first thread, so that all inherit it and only `wait` below takes them.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("blocking signals")?;
    repair();

    socket::make_folder(&plan.socket_dir)?;
    let most_mappings = mappings_each(plan.devices.len());
    let dma_limit = memory_each(&plan.devices)?;
    let mut servers = Vec::new();
    for device in &plan.devices {
        servers.push(start(device, &plan, most_mappings, dma_limit)?);
    }
    let mut control = ControlServer::start(&plan.socket_dir, plan.owner, &servers)?;
    tell("ready");
    if let Err(error) = notify() {
        tracing::warn!("cannot tell the service manager that it is ready: {error}");
    }
    let signal = signals.wait().context("waiting for a signal")?;
    tracing::info!("{signal}: ending");
    // All at once, then each is waited for: one slow reset delays no other.
    control.stop();
    servers.iter_mut().for_each(DeviceServer::stop);
    drop(control);
    drop(servers);
    Ok(())
}

fn start(device: &Planned, plan: &Plan, most_mappings: u32, dma_limit: u64) -> Result<DeviceServer> {
    let name = device.address.name();
    let mut export = device::export(device)?.mappings_at_most(most_mappings);
    // A model reads and writes the client's files, and keeps nothing in RAM.
    if matches!(device.address, DeviceAddress::Pci(_)) {
        export = export.memory_at_most(device.dma_limit.unwrap_or(dma_limit));
    }
    let what = match &device.address {
        DeviceAddress::Usb(address) => device::describe_usb(address)?,
        // It stays with its driver until a client comes: looked at, not taken.
        DeviceAddress::Pci(bdf) if device.per_lease => device::describe_untaken(*bdf)?,
        // Opened once now, so that what is wrong is said here and not to the first client.
        _ => device::describe(&device.address, &*export.open()?.device)?,
    };
    let export = export.recorded(plan.recordings.clone());
    let server = DeviceServer::start(export, &plan.socket_dir.join(format!("{name}.sock")))?;
    tell(&format!("{}  {what}", server.path().display()));
    if device.mmap && matches!(device.address, DeviceAddress::Pci(_)) {
        tracing::warn!("{name}: --mmap gives its clients the VFIO descriptor, with which they can do anything to it");
    }
    Ok(server)
}

/// What a dead stub had taken goes back first: it may be what is to be served now.
fn repair() {
    match Binder::default().repair() {
        Ok(repaired) => {
            for device in repaired {
                let to = device.driver.as_deref().unwrap_or("no driver, as before");
                eprintln!("{}: left taken by a stub that died, given back to {to}", device.bdf);
            }
        }
        Err(error) => tracing::warn!("cannot look for what a stub that died has left: {error}"),
    }
    match crate::usb::taken::repair() {
        Ok(repaired) => {
            for device in repaired {
                eprintln!("{device}: left taken by a stub that died, given back to its kernel drivers");
            }
        }
        Err(error) => tracing::warn!("cannot look for what a stub that died has left: {error}"),
    }
}

/// How many DMA mappings, each of which may keep a descriptor, the client of each device may have, so that it cannot use
/// up what the others need. Raises this process's limit as far as it may first.
fn mappings_each(devices: usize) -> u32 {
    let resource = Resource::RLIMIT_NOFILE;
    let limit =
        getrlimit(resource).map_or(1024, |(soft, hard)| setrlimit(resource, hard, hard).map_or(soft, |()| hard));
    let each = (limit / 2).checked_div(devices as u64).unwrap_or(0);
    u32::try_from(each).unwrap_or(u32::MAX)
}

/// How much memory the client of each PCI device may have pinned: root pins without a limit of its own (`CAP_IPC_LOCK`), so
/// that without one a client could have all of the machine's memory pinned.
fn memory_each(devices: &[Planned]) -> Result<u64> {
    let pinning = devices.iter().filter(|device| matches!(device.address, DeviceAddress::Pci(_))).count() as u64;
    let total = nix::sys::sysinfo::sysinfo().context("asking for the machine's memory")?.ram_total();
    Ok((total / 2).checked_div(pinning).unwrap_or(u64::MAX))
}

/// A line on standard output, whose reader may have gone.
fn tell(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Tells the service manager that sockets are there (`sd_notify(3)`), if one asks for it.
fn notify() -> std::io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match path.as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(drop)
}
