//! A CDC-ACM device.

use super::{Line, Trouble};
use crate::cdc::{self, state};
use crate::line::ModemInputs;
use udrv_usb::software::{Handshake, Identity, Model, Reply};
use udrv_usb::{EndpointAddress, Setup, Speed};

const NOTIFICATIONS: EndpointAddress = EndpointAddress(0x83);
const DATA_IN: EndpointAddress = EndpointAddress(0x81);

/// A modem without a modem.
#[derive(Debug, Default)]
pub struct CdcAcm {
    /// The line.
    pub line: Line,
    told: ModemInputs,
}

impl CdcAcm {
    /// One that sends back what it is sent.
    #[must_use]
    pub fn echoing() -> Self {
        Self { line: Line { echo: true, ..Line::default() }, told: ModemInputs::default() }
    }

    fn notification(&mut self) -> Option<Vec<u8>> {
        let (inputs, trouble) = (self.line.inputs, self.line.trouble);
        // It has no word for CTS.
        let inputs = ModemInputs { cts: false, ..inputs };
        if inputs == self.told && trouble == Trouble::default() {
            return None;
        }
        (self.told, self.line.trouble) = (inputs, Trouble::default());
        let bits = [
            (inputs.dcd, state::RX_CARRIER),
            (inputs.dsr, state::TX_CARRIER),
            (inputs.ring, state::RING),
            (trouble.break_seen, state::BREAK),
            (trouble.framing, state::FRAMING),
            (trouble.parity, state::PARITY),
            (trouble.overrun, state::OVERRUN),
        ];
        let [low, high] = bits.iter().fold(0, |all, (on, bit)| if *on { all | bit } else { all }).to_le_bytes();
        Some(vec![cdc::FROM_INTERFACE, cdc::SERIAL_STATE, 0, 0, 0, 0, 2, 0, low, high])
    }
}

impl Model for CdcAcm {
    fn identity(&self) -> Identity {
        let (class, subclass) = cdc::CONTROL_CLASS;
        #[rustfmt::skip]
        let body = [
            9, 4, 0, 0, 1, class, subclass, 1, 0,
            // header (CDC 1.10), call management by none, line coding and break, union of 0 and 1
            5, cdc::CS_INTERFACE, 0, 0x10, 0x01,
            5, cdc::CS_INTERFACE, cdc::CALL_MANAGEMENT, 0, 1,
            4, cdc::CS_INTERFACE, cdc::ACM, 0x06,
            5, cdc::CS_INTERFACE, cdc::UNION, 0, 1,
            7, 5, NOTIFICATIONS.0, 3, 16, 0, 8,
            9, 4, 1, 0, 2, cdc::DATA_CLASS, 0, 0, 0,
            7, 5, DATA_IN.0, 2, 0x00, 0x02, 0,
            7, 5, 0x02, 2, 0x00, 0x02, 0,
        ];
        let mut identity =
            Identity::new(Speed::High, (0x1209, 0x0005), 2, &body, ["udrv", "Software Serial Port", "1"]);
        // bDeviceClass: communications
        if let Some(class) = identity.device.get_mut(4) {
            *class = 2;
        }
        identity
    }

    fn control(&mut self, setup: &Setup, data: &[u8]) -> Reply {
        let none = Reply::Data(Vec::new());
        match (setup.request_type, setup.request) {
            (cdc::TO_INTERFACE, cdc::SET_LINE_CODING) => match cdc::parse_line_coding(data) {
                Some(coding) => self.line.coding = coding,
                None => return Reply::Stall,
            },
            (cdc::FROM_INTERFACE, cdc::GET_LINE_CODING) => {
                return Reply::Data(cdc::line_coding(&self.line.coding).to_vec());
            }
            (cdc::TO_INTERFACE, cdc::SET_CONTROL_LINE_STATE) => {
                self.line.outputs = (setup.value & 1 != 0, setup.value & 2 != 0);
            }
            (cdc::TO_INTERFACE, cdc::SEND_BREAK) => self.line.in_break = setup.value == 0xffff,
            _ => return Reply::Stall,
        }
        none
    }

    fn receive(&mut self, _endpoint: EndpointAddress, packet: &[u8]) -> Handshake {
        self.line.receive(packet)
    }

    fn send(&mut self, endpoint: EndpointAddress, max_packet: usize) -> Reply {
        if endpoint == NOTIFICATIONS {
            return self.notification().map_or(Reply::Nak, Reply::Data);
        }
        let bytes = self.line.take(max_packet);
        if bytes.is_empty() { Reply::Nak } else { Reply::Data(bytes) }
    }

    fn reset(&mut self) {
        let echo = self.line.echo;
        *self = Self { line: Line { echo, ..Line::default() }, ..Self::default() };
    }
}
