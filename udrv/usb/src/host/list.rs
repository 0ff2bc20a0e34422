//! Finding devices.

use super::sysfs::Sysfs;
use super::{UsbAddress, failed};
use crate::descriptor::{Configuration, class_name};
use crate::{Error, Result, Speed};
use rusb::UsbContext as _;
use serde::Serialize;

/// A device on a bus, as the kernel describes it; it has not been opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// What opens it, such as `usb:1-2`.
    pub address: String,
    /// The bus's number.
    pub bus: u8,
    /// The device's number on it.
    pub number: u8,
    /// The ports from the root hub to it; empty for the root hub itself.
    pub ports: Vec<u8>,
    /// How fast it is connected.
    pub speed: Speed,
    /// `idVendor`.
    pub vendor: u16,
    /// `idProduct`.
    pub product: u16,
    /// The strings, where it has them.
    pub manufacturer: Option<String>,
    /// Likewise.
    pub name: Option<String>,
    /// Likewise.
    pub serial: Option<String>,
    /// What the USB-IF calls its class.
    pub class: &'static str,
    /// The active configuration; 0 is none.
    pub configuration: u8,
    /// The active configuration's interfaces.
    pub interfaces: Vec<ListedInterface>,
}

/// An interface of a listed device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedInterface {
    /// `bInterfaceNumber`.
    pub number: u8,
    /// Class, subclass, protocol.
    pub codes: (u8, u8, u8),
    /// What the USB-IF calls its class.
    pub class: &'static str,
    /// The driver that has it; `usbfs` is a program.
    pub driver: Option<String>,
}

pub(super) fn list(context: &rusb::Context) -> Result<Vec<Listed>> {
    let devices = context.devices().map_err(|error| failed("listing the USB devices", error))?;
    let mut listed: Vec<Listed> = devices.iter().filter_map(|device| describe(&device)).collect();
    listed.sort_by(|a, b| (a.bus, &a.ports).cmp(&(b.bus, &b.ports)));
    Ok(listed)
}

/// `None` for a device that went away meanwhile.
fn describe(device: &rusb::Device<rusb::Context>) -> Option<Listed> {
    let descriptor = device.device_descriptor().ok()?;
    let ports = device.port_numbers().unwrap_or_default();
    let bus = device.bus_number();
    let sysfs = Sysfs::new(bus, &ports);
    let configuration = sysfs.text("bConfigurationValue").and_then(|text| text.parse().ok()).unwrap_or(0);
    let class = (descriptor.class_code(), descriptor.sub_class_code(), descriptor.protocol_code());
    let address =
        if ports.is_empty() { format!("usb{bus}") } else { UsbAddress::Port { bus, ports: ports.clone() }.to_string() };
    Some(Listed {
        address,
        bus,
        number: device.address(),
        speed: speed(device.speed()),
        vendor: descriptor.vendor_id(),
        product: descriptor.product_id(),
        manufacturer: sysfs.text("manufacturer"),
        name: sysfs.text("product"),
        serial: sysfs.text("serial"),
        class: class_name(class),
        configuration,
        interfaces: interfaces(&sysfs, configuration),
        ports,
    })
}

fn interfaces(sysfs: &Sysfs, configuration: u8) -> Vec<ListedInterface> {
    let configurations = sysfs.descriptors().map(|bytes| split(&bytes)).unwrap_or_default();
    let parsed = configurations.iter().filter_map(|bytes| Configuration::parse(bytes).ok());
    let Some(active) = parsed.into_iter().find(|one| one.value == configuration) else { return Vec::new() };
    let first = active.interfaces.iter().filter(|interface| interface.alternate == 0);
    first
        .map(|interface| ListedInterface {
            number: interface.number,
            codes: interface.class,
            class: class_name(interface.class),
            driver: sysfs.driver(configuration, interface.number),
        })
        .collect()
}

/// The configurations in what sysfs and usbfs give: a device descriptor of 18 bytes, then one after the other.
#[must_use]
pub fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = bytes.get(18..).unwrap_or_default();
    let mut configurations = Vec::new();
    while let &[_, _, low, high, ..] = rest {
        let total = usize::from(u16::from_le_bytes([low, high])).max(4);
        let (one, next) = rest.split_at(total.min(rest.len()));
        configurations.push(one.to_vec());
        rest = next;
    }
    configurations
}

pub(super) const fn speed(speed: rusb::Speed) -> Speed {
    match speed {
        rusb::Speed::Low => Speed::Low,
        rusb::Speed::Full => Speed::Full,
        rusb::Speed::High => Speed::High,
        rusb::Speed::Super => Speed::Super,
        rusb::Speed::SuperPlus => Speed::SuperPlus,
        _ => Speed::Unknown,
    }
}

/// The one device of this address.
pub(super) fn find(context: &rusb::Context, address: &UsbAddress) -> Result<rusb::Device<rusb::Context>> {
    let devices = context.devices().map_err(|error| failed("listing the USB devices", error))?;
    let mut found: Vec<_> = devices.iter().filter(|device| is(device, address)).collect();
    let unavailable = |why: String, advice: &str| {
        Err(Error::Unavailable { device: address.to_string(), why, advice: advice.to_owned() })
    };
    match (found.pop(), found.len()) {
        (Some(device), 0) => Ok(device),
        (None, _) => unavailable("no such device is plugged in".into(), "`udrv usb list` shows those that are"),
        (Some(_), more) => {
            let why = format!("{} such devices are plugged in", more + 1);
            unavailable(why, "say which by its port, as `udrv usb list` shows it, or by its serial number")
        }
    }
}

fn is(device: &rusb::Device<rusb::Context>, address: &UsbAddress) -> bool {
    let ports = device.port_numbers().unwrap_or_default();
    match address {
        UsbAddress::Port { bus, ports: wanted } => device.bus_number() == *bus && ports == *wanted,
        UsbAddress::Id { vendor, product, serial } => {
            let Ok(descriptor) = device.device_descriptor() else { return false };
            let same = (descriptor.vendor_id(), descriptor.product_id()) == (*vendor, *product);
            let serial_is = |wanted: &String| {
                Sysfs::new(device.bus_number(), &ports).text("serial").is_some_and(|serial| serial == *wanted)
            };
            same && serial.as_ref().is_none_or(serial_is)
        }
    }
}
