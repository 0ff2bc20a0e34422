//! Speed and format of the line.

use crate::registers::{CLOCK, LineControl, divisor};
use udrv_backend::{Error, Result};

/// The parity bit (data sheet 8.1, bits 3 to 5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Parity {
    /// There is none.
    #[default]
    None,
    /// An odd number of ones with it.
    Odd,
    /// An even number of ones with it.
    Even,
    /// Always 1.
    Mark,
    /// Always 0.
    Space,
}

/// How many bits end a character (8.1, bit 2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StopBits {
    /// One.
    #[default]
    One,
    /// Two; one and a half after 5 bits.
    Two,
}

/// Speed and format. 115200 baud, 8 bits, no parity, one stop bit, no waiting for CTS unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Bits a second: 2 to 115200.
    pub baud: u32,
    /// Bits of a character: 5 to 8.
    pub data_bits: u8,
    /// Parity.
    pub parity: Parity,
    /// Stop bits.
    pub stop_bits: StopBits,
    /// Whether to send only while CTS is on.
    pub wait_for_cts: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { baud: 115_200, data_bits: 8, parity: Parity::None, stop_bits: StopBits::One, wait_for_cts: false }
    }
}

impl Settings {
    /// As [`Settings::encode`], for its error.
    pub(super) fn check(&self, device: &str) -> Result<()> {
        self.encode(device).map(|_| ())
    }

    /// What the divisor latch and the line control register have to hold.
    pub(super) fn encode(&self, device: &str) -> Result<(u16, LineControl)> {
        let Some(divisor) = divisor(self.baud) else {
            let what = format!("it has no speed of {} baud", self.baud);
            return Err(Error::Unavailable {
                device: device.into(),
                why: what,
                advice: format!("choose one from 2 to {}", CLOCK / 16),
            });
        };
        let length = match self.data_bits {
            5..=8 => LineControl::from_bits_retain(self.data_bits - 5),
            other => {
                let what = format!("it has no characters of {other} bits");
                return Err(Error::Unavailable { device: device.into(), why: what, advice: "choose 5 to 8".into() });
            }
        };
        let parity = match self.parity {
            Parity::None => LineControl::empty(),
            Parity::Odd => LineControl::PARITY,
            Parity::Even => LineControl::PARITY | LineControl::EVEN_PARITY,
            Parity::Mark => LineControl::PARITY | LineControl::STICK_PARITY,
            Parity::Space => LineControl::PARITY | LineControl::EVEN_PARITY | LineControl::STICK_PARITY,
        };
        let stop = match self.stop_bits {
            StopBits::One => LineControl::empty(),
            StopBits::Two => LineControl::TWO_STOP_BITS,
        };
        Ok((divisor, length | parity | stop))
    }
}
