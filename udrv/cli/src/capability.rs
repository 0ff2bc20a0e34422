//! Configuration space in words: class, BARs, capabilities.
//!
//! Sources: PCI Local Bus Specification 3.0 (chapter 6), PCI Express Base Specification 4.0 (chapter 7), PCI Bus Power
//! Management 1.2 (3.2), PCI Code and ID Assignment 1.11.

use serde::Serialize;
use serde_json::{Map, Value, json};
use udrv_backend::{Backend, RegionIndex, Result, Width};

/// One entry of a capability list.
#[derive(Serialize)]
pub struct Capability {
    pub offset: u64,
    pub id: u16,
    pub name: &'static str,
    /// What it says, by name.
    pub fields: Map<String, Value>,
}

/// Reads configuration space through a backend, or from bytes in a test.
pub struct Space<'a> {
    read: Box<dyn Fn(u64, Width) -> Result<u64> + 'a>,
    size: u64,
}

impl<'a> Space<'a> {
    pub fn of(device: &'a dyn Backend) -> Result<Self> {
        let size = device.region(RegionIndex::CONFIG)?.size;
        Ok(Self { read: Box::new(move |offset, width| device.read(RegionIndex::CONFIG, offset, width)), size })
    }

    fn u8(&self, at: u64) -> Result<u64> {
        (self.read)(at, Width::Bits8)
    }

    fn u16(&self, at: u64) -> Result<u64> {
        (self.read)(at, Width::Bits16)
    }

    fn u32(&self, at: u64) -> Result<u64> {
        (self.read)(at, Width::Bits32)
    }

    /// What BAR `index` is (6.2.5.1); `None` if it is not implemented or the upper half of the one before.
    pub fn bar(&self, index: u64) -> Result<Option<String>> {
        let raw = |index: u64| self.u32(0x10 + 4 * index);
        if index > 0 && is_64_bit(raw(index - 1)?) && (index < 2 || !is_64_bit(raw(index - 2)?)) {
            return Ok(None);
        }
        let low = raw(index)?;
        if low & 1 != 0 {
            return Ok(Some(format!("I/O ports at {:#x}", low & !3)));
        }
        let high = if is_64_bit(low) && index < 5 { raw(index + 1)? << 32 } else { 0 };
        let width = if is_64_bit(low) { "64-bit" } else { "32-bit" };
        let kind = if low & 8 != 0 { "prefetchable " } else { "" };
        Ok(Some(format!("{width} {kind}memory at {:#x}", high | (low & !0xf))))
    }

    /// The capabilities behind the header, then the extended ones. A list that loops is cut.
    pub fn capabilities(&self) -> Result<Vec<Capability>> {
        let mut found = Vec::new();
        if self.u16(0x06)? & (1 << 4) != 0 {
            let mut at = self.u8(0x34)? & 0xfc;
            while at >= 0x40 && found.len() < 48 {
                let id = self.u8(at)?;
                let (name, fields) = self.conventional(id, at)?;
                found.push(Capability { offset: at, id: id as u16, name, fields });
                at = self.u8(at + 1)? & 0xfc;
            }
        }
        let conventional = found.len();
        let mut at = 0x100;
        // 960 entries of 4 bytes fill all of it.
        while self.size >= 4096 && at >= 0x100 && found.len() - conventional < 960 {
            let header = self.u32(at)?;
            if header == 0 || header == u64::from(u32::MAX) {
                break;
            }
            let (id, fields) = ((header & 0xffff) as u16, fields([("version", json!(header >> 16 & 0xf))]));
            found.push(Capability { offset: at, id, name: extended_name(id), fields });
            at = header >> 20 & 0xffc;
        }
        Ok(found)
    }

    fn conventional(&self, id: u64, at: u64) -> Result<(&'static str, Map<String, Value>)> {
        Ok(match id {
            0x01 => {
                let (capabilities, state) = (self.u16(at + 2)?, self.u16(at + 4)?);
                let state = format!("D{}", state & 3);
                ("Power Management", fields([("version", json!(capabilities & 7)), ("state", json!(state))]))
            }
            0x05 => {
                let control = self.u16(at + 2)?;
                let msi = [
                    ("vectors", json!(1 << (control >> 1 & 7))),
                    ("enabled", json!(control & 1 != 0)),
                    ("address_64_bit", json!(control & (1 << 7) != 0)),
                    ("maskable", json!(control & (1 << 8) != 0)),
                ];
                ("MSI", fields(msi))
            }
            0x09 => ("Vendor Specific", fields([("length_bytes", json!(self.u8(at + 2)?))])),
            0x0d => {
                let (vendor, device) = (self.u16(at + 4)?, self.u16(at + 6)?);
                ("Subsystem ID", fields([("subsystem", json!(format!("{vendor:04x}:{device:04x}")))]))
            }
            0x10 => ("PCI Express", self.express(at)?),
            0x11 => {
                let (control, table, pending) = (self.u16(at + 2)?, self.u32(at + 4)?, self.u32(at + 8)?);
                let place = |value: u64| json!(format!("BAR{} + {:#x}", value & 7, value & !7));
                let msix = [
                    ("vectors", json!((control & 0x7ff) + 1)),
                    ("enabled", json!(control & (1 << 15) != 0)),
                    ("table", place(table)),
                    ("pending", place(pending)),
                ];
                ("MSI-X", fields(msix))
            }
            0x12 => ("SATA", Map::new()),
            0x13 => ("Advanced Features", fields([("function_level_reset", json!(self.u8(at + 3)? & 2 != 0))])),
            _ => ("unknown", Map::new()),
        })
    }

    fn express(&self, at: u64) -> Result<Map<String, Value>> {
        let kind = match self.u16(at + 2)? >> 4 & 0xf {
            0 => "endpoint",
            1 => "legacy endpoint",
            4 => "root port",
            5 => "upstream port",
            6 => "downstream port",
            7 => "bridge to PCI",
            9 => "root complex integrated endpoint",
            10 => "root complex event collector",
            _ => "unknown",
        };
        let flr = self.u32(at + 4)? & (1 << 28) != 0;
        let status = self.u16(at + 0x12)?;
        // 0 where there is no link, as inside a root complex.
        let link = match (status & 0xf, status >> 4 & 0x3f) {
            (_, 0) => "none".to_owned(),
            (speed, width) => format!("generation {speed}, x{width}"),
        };
        Ok(fields([("type", json!(kind)), ("function_level_reset", json!(flr)), ("link", json!(link))]))
    }
}

const fn is_64_bit(bar: u64) -> bool {
    bar & 7 == 4
}

fn fields<const N: usize>(from: [(&str, Value); N]) -> Map<String, Value> {
    from.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

const fn extended_name(id: u16) -> &'static str {
    match id {
        0x01 => "Advanced Error Reporting",
        0x02 => "Virtual Channel",
        0x03 => "Device Serial Number",
        0x04 => "Power Budgeting",
        0x0b => "Vendor Specific",
        0x0d => "Access Control Services",
        0x0e => "Alternative Routing-ID",
        0x0f => "Address Translation Services",
        0x10 => "Single Root I/O Virtualization",
        0x13 => "Page Request Interface",
        0x15 => "Resizable BAR",
        0x17 => "TPH Requester",
        0x18 => "Latency Tolerance Reporting",
        0x19 => "Secondary PCI Express",
        0x1b => "Process Address Space ID",
        0x1e => "L1 PM Substates",
        0x1f => "Precision Time Measurement",
        0x25 => "Data Link Feature",
        0x26 => "Physical Layer 16.0 GT/s",
        0x27 => "Lane Margining",
        _ => "unknown",
    }
}

/// A class code in words, as precisely as is common knowledge.
pub const fn class_name(class: u32) -> &'static str {
    match (class >> 16, class >> 8 & 0xff) {
        (0x01, 0x01) => "IDE controller",
        (0x01, 0x06) => "SATA controller",
        (0x01, 0x07) => "SAS controller",
        (0x01, 0x08) => "non-volatile memory controller",
        (0x01, _) => "mass storage controller",
        (0x02, 0x00) => "Ethernet controller",
        (0x02, _) => "network controller",
        (0x03, 0x00) => "VGA controller",
        (0x03, _) => "display controller",
        (0x04, _) => "multimedia controller",
        (0x05, _) => "memory controller",
        (0x06, 0x00) => "host bridge",
        (0x06, 0x01) => "ISA bridge",
        (0x06, 0x04) => "PCI bridge",
        (0x06, _) => "bridge",
        (0x07, 0x00) => "serial controller",
        (0x07, _) => "communication controller",
        (0x08, _) => "base system peripheral",
        (0x09, _) => "input device",
        (0x0c, 0x03) => "USB controller",
        (0x0c, 0x05) => "SMBus controller",
        (0x0c, _) => "serial bus controller",
        (0x0d, _) => "wireless controller",
        (0x10, _) => "encryption controller",
        (0x11, _) => "signal processing controller",
        (0x12, _) => "processing accelerator",
        (0x00, _) | (0xff, _) => "unclassified device",
        _ => "unknown class",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A space of these bytes, by offset, and zeroes.
    fn space(size: usize, parts: &[(usize, &[u8])]) -> Space<'static> {
        let mut bytes = vec![0; size];
        for (at, part) in parts {
            bytes[*at..at + part.len()].copy_from_slice(part);
        }
        let read = move |offset: u64, width: Width| {
            let mut raw = [0; 8];
            let length = width.bytes() as usize;
            raw[..length].copy_from_slice(&bytes[offset as usize..offset as usize + length]);
            Ok(u64::from_le_bytes(raw))
        };
        Space { read: Box::new(read), size: size as u64 }
    }

    const LIST: (usize, &[u8]) = (0x06, &[0x10, 0x00]);

    #[test]
    fn msi_and_msix_are_decoded() {
        // As an NVMe controller of QEMU has them: MSI-X with 65 vectors, table in BAR 0.
        let msix: &[u8] = &[0x11, 0x50, 0x40, 0x80, 0x00, 0x20, 0x00, 0x00, 0x00, 0x30, 0x00, 0x00];
        let msi: &[u8] = &[0x05, 0x00, 0x8a, 0x01];
        let found = space(256, &[LIST, (0x34, &[0x40]), (0x40, msix), (0x50, msi)]).capabilities().expect("read");
        assert_eq!(found[0].name, "MSI-X");
        assert_eq!(found[0].fields["vectors"], 65);
        assert_eq!(found[0].fields["enabled"], true);
        assert_eq!(found[0].fields["table"], "BAR0 + 0x2000");
        assert_eq!(found[0].fields["pending"], "BAR0 + 0x3000");
        assert_eq!(found[1].name, "MSI");
        assert_eq!(found[1].fields["vectors"], 32);
        assert_eq!((&found[1].fields["address_64_bit"], &found[1].fields["maskable"]), (&json!(true), &json!(true)));
    }

    #[test]
    fn express_is_decoded() {
        let mut express = [0; 0x14];
        express[..4].copy_from_slice(&[0x10, 0x00, 0x02, 0x00]);
        express[7] = 0x10; // FLR
        express[0x12] = 0x43; // x4, generation 3
        let found = space(256, &[LIST, (0x34, &[0x40]), (0x40, &express)]).capabilities().expect("read");
        assert_eq!(found[0].fields["type"], "endpoint");
        assert_eq!(found[0].fields["function_level_reset"], true);
        assert_eq!(found[0].fields["link"], "generation 3, x4");
    }

    #[test]
    fn extended_list_is_followed_and_a_loop_is_cut() {
        let aer: &[u8] = &[0x01, 0x00, 0x02, 0x15]; // next at 0x150
        let serial: &[u8] = &[0x03, 0x00, 0x01, 0x10]; // back to 0x100
        let found = space(4096, &[(0x100, aer), (0x150, serial)]).capabilities().expect("read");
        assert_eq!(found.len(), 960);
        assert_eq!((found[0].name, found[1].name), ("Advanced Error Reporting", "Device Serial Number"));
    }

    #[test]
    fn conventional_list_that_loops_is_cut() {
        let found = space(256, &[LIST, (0x34, &[0x40]), (0x40, &[0x12, 0x40])]).capabilities().expect("read");
        assert_eq!(found.len(), 48);
    }

    #[test]
    fn bars_are_decoded() {
        let bars: &[u8] = &[0x0c, 0, 0, 0xfe, 0x01, 0, 0, 0, 0x01, 0xc0, 0, 0];
        let space = space(256, &[(0x10, bars)]);
        assert_eq!(space.bar(0).expect("read").as_deref(), Some("64-bit prefetchable memory at 0x1fe000000"));
        assert_eq!(space.bar(1).expect("read"), None);
        assert_eq!(space.bar(2).expect("read").as_deref(), Some("I/O ports at 0xc000"));
    }

    #[test]
    fn class_is_said_in_words() {
        assert_eq!(class_name(0x01_08_02), "non-volatile memory controller");
        assert_eq!(class_name(0x02_00_00), "Ethernet controller");
        assert_eq!(class_name(0x00_ff_00), "unclassified device");
    }
}
