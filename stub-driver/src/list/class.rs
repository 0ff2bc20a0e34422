//! The names of PCI class codes ("PCI Code and ID Assignment Specification", revision 1.16, chapter 1).

/// The name of a class code of 24 bits (base class, subclass, interface).
#[must_use]
pub fn class_name(class: u32) -> &'static str {
    let subclass = (class >> 8) & 0xffff;
    let known = SUBCLASSES.iter().find(|(code, _)| *code == subclass).map(|(_, name)| *name);
    known.unwrap_or_else(|| base_class_name(subclass >> 8))
}

/// Base class and subclass.
const SUBCLASSES: &[(u32, &str)] = &[
    (0x0001, "VGA-compatible device"),
    (0x0100, "SCSI controller"),
    (0x0101, "IDE controller"),
    (0x0104, "RAID controller"),
    (0x0106, "SATA controller"),
    (0x0107, "SAS controller"),
    (0x0108, "non-volatile memory controller"),
    (0x0200, "Ethernet controller"),
    (0x0207, "InfiniBand controller"),
    (0x0300, "VGA controller"),
    (0x0302, "3D controller"),
    (0x0400, "video device"),
    (0x0401, "audio device"),
    (0x0403, "high-definition audio device"),
    (0x0500, "RAM controller"),
    (0x0502, "CXL memory device"),
    (0x0600, "host bridge"),
    (0x0601, "ISA bridge"),
    (0x0604, "PCI bridge"),
    (0x0607, "CardBus bridge"),
    (0x0700, "serial controller"),
    (0x0701, "parallel controller"),
    (0x0702, "multiport serial controller"),
    (0x0703, "modem"),
    (0x0800, "interrupt controller"),
    (0x0801, "DMA controller"),
    (0x0802, "timer"),
    (0x0803, "real-time clock"),
    (0x0805, "SD host controller"),
    (0x0806, "IOMMU"),
    (0x0c00, "FireWire controller"),
    (0x0c03, "USB controller"),
    (0x0c04, "Fibre Channel controller"),
    (0x0c05, "SMBus controller"),
    (0x0c06, "InfiniBand controller"),
    (0x0c07, "IPMI interface"),
    (0x0c09, "CAN controller"),
    (0x0d11, "Bluetooth controller"),
];

const fn base_class_name(base: u32) -> &'static str {
    match base {
        0x00 => "unclassified device",
        0x01 => "storage controller",
        0x02 => "network controller",
        0x03 => "display controller",
        0x04 => "multimedia device",
        0x05 => "memory controller",
        0x06 => "bridge",
        0x07 => "communication controller",
        0x08 => "system peripheral",
        0x09 => "input device",
        0x0a => "docking station",
        0x0b => "processor",
        0x0c => "serial bus controller",
        0x0d => "wireless controller",
        0x0e => "intelligent I/O controller",
        0x0f => "satellite communication controller",
        0x10 => "encryption controller",
        0x11 => "signal processing controller",
        0x12 => "processing accelerator",
        0x13 => "non-essential instrumentation",
        0x40 => "coprocessor",
        0xff => "device of an unassigned class",
        _ => "device of a reserved class",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_known_to_the_subclass_is_named_by_it() {
        assert_eq!(class_name(0x01_0802), "non-volatile memory controller");
        assert_eq!(class_name(0x0c_0330), "USB controller");
        assert_eq!(class_name(0x06_0100), "ISA bridge");
    }

    #[test]
    fn class_of_a_rare_subclass_is_named_by_its_base_class() {
        assert_eq!(class_name(0x02_8000), "network controller");
        assert_eq!(class_name(0xff_0000), "device of an unassigned class");
        assert_eq!(class_name(0x00_ff00), "unclassified device");
        assert_eq!(class_name(0x20_0000), "device of a reserved class");
    }
}
