//! The registers of BAR 0, eight bytes of I/O ports (data sheet PC16550D, section 8.0 and table "Summary of Registers").
//!
//! Three offsets have several registers: which one an access reaches depends on its direction and on [`LineControl::DLAB`].

use udrv_backend::register::{ReadEffect, ReadWrite, Register, RegisterMap, WriteOnly};
use udrv_backend::{RegionIndex, flags_value};

/// PCI vendor ID of QEMU's device (docs/specs/pci-ids.rst).
pub const VENDOR: u16 = 0x1b36;
/// PCI device ID of its serial port with one 16550.
pub const DEVICE: u16 = 0x0002;
/// Class code: simple communication controller, serial, 16550 compatible (PCI Code and ID Assignment, 1.8).
pub const CLASS: u32 = 0x07_00_02;
/// Size of BAR 0 in bytes.
pub const BAR0_SIZE: u64 = 8;

/// Receiver buffer: the oldest character received; reading takes it.
pub const RBR: Register<u8, ReadEffect> = Register::new("RBR", 0);
/// Transmitter holding: a character to send.
pub const THR: Register<u8, WriteOnly> = Register::new("THR", 0);
/// Divisor latch, low byte, while [`LineControl::DLAB`] is set.
pub const DLL: Register<u8, ReadWrite> = Register::new("DLL", 0);
/// Divisor latch, high byte, while [`LineControl::DLAB`] is set.
pub const DLM: Register<u8, ReadWrite> = Register::new("DLM", 1);
/// Interrupt enable.
pub const IER: Register<InterruptEnable, ReadWrite> = Register::new("IER", 1);
/// Interrupt identification; reading it acknowledges [`Cause::TransmitterEmpty`], if that is what it shows.
pub const IIR: Register<u8, ReadEffect> = Register::new("IIR", 2);
/// FIFO control.
pub const FCR: Register<FifoControl, WriteOnly> = Register::new("FCR", 2);
/// Line control.
pub const LCR: Register<LineControl, ReadWrite> = Register::new("LCR", 3);
/// Modem control.
pub const MCR: Register<ModemControl, ReadWrite> = Register::new("MCR", 4);
/// Line status; reading it clears the errors it shows.
pub const LSR: Register<LineStatus, ReadEffect> = Register::new("LSR", 5);
/// Modem status; reading it clears the changes it shows.
pub const MSR: Register<ModemStatus, ReadEffect> = Register::new("MSR", 6);
/// Scratch: keeps what is written, and does nothing.
pub const SCR: Register<u8, ReadWrite> = Register::new("SCR", 7);

/// For whoever shows them: those of one offset and direction once, so without the divisor latch, which is there seldom.
pub const MAP: RegisterMap = RegisterMap {
    device: "uart16550",
    region: RegionIndex::BAR0,
    registers: &[
        RBR.info(),
        THR.info(),
        IER.info(),
        IIR.info(),
        FCR.info(),
        LCR.info(),
        MCR.info(),
        LSR.info(),
        MSR.info(),
        SCR.info(),
    ],
};

/// Characters that each FIFO holds (8.4).
pub const FIFO_SIZE: usize = 16;

/// Input clock of a PC's ports in Hz, and of QEMU's device; [`divisor`] is for it.
pub const CLOCK: u32 = 1_843_200;

/// What the divisor latch holds for a baud rate (8.3): the clock over 16 times the rate, to the nearest; `None` if there is none.
#[must_use]
pub const fn divisor(baud: u32) -> Option<u16> {
    let most = CLOCK / 16;
    if baud == 0 || baud > most {
        return None;
    }
    let divisor = (most + baud / 2) / baud;
    if divisor > u16::MAX as u32 { None } else { Some(divisor as u16) }
}

bitflags::bitflags! {
    /// Interrupt enable (8.7).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct InterruptEnable: u8 {
        /// Received data available, and the character timeout.
        const RECEIVED = 0x01;
        /// Transmitter holding register empty.
        const TRANSMITTER = 0x02;
        /// Receiver line status.
        const LINE = 0x04;
        /// Modem status.
        const MODEM = 0x08;
        const _ = !0;
    }

    /// FIFO control (8.5).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct FifoControl: u8 {
        /// Both FIFOs are in use; changing it empties them.
        const ENABLE = 0x01;
        /// Empties the receiver's; clears itself.
        const RESET_RECEIVER = 0x02;
        /// Empties the transmitter's; clears itself.
        const RESET_TRANSMITTER = 0x04;
        /// DMA mode 1.
        const DMA_MODE = 0x08;
        /// Interrupt at 4 characters; with [`FifoControl::TRIGGER_8`] at 14; with neither at 1.
        const TRIGGER_4 = 0x40;
        /// Interrupt at 8 characters.
        const TRIGGER_8 = 0x80;
        const _ = !0;
    }

    /// Line control (8.1).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct LineControl: u8 {
        /// The lower bit of the character length: 5 bits, 6 with it.
        const WORD_LENGTH_0 = 0x01;
        /// The upper one: 7 bits, 8 with both.
        const WORD_LENGTH_1 = 0x02;
        /// Two stop bits (one and a half for 5 bits).
        const TWO_STOP_BITS = 0x04;
        /// A parity bit.
        const PARITY = 0x08;
        /// It is even; odd if clear.
        const EVEN_PARITY = 0x10;
        /// It is constant.
        const STICK_PARITY = 0x20;
        /// The line is held at 0.
        const BREAK = 0x40;
        /// Offsets 0 and 1 are the divisor latch.
        const DLAB = 0x80;
        const _ = !0;
    }

    /// Modem control (8.8).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ModemControl: u8 {
        /// Data terminal ready.
        const DTR = 0x01;
        /// Request to send.
        const RTS = 0x02;
        /// Auxiliary output 1.
        const OUT1 = 0x04;
        /// Auxiliary output 2.
        const OUT2 = 0x08;
        /// What is sent is received, and the outputs are the inputs, inside the device.
        const LOOP = 0x10;
        const _ = !0;
    }

    /// Line status (8.4).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct LineStatus: u8 {
        /// A character has been received.
        const DATA_READY = 0x01;
        /// A character was lost: it arrived when there was no room.
        const OVERRUN = 0x02;
        /// The character to be read next had the wrong parity.
        const PARITY_ERROR = 0x04;
        /// The character to be read next had no valid stop bit.
        const FRAMING_ERROR = 0x08;
        /// The character to be read next is no character: the line was 0 for as long as one takes.
        const BREAK = 0x10;
        /// The transmitter takes characters: as many as a FIFO holds.
        const TRANSMITTER_HOLDING_EMPTY = 0x20;
        /// Everything has been sent.
        const TRANSMITTER_EMPTY = 0x40;
        /// There is a character with an error in the receiver's FIFO.
        const FIFO_ERROR = 0x80;
    }

    /// Modem status (8.9): four changes since it was last read, and the state of the four inputs.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ModemStatus: u8 {
        /// CTS has changed.
        const CTS_CHANGED = 0x01;
        /// DSR has changed.
        const DSR_CHANGED = 0x02;
        /// RI has gone off.
        const RING_ENDED = 0x04;
        /// DCD has changed.
        const DCD_CHANGED = 0x08;
        /// Clear to send.
        const CTS = 0x10;
        /// Data set ready.
        const DSR = 0x20;
        /// Ring indicator.
        const RI = 0x40;
        /// Data carrier detect.
        const DCD = 0x80;
    }
}
flags_value!(InterruptEnable, u8);
flags_value!(FifoControl, u8);
flags_value!(LineControl, u8);
flags_value!(ModemControl, u8);
flags_value!(LineStatus, u8);
flags_value!(ModemStatus, u8);

/// Why the device interrupts: the low four bits of [`IIR`] (8.6, table "Interrupt Control Functions"), highest priority first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// An error or a break; acknowledged by reading [`LSR`].
    LineStatus,
    /// As many characters as the trigger level; until fewer are left.
    Received,
    /// Characters, though fewer, and none came or was taken for as long as four take; until [`RBR`] is read.
    CharacterTimeout,
    /// Acknowledged by writing [`THR`], and by reading [`IIR`].
    TransmitterEmpty,
    /// Acknowledged by reading [`MSR`].
    ModemStatus,
}

impl Cause {
    /// The register's bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::LineStatus => 0x06,
            Self::Received => 0x04,
            Self::CharacterTimeout => 0x0c,
            Self::TransmitterEmpty => 0x02,
            Self::ModemStatus => 0x00,
        }
    }

    /// From the register; `None` if no interrupt is pending (bit 0), or bits are set that no 16550 sets together.
    #[must_use]
    pub const fn from_iir(iir: u8) -> Option<Self> {
        match iir & 0x0f {
            0x06 => Some(Self::LineStatus),
            0x04 => Some(Self::Received),
            0x0c => Some(Self::CharacterTimeout),
            0x02 => Some(Self::TransmitterEmpty),
            0x00 => Some(Self::ModemStatus),
            _ => None,
        }
    }
}

/// [`IIR`] when no interrupt is pending.
pub const NO_INTERRUPT: u8 = 0x01;
/// Both are set in [`IIR`] while the FIFOs are in use: what a 16550A is told from older parts by.
pub const FIFOS_ENABLED: u8 = 0xc0;
