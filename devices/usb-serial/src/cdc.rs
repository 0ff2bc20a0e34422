//! CDC, abstract control model.
//!
//! A *function* is two interfaces: one for control, with notifications, and one for data. The control interface's class-specific
//! descriptors say which is the other (CDC, 5.2.3).

use crate::line::{Counters, LineCoding, ModemInputs, Parity, Request, StopBits};
use udrv_usb::descriptor::{Configuration, Interface, TransferType};
use udrv_usb::{EndpointAddress, Setup};

/// Class and subclass of the control interface (CDC, tables 14 and 16): communications, abstract control model.
pub const CONTROL_CLASS: (u8, u8) = (0x02, 0x02);
/// Class of the data interface (CDC, table 18).
pub const DATA_CLASS: u8 = 0x0a;

/// `CS_INTERFACE` (CDC, table 24).
pub const CS_INTERFACE: u8 = 0x24;
/// Subtypes (CDC, table 25).
pub const CALL_MANAGEMENT: u8 = 0x01;
/// Abstract control management.
pub const ACM: u8 = 0x02;
/// Union.
pub const UNION: u8 = 0x06;

/// `bmRequestType` of class requests to an interface, to the device.
pub const TO_INTERFACE: u8 = 0x21;
/// `bmRequestType` of class requests to an interface, to the host; and of its notifications.
pub const FROM_INTERFACE: u8 = 0xa1;
/// Requests (PSTN, table 13).
pub const SET_LINE_CODING: u8 = 0x20;
/// Reads it back.
pub const GET_LINE_CODING: u8 = 0x21;
/// DTR is bit 0, RTS bit 1 (PSTN, table 18).
pub const SET_CONTROL_LINE_STATE: u8 = 0x22;
/// For as many milliseconds; 0xffff until 0 (PSTN, 6.3.13).
pub const SEND_BREAK: u8 = 0x23;
/// The notification `SERIAL_STATE` (PSTN, table 30).
pub const SERIAL_STATE: u8 = 0x20;

/// Bits of `SERIAL_STATE` (PSTN, table 31).
pub mod state {
    /// Carrier (DCD).
    pub const RX_CARRIER: u16 = 1;
    /// DSR.
    pub const TX_CARRIER: u16 = 1 << 1;
    /// Break.
    pub const BREAK: u16 = 1 << 2;
    /// Ring.
    pub const RING: u16 = 1 << 3;
    /// No stop bit.
    pub const FRAMING: u16 = 1 << 4;
    /// Wrong parity.
    pub const PARITY: u16 = 1 << 5;
    /// No room.
    pub const OVERRUN: u16 = 1 << 6;
}

/// What the driver needs to know of a device's function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// The control interface.
    pub control: u8,
    /// The data interface.
    pub data: u8,
    /// The alternate setting of the data interface that has the endpoints.
    pub alternate: u8,
    /// Data to the host, with `wMaxPacketSize`.
    pub bulk_in: (EndpointAddress, u16),
    /// Data to the device.
    pub bulk_out: EndpointAddress,
    /// Notifications, with `wMaxPacketSize`. Some devices have none.
    pub notifications: Option<(EndpointAddress, u16)>,
    /// It knows line coding and control lines (PSTN, table 4, D1).
    pub has_line_coding: bool,
    /// It knows break (D2).
    pub has_break: bool,
}

impl Function {
    /// The first complete function of a configuration.
    #[must_use]
    pub fn find(configuration: &Configuration) -> Option<Self> {
        configuration.interfaces.iter().find_map(|control| Self::of(configuration, control))
    }

    fn of(configuration: &Configuration, control: &Interface) -> Option<Self> {
        if (control.class.0, control.class.1) != CONTROL_CLASS {
            return None;
        }
        let functional = |subtype| {
            let mut all = control.extra.iter().map(Vec::as_slice);
            all.find(|one| matches!(one, [_, CS_INTERFACE, kind, ..] if *kind == subtype))
        };
        let named = [functional(UNION), functional(CALL_MANAGEMENT)].into_iter().flatten().find_map(|one| match one {
            [_, _, UNION, _, data, ..] | [_, _, CALL_MANAGEMENT, _, data, ..] => Some(*data),
            _ => None,
        });
        let data = named.or_else(|| control.number.checked_add(1))?;
        let mut settings = configuration.interfaces.iter().filter(|one| one.number == data);
        let (alternate, bulk_in, bulk_out) = settings.find_map(|setting| {
            let bulk = |into_host| setting.endpoint(TransferType::Bulk, into_host);
            let (bulk_in, bulk_out) = (bulk(true)?, bulk(false)?);
            // Its class keeps an interface from being its own other half, whatever the union descriptor says.
            let usable = setting.class.0 == DATA_CLASS && bulk_in.max_packet > 0;
            usable.then_some((setting.alternate, (bulk_in.address, bulk_in.max_packet), bulk_out.address))
        })?;
        let notifications = control.endpoint(TransferType::Interrupt, true);
        // Without the descriptor nothing is known of it: then it is tried.
        let capabilities = functional(ACM).and_then(|one| one.get(3)).copied().unwrap_or(0x06);
        Some(Self {
            control: control.number,
            data,
            alternate,
            bulk_in,
            bulk_out,
            notifications: notifications.map(|one| (one.address, one.max_packet)).filter(|(_, size)| *size > 0),
            has_line_coding: capabilities & 0x02 != 0,
            has_break: capabilities & 0x04 != 0,
        })
    }

    fn request(&self, name: &'static str, request: u8, value: u16, data: Vec<u8>) -> Request {
        let setup = Setup { request_type: TO_INTERFACE, request, value, index: self.control.into() };
        Request { name, setup, data }
    }

    /// `SET_LINE_CODING`.
    #[must_use]
    pub fn set_line(&self, line: &LineCoding) -> Request {
        self.request("SET_LINE_CODING", SET_LINE_CODING, 0, line_coding(line).to_vec())
    }

    /// `SET_CONTROL_LINE_STATE`.
    #[must_use]
    pub fn set_outputs(&self, dtr: bool, rts: bool) -> Request {
        let value = u16::from(dtr) | u16::from(rts) << 1;
        self.request("SET_CONTROL_LINE_STATE", SET_CONTROL_LINE_STATE, value, Vec::new())
    }

    /// `SEND_BREAK`, until taken back.
    #[must_use]
    pub fn set_break(&self, on: bool) -> Request {
        self.request("SEND_BREAK", SEND_BREAK, if on { 0xffff } else { 0 }, Vec::new())
    }
}

/// The line coding structure (PSTN, table 17). The flow control has no place in it.
#[must_use]
pub const fn line_coding(line: &LineCoding) -> [u8; 7] {
    let [b0, b1, b2, b3] = line.baud.to_le_bytes();
    [b0, b1, b2, b3, line.format.stop_bits as u8, line.format.parity as u8, line.format.data_bits]
}

/// The line coding structure, understood; `None` for what is no line coding.
#[must_use]
pub fn parse_line_coding(bytes: &[u8]) -> Option<LineCoding> {
    let &[b0, b1, b2, b3, stop, parity, data_bits] = bytes.first_chunk::<7>()?;
    let stop_bits = [StopBits::One, StopBits::OneAndHalf, StopBits::Two].into_iter().find(|one| *one as u8 == stop)?;
    let parities = [Parity::None, Parity::Odd, Parity::Even, Parity::Mark, Parity::Space];
    let parity = parities.into_iter().find(|one| *one as u8 == parity)?;
    let data_bits = Some(data_bits).filter(|bits| (5..=8).contains(bits))?;
    let format = crate::line::Format { data_bits, parity, stop_bits };
    Some(LineCoding { baud: u32::from_le_bytes([b0, b1, b2, b3]), format, ..LineCoding::default() })
}

/// A `SERIAL_STATE` notification (PSTN, 6.5.4): the lines, and what went wrong is counted. Any other is not looked at.
pub fn notified(bytes: &[u8], counters: &mut Counters) -> Option<ModemInputs> {
    let &[FROM_INTERFACE, SERIAL_STATE, _, _, _, _, 2, 0, low, high] = bytes.first_chunk::<10>()? else { return None };
    let state = u16::from_le_bytes([low, high]);
    let has = |bit: u16| state & bit != 0;
    // These are told once each time (PSTN, table 31: "irregular" signals).
    counters.breaks += u64::from(has(state::BREAK));
    counters.framing += u64::from(has(state::FRAMING));
    counters.parity += u64::from(has(state::PARITY));
    counters.overruns += u64::from(has(state::OVERRUN));
    let (dcd, dsr, ring) = (has(state::RX_CARRIER), has(state::TX_CARRIER), has(state::RING));
    Some(ModemInputs { cts: false, dsr, dcd, ring })
}
