//! The device in software, by its specification. Factorials and transfers are done when the write that starts them
//! returns, so [`Status::COMPUTING`] and [`DmaCommand::START`] are never seen set; a driver must not rely on that.

use crate::registers::{
    BAR0_SIZE, BUFFER_OFFSET, BUFFER_SIZE, DEVICE, DMA_ADDRESS_BITS, DMA_COMMAND, DMA_COUNT, DMA_DESTINATION,
    DMA_SOURCE, DmaCommand, FACTORIAL, IDENTIFICATION, INTERRUPT_ACKNOWLEDGE, INTERRUPT_RAISE, INTERRUPT_STATUS,
    InterruptStatus, LIVENESS, STATUS, Status, VENDOR,
};
use udrv_backend::Width;
use udrv_backend::register::Value as _;
use udrv_model::{Bar, Bus, DeviceModel, Identity, ModelBackend};

/// Revision 1.0.
const REVISION_1_0: u32 = 0x0100_00ed;

/// The education device.
pub struct EduModel {
    liveness: u32,
    factorial: u32,
    status: Status,
    interrupts: InterruptStatus,
    /// Messages sent: one whenever something is raised, whether or not anything was raised before.
    sent: [u64; 1],
    source: u64,
    destination: u64,
    count: u64,
    command: DmaCommand,
    buffer: Vec<u8>,
}

/// The device as `model:edu`.
#[must_use]
pub fn edu() -> ModelBackend<EduModel> {
    ModelBackend::new("edu", EduModel::new())
}

impl Default for EduModel {
    fn default() -> Self {
        Self::new()
    }
}

impl EduModel {
    /// In power-on state.
    #[must_use]
    pub fn new() -> Self {
        Self {
            liveness: 0,
            factorial: 0,
            status: Status::empty(),
            interrupts: InterruptStatus::empty(),
            sent: [0],
            source: 0,
            destination: 0,
            count: 0,
            command: DmaCommand::empty(),
            buffer: vec![0; BUFFER_SIZE as usize],
        }
    }

    fn raise(&mut self, cause: InterruptStatus) {
        self.interrupts |= cause;
        if !self.interrupts.is_empty() {
            self.sent = self.sent.map(|count| count.wrapping_add(1));
        }
    }

    fn compute(&mut self, n: u32) {
        // Past 34! every bit that fits is 0, and stays so.
        self.factorial = (1..=n.min(64)).fold(1, u32::wrapping_mul);
        if self.status.contains(Status::IRQ_ON_FACTORIAL) {
            self.raise(InterruptStatus::FACTORIAL);
        }
    }

    fn transfer(&mut self, bus: &Bus<'_>) {
        const MASK: u64 = (1 << DMA_ADDRESS_BITS) - 1;
        let command = self.command;
        self.command -= DmaCommand::START;
        let inner = if command.contains(DmaCommand::TO_MEMORY) { self.source } else { self.destination };
        // A range that is not all in the device's buffer transfers nothing. QEMU's device stops the machine, or, lately,
        // logs it and goes beyond its buffer.
        let range = inner.checked_sub(BUFFER_OFFSET).and_then(|start| {
            let end = start.checked_add(self.count).filter(|end| *end <= BUFFER_SIZE)?;
            self.buffer.get_mut(start as usize..end as usize)
        });
        if let Some(bytes) = range {
            // A fault leaves the bytes as they are; the device has no way to tell its driver.
            let _done = if command.contains(DmaCommand::TO_MEMORY) {
                bus.write(self.destination & MASK, bytes)
            } else {
                bus.read(self.source & MASK, bytes)
            };
        }
        if command.contains(DmaCommand::IRQ) {
            self.raise(InterruptStatus::DMA);
        }
    }

    /// One of the transfer's three operands.
    fn operand(&mut self, offset: u64) -> Option<&mut u64> {
        match offset {
            at if at == DMA_SOURCE.offset => Some(&mut self.source),
            at if at == DMA_DESTINATION.offset => Some(&mut self.destination),
            at if at == DMA_COUNT.offset => Some(&mut self.count),
            _ => None,
        }
    }
}

/// Which accesses the device knows ("MMIO area spec").
fn is_legal(offset: u64, width: Width) -> bool {
    width == Width::Bits32 || (offset >= 0x80 && width == Width::Bits64)
}

impl DeviceModel for EduModel {
    fn identity(&self) -> Identity {
        Identity {
            vendor: VENDOR,
            device: DEVICE,
            // What QEMU gives to devices that name no subsystem (docs/specs/pci-ids.rst).
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            revision: 0x10,
            class: 0x00_ff_00,
            bars: [Bar::Registers(BAR0_SIZE), Bar::None, Bar::None, Bar::None, Bar::None, Bar::None],
            interrupt_pin: 1,
            msi_vectors: 1,
            msix: None,
            // The device has no reset method, in QEMU either.
            resettable: false,
        }
    }

    fn read(&mut self, _bar: u32, offset: u64, width: Width) -> u64 {
        if !is_legal(offset, width) {
            return width.all_ones();
        }
        let word = match offset {
            at if at == IDENTIFICATION.offset => REVISION_1_0,
            at if at == LIVENESS.offset => self.liveness,
            at if at == FACTORIAL.offset => self.factorial,
            at if at == STATUS.offset => self.status.into_word(),
            at if at == INTERRUPT_STATUS.offset => self.interrupts.into_word(),
            at if at == DMA_COMMAND.offset => return self.command.bits(),
            at => return self.operand(at).map_or(u64::MAX, |value| *value),
        };
        u64::from(word)
    }

    fn write(&mut self, _bar: u32, offset: u64, width: Width, value: u64, bus: &mut Bus<'_>) {
        if !is_legal(offset, width) {
            return;
        }
        let word = value as u32;
        match offset {
            at if at == LIVENESS.offset => self.liveness = !word,
            at if at == FACTORIAL.offset => self.compute(word),
            at if at == STATUS.offset => self.status = Status::from_word(word) & Status::IRQ_ON_FACTORIAL,
            at if at == INTERRUPT_RAISE.offset => self.raise(InterruptStatus::from_word(word)),
            at if at == INTERRUPT_ACKNOWLEDGE.offset => self.interrupts -= InterruptStatus::from_word(word),
            at if at == DMA_COMMAND.offset => {
                // Without START nothing is stored either.
                if DmaCommand::from_bits_retain(value).contains(DmaCommand::START) {
                    self.command = DmaCommand::from_bits_retain(value);
                    self.transfer(bus);
                }
            }
            // Four bytes are zero-extended: the upper half has no address of its own.
            at => {
                if let Some(operand) = self.operand(at) {
                    *operand = value;
                }
            }
        }
    }

    fn line(&self) -> bool {
        !self.interrupts.is_empty()
    }

    fn messages(&self) -> &[u64] {
        &self.sent
    }

    fn reset(&mut self) {
        *self = Self::new();
    }
}
