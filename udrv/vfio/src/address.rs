//! PCI addresses as Linux writes them.

use std::fmt;
use std::str::FromStr;
use udrv_backend::Error;

/// Domain, bus, device, function: `0000:03:00.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    /// PCI domain (segment); more than 16 bits under some hypervisors.
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.domain, self.bus, self.device, self.function)
    }
}

impl FromStr for Bdf {
    type Err = Error;

    /// Takes `DDDD:BB:DD.F`, and `BB:DD.F` for domain 0; all hexadecimal.
    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).ok_or_else(|| Error::BadAddress {
            given: text.into(),
            expected: "a PCI address such as 0000:03:00.0 (domain:bus:device.function, hexadecimal)",
        })
    }
}

fn parse(text: &str) -> Option<Bdf> {
    let (rest, function) = text.split_once('.')?;
    let mut fields = rest.rsplit(':');
    let device = hex(fields.next()?, 2)?;
    let bus = hex(fields.next()?, 2)?;
    let domain = fields.next().map_or(Some(0), |domain| hex(domain, 8))?;
    let function = hex(function, 1)?;
    if fields.next().is_some() || device > 31 || function > 7 {
        return None;
    }
    Some(Bdf { domain, bus: bus as u8, device: device as u8, function: function as u8 })
}

/// At most `digits` hexadecimal digits, and nothing else (`from_str_radix` takes a sign).
fn hex(text: &str, digits: usize) -> Option<u32> {
    let plain = !text.is_empty() && text.len() <= digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain { u32::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bdf_written_as_linux_does_is_read_back() {
        for text in ["0000:03:00.0", "0001:ff:1f.7", "10000:00:02.0"] {
            assert_eq!(text.parse::<Bdf>().expect(text).to_string(), text);
        }
        assert_eq!("3:0.1".parse::<Bdf>().expect("short").to_string(), "0000:03:00.1");
    }

    #[test]
    fn bdf_of_another_form_is_refused() {
        for text in ["", "nvme0", "0000:03:00", "0000:03:20.0", "0000:03:00.8", "0:0:0:0.0", "+0:00.0", "0000:03:00.0 "]
        {
            assert!(matches!(text.parse::<Bdf>(), Err(Error::BadAddress { .. })), "{text}");
        }
    }
}
