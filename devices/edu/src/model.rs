//! The device in software, by its specification. Factorials and transfers are done when the write that starts them
//! returns, so [`Status::COMPUTING`] and [`DmaCommand::START`] are never seen set; a driver must not rely on that.

use crate::registers::{
    BAR0_SIZE, BUFFER_OFFSET, BUFFER_SIZE, DEVICE, DMA_ADDRESS_BITS, DMA_COMMAND, DMA_COUNT, DMA_DESTINATION,
    DMA_SOURCE, DmaCommand, FACTORIAL, IDENTIFICATION, INTERRUPT_ACKNOWLEDGE, INTERRUPT_RAISE, INTERRUPT_STATUS,
    InterruptStatus, LIVENESS, STATUS, Status, VENDOR,
};
use udrv_backend::Width;
use udrv_backend::register::Value as _;
use udrv_model::{Bus, DeviceModel, Identity, ModelBackend};

/// Revision 1.0.
const REVISION_1_0: u32 = 0x0100_00ed;

/// The education device.
pub struct EduModel {
    liveness: u32,
    factorial: u32,
    status: Status,
    interrupts: InterruptStatus,
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
            source: 0,
            destination: 0,
            count: 0,
            command: DmaCommand::empty(),
            buffer: vec![0; BUFFER_SIZE as usize],
        }
    }

    fn compute(&mut self, n: u32) {
        // Past 34! every bit that fits is 0, and stays so.
        self.factorial = (1..=n.min(64)).fold(1, u32::wrapping_mul);
        if self.status.contains(Status::IRQ_ON_FACTORIAL) {
            self.interrupts |= InterruptStatus::FACTORIAL;
        }
    }

    fn transfer(&mut self, bus: &Bus<'_>) {
        const MASK: u64 = (1 << DMA_ADDRESS_BITS) - 1;
        let command = self.command;
        self.command -= DmaCommand::START;
        let inner = if command.contains(DmaCommand::TO_MEMORY) { self.source } else { self.destination };
        // A range that is not all in the device's buffer transfers nothing; QEMU's device stops the machine.
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
            self.interrupts |= InterruptStatus::DMA;
        }
    }

    /// The 8-byte register around `offset`, if it is one of the four.
    fn wide(&mut self, offset: u64) -> Option<&mut u64> {
        match offset & !7 {
            at if at == DMA_SOURCE.offset => Some(&mut self.source),
            at if at == DMA_DESTINATION.offset => Some(&mut self.destination),
            at if at == DMA_COUNT.offset => Some(&mut self.count),
            _ => None,
        }
    }
}

/// `old` with a value of `width` written at byte `at` of it.
fn insert(old: u64, at: u64, width: Width, value: u64) -> u64 {
    let shift = at * 8;
    (old & !(width.all_ones() << shift)) | (value << shift)
}

impl DeviceModel for EduModel {
    fn identity(&self) -> Identity {
        Identity {
            vendor: VENDOR,
            device: DEVICE,
            revision: 0x10,
            class: 0x00_ff_00,
            bars: [BAR0_SIZE, 0, 0, 0, 0, 0],
            interrupt_pin: 1,
            msi_vectors: 1,
            dma_address_bits: DMA_ADDRESS_BITS,
            resettable: false,
        }
    }

    fn read(&mut self, _bar: u32, offset: u64, width: Width) -> u64 {
        let legal = width == Width::Bits32 || (offset >= 0x80 && width == Width::Bits64);
        if !legal {
            return width.all_ones();
        }
        let word = match offset {
            at if at == IDENTIFICATION.offset => REVISION_1_0,
            at if at == LIVENESS.offset => !self.liveness,
            at if at == FACTORIAL.offset => self.factorial,
            at if at == STATUS.offset => self.status.into_word(),
            at if at == INTERRUPT_STATUS.offset => self.interrupts.into_word(),
            at if at & !7 == DMA_COMMAND.offset => return (self.command.bits() >> ((at & 7) * 8)) & width.all_ones(),
            at => return self.wide(at).map_or(width.all_ones(), |value| (*value >> ((at & 7) * 8)) & width.all_ones()),
        };
        u64::from(word)
    }

    fn write(&mut self, _bar: u32, offset: u64, width: Width, value: u64, bus: &mut Bus<'_>) {
        let legal = width == Width::Bits32 || (offset >= 0x80 && width == Width::Bits64);
        if !legal {
            return;
        }
        let word = value as u32;
        match offset {
            at if at == LIVENESS.offset => self.liveness = word,
            at if at == FACTORIAL.offset => self.compute(word),
            at if at == STATUS.offset => self.status = Status::from_word(word) & Status::IRQ_ON_FACTORIAL,
            at if at == INTERRUPT_RAISE.offset => self.interrupts |= InterruptStatus::from_word(word),
            at if at == INTERRUPT_ACKNOWLEDGE.offset => self.interrupts -= InterruptStatus::from_word(word),
            at if at == DMA_COMMAND.offset => {
                self.command = DmaCommand::from_bits_retain(insert(0, at & 7, width, value));
                if self.command.contains(DmaCommand::START) {
                    self.transfer(bus);
                }
            }
            at => {
                if let Some(register) = self.wide(at) {
                    *register = insert(*register, at & 7, width, value);
                }
            }
        }
    }

    fn interrupt(&self) -> bool {
        !self.interrupts.is_empty()
    }

    fn reset(&mut self) {
        *self = Self::new();
    }
}
