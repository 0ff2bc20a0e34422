//! The device's side: a port whose line is worked by calling it, or that sends back what it is sent.

mod cdc_acm;
mod ftdi;

pub use cdc_acm::CdcAcm;
pub use ftdi::Ftdi;

use crate::line::{LineCoding, ModemInputs};
use std::collections::VecDeque;
use udrv_usb::software::Handshake;

/// Bytes from the line that have room in the port.
pub const FIFO: usize = 4096;

/// What goes wrong on the line, until it is told to the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trouble {
    /// There was no room for what came.
    pub overrun: bool,
    /// The parity was wrong.
    pub parity: bool,
    /// There was no stop bit.
    pub framing: bool,
    /// The line was held low.
    pub break_seen: bool,
}

/// The line's end of a port, the same for both protocols.
#[derive(Debug, Default)]
pub struct Line {
    /// What the host has sent and the line has not taken.
    sent: Vec<u8>,
    from_line: VecDeque<u8>,
    echo: bool,
    trouble: Trouble,
    inputs: ModemInputs,
    coding: LineCoding,
    outputs: (bool, bool),
    in_break: bool,
}

impl Line {
    /// Bytes come from the line. What has no room is lost, which the host is told.
    pub fn come(&mut self, bytes: &[u8]) {
        let fits = bytes.len().min(FIFO - self.from_line.len());
        self.from_line.extend(bytes.iter().take(fits));
        self.trouble.overrun |= fits < bytes.len();
    }

    /// What the host has sent since this was last called.
    pub fn take_sent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.sent)
    }

    /// The lines that the port hears.
    pub const fn set_inputs(&mut self, inputs: ModemInputs) {
        self.inputs = inputs;
    }

    /// Something goes wrong on the line.
    pub const fn set_trouble(&mut self, trouble: Trouble) {
        self.trouble = trouble;
    }

    /// What the host has set.
    #[must_use]
    pub const fn coding(&self) -> LineCoding {
        self.coding
    }

    /// DTR and RTS.
    #[must_use]
    pub const fn outputs(&self) -> (bool, bool) {
        self.outputs
    }

    /// Whether the host sends a break.
    #[must_use]
    pub const fn is_in_break(&self) -> bool {
        self.in_break
    }

    fn receive(&mut self, packet: &[u8]) -> Handshake {
        if self.echo {
            if self.from_line.len() + packet.len() > FIFO {
                return Handshake::Nak;
            }
            self.from_line.extend(packet);
        } else {
            self.sent.extend(packet);
        }
        Handshake::Ack
    }

    fn take(&mut self, most: usize) -> Vec<u8> {
        self.from_line.drain(..most.min(self.from_line.len())).collect()
    }
}
