//! An FT232BM.

use super::{Line, Trouble};
use crate::ftdi::{self, BREAK, line_status, modem, request};
use crate::line::{Flow, Format, ModemInputs, Parity, StopBits};
use udrv_usb::software::{Handshake, Identity, Model, Reply};
use udrv_usb::{EndpointAddress, Setup, Speed};

/// The chip.
#[derive(Debug)]
pub struct Ftdi {
    /// The line.
    pub line: Line,
    told: ModemInputs,
    latency_ms: u16,
    /// The latency timer has run out: a packet is due even if there is no data.
    due: bool,
}

impl Default for Ftdi {
    fn default() -> Self {
        Self { line: Line::default(), told: ModemInputs::default(), latency_ms: 16, due: false }
    }
}

impl Ftdi {
    /// One that sends back what it is sent.
    #[must_use]
    pub fn echoing() -> Self {
        Self { line: Line { echo: true, ..Line::default() }, ..Self::default() }
    }

    /// The latency timer runs out. (It does not by itself: the model has no clock.)
    pub const fn latency_passes(&mut self) {
        self.due = true;
    }

    /// Milliseconds.
    #[must_use]
    pub const fn latency_ms(&self) -> u16 {
        self.latency_ms
    }

    fn status(&mut self) -> [u8; 2] {
        let (inputs, trouble) = (self.line.inputs, self.line.trouble);
        (self.told, self.line.trouble, self.due) = (inputs, Trouble::default(), false);
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        let lines = bit(inputs.cts, modem::CTS)
            | bit(inputs.dsr, modem::DSR)
            | bit(inputs.ring, modem::RING)
            | bit(inputs.dcd, modem::DCD);
        let wrong = bit(trouble.overrun, line_status::OVERRUN)
            | bit(trouble.parity, line_status::PARITY)
            | bit(trouble.framing, line_status::FRAMING)
            | bit(trouble.break_seen, line_status::BREAK);
        [modem::VALID | lines, wrong]
    }

    fn set_data(&mut self, value: u16) -> Option<()> {
        let [data_bits, rest] = value.to_le_bytes();
        let parities = [Parity::None, Parity::Odd, Parity::Even, Parity::Mark, Parity::Space];
        let parity = parities.into_iter().find(|one| *one as u8 == rest & 7)?;
        let stops = [StopBits::One, StopBits::OneAndHalf, StopBits::Two];
        let stop_bits = stops.into_iter().find(|one| *one as u8 == rest >> 3 & 3)?;
        self.line.coding.format = Format { data_bits, parity, stop_bits };
        self.line.in_break = value & BREAK != 0;
        Some(())
    }

    /// The speed of a divisor (AN232B-05): 3 MHz divided by its whole part and eighths.
    fn set_baud(&mut self, value: u16, index: u16) {
        let fraction = value >> 14 | (index & 1) << 2;
        let eighths = match (value & 0x3fff, fraction) {
            (0, 0) => 8,
            (1, 0) => 12,
            (whole, fraction) => {
                let eighths: [u32; 8] = [0, 4, 2, 1, 3, 5, 6, 7];
                u32::from(whole) * 8 + eighths.get(usize::from(fraction)).copied().unwrap_or(0)
            }
        };
        self.line.coding.baud = 24_000_000 / eighths.max(1);
    }
}

impl Model for Ftdi {
    fn identity(&self) -> Identity {
        #[rustfmt::skip]
        let body = [
            9, 4, 0, 0, 2, 0xff, 0xff, 0xff, 0,
            7, 5, 0x81, 2, 64, 0, 0,
            7, 5, 0x02, 2, 64, 0, 0,
        ];
        let strings = ["udrv", "Software FT232BM", "1"];
        let mut identity = Identity::new(Speed::Full, (ftdi::VENDOR, 0x6001), 1, &body, strings);
        // bcdDevice 4.00: the chip's type
        if let Some(release) = identity.device.get_mut(12..14) {
            release.copy_from_slice(&[0x00, 0x04]);
        }
        identity
    }

    fn control(&mut self, setup: &Setup, _data: &[u8]) -> Reply {
        match (setup.request_type, setup.request) {
            (ftdi::TO_DEVICE, request::RESET) => match setup.value {
                0 | 1 => self.line.from_line.clear(),
                2 => {}
                _ => return Reply::Stall,
            },
            (ftdi::TO_DEVICE, request::SET_MODEM) => {
                let changed = |bit: u16, was| if setup.value & bit << 8 != 0 { setup.value & bit != 0 } else { was };
                self.line.outputs = (changed(1, self.line.outputs.0), changed(2, self.line.outputs.1));
            }
            (ftdi::TO_DEVICE, request::SET_FLOW) => {
                self.line.coding.flow = match setup.index.to_be_bytes() {
                    [0, _] => Flow::None,
                    [1, _] => Flow::Hardware,
                    [4, _] => Flow::Software,
                    _ => return Reply::Stall,
                }
            }
            (ftdi::TO_DEVICE, request::SET_BAUD) => self.set_baud(setup.value, setup.index),
            (ftdi::TO_DEVICE, request::SET_DATA) => {
                if self.set_data(setup.value).is_none() {
                    return Reply::Stall;
                }
            }
            (ftdi::FROM_DEVICE, request::GET_STATUS) => return Reply::Data(self.status().to_vec()),
            (ftdi::TO_DEVICE, request::SET_LATENCY) => self.latency_ms = setup.value,
            (ftdi::FROM_DEVICE, request::GET_LATENCY) => {
                return Reply::Data(self.latency_ms.to_le_bytes()[..1].to_vec());
            }
            _ => return Reply::Stall,
        }
        Reply::Data(Vec::new())
    }

    fn receive(&mut self, _endpoint: EndpointAddress, packet: &[u8]) -> Handshake {
        self.line.receive(packet)
    }

    fn send(&mut self, _endpoint: EndpointAddress, max_packet: usize) -> Reply {
        let news = self.line.inputs != self.told || self.line.trouble != Trouble::default() || self.due;
        if self.line.from_line.is_empty() && !news {
            return Reply::Nak;
        }
        let mut packet = self.status().to_vec();
        packet.extend(self.line.take(max_packet.saturating_sub(2)));
        Reply::Data(packet)
    }

    fn reset(&mut self) {
        let echo = self.line.echo;
        *self = Self { line: Line { echo, ..Line::default() }, ..Self::default() };
    }
}
