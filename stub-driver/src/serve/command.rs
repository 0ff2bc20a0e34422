//! The command: which devices, to whom, until when.

use super::control::ControlServer;
use super::export::{Export, Opened};
use super::server::DeviceServer;
use super::socket;
use crate::bind::{Binder, Holder};
use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Uid, User, geteuid};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use udrv_backend::{AnyBackend, Backend, IrqIndex, RegionIndex};
use udrv_vfio::{Bdf, VfioBackend};

/// Where sockets are unless told otherwise.
pub(crate) const SOCKET_DIR: &str = "/run/udrv";

/// `stub-driver serve`
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// What to serve: pci:0000:03:00.0, or model:edu.
    #[arg(value_name = "DEVICE", required = true)]
    devices: Vec<DeviceAddress>,
    /// Where the sockets are made.
    #[arg(long, value_name = "DIR", default_value = SOCKET_DIR)]
    socket_dir: PathBuf,
    /// Whom to serve, by name or number; whoever runs this if not given.
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Let clients map registers. Of a PCI device they are then given the VFIO descriptor, which allows all of it.
    #[arg(long)]
    mmap: bool,
    /// Take a PCI device from its driver only while a client has it.
    #[arg(long)]
    per_lease: bool,
}

/// A device that can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceAddress {
    /// A PCI device, through the kernel's VFIO.
    Pci(Bdf),
    /// The software model of the education device.
    ModelEdu,
}

impl FromStr for DeviceAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("pci", bdf)) => bdf.parse().map(Self::Pci).map_err(|error: udrv_backend::Error| error.to_string()),
            Some(("model", "edu")) => Ok(Self::ModelEdu),
            Some(("model", name)) => Err(format!("no model is called `{name}`: expected model:edu")),
            _ => Err("expected pci:BDF such as pci:0000:03:00.0, or model:edu".into()),
        }
    }
}

impl DeviceAddress {
    /// Its name: of its socket, and on the control socket.
    fn name(self) -> String {
        match self {
            Self::Pci(bdf) => bdf.to_string(),
            Self::ModelEdu => "edu".into(),
        }
    }
}

/// A device taken from its kernel driver; given back when dropped.
struct Taken(Bdf);

impl Taken {
    fn take(bdf: Bdf) -> Result<Self, udrv_backend::Error> {
        Binder::default().take(bdf, Holder::ThisProcess)?;
        Ok(Self(bdf))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        match Binder::default().give_back(self.0) {
            Ok(Some(driver)) => tracing::info!("{}: given back to {driver}", self.0),
            Ok(None) => tracing::info!("{}: released, it had no driver before", self.0),
            Err(error) => tracing::error!("{}: cannot be given back: {error}", self.0),
        }
    }
}

fn open_vfio(bdf: Bdf) -> Result<AnyBackend, udrv_backend::Error> {
    Ok(Arc::new(VfioBackend::open(bdf)?))
}

fn export(device: DeviceAddress, per_lease: bool) -> Result<Export, udrv_backend::Error> {
    let name = device.name();
    let bdf = match device {
        DeviceAddress::ModelEdu => return Ok(Export::shared(&name, Arc::new(udrv_edu::model::edu()))),
        DeviceAddress::Pci(bdf) => bdf,
    };
    let address = format!("pci:{bdf}");
    if per_lease {
        return Ok(Export::opened_by(&name, &address, move || {
            let taken = Taken::take(bdf)?;
            Ok(Opened { device: open_vfio(bdf)?, held: Some(Box::new(taken)) })
        }));
    }
    let taken = Taken::take(bdf)?;
    Ok(Export::opened_by(&name, &address, move || {
        // Named, so that the closure holds it for as long as the device is served.
        let Taken(bdf) = &taken;
        Ok(Opened { device: open_vfio(*bdf)?, held: None })
    }))
}

/// Serves until SIGTERM, SIGINT or SIGHUP.
///
/// # Errors
/// Why a device cannot be served; nothing is then served, and what was taken is given back.
pub fn run(args: &ServeArgs) -> Result<()> {
    // Blocked before the first thread, so that all inherit it and only `wait` below takes them.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("blocking signals")?;
    repair();

    let owner = args.owner.as_deref().map_or(Ok(geteuid()), find_user)?;
    socket::make_folder(&args.socket_dir)?;
    let mut servers = Vec::new();
    for device in &args.devices {
        servers.push(start(*device, args, owner)?);
    }
    let mut control = ControlServer::start(&args.socket_dir, owner, &servers)?;
    tell("ready");
    let signal = signals.wait().context("waiting for a signal")?;
    tracing::info!("{signal}: ending");
    // All at once, then each is waited for: one slow reset delays no other.
    control.stop();
    servers.iter_mut().for_each(DeviceServer::stop);
    drop(control);
    drop(servers);
    Ok(())
}

fn start(device: DeviceAddress, args: &ServeArgs, owner: Uid) -> Result<DeviceServer> {
    let export = export(device, args.per_lease)?.owned_by(owner).mapped(args.mmap);
    // Opened once now, so that what is wrong is said here and not to the first client.
    let what = describe(&*export.open()?.device)?;
    let server = DeviceServer::start(export, &socket_path(&args.socket_dir, &device.name()))?;
    tell(&format!("{}  {what}", server.path().display()));
    if args.mmap && matches!(device, DeviceAddress::Pci(_)) {
        tracing::warn!(
            "{}: --mmap gives clients the VFIO descriptor, with which they can do anything to it",
            device.name()
        );
    }
    Ok(server)
}

fn socket_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.sock"))
}

/// What a dead stub had taken goes back first: it may be what is to be served now.
fn repair() {
    match Binder::default().repair() {
        Ok(repaired) => {
            for device in repaired {
                let to = device.driver.as_deref().unwrap_or("no driver, as before");
                eprintln!("{}: left by a stub that is dead, given back to {to}", device.bdf);
            }
        }
        Err(error) => tracing::warn!("looking for what a dead stub left: {error}"),
    }
}

/// A line on standard output, whose reader may have gone.
fn tell(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// One line: what it is, what it has, whether it can be reset.
fn describe(device: &dyn Backend) -> Result<String, udrv_backend::Error> {
    let mut parts = vec![device.info().address.clone()];
    for index in (0..device.info().regions).map(RegionIndex) {
        let region = device.region(index)?;
        if region.size > 0 {
            parts.push(format!("{index} {:#x} bytes", region.size));
        }
    }
    for index in (0..device.info().irqs).map(IrqIndex) {
        let irq = device.irq(index)?;
        if irq.count > 0 {
            parts.push(format!("{index} x{}", irq.count));
        }
    }
    let reset = if device.resettable().is_some() {
        "reset between drivers"
    } else {
        "no reset method: state survives between drivers"
    };
    parts.push(reset.into());
    Ok(parts.join(", "))
}

/// A user by name or number.
fn find_user(given: &str) -> Result<Uid> {
    if let Ok(number) = given.parse() {
        return Ok(Uid::from_raw(number));
    }
    match User::from_name(given).with_context(|| format!("looking for user `{given}`"))? {
        Some(user) => Ok(user.uid),
        None => bail!("there is no user `{given}`: expected a name or number, as in `getent passwd`"),
    }
}
