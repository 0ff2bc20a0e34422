//! USB: `udrv usb list`, and the addresses of USB devices.

pub mod audio;
pub mod keyboard;
mod list;
mod orderly_end;
pub mod serial;
pub mod storage;

pub use orderly_end::conclude;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::sync::Arc;
use udrv_usb::Device;
use udrv_usb::faults::{FaultPlan, Faulty};
use udrv_usb::host::Host;
use udrv_usb::record::Recorder;
use udrv_usb::software::Software;

/// Disk of a software storage device that was given no image.
const EMPTY_DISK: usize = 16 << 20;

#[derive(clap::Args)]
pub struct UsbArgs {
    #[command(subcommand)]
    command: UsbCommand,
}

#[derive(clap::Subcommand)]
enum UsbCommand {
    /// Show the devices on this machine's buses, with their drivers.
    List(list::ListArgs),
}

pub fn run(args: &UsbArgs) -> Result<()> {
    match &args.command {
        UsbCommand::List(args) => list::run(args),
    }
}

/// Which device a driver gets, and what is put around it.
#[derive(clap::Args)]
pub struct DeviceArgs {
    /// The device's address: usb:BUS-PORT, usb:VID:PID[:SERIAL], unix:PATH (the stub), or a model:NAME.
    #[arg(long)]
    device: String,
    /// Record its traffic into a pcapng file, which Wireshark opens.
    #[arg(long, value_name = "FILE")]
    record: Option<std::path::PathBuf>,
    /// Let things go wrong: ENDPOINT@N=FAULT,... such as 0x81@3=stall,0x02@5=delay:50,any@200=unplug.
    #[arg(long, value_name = "PLAN")]
    faults: Option<FaultPlan>,
}

impl DeviceArgs {
    /// Opens it. From here on SIGINT and SIGTERM give it back before they end the process.
    ///
    /// To be called before any thread is started, so that none but the one that waits for them gets these signals.
    pub fn open(&self) -> Result<Device> {
        let signals = orderly_end::block()?;
        let device = open(&self.device)?;
        orderly_end::give_back_on(signals, device.backend())?;
        self.surround(device)
    }

    /// Opens it for a driver that ends on SIGINT and SIGTERM by itself: it is told of them, and of SIGUSR1, by the descriptor.
    ///
    /// To be called before any thread is started, too.
    pub fn open_until_signal(&self) -> Result<(Device, SignalFd)> {
        let mut signals = orderly_end::block()?;
        signals.add(Signal::SIGUSR1);
        signals.thread_block().context("cannot block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&signals, flags).context("cannot wait for signals")?;
        Ok((self.surround(open(&self.device)?)?, signals))
    }

    fn surround(&self, mut device: Device) -> Result<Device> {
        if let Some(plan) = &self.faults {
            device = Device::new(Arc::new(Faulty::new(Arc::clone(device.backend()), plan.clone())?))?;
        }
        // Outside of the faults, so that the recording shows what the driver saw.
        if let Some(path) = &self.record {
            device = Device::new(Arc::new(Recorder::create(Arc::clone(device.backend()), path)?))?;
        }
        Ok(device)
    }
}

/// Opens any USB address that the command line accepts.
fn open(address: &str) -> Result<Device> {
    if let Some(socket) = address.strip_prefix("unix:") {
        return Ok(Host::lease(std::path::Path::new(socket))?);
    }
    let Some(model) = address.strip_prefix("model:") else {
        return Ok(Host::new()?.open(&address.parse()?)?);
    };
    let (name, argument) = model.split_once(':').map_or((model, None), |(name, argument)| (name, Some(argument)));
    match name {
        "usb-storage" => {
            let medium = match argument {
                Some(image) => std::fs::read(image).with_context(|| format!("cannot read the image {image}"))?,
                None => vec![0; EMPTY_DISK],
            };
            let disk = udrv_usb_storage::model::Disk::new(medium);
            Ok(Device::new(Arc::new(Software::new(address, disk)?))?)
        }
        "usb-keyboard" => {
            let keyboard = udrv_usb_keyboard::model::Keyboard::default();
            Ok(Device::new(Arc::new(Software::new(address, keyboard)?))?)
        }
        "cdc-acm" => Ok(Device::new(Arc::new(Software::new(address, udrv_usb_serial::model::CdcAcm::echoing())?))?),
        "ftdi" => Ok(Device::new(Arc::new(Software::new(address, udrv_usb_serial::model::Ftdi::echoing())?))?),
        "usb-audio" => Ok(Device::new(Arc::new(Software::new(address, udrv_usb_audio::model::Sound::default())?))?),
        other => bail!(
            "no USB model is called `{other}`: expected model:usb-storage[:IMAGE], model:usb-keyboard, model:cdc-acm, model:ftdi or \
             model:usb-audio"
        ),
    }
}
