//! A driver's register map as text, so that a tool that does not know the driver can decode its registers.

use serde::{Deserialize, Serialize};
use udrv_backend::register::{Kind, RegisterInfo, RegisterMap};

/// The registers of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// The driver's name.
    pub driver: String,
    /// The region they are in.
    pub region: u32,
    /// All of them.
    pub registers: Vec<Register>,
}

/// One register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// The datasheet's name.
    pub name: String,
    /// Bytes from the start of the region.
    pub offset: u64,
    /// Width in bits.
    #[serde(rename = "width_bits")]
    pub width: u64,
    /// Whether reading it changes nothing.
    pub readable: bool,
    /// Whether reading it is possible, but changes the device.
    pub read_effect: bool,
    /// Whether it can be written.
    pub writable: bool,
    /// The type of its values in the driver's program, for a debugger that finds one there.
    #[serde(rename = "type", default)]
    pub value_type: String,
    /// Its bits that have names.
    pub bits: Vec<Bits>,
}

/// A bit, or some, with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bits {
    /// As declared.
    pub name: String,
    /// Which bits of the register.
    pub mask: u64,
}

impl From<&RegisterMap> for Registers {
    fn from(map: &RegisterMap) -> Self {
        let register = |register: &RegisterInfo| Register {
            name: register.name.into(),
            offset: register.offset,
            width: register.width.bytes() * 8,
            readable: register.kind.is_readable(),
            read_effect: register.kind == Kind::ReadEffect,
            writable: register.kind != Kind::ReadOnly,
            value_type: register.value_type().into(),
            bits: register.bits().iter().map(|bits| Bits { name: bits.name.into(), mask: bits.mask }).collect(),
        };
        let registers = map.registers.iter().map(register).collect();
        Self { driver: map.device.into(), region: map.region.0, registers }
    }
}

impl Registers {
    /// The register of that name (the case of letters aside), of a name that contains it if there is one only, or at that
    /// offset.
    ///
    /// # Errors
    /// One line that says which there are.
    pub fn find(&self, wanted: &str) -> Result<&Register, String> {
        let wanted = wanted.to_lowercase();
        let hex = wanted.strip_prefix("0x").map(|digits| u64::from_str_radix(digits, 16));
        if let Some(offset) = hex.map_or_else(|| wanted.parse().ok(), Result::ok) {
            let found = self.registers.iter().find(|register| register.offset == offset);
            return found.ok_or_else(|| format!("{} has no register at {offset:#x}", self.driver));
        }
        let named = |register: &&Register| register.name.to_lowercase() == wanted;
        if let Some(register) = self.registers.iter().find(named) {
            return Ok(register);
        }
        let similar = self.registers.iter().filter(|register| register.name.to_lowercase().contains(&wanted));
        match similar.collect::<Vec<_>>().as_slice() {
            [register] => Ok(register),
            [] => {
                let names: Vec<_> = self.registers.iter().map(|register| register.name.as_str()).collect();
                Err(format!("{} has no register `{wanted}`: expected one of {}", self.driver, names.join(", ")))
            }
            several => {
                let names: Vec<_> = several.iter().map(|it| format!("{} ({:#x})", it.name, it.offset)).collect();
                let (driver, names) = (&self.driver, names.join(", "));
                Err(format!(
                    "{driver} has several registers like `{wanted}`: {names}; give more of the name, or the offset"
                ))
            }
        }
    }

    /// The register that an access of this region reaches.
    #[must_use]
    pub fn accessed(&self, region: u32, offset: u64, width: u64, is_write: bool) -> Option<&Register> {
        let same = || {
            let all = self.registers.iter().filter(move |_| region == self.region);
            all.filter(move |register| register.offset == offset && register.width == width)
        };
        let write_only = |register: &&Register| register.writable && !register.readable && !register.read_effect;
        is_write.then(|| same().find(write_only)).flatten().or_else(|| same().next())
    }
}

impl Register {
    /// A value by its bits' names, `A | B | 0x30`; empty if no bit has one.
    #[must_use]
    pub fn decode(&self, value: u64) -> String {
        let mut left = value;
        let mut words = Vec::new();
        for bits in &self.bits {
            if bits.mask != 0 && left & bits.mask == bits.mask {
                words.push(bits.name.clone());
                left &= !bits.mask;
            }
        }
        if words.is_empty() {
            return String::new();
        }
        if left != 0 {
            words.push(format!("{left:#x}"));
        }
        words.join(" | ")
    }
}
