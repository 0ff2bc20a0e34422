//! Descriptors, decoded (USB 2.0, 9.5 and 9.6; USB 3.2, 9.6).
//!
//! A device says what it likes, so each length is checked against what is there, and what is not understood is kept
//! as bytes for a class driver.

use crate::{EndpointAddress, Error, Result};

/// Descriptor types (USB 3.2, table 9-6).
pub mod kind {
    /// DEVICE.
    pub const DEVICE: u8 = 1;
    /// CONFIGURATION.
    pub const CONFIGURATION: u8 = 2;
    /// STRING.
    pub const STRING: u8 = 3;
    /// INTERFACE.
    pub const INTERFACE: u8 = 4;
    /// ENDPOINT.
    pub const ENDPOINT: u8 = 5;
    /// INTERFACE ASSOCIATION.
    pub const INTERFACE_ASSOCIATION: u8 = 11;
    /// BOS, the binary device object store.
    pub const BOS: u8 = 15;
    /// DEVICE CAPABILITY, within the BOS.
    pub const DEVICE_CAPABILITY: u8 = 16;
    /// SUPERSPEED_USB_ENDPOINT_COMPANION.
    pub const ENDPOINT_COMPANION: u8 = 48;
}

/// All of a device's descriptors but the strings.
#[derive(Debug, Clone, PartialEq)]
pub struct Descriptors {
    /// The device descriptor.
    pub device: DeviceDescriptor,
    /// One a configuration.
    pub configurations: Vec<Configuration>,
}

impl Descriptors {
    /// The configuration of this `bConfigurationValue`.
    #[must_use]
    pub fn configuration(&self, value: u8) -> Option<&Configuration> {
        self.configurations.iter().find(|configuration| configuration.value == value)
    }
}

/// The device descriptor (USB 2.0, table 9-8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceDescriptor {
    /// `bcdUSB`.
    pub usb: u16,
    /// `bDeviceClass`, `bDeviceSubClass`, `bDeviceProtocol`; class 0: see the interfaces.
    pub class: (u8, u8, u8),
    /// `bMaxPacketSize0`, as it stands in the descriptor.
    pub max_packet_0: u8,
    /// `idVendor`.
    pub vendor: u16,
    /// `idProduct`.
    pub product: u16,
    /// `bcdDevice`.
    pub release: u16,
    /// `iManufacturer`, `iProduct`, `iSerialNumber`; 0 is none.
    pub strings: (u8, u8, u8),
    /// `bNumConfigurations`.
    pub configurations: u8,
}

/// One configuration with all that is in it (USB 2.0, table 9-10).
#[derive(Debug, Clone, PartialEq)]
pub struct Configuration {
    /// `bConfigurationValue`.
    pub value: u8,
    /// `iConfiguration`; 0 is none.
    pub string: u8,
    /// `bmAttributes`.
    pub attributes: u8,
    /// `bMaxPower`, in the units of the device's speed (2 mA, or 8 mA from SuperSpeed on).
    pub max_power: u8,
    /// Every alternate setting of every interface, in order.
    pub interfaces: Vec<Interface>,
    /// What precedes the first interface and is not understood here.
    pub extra: Vec<Vec<u8>>,
    /// The bytes it was decoded from.
    pub bytes: Vec<u8>,
}

impl Configuration {
    /// One alternate setting.
    #[must_use]
    pub fn interface(&self, number: u8, alternate: u8) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| (interface.number, interface.alternate) == (number, alternate))
    }

    /// The numbers of its interfaces, in order, each once.
    #[must_use]
    pub fn numbers(&self) -> Vec<u8> {
        let mut numbers: Vec<u8> = self.interfaces.iter().map(|interface| interface.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }
}

/// One alternate setting of an interface (USB 2.0, table 9-12).
#[derive(Debug, Clone, PartialEq)]
pub struct Interface {
    /// `bInterfaceNumber`.
    pub number: u8,
    /// `bAlternateSetting`.
    pub alternate: u8,
    /// `bInterfaceClass`, `bInterfaceSubClass`, `bInterfaceProtocol`.
    pub class: (u8, u8, u8),
    /// `iInterface`; 0 is none.
    pub string: u8,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Class-specific descriptors before the first endpoint, whole.
    pub extra: Vec<Vec<u8>>,
}

impl Interface {
    /// The first endpoint of this type and direction.
    #[must_use]
    pub fn endpoint(&self, transfer: TransferType, into_host: bool) -> Option<&Endpoint> {
        self.endpoints.iter().find(|endpoint| endpoint.transfer == transfer && endpoint.address.is_in() == into_host)
    }
}

/// `bmAttributes`, bits 1..0 (USB 2.0, table 9-13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferType {
    /// 0.
    Control,
    /// 1.
    Isochronous,
    /// 2.
    Bulk,
    /// 3.
    Interrupt,
}

/// An endpoint (USB 2.0, table 9-13).
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// `bEndpointAddress`.
    pub address: EndpointAddress,
    /// The transfer type of `bmAttributes`.
    pub transfer: TransferType,
    /// Bits 7..2 of `bmAttributes`: synchronisation and usage.
    pub attributes: u8,
    /// `wMaxPacketSize`, bits 10..0, bytes.
    pub max_packet: u16,
    /// Packets in a microframe (high speed, periodic: 1 to 3) or in a burst (SuperSpeed: 1 to 16).
    pub packets: u8,
    /// `bInterval`, in the units of speed and type.
    pub interval: u8,
    /// Class-specific descriptors after it, whole.
    pub extra: Vec<Vec<u8>>,
}

fn broken(what: &str, found: String) -> Error {
    Error::Protocol {
        peer: format!("the device's {what} descriptor"),
        found,
        expected: "what USB 2.0, 9.6 says".into(),
    }
}

impl DeviceDescriptor {
    /// # Errors
    /// [`Error::Protocol`] if it is too short or says that it is something else.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let Some(&[length, kind, u0, u1, c0, c1, c2, max_packet_0, v0, v1, p0, p1, r0, r1, s0, s1, s2, configurations]) =
            bytes.first_chunk::<18>()
        else {
            return Err(broken("device", format!("{} bytes instead of 18", bytes.len())));
        };
        if length < 18 || kind != kind::DEVICE {
            return Err(broken("device", format!("length {length} and type {kind}")));
        }
        Ok(Self {
            usb: u16::from_le_bytes([u0, u1]),
            class: (c0, c1, c2),
            max_packet_0,
            vendor: u16::from_le_bytes([v0, v1]),
            product: u16::from_le_bytes([p0, p1]),
            release: u16::from_le_bytes([r0, r1]),
            strings: (s0, s1, s2),
            configurations,
        })
    }
}

/// Splits off the descriptors of `bytes` one by one.
fn split<'a>(what: &'static str, mut bytes: &'a [u8]) -> impl Iterator<Item = Result<(u8, &'a [u8])>> {
    std::iter::from_fn(move || {
        let (&length, &kind) = match bytes {
            [] => return None,
            [_] => {
                bytes = &[];
                return Some(Err(broken(what, "one byte after the last descriptor".into())));
            }
            [length, kind, ..] => (length, kind),
        };
        let left = bytes.len();
        match bytes.split_at_checked(usize::from(length)).filter(|_| length >= 2) {
            Some((one, rest)) => {
                bytes = rest;
                Some(Ok((kind, one)))
            }
            None => {
                bytes = &[];
                Some(Err(broken(what, format!("a descriptor of type {kind} of {length} bytes where {left} are left"))))
            }
        }
    })
}

impl Configuration {
    /// Decodes a configuration with all its interfaces. Bytes beyond `wTotalLength` are ignored.
    ///
    /// # Errors
    /// [`Error::Protocol`] naming the first length that cannot be true, or an endpoint without an interface.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        const WHAT: &str = "configuration";
        let Some(&[length, kind, t0, t1, _interfaces, value, string, attributes, max_power]) = bytes.first_chunk::<9>()
        else {
            return Err(broken(WHAT, format!("{} bytes instead of at least 9", bytes.len())));
        };
        let total = usize::from(u16::from_le_bytes([t0, t1]));
        if length < 9 || kind != kind::CONFIGURATION {
            return Err(broken(WHAT, format!("length {length} and type {kind}")));
        }
        let body = bytes.get(..total).and_then(|bytes| bytes.get(usize::from(length)..)).ok_or_else(|| {
            broken(WHAT, format!("a total length of {total}, its own being {length}, in {} bytes", bytes.len()))
        })?;
        let (interfaces, extra) = (Vec::new(), Vec::new());
        let bytes = bytes.get(..total).unwrap_or_default().to_vec();
        let mut configuration = Self { value, string, attributes, max_power, interfaces, extra, bytes };
        for one in split(WHAT, body) {
            let (kind, one) = one?;
            configuration.add(kind, one)?;
        }
        Ok(configuration)
    }

    fn add(&mut self, kind: u8, bytes: &[u8]) -> Result<()> {
        match kind {
            kind::INTERFACE => self.interfaces.push(Interface::parse(bytes)?),
            kind::ENDPOINT => {
                let endpoint = Endpoint::parse(bytes)?;
                let interface = self.interfaces.last_mut();
                let interface = interface
                    .ok_or_else(|| broken("endpoint", format!("{} before any interface", endpoint.address)))?;
                interface.endpoints.push(endpoint);
            }
            _ => {
                let Some(interface) = self.interfaces.last_mut() else {
                    self.extra.push(bytes.to_vec());
                    return Ok(());
                };
                let Some(endpoint) = interface.endpoints.last_mut() else {
                    interface.extra.push(bytes.to_vec());
                    return Ok(());
                };
                if let (kind::ENDPOINT_COMPANION, &[_, _, burst, ..]) = (kind, bytes) {
                    endpoint.packets = burst.min(15) + 1;
                }
                endpoint.extra.push(bytes.to_vec());
            }
        }
        Ok(())
    }
}

impl Interface {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let Some(&[_, _, number, alternate, _endpoints, c0, c1, c2, string]) = bytes.first_chunk::<9>() else {
            return Err(broken("interface", format!("{} bytes instead of 9", bytes.len())));
        };
        let (endpoints, extra) = (Vec::new(), Vec::new());
        Ok(Self { number, alternate, class: (c0, c1, c2), string, endpoints, extra })
    }
}

impl Endpoint {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let Some(&[_, _, address, attributes, s0, s1, interval]) = bytes.first_chunk::<7>() else {
            return Err(broken("endpoint", format!("{} bytes instead of 7", bytes.len())));
        };
        if address & 0x0f == 0 {
            return Err(broken("endpoint", format!("address {address:#04x}")));
        }
        let size = u16::from_le_bytes([s0, s1]);
        Ok(Self {
            address: EndpointAddress(address),
            transfer: match attributes & 3 {
                0 => TransferType::Control,
                1 => TransferType::Isochronous,
                2 => TransferType::Bulk,
                _ => TransferType::Interrupt,
            },
            attributes: attributes & !3,
            max_packet: size & 0x7ff,
            packets: u8::try_from(size >> 11 & 3).unwrap_or_default().min(2) + 1,
            interval,
            extra: Vec::new(),
        })
    }
}

/// The text of a string descriptor (USB 2.0, 9.6.7); what is no UTF-16 is replaced.
///
/// # Errors
/// [`Error::Protocol`] for another descriptor, or a length that is not there.
pub fn parse_string(bytes: &[u8]) -> Result<String> {
    let text = match bytes {
        [length, kind::STRING, ..] => bytes.get(2..usize::from(*length)),
        _ => None,
    };
    let text = text.ok_or_else(|| broken("string", format!("{:02x?}", bytes.get(..2))))?;
    let units = text.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    Ok(char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect())
}

/// A string descriptor with this text, cut to what fits in 255 bytes.
#[must_use]
pub fn string(text: &str) -> Vec<u8> {
    let units: Vec<u8> = text.encode_utf16().take(126).flat_map(u16::to_le_bytes).collect();
    let length = u8::try_from(units.len() + 2).unwrap_or(u8::MAX);
    [vec![length, kind::STRING], units].concat()
}

/// One device capability of a BOS descriptor (USB 3.2, 9.6.2): its `bDevCapabilityType` and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// `bDevCapabilityType`: 2 is USB 2.0 EXTENSION, 3 SUPERSPEED_USB, 4 CONTAINER_ID, 5 PLATFORM and so on.
    pub kind: u8,
    /// The whole descriptor.
    pub bytes: Vec<u8>,
}

/// Decodes a BOS descriptor with its capabilities.
///
/// # Errors
/// As [`Configuration::parse`].
pub fn parse_bos(bytes: &[u8]) -> Result<Vec<Capability>> {
    let Some(&[length, kind::BOS, t0, t1, _]) = bytes.first_chunk::<5>() else {
        return Err(broken("BOS", format!("{:02x?}", bytes.get(..5))));
    };
    let total = usize::from(u16::from_le_bytes([t0, t1]));
    let body = bytes.get(usize::from(length).max(5)..total);
    let body = body.ok_or_else(|| broken("BOS", format!("a total length of {total} in {} bytes", bytes.len())))?;
    let mut capabilities = Vec::new();
    for one in split("BOS", body) {
        if let (kind::DEVICE_CAPABILITY, bytes @ &[_, _, kind, ..]) = one? {
            capabilities.push(Capability { kind, bytes: bytes.to_vec() });
        }
    }
    Ok(capabilities)
}

/// What the USB-IF calls a class code (usb.org, "Defined Class Codes").
#[must_use]
pub const fn class_name((class, subclass, protocol): (u8, u8, u8)) -> &'static str {
    match (class, subclass, protocol) {
        (0x00, ..) => "per interface",
        (0x01, 1, _) => "audio control",
        (0x01, 2, _) => "audio streaming",
        (0x01, ..) => "audio",
        (0x02, 2, _) => "communications (ACM)",
        (0x02, ..) => "communications",
        (0x03, 1, 1) => "HID (boot keyboard)",
        (0x03, 1, 2) => "HID (boot mouse)",
        (0x03, ..) => "HID",
        (0x05, ..) => "physical",
        (0x06, ..) => "still image",
        (0x07, ..) => "printer",
        (0x08, 6, 0x50) => "mass storage (SCSI, bulk-only)",
        (0x08, 6, 0x62) => "mass storage (SCSI, UAS)",
        (0x08, ..) => "mass storage",
        (0x09, ..) => "hub",
        (0x0a, ..) => "CDC data",
        (0x0b, ..) => "smart card",
        (0x0e, ..) => "video",
        (0x0f, ..) => "personal healthcare",
        (0x10, ..) => "audio/video",
        (0x11, ..) => "billboard",
        (0xdc, ..) => "diagnostic",
        (0xe0, 1, 1) => "Bluetooth",
        (0xe0, ..) => "wireless",
        (0xef, 2, 1) => "miscellaneous (interface association)",
        (0xef, ..) => "miscellaneous",
        (0xfe, 1, _) => "device firmware upgrade",
        (0xfe, ..) => "application specific",
        (0xff, ..) => "vendor specific",
        _ => "unknown class",
    }
}
