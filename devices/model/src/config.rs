//! Type 0 configuration space (PCI Local Bus Specification 3.0, 6.1) with an MSI capability (6.8.1).

use udrv_backend::Width;

/// Size in bytes: conventional PCI.
pub(crate) const SIZE: u64 = 256;

const MSI: usize = 0x40;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const INTERRUPT_STATUS: u8 = 1 << 3;
const BAR0: usize = 0x10;
const BUS_MASTER: u16 = 1 << 2;
const INTERRUPT_DISABLE: u16 = 1 << 10;

/// What a device is, in its configuration space and beyond.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code: base class, subclass, interface in the low 24 bits.
    pub class: u32,
    /// Sizes in bytes of the six BARs, each 0 or a power of two of at least 16; 32-bit memory.
    pub bars: [u64; 6],
    /// 0 for none, 1 for INTA.
    pub interrupt_pin: u8,
    /// MSI vectors: 0 or a power of two up to 32.
    pub msi_vectors: u32,
    /// Width of the bus addresses it emits.
    pub dma_address_bits: u32,
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
        space.allow(COMMAND, &0x0547u16.to_le_bytes());
        for (bar, &size) in identity.bars.iter().enumerate() {
            // Only the bits above the size can be set: that is how the size is found out (6.2.5.1).
            let mask = if size == 0 { 0 } else { !(size as u32 - 1) };
            space.allow(BAR0 + 4 * bar, &mask.to_le_bytes());
        }
        space.allow(0x3c, &[0xff]);
        space.set(0x3d, &[identity.interrupt_pin]);
        if identity.msi_vectors > 0 {
            space.set(0x06, &(1u16 << 4).to_le_bytes());
            space.set(0x34, &[MSI as u8]);
            let multiple = (identity.msi_vectors.trailing_zeros() as u16) << 1;
            // ID 5, no next; 64-bit address; as many messages as vectors.
            space.set(MSI, &[0x05, 0x00]);
            space.set(MSI + 2, &((1u16 << 7) | multiple).to_le_bytes());
            space.allow(MSI + 2, &0x0071u16.to_le_bytes());
            space.allow(MSI + 4, &0xffff_fffcu32.to_le_bytes());
            space.allow(MSI + 8, &u32::MAX.to_le_bytes());
            space.allow(MSI + 12, &u16::MAX.to_le_bytes());
        }
        space
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
