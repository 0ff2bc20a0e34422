//! What both protocols say in their own ways: the line's format, modem lines, and what went wrong on the line.

use std::fmt;
use std::str::FromStr;
use udrv_usb::Setup;

/// How a character's parity bit is made, numbered as in `bParityType` (PSTN, table 17); FTDI has the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Parity {
    /// There is none.
    #[default]
    None = 0,
    /// The number of ones is odd.
    Odd = 1,
    /// The number of ones is even.
    Even = 2,
    /// Always one.
    Mark = 3,
    /// Always zero.
    Space = 4,
}

/// How long the line rests after a character, numbered as in `bCharFormat` (PSTN, table 17); FTDI has the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum StopBits {
    /// 1 bit.
    #[default]
    One = 0,
    /// 1.5 bits.
    OneAndHalf = 1,
    /// 2 bits.
    Two = 2,
}

/// A character on the line, such as `8N1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// 5 to 8. (16, which PSTN has too, no serial port has.)
    pub data_bits: u8,
    /// Parity.
    pub parity: Parity,
    /// Stop bits.
    pub stop_bits: StopBits,
}

impl Default for Format {
    fn default() -> Self {
        Self { data_bits: 8, parity: Parity::None, stop_bits: StopBits::One }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is no format: expected data bits, parity and stop bits, such as 8N1 or 7E2");
        let (bits, rest) = text.split_at_checked(1).ok_or_else(bad)?;
        let (parity, stop) = rest.split_at_checked(1).ok_or_else(bad)?;
        Ok(Self {
            data_bits: bits.parse().ok().filter(|bits| (5..=8).contains(bits)).ok_or_else(bad)?,
            parity: match parity {
                "N" | "n" => Parity::None,
                "O" | "o" => Parity::Odd,
                "E" | "e" => Parity::Even,
                "M" | "m" => Parity::Mark,
                "S" | "s" => Parity::Space,
                _ => return Err(bad()),
            },
            stop_bits: match stop {
                "1" => StopBits::One,
                "1.5" => StopBits::OneAndHalf,
                "2" => StopBits::Two,
                _ => return Err(bad()),
            },
        })
    }
}

/// Who may hold up whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flow {
    /// Nobody.
    #[default]
    None,
    /// RTS and CTS.
    Hardware,
    /// XON and XOFF, as bytes in the data.
    Software,
}

/// How the line is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineCoding {
    /// Bits a second.
    pub baud: u32,
    /// The character.
    pub format: Format,
    /// Flow control, where the protocol has a word for it (CDC-ACM has none: the device decides).
    pub flow: Flow,
}

impl Default for LineCoding {
    fn default() -> Self {
        Self { baud: 9600, format: Format::default(), flow: Flow::None }
    }
}

/// The lines that the device hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModemInputs {
    /// Clear to send. (CDC-ACM does not tell it.)
    pub cts: bool,
    /// Data set ready.
    pub dsr: bool,
    /// Data carrier detect.
    pub dcd: bool,
    /// Ring indicator.
    pub ring: bool,
}

impl fmt::Display for ModemInputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = [("CTS", self.cts), ("DSR", self.dsr), ("DCD", self.dcd), ("RI", self.ring)];
        let on: Vec<&str> = lines.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect();
        f.write_str(if on.is_empty() { "none".into() } else { on.join(" ") }.as_str())
    }
}

/// What the device has told of the line, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Bytes from the line.
    pub received: u64,
    /// Bytes the device has taken.
    pub sent: u64,
    /// Times that the device had no room for what came.
    pub overruns: u64,
    /// Characters of the wrong parity.
    pub parity: u64,
    /// Characters without a stop bit.
    pub framing: u64,
    /// Breaks.
    pub breaks: u64,
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { received, sent, overruns, parity, framing, breaks } = self;
        write!(
            f,
            "{received} bytes received, {sent} sent; {overruns} overruns, {parity} parity errors, {framing} framing errors, \
             {breaks} breaks"
        )
    }
}

/// A request on endpoint 0, to the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it is called, for messages.
    pub name: &'static str,
    /// The request.
    pub setup: Setup,
    /// Its data stage.
    pub data: Vec<u8>,
}
