//! The devices that the command serves: how each is opened, and what is said of it.

use super::config::Planned;
use super::export::{Export, Opened};
use crate::bind::{Binder, Holder};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use udrv_backend::{AnyBackend, Backend, Error, IrqIndex, RegionIndex, Result};
use udrv_usb::host::{Custody, UsbAddress};
use udrv_vfio::{Bdf, Sysfs, VfioBackend};

/// A device that can be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceAddress {
    /// A PCI device, through the kernel's VFIO.
    Pci(Bdf),
    /// The software model of the education device.
    ModelEdu,
    /// The software model of an NVMe controller.
    ModelNvme,
    /// A USB device, through the kernel's usbfs.
    Usb(UsbAddress),
    /// The software model of a 16550 serial port, with a loopback plug.
    ModelUart16550,
}

impl FromStr for DeviceAddress {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once(':') {
            Some(("pci", bdf)) => bdf.parse().map(Self::Pci).map_err(|error: Error| error.to_string()),
            Some(("usb", _)) => text.parse().map(Self::Usb).map_err(|error: Error| error.to_string()),
            Some(("model", "edu")) => Ok(Self::ModelEdu),
            Some(("model", "nvme")) => Ok(Self::ModelNvme),
            Some(("model", "uart16550")) => Ok(Self::ModelUart16550),
            Some(("model", name)) => {
                Err(format!("no model is called `{name}`: expected model:edu, model:nvme or model:uart16550"))
            }
            _ => Err(format!(
                "`{text}` is nothing to serve: expected pci:BDF such as pci:0000:03:00.0, usb:BUS-PORT, \
                 usb:VID:PID[:SERIAL], model:edu, model:nvme or model:uart16550"
            )),
        }
    }
}

impl fmt::Display for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(bdf) => write!(f, "pci:{bdf}"),
            Self::ModelEdu => f.write_str("model:edu"),
            Self::ModelNvme => f.write_str("model:nvme"),
            Self::Usb(address) => address.fmt(f),
            Self::ModelUart16550 => f.write_str("model:uart16550"),
        }
    }
}

impl DeviceAddress {
    /// Its name: of its socket, and on the control socket.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Pci(bdf) => bdf.to_string(),
            Self::ModelEdu => "edu".into(),
            Self::ModelNvme => "nvme".into(),
            // A serial number may have any character.
            Self::Usb(address) => address.to_string().replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-"),
            Self::ModelUart16550 => "uart16550".into(),
        }
    }
}

/// A device taken from its kernel driver; given back when dropped.
struct Taken(Bdf);

impl Taken {
    fn take(bdf: Bdf) -> Result<Self> {
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

fn open_vfio(bdf: Bdf) -> Result<AnyBackend> {
    Ok(Arc::new(VfioBackend::open(bdf)?))
}

/// What is served for one device. A PCI device is taken now, or at each lease, and opened anew for each lease, so that the
/// kernel itself sees to it that nothing of one lease is left in the next.
pub(super) fn export(planned: &Planned) -> Result<Export> {
    let name = planned.address.name();
    let export = match &planned.address {
        DeviceAddress::Usb(address) => Export::of_usb(&name, address.clone()),
        DeviceAddress::ModelEdu => Export::shared(&name, Arc::new(udrv_edu::model::edu())),
        DeviceAddress::ModelNvme => Export::shared(&name, Arc::new(udrv_nvme::model::nvme()?)),
        DeviceAddress::ModelUart16550 => Export::shared(&name, Arc::new(udrv_uart16550::model::uart16550())),
        &DeviceAddress::Pci(bdf) if planned.per_lease => {
            Export::opened_by(&name, &planned.address.to_string(), move || {
                let taken = Taken::take(bdf)?;
                Ok(Opened { device: open_vfio(bdf)?, held: Some(Box::new(taken)) })
            })
        }
        &DeviceAddress::Pci(bdf) => {
            let taken = Taken::take(bdf)?;
            Export::opened_by(&name, &planned.address.to_string(), move || {
                // Named, so that the closure keeps it for as long as the device is served.
                let Taken(bdf) = &taken;
                Ok(Opened { device: open_vfio(*bdf)?, held: None })
            })
        }
    };
    Ok(export.owned_by(planned.owner).mapped(planned.mmap).held(planned.hold))
}

/// One line for a device that is taken only while a client has it: whose it is until then.
///
/// # Errors
/// [`Error::Unavailable`] if there is no such device, or its group keeps it from being taken.
pub(super) fn describe_untaken(bdf: Bdf) -> Result<String> {
    let sysfs = Sysfs::default();
    let device = sysfs.device(bdf)?;
    let unavailable = |why: String, advice: &str| {
        Err(Error::Unavailable { device: format!("pci:{bdf}"), why, advice: advice.into() })
    };
    if device.group.is_none() {
        return unavailable("it has no IOMMU group".into(), "`stub-driver doctor` says how to turn the IOMMU on");
    }
    if let Some(sibling) = sysfs.siblings_in_the_way(&device)?.first() {
        let driver = sibling.driver.as_deref().unwrap_or("no driver");
        return unavailable(
            format!("its group holds {} of {driver}", sibling.bdf),
            "release that device from its driver first",
        );
    }
    let driver = device.driver.as_deref().unwrap_or("no driver");
    let reset = device.reset_methods.join(", ");
    let reset = if reset.is_empty() {
        "no reset method: state survives between drivers".into()
    } else {
        format!("reset between drivers ({reset})")
    };
    Ok(format!("pci:{bdf}, taken from {driver} while a client has it, {reset}"))
}

/// One line for a USB device, which is taken only while a driver has it.
///
/// # Errors
/// As [`Custody::open`].
pub(super) fn describe_usb(address: &UsbAddress) -> Result<String> {
    let found = Custody::open(address)?.before().address.clone();
    let at = if found == address.to_string() { String::new() } else { format!(" (now {found})") };
    Ok(format!("{address}{at}, taken from its kernel drivers while a driver has it, reset between drivers"))
}

/// One line: what it is, what it has, how it is reset.
pub(super) fn describe(address: &DeviceAddress, device: &dyn Backend) -> Result<String> {
    let mut parts = vec![address.to_string()];
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
    parts.push(match (device.resettable(), address) {
        (None, _) => "no reset method: state survives between drivers".into(),
        (Some(_), DeviceAddress::Pci(bdf)) => {
            format!("reset between drivers ({})", Sysfs::default().device(*bdf)?.reset_methods.join(", "))
        }
        (Some(_), _) => "reset between drivers".into(),
    });
    Ok(parts.join(", "))
}
