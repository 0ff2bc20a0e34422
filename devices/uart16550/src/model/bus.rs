//! The device as its bus sees it: what it is, its eight registers, its interrupt line.

use super::UartModel;
use crate::registers::{
    BAR0_SIZE, CLASS, DEVICE, FifoControl, InterruptEnable, LineControl, LineStatus, ModemControl, ModemStatus, VENDOR,
};
use udrv_backend::Width;
use udrv_model::{Bar, Bus, DeviceModel, Identity};

impl DeviceModel for UartModel {
    fn identity(&self) -> Identity {
        Identity {
            vendor: VENDOR,
            device: DEVICE,
            // What QEMU gives to devices that name no subsystem (docs/specs/pci-ids.rst).
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            revision: 0x01,
            class: CLASS,
            bars: [Bar::Ports(BAR0_SIZE), Bar::None, Bar::None, Bar::None, Bar::None, Bar::None],
            interrupt_pin: 1,
            msi_vectors: 0,
            msix: None,
            // The part has a pin for it, MR; QEMU's device on PCI has no reset of its own.
            resettable: true,
        }
    }

    fn read(&mut self, _bar: u32, offset: u64, width: Width) -> u64 {
        if width != Width::Bits8 {
            return width.all_ones();
        }
        let [low, high] = self.divisor.to_le_bytes();
        let latch = self.lcr.contains(LineControl::DLAB);
        let byte = match offset {
            0 if latch => low,
            1 if latch => high,
            0 => self.take_received(),
            1 => self.ier.bits(),
            2 => self.identify(),
            3 => self.lcr.bits(),
            4 => self.mcr.bits(),
            5 => {
                let status = self.line_status();
                self.shown = LineStatus::empty();
                status.bits()
            }
            6 => (std::mem::replace(&mut self.changes, ModemStatus::empty()) | self.seen).bits(),
            _ => self.scr,
        };
        u64::from(byte)
    }

    fn write(&mut self, _bar: u32, offset: u64, width: Width, value: u64, _bus: &mut Bus<'_>) {
        if width != Width::Bits8 {
            return;
        }
        let byte = value as u8;
        let [low, high] = self.divisor.to_le_bytes();
        let latch = self.lcr.contains(LineControl::DLAB);
        match offset {
            0 if latch => self.divisor = u16::from_le_bytes([byte, high]),
            1 if latch => self.divisor = u16::from_le_bytes([low, byte]),
            0 => self.hold(byte),
            1 => self.enable(InterruptEnable::from_bits_retain(byte)),
            2 => self.control_fifos(FifoControl::from_bits_retain(byte)),
            3 => self.control_line(LineControl::from_bits_retain(byte)),
            4 => self.control_modem(ModemControl::from_bits_retain(byte)),
            // LSR is for reading; so is MSR, whose inputs come from outside.
            5 | 6 => {}
            _ => self.scr = byte,
        }
    }

    fn line(&self) -> bool {
        self.cause().is_some()
    }

    fn messages(&self) -> &[u64] {
        &[]
    }

    /// A master reset leaves the scratch register and the divisor latch as they are, and what the inputs are at is none of it.
    fn reset(&mut self) {
        let Self { plug, inputs, scr, divisor, .. } = *self;
        *self = Self { inputs, scr, divisor, ..Self::new(plug) };
        self.seen = self.lines();
    }
}
