//! Type 0 configuration space (PCI Local Bus Specification 3.0, 6.1) with MSI (6.8.1) and MSI-X (6.8.2) capabilities.

use crate::Msix;
use udrv_backend::Width;

/// Size in bytes: conventional PCI.
pub(crate) const SIZE: u64 = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const INTERRUPT_STATUS: u8 = 1 << 3;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;
const BUS_MASTER: u16 = 1 << 2;
const INTERRUPT_DISABLE: u16 = 1 << 10;

/// One base address register. Sizes are in bytes, powers of two; of memory, at least 4096.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Bar {
    /// Not implemented.
    #[default]
    None,
    /// Registers: 32-bit, not prefetchable.
    Registers(u64),
    /// Registers in I/O space: 4 to 256 bytes (6.2.5.1).
    Ports(u64),
    /// Memory of the device without side effects, which a driver may map: 64-bit, prefetchable. The BAR after it holds the
    /// upper half of its address and must be [`Bar::None`].
    Memory(u64),
}

impl Bar {
    /// Its size in bytes.
    #[must_use]
    pub const fn size(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Registers(size) | Self::Ports(size) | Self::Memory(size) => size,
        }
    }
}

/// What a device is, in its configuration space and beyond.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code: base class, subclass, interface in the low 24 bits.
    pub class: u32,
    /// The six BARs.
    pub bars: [Bar; 6],
    /// 0 for none, 1 for INTA.
    pub interrupt_pin: u8,
    /// MSI vectors: 0 or a power of two up to 32.
    pub msi_vectors: u32,
    /// MSI-X, if it has it.
    pub msix: Option<Msix>,
    /// Whether it has a function-level reset.
    pub resettable: bool,
}

pub(crate) struct ConfigSpace {
    bytes: [u8; SIZE as usize],
    /// Bits that a write changes.
    writable: [u8; SIZE as usize],
}

impl ConfigSpace {
    pub(crate) fn new(identity: &Identity) -> Self {
        let mut space = Self { bytes: [0; SIZE as usize], writable: [0; SIZE as usize] };
        space.set(0x00, &identity.vendor.to_le_bytes());
        space.set(0x02, &identity.device.to_le_bytes());
        space.set(0x08, &((identity.class << 8) | u32::from(identity.revision)).to_le_bytes());
        space.set(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.set(0x2e, &identity.subsystem.to_le_bytes());
        space.allow(COMMAND, &0x0547u16.to_le_bytes());
        for (number, bar) in identity.bars.iter().enumerate() {
            space.bar(BAR0 + 4 * number, *bar);
        }
        space.allow(0x3c, &[0xff]);
        space.set(0x3d, &[identity.interrupt_pin]);
        space.capabilities(identity);
        space
    }

    /// Only the address bits above the size can be set: that is how the size is found out (6.2.5.1).
    fn bar(&mut self, at: usize, bar: Bar) {
        match bar {
            Bar::None => {}
            Bar::Registers(size) => self.allow(at, &(!(size - 1) as u32).to_le_bytes()),
            Bar::Ports(size) => {
                self.set(at, &0b01u32.to_le_bytes());
                self.allow(at, &(!(size - 1) as u32 & !0b11).to_le_bytes());
            }
            Bar::Memory(size) => {
                self.set(at, &0b1100u32.to_le_bytes());
                self.allow(at, &(!(size - 1)).to_le_bytes());
            }
        }
    }

    fn capabilities(&mut self, identity: &Identity) {
        let mut link = CAPABILITIES;
        let mut at = FIRST_CAPABILITY;
        let mut begin = |space: &mut Self, id: u8, size: usize| {
            space.set(STATUS, &(1u16 << 4).to_le_bytes());
            space.set(link, &[at as u8]);
            space.set(at, &[id]);
            let start = at;
            link = start + 1;
            at += size;
            start
        };
        if identity.msi_vectors > 0 {
            let msi = begin(self, 0x05, 16);
            let multiple = (identity.msi_vectors.trailing_zeros() as u16) << 1;
            // 64-bit address; as many messages as vectors, no mask bits.
            self.set(msi + 2, &((1u16 << 7) | multiple).to_le_bytes());
            self.allow(msi + 2, &0x0071u16.to_le_bytes());
            self.allow(msi + 4, &0xffff_fffcu32.to_le_bytes());
            self.allow(msi + 8, &u32::MAX.to_le_bytes());
            self.allow(msi + 12, &u16::MAX.to_le_bytes());
        }
        if let Some(Msix { vectors, bar, table, pending }) = identity.msix {
            let msix = begin(self, 0x11, 12);
            self.set(msix + 2, &vectors.saturating_sub(1).to_le_bytes());
            // Enable and the mask of the whole function.
            self.allow(msix + 2, &0xc000u16.to_le_bytes());
            self.set(msix + 4, &(table | u32::from(bar)).to_le_bytes());
            self.set(msix + 8, &(pending | u32::from(bar)).to_le_bytes());
        }
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// The access has been checked against [`SIZE`].
    pub(crate) fn read(&self, offset: u64, width: Width) -> u64 {
        let at = offset as usize;
        let mut raw = [0; 8];
        let length = width.bytes() as usize;
        raw[..length].copy_from_slice(&self.bytes[at..at + length]);
        u64::from_le_bytes(raw)
    }

    /// The access has been checked against [`SIZE`].
    pub(crate) fn write(&mut self, offset: u64, width: Width, value: u64) {
        let at = offset as usize;
        for (index, byte) in value.to_le_bytes().into_iter().take(width.bytes() as usize).enumerate() {
            let mask = self.writable[at + index];
            let old = &mut self.bytes[at + index];
            *old = (*old & !mask) | (byte & mask);
        }
    }

    /// Shows the device's interrupt in the status register, whether or not its pin is enabled (6.2.3): by this bit a kernel knows
    /// whose interrupt came in on a line that is shared.
    pub(crate) fn show_interrupt(&mut self, asserted: bool) {
        let status = &mut self.bytes[STATUS];
        *status = (*status & !INTERRUPT_STATUS) | if asserted { INTERRUPT_STATUS } else { 0 };
    }

    fn command(&self) -> u16 {
        u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]])
    }

    pub(crate) fn bus_master(&self) -> bool {
        self.command() & BUS_MASTER != 0
    }

    pub(crate) fn pin_enabled(&self) -> bool {
        self.command() & INTERRUPT_DISABLE == 0
    }
}
