//! `usb:BUS-PORT` and `usb:VID:PID[:SERIAL]`.

use crate::Error;
use std::fmt;
use std::str::FromStr;

/// Which device on this machine's buses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum UsbAddress {
    /// Where it is plugged in: the bus, and the ports from its root hub on, as sysfs names it (`usb:1-2.4`).
    Port {
        /// The bus's number.
        bus: u8,
        /// Port by port.
        ports: Vec<u8>,
    },
    /// What it is (`usb:0403:6001` or `usb:0403:6001:A5XK3RJT`).
    Id {
        /// `idVendor`.
        vendor: u16,
        /// `idProduct`.
        product: u16,
        /// The serial number's string.
        serial: Option<String>,
    },
}

impl FromStr for UsbAddress {
    type Err = Error;

    fn from_str(given: &str) -> Result<Self, Error> {
        let bad =
            || Error::BadAddress { given: given.into(), expected: "usb:BUS-PORT[.PORT...] or usb:VID:PID[:SERIAL]" };
        let text = given.strip_prefix("usb:").ok_or_else(bad)?;
        if let Some((bus, ports)) = text.split_once('-').filter(|(bus, _)| !bus.contains(':')) {
            let bus = bus.parse().map_err(|_| bad())?;
            let ports = ports.split('.').map(|port| port.parse().map_err(|_| bad())).collect::<Result<_, _>>()?;
            return Ok(Self::Port { bus, ports });
        }
        let mut parts = text.splitn(3, ':');
        let mut id = || {
            let digits = parts.next().filter(|digits| digits.len() == 4).ok_or_else(bad)?;
            u16::from_str_radix(digits, 16).map_err(|_| bad())
        };
        let (vendor, product) = (id()?, id()?);
        Ok(Self::Id { vendor, product, serial: parts.next().map(str::to_owned) })
    }
}

impl fmt::Display for UsbAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port { bus, ports } => {
                let ports: Vec<String> = ports.iter().map(u8::to_string).collect();
                write!(f, "usb:{bus}-{}", ports.join("."))
            }
            Self::Id { vendor, product, serial } => {
                write!(f, "usb:{vendor:04x}:{product:04x}")?;
                serial.iter().try_for_each(|serial| write!(f, ":{serial}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_of_each_form_reads_back_as_it_was_written() {
        for text in ["usb:1-2", "usb:3-1.4.2", "usb:0403:6001", "usb:0403:6001:A-1:2"] {
            assert_eq!(text.parse::<UsbAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn address_that_names_nothing_is_refused() {
        for text in
            ["", "usb:", "1-2", "usb:1", "usb:1-", "usb:1-a", "usb:999-1", "usb:403:6001", "usb:0403:", "usb:-1"]
        {
            assert!(matches!(text.parse::<UsbAddress>(), Err(Error::BadAddress { .. })), "{text}");
        }
    }
}
