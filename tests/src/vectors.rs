//! A device that has what edu lacks, for the conformance suite: eight MSI-X and four MSI vectors, a reset, registers of
//! every width, and memory that can be mapped.
//!
//! | BAR 0 | |
//! |---|---|
//! | 0x000 | 64 bytes that keep what is written, by any width; 0 after a reset |
//! | 0x100 | raise: the vector written is pending, and its message sent |
//! | 0x104 | acknowledge: the bits written are no longer pending |
//! | 0x108 | pending vectors, one bit each; the pin is asserted while any is set |
//! | 0x200 | bus address of a transfer, 64 bits |
//! | 0x208 | transfer: 1 from memory into the buffer of 64 bytes, 2 from the buffer to memory |
//! | 0x1000 | MSI-X table |
//! | 0x2000 | MSI-X pending bits |
//!
//! BAR 2 is 8 KiB of memory.

use std::fs::File;
use std::sync::Arc;
use udrv_backend::conformance::{Interrupt, Knowledge, Scratch, Transfer};
use udrv_backend::{RegionIndex, Result, Width};
use udrv_model::{Bar, Bus, DeviceModel, Identity, ModelBackend, Msix, device_memory};

/// MSI-X vectors, all of which the device uses.
pub const VECTORS: u16 = 8;
const MEMORY: u64 = 0x2000;
const RAISE: u64 = 0x100;
const ACKNOWLEDGE: u64 = 0x104;
const PENDING: u64 = 0x108;
const ADDRESS: u64 = 0x200;
const COMMAND: u64 = 0x208;

/// The device.
pub struct VectorsModel {
    memory: Arc<File>,
    scratch: [u8; 64],
    pending: u32,
    sent: [u64; VECTORS as usize],
    address: u64,
    buffer: [u8; Transfer::LENGTH],
}

/// The device as `model:vectors`.
///
/// # Errors
/// [`udrv_backend::Error::Os`] if there is no memory for its memory.
pub fn vectors() -> Result<ModelBackend<VectorsModel>> {
    Ok(ModelBackend::new("vectors", VectorsModel::new(Arc::new(device_memory(MEMORY)?))))
}

const fn scratch(region: u32, offset: u64, width: Width, reset: Option<u64>) -> Scratch {
    Scratch { region: RegionIndex(region), offset, width, reset }
}

/// What the conformance suite needs to know of it.
pub const KNOWLEDGE: Knowledge = Knowledge {
    scratch: &[
        scratch(0, 0x00, Width::Bits64, Some(0)),
        scratch(0, 0x08, Width::Bits32, Some(0)),
        scratch(0, 0x0e, Width::Bits16, Some(0)),
        scratch(0, 0x3f, Width::Bits8, Some(0)),
        scratch(2, 0x0000, Width::Bits64, None),
        scratch(2, 0x1ffc, Width::Bits32, None),
    ],
    interrupt: Some(Interrupt {
        vectors: VECTORS as u32,
        raise: |device, vector| device.write(RegionIndex::BAR0, RAISE, Width::Bits32, u64::from(vector)),
        acknowledge: |device| device.write(RegionIndex::BAR0, ACKNOWLEDGE, Width::Bits32, 0xffff_ffff),
    }),
    transfer: Some(Transfer {
        mask: u64::MAX,
        to_device: |device, iova| {
            device.write(RegionIndex::BAR0, ADDRESS, Width::Bits64, iova)?;
            device.write(RegionIndex::BAR0, COMMAND, Width::Bits32, 1)
        },
        to_memory: |device, iova| {
            device.write(RegionIndex::BAR0, ADDRESS, Width::Bits64, iova)?;
            device.write(RegionIndex::BAR0, COMMAND, Width::Bits32, 2)
        },
    }),
};

impl VectorsModel {
    fn new(memory: Arc<File>) -> Self {
        Self {
            memory,
            scratch: [0; 64],
            pending: 0,
            sent: [0; VECTORS as usize],
            address: 0,
            buffer: [0; Transfer::LENGTH],
        }
    }

    fn raise(&mut self, vector: u64) {
        if let Some(sent) = self.sent.get_mut(vector as usize) {
            *sent += 1;
            self.pending |= 1 << vector;
        }
    }

    fn transfer(&mut self, command: u64, bus: &Bus<'_>) {
        // What does not reach memory is lost: the device has no word for it.
        let _done = match command {
            1 => bus.read(self.address, &mut self.buffer),
            2 => bus.write(self.address, &self.buffer),
            _ => Ok(()),
        };
    }

    fn scratch(&mut self, offset: u64, width: Width) -> Option<&mut [u8]> {
        self.scratch.get_mut(offset as usize..(offset + width.bytes()) as usize)
    }
}

impl DeviceModel for VectorsModel {
    fn identity(&self) -> Identity {
        Identity {
            vendor: 0x1234,
            device: 0xf00d,
            class: 0x00_ff_00,
            bars: [Bar::Registers(0x4000), Bar::None, Bar::Memory(MEMORY), Bar::None, Bar::None, Bar::None],
            interrupt_pin: 1,
            msi_vectors: 4,
            msix: Some(Msix { vectors: VECTORS, bar: 0, table: 0x1000, pending: 0x2000 }),
            resettable: true,
            ..Identity::default()
        }
    }

    fn read(&mut self, _bar: u32, offset: u64, width: Width) -> u64 {
        if let Some(bytes) = self.scratch(offset, width) {
            return bytes.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte));
        }
        match offset {
            PENDING => u64::from(self.pending),
            ADDRESS => self.address,
            _ => 0,
        }
    }

    fn write(&mut self, _bar: u32, offset: u64, width: Width, value: u64, bus: &mut Bus<'_>) {
        if let Some(bytes) = self.scratch(offset, width) {
            bytes.iter_mut().zip(value.to_le_bytes()).for_each(|(byte, new)| *byte = new);
            return;
        }
        match offset {
            RAISE => self.raise(value),
            ACKNOWLEDGE => self.pending &= !(value as u32),
            ADDRESS => self.address = value,
            COMMAND => self.transfer(value, bus),
            _ => {}
        }
    }

    fn line(&self) -> bool {
        self.pending != 0
    }

    fn messages(&self) -> &[u64] {
        &self.sent
    }

    fn reset(&mut self) {
        *self = Self::new(Arc::clone(&self.memory));
    }

    fn memory(&self, _bar: u32) -> Option<Arc<File>> {
        Some(Arc::clone(&self.memory))
    }
}
