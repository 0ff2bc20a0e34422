//! The device's side: a keyboard whose keys are pressed by calling it.

use crate::protocol::{INTERFACE_CLASS, Key, REPORT_LENGTH, Report, SET_IDLE, SET_PROTOCOL};
use std::collections::VecDeque;
use udrv_usb::software::{Identity, Model, Reply};
use udrv_usb::{EndpointAddress, Setup, Speed};

/// A boot keyboard's report descriptor (HID, appendix B.1).
#[rustfmt::skip]
const REPORT_DESCRIPTOR: [u8; 63] = [
    0x05, 0x01, 0x09, 0x06, 0xa1, 0x01, 0x05, 0x07, 0x19, 0xe0, 0x29, 0xe7, 0x15, 0x00, 0x25, 0x01, 0x75, 0x01, 0x95, 0x08,
    0x81, 0x02, 0x95, 0x01, 0x75, 0x08, 0x81, 0x01, 0x95, 0x05, 0x75, 0x01, 0x05, 0x08, 0x19, 0x01, 0x29, 0x05, 0x91, 0x02,
    0x95, 0x01, 0x75, 0x03, 0x91, 0x01, 0x95, 0x06, 0x75, 0x08, 0x15, 0x00, 0x25, 0x65, 0x05, 0x07, 0x19, 0x00, 0x29, 0x65,
    0x81, 0x00, 0xc0,
];

/// A keyboard.
#[derive(Debug, Default)]
pub struct Keyboard {
    down: Report,
    /// Reports not fetched yet.
    reports: VecDeque<[u8; REPORT_LENGTH]>,
    boot_protocol: bool,
}

impl Keyboard {
    /// Presses a key, or lets it go.
    pub fn set(&mut self, key: Key, pressed: bool) {
        self.down.set(key, pressed);
        self.reports.push_back(self.down.to_bytes());
    }

    /// Whether the host has asked for the boot protocol.
    #[must_use]
    pub const fn is_in_boot_protocol(&self) -> bool {
        self.boot_protocol
    }

    fn hid_descriptor() -> [u8; 9] {
        // HID, 6.2.1: version 1.11, no country, one report descriptor
        [9, 0x21, 0x11, 0x01, 0, 1, 0x22, REPORT_DESCRIPTOR.len() as u8, 0]
    }
}

impl Model for Keyboard {
    fn identity(&self) -> Identity {
        let (class, subclass, protocol) = INTERFACE_CLASS;
        let interface = [9, 4, 0, 0, 1, class, subclass, protocol, 0];
        let endpoint = [7, 5, 0x81, 3, REPORT_LENGTH as u8, 0, 10];
        let body = [interface.as_slice(), &Self::hid_descriptor(), &endpoint].concat();
        Identity::new(Speed::Full, (0x1209, 0x0004), 1, &body, ["udrv", "Software Keyboard", "1"])
    }

    fn control(&mut self, setup: &Setup, _data: &[u8]) -> Reply {
        match ((setup.request_type, setup.request), setup.value.to_be_bytes()) {
            (SET_PROTOCOL, [_, value]) => {
                self.boot_protocol = value == 0;
                Reply::Data(Vec::new())
            }
            (SET_IDLE, _) => Reply::Data(Vec::new()),
            // GET_DESCRIPTOR of the interface; SET_REPORT of the lights
            ((0x81, 6), [0x21, _]) => Reply::Data(Self::hid_descriptor().to_vec()),
            ((0x81, 6), [0x22, _]) => Reply::Data(REPORT_DESCRIPTOR.to_vec()),
            ((0x21, 9), _) => Reply::Data(Vec::new()),
            _ => Reply::Stall,
        }
    }

    fn send(&mut self, _endpoint: EndpointAddress, _max_packet: usize) -> Reply {
        self.reports.pop_front().map_or(Reply::Nak, |report| Reply::Data(report.to_vec()))
    }

    fn reset(&mut self) {
        *self = Self::default();
    }
}
