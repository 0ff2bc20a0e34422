//! PCI configuration space, as far as a driver needs it (PCI Local Bus Specification 3.0, chapter 6).

use crate::register::{ReadOnly, ReadWrite, Readable, Register, Value, Word, Writable};
use crate::{Backend, IrqIndex, RegionIndex, Result};

bitflags::bitflags! {
    /// The command register (6.2.2).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Command: u16 {
        /// The device answers I/O accesses.
        const IO_SPACE = 1;
        /// The device answers memory accesses.
        const MEMORY_SPACE = 1 << 1;
        /// The device may start transfers of its own: DMA and message-signalled interrupts.
        const BUS_MASTER = 1 << 2;
        /// The pin interrupt is kept from being asserted.
        const INTERRUPT_DISABLE = 1 << 10;
    }
}
crate::flags_value!(Command, u16);

/// Vendor ID.
pub const VENDOR_ID: Register<u16, ReadOnly> = Register::new("Vendor ID", 0x00);
/// Device ID.
pub const DEVICE_ID: Register<u16, ReadOnly> = Register::new("Device ID", 0x02);
/// Command.
pub const COMMAND: Register<Command, ReadWrite> = Register::new("Command", 0x04);
/// Status.
pub const STATUS: Register<u16, ReadOnly> = Register::new("Status", 0x06);
/// Revision ID in the low byte, class code above it.
pub const CLASS_REVISION: Register<u32, ReadOnly> = Register::new("Class Code", 0x08);
/// Offset of the first capability.
pub const CAPABILITIES: Register<u8, ReadOnly> = Register::new("Capabilities Pointer", 0x34);

/// One entry of the capability list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// Offset in configuration space.
    pub offset: u8,
    /// Capability ID (PCI Code and ID Assignment Specification, chapter 2).
    pub id: u8,
}

impl Capability {
    /// The capability's name, if it is a common one.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self.id {
            0x01 => "Power Management",
            0x05 => "MSI",
            0x09 => "Vendor Specific",
            0x0d => "Subsystem ID",
            0x10 => "PCI Express",
            0x11 => "MSI-X",
            0x12 => "SATA",
            0x13 => "Advanced Features",
            _ => "unknown",
        }
    }
}

/// Configuration space of one device, through its backend's config region.
pub struct Config<'a, B: ?Sized>(&'a B);

impl<'a, B: Backend + ?Sized> Config<'a, B> {
    /// Over a backend's config region.
    pub const fn new(backend: &'a B) -> Self {
        Self(backend)
    }

    fn load<W: Word>(&self, offset: u64) -> Result<W> {
        self.0.read(RegionIndex::CONFIG, offset, W::WIDTH).map(W::from_raw)
    }

    /// One register of it.
    ///
    /// # Errors
    /// As [`Backend::read`].
    pub fn read<V: Value, A: Readable>(&self, register: Register<V, A>) -> Result<V> {
        Ok(V::from_word(self.load(register.offset)?))
    }

    /// Writes one register of it.
    ///
    /// # Errors
    /// As [`Backend::write`].
    pub fn write<V: Value, A: Writable>(&self, register: Register<V, A>, value: V) -> Result<()> {
        self.0.write(RegionIndex::CONFIG, register.offset, V::Word::WIDTH, value.into_word().into_raw())
    }

    /// Vendor and device ID.
    ///
    /// # Errors
    /// As [`Backend::read`].
    pub fn id(&self) -> Result<(u16, u16)> {
        Ok((self.read(VENDOR_ID)?, self.read(DEVICE_ID)?))
    }

    /// Class code: base class, subclass, programming interface in the low 24 bits.
    ///
    /// # Errors
    /// As [`Backend::read`].
    pub fn class(&self) -> Result<u32> {
        Ok(self.read(CLASS_REVISION)? >> 8)
    }

    /// The command register.
    ///
    /// # Errors
    /// As [`Backend::read`].
    pub fn command(&self) -> Result<Command> {
        self.read(COMMAND)
    }

    /// Sets and clears bits of the command register, leaving the others.
    ///
    /// # Errors
    /// As [`Backend::read`] and [`Backend::write`].
    pub fn change_command(&self, set: Command, clear: Command) -> Result<()> {
        let now = self.read(COMMAND)?;
        self.write(COMMAND, (now - clear) | set)
    }

    /// The capability list; a list that loops or points outside is cut there.
    ///
    /// # Errors
    /// As [`Backend::read`].
    pub fn capabilities(&self) -> Result<Vec<Capability>> {
        const LIST_PRESENT: u16 = 1 << 4;
        let mut found = Vec::new();
        if self.read(STATUS)? & LIST_PRESENT == 0 {
            return Ok(found);
        }
        let mut offset = self.read(CAPABILITIES)? & 0xfc;
        // 48 entries of 4 bytes fill all of the space behind the header: more is a loop.
        while offset >= 0x40 && found.len() < 48 {
            let header: u16 = self.load(u64::from(offset))?;
            let [id, next] = header.to_le_bytes();
            found.push(Capability { offset, id });
            offset = next & 0xfc;
        }
        Ok(found)
    }
}

/// Makes a device quiet after its driver, whatever way that ended: interrupts disarmed, bus mastering off, then a reset
/// if it has one. Every step is tried; the first error is returned.
///
/// # Errors
/// The first that any step gave.
pub fn quiesce(backend: &(impl Backend + ?Sized)) -> Result<()> {
    let mut outcome = Ok(());
    for index in (0..backend.info().irqs).map(IrqIndex) {
        if backend.irq(index).is_ok_and(|irq| irq.count > 0) {
            outcome = outcome.and(backend.disable_irq(index));
        }
    }
    let config = Config::new(backend);
    outcome = outcome.and(config.change_command(Command::empty(), Command::BUS_MASTER));
    if let Some(device) = backend.resettable() {
        outcome = outcome.and(device.reset());
    }
    outcome
}
