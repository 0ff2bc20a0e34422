//! FTDI's protocol: vendor requests, and two bytes of status at the head of each packet to the host.

use crate::line::{Counters, Flow, LineCoding, ModemInputs, Request};
use udrv_usb::descriptor::{Configuration, DeviceDescriptor, TransferType};
use udrv_usb::{EndpointAddress, Error, Result, Setup};

/// FTDI's `idVendor`. (Others sell their chips under their own.)
pub const VENDOR: u16 = 0x0403;

/// `bmRequestType` of vendor requests, to the device.
pub const TO_DEVICE: u8 = 0x40;
/// `bmRequestType` of vendor requests, to the host.
pub const FROM_DEVICE: u8 = 0xc0;

/// Requests.
pub mod request {
    /// 0 resets the port, 1 empties what it received, 2 what it is to send.
    pub const RESET: u8 = 0;
    /// DTR is bit 0 and RTS bit 1, if bit 8 or 9 says that it changes.
    pub const SET_MODEM: u8 = 1;
    /// The kind is in the high byte of `wIndex`; `wValue` has XON and XOFF.
    pub const SET_FLOW: u8 = 2;
    /// The divisor, in `wValue` and in bit 0 of `wIndex`.
    pub const SET_BAUD: u8 = 3;
    /// The character: data bits, parity from bit 8 on, stop bits from bit 11 on, break in bit 14.
    pub const SET_DATA: u8 = 4;
    /// The two bytes of status.
    pub const GET_STATUS: u8 = 5;
    /// Milliseconds after which a packet that is not full is sent.
    pub const SET_LATENCY: u8 = 9;
    /// Reads it back.
    pub const GET_LATENCY: u8 = 10;
}

/// The first byte of status.
pub mod modem {
    /// Always set in it, by all but the oldest chips.
    pub const VALID: u8 = 1;
    /// CTS.
    pub const CTS: u8 = 1 << 4;
    /// DSR.
    pub const DSR: u8 = 1 << 5;
    /// Ring.
    pub const RING: u8 = 1 << 6;
    /// DCD.
    pub const DCD: u8 = 1 << 7;
}

/// The second byte of status, as a 16550's line status.
pub mod line_status {
    /// No room.
    pub const OVERRUN: u8 = 1 << 1;
    /// Wrong parity.
    pub const PARITY: u8 = 1 << 2;
    /// No stop bit.
    pub const FRAMING: u8 = 1 << 3;
    /// Break.
    pub const BREAK: u8 = 1 << 4;
}

/// Break in the value of [`request::SET_DATA`].
pub const BREAK: u16 = 1 << 14;
/// XON in the low byte, XOFF in the high.
const XON_XOFF: u16 = 0x1311;
/// Milliseconds. (16 is the chips' own value, which delays the last bytes of each answer as long.)
pub const LATENCY_MS: u16 = 1;

/// How a chip divides its clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// FT232BM, FT2232C, FT232R, FT-X: up to 3 Mbaud.
    Full,
    /// FT2232H, FT4232H, FT232H: up to 12 Mbaud.
    High,
}

/// What the driver needs to know of a device's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// The interface.
    pub interface: u8,
    /// What requests call the port: 0 on a chip with one, otherwise from 1 on.
    port: u8,
    /// Data and status to the host, with `wMaxPacketSize`.
    pub bulk_in: (EndpointAddress, u16),
    /// Data to the device.
    pub bulk_out: EndpointAddress,
    clock: Clock,
    /// The last packet's second byte of status.
    before: u8,
}

impl Function {
    /// The first port of a chip.
    #[must_use]
    pub fn find(device: &DeviceDescriptor, configuration: &Configuration) -> Option<Self> {
        let (interface, bulk_in, bulk_out) = configuration.interfaces.iter().find_map(|interface| {
            let bulk = |into_host| interface.endpoint(TransferType::Bulk, into_host);
            // A packet that has no room for more than its status would never bring anything.
            let bulk_in = bulk(true).filter(|endpoint| endpoint.max_packet > 2)?;
            (interface.class.0 == 0xff).then_some((interface.number, bulk_in, bulk(false)?))
        })?;
        let port = if configuration.numbers().len() > 1 { interface.checked_add(1)? } else { 0 };
        let clock = if matches!(device.release, 0x0700 | 0x0800 | 0x0900) { Clock::High } else { Clock::Full };
        let bulk_in = (bulk_in.address, bulk_in.max_packet);
        Some(Self { interface, port, bulk_in, bulk_out: bulk_out.address, clock, before: 0 })
    }

    fn request(&self, name: &'static str, request: u8, value: u16, high: u8) -> Request {
        let index = u16::from_be_bytes([high, self.port]);
        Request { name, setup: Setup { request_type: TO_DEVICE, request, value, index }, data: Vec::new() }
    }

    /// What brings the port up, with nothing in it from before.
    #[must_use]
    pub fn start(&self) -> [Request; 2] {
        [
            self.request("FTDI RESET", request::RESET, 0, 0),
            self.request("FTDI SET_LATENCY", request::SET_LATENCY, LATENCY_MS, 0),
        ]
    }

    /// Speed, character and flow control.
    ///
    /// # Errors
    /// [`Error::Protocol`] for a speed that the chip's clock cannot be divided to.
    pub fn set_line(&self, line: &LineCoding) -> Result<[Request; 3]> {
        let divisor = divisor(self.clock, line.baud)?;
        let [b0, b1, b2, _] = divisor.to_le_bytes();
        // One port: the high bits are wIndex. More: wIndex is the port below them.
        let index = if self.port == 0 && self.clock == Clock::Full {
            u16::from(b2)
        } else {
            u16::from_be_bytes([b2, self.port])
        };
        let mut baud = self.request("FTDI SET_BAUD", request::SET_BAUD, u16::from_le_bytes([b0, b1]), 0);
        baud.setup.index = index;
        let (flow, characters) = match line.flow {
            Flow::None => (0, 0),
            Flow::Hardware => (1, 0),
            Flow::Software => (4, XON_XOFF),
        };
        Ok([baud, self.set_data(line, false), self.request("FTDI SET_FLOW", request::SET_FLOW, characters, flow)])
    }

    /// The character, and break.
    #[must_use]
    pub fn set_data(&self, line: &LineCoding, on: bool) -> Request {
        let format = line.format;
        let value = u16::from(format.data_bits) | (format.parity as u16) << 8 | (format.stop_bits as u16) << 11;
        self.request("FTDI SET_DATA", request::SET_DATA, value | if on { BREAK } else { 0 }, 0)
    }

    /// DTR and RTS.
    #[must_use]
    pub fn set_outputs(&self, dtr: bool, rts: bool) -> Request {
        let value = 0x0300 | u16::from(dtr) | u16::from(rts) << 1;
        self.request("FTDI SET_MODEM", request::SET_MODEM, value, 0)
    }

    /// Takes a transfer apart: the data goes to `each`, what went wrong is counted. The last packet's lines, if there was one.
    pub fn received(
        &mut self,
        bytes: &[u8],
        counters: &mut Counters,
        mut each: impl FnMut(&[u8]),
    ) -> Option<ModemInputs> {
        let mut inputs = None;
        for packet in bytes.chunks(usize::from(self.bulk_in.1).max(3)) {
            let [modem, status, data @ ..] = packet else { continue };
            // Packets that are sent only since time has passed repeat the status of the data before.
            let news = if data.is_empty() { status & !self.before } else { *status };
            self.before = *status;
            counters.overruns += u64::from(news & line_status::OVERRUN != 0);
            counters.parity += u64::from(news & line_status::PARITY != 0);
            counters.framing += u64::from(news & line_status::FRAMING != 0);
            counters.breaks += u64::from(news & line_status::BREAK != 0);
            inputs = Some(ModemInputs {
                cts: modem & modem::CTS != 0,
                dsr: modem & modem::DSR != 0,
                dcd: modem & modem::DCD != 0,
                ring: modem & modem::RING != 0,
            });
            each(data);
        }
        inputs
    }
}

/// The divisor for a speed, as the chip takes it: eighths of the divisor are in bits 14 to 16 in an order of their own
/// (AN232B-05, section 2); bit 17 chooses the faster clock (AN120, section 3).
///
/// # Errors
/// [`Error::Protocol`] if no divisor comes within 3 % of it: what a receiver tolerates.
pub fn divisor(clock: Clock, baud: u32) -> Result<u32> {
    const EIGHTHS: [u32; 8] = [0, 3, 2, 4, 1, 5, 6, 7];
    // Eighths of clock periods in a second: 24 MHz / 8 = 3 Mbaud by a divisor of 1, and four times as fast.
    let (base, flag) = match clock {
        Clock::High if baud >= 1200 => (96_000_000_u32, 1 << 17),
        _ => (24_000_000, 0),
    };
    let refused = || Error::Protocol {
        peer: "the caller".into(),
        found: format!("a speed of {baud} bits a second"),
        expected: match clock {
            Clock::Full => "183 to 3000000, of which few above 1500000, for an FTDI chip".into(),
            Clock::High => "183 to 12000000, of which few above 6000000, for an FTDI chip".into(),
        },
    };
    if baud == 0 || baud > base / 8 {
        return Err(refused());
    }
    let eighths = (base + baud / 2) / baud;
    // Below 2 there are 1 and 1.5 only, with numbers of their own (AN232B-05, section 3).
    let (eighths, code) = match eighths {
        ..10 => (8, 0),
        10..14 => (12, 1),
        14..16 => (16, 2),
        more => (more, more >> 3 | EIGHTHS.get((more & 7) as usize).copied().unwrap_or_default() << 14),
    };
    let real = base / eighths;
    if eighths >> 3 > 0x3fff || real.abs_diff(baud) > baud / 100 * 3 {
        return Err(refused());
    }
    Ok(code | flag)
}
