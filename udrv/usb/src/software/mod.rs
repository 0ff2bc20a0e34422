//! Software USB devices: a model is the device's side of the bus, [`Software`] is the bus.
//!
//! A model speaks in packets, as a device's firmware does: it takes the packets that come, gives one when it is asked,
//! or answers NAK (not now) or STALL. The bus does what the host controller and the USB core do: standard requests,
//! cutting transfers into packets, retrying after NAK, halted endpoints, and unplugging.

mod bus;
mod schedule;
mod standard;
mod urb;

pub use bus::Software;

use crate::transfer::{EndpointAddress, Setup};
use crate::{Speed, descriptor};

/// What a model answers to a packet that came (USB 2.0, 8.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// Taken.
    Ack,
    /// Not now: it comes again.
    Nak,
    /// The endpoint is halted.
    Stall,
}

/// What a model answers when it is asked for a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A packet, of at most `wMaxPacketSize`. One that is shorter ends the transfer.
    Data(Vec<u8>),
    /// Nothing now: it is asked again.
    Nak,
    /// The endpoint is halted.
    Stall,
}

/// A model's descriptors, as bytes, so that it can also lie.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// How fast it is connected.
    pub speed: Option<Speed>,
    /// The device descriptor.
    pub device: Vec<u8>,
    /// Each configuration descriptor with all that belongs to it.
    pub configurations: Vec<Vec<u8>>,
    /// The strings of index 1 and up.
    pub strings: Vec<String>,
    /// The binary device object store.
    pub bos: Option<Vec<u8>>,
}

impl Identity {
    /// An identity of one configuration, whose header is put before `body`; `strings` are manufacturer, product, serial
    /// number.
    #[must_use]
    pub fn new(speed: Speed, (vendor, product): (u16, u16), interfaces: u8, body: &[u8], strings: [&str; 3]) -> Self {
        let [v0, v1] = vendor.to_le_bytes();
        let [p0, p1] = product.to_le_bytes();
        let device = vec![18, descriptor::kind::DEVICE, 0x00, 0x02, 0, 0, 0, 64, v0, v1, p0, p1, 0, 1, 1, 2, 3, 1];
        let total = u16::try_from(9 + body.len()).unwrap_or(u16::MAX).to_le_bytes();
        let header = [9, descriptor::kind::CONFIGURATION, total[0], total[1], interfaces, 1, 0, 0x80, 50];
        Self {
            speed: Some(speed),
            device,
            configurations: vec![[&header, body].concat()],
            strings: strings.map(str::to_owned).to_vec(),
            bos: None,
        }
    }
}

/// A software device: a pure state machine.
pub trait Model: Send + 'static {
    /// What it says of itself.
    fn identity(&self) -> Identity;

    /// A request on endpoint 0 that the bus does not answer itself: class and vendor requests, and standard ones to an
    /// interface (the HID descriptors). `data` is the data stage of an OUT request; a [`Reply::Data`] to such a request
    /// is empty. [`Reply::Nak`] is no answer here and counts as [`Reply::Stall`].
    fn control(&mut self, setup: &Setup, data: &[u8]) -> Reply {
        let _ = (setup, data);
        Reply::Stall
    }

    /// A packet came on an OUT endpoint.
    fn receive(&mut self, endpoint: EndpointAddress, packet: &[u8]) -> Handshake {
        let _ = (endpoint, packet);
        Handshake::Stall
    }

    /// A packet of at most `max_packet` bytes is asked for on an IN endpoint. (More is babble, and told to the driver
    /// as that.)
    fn send(&mut self, endpoint: EndpointAddress, max_packet: usize) -> Reply {
        let _ = (endpoint, max_packet);
        Reply::Stall
    }

    /// SET_CONFIGURATION has been done; 0 is none.
    fn configured(&mut self, value: u8) {
        let _ = value;
    }

    /// SET_INTERFACE has been done.
    fn alternate_set(&mut self, interface: u8, alternate: u8) {
        let _ = (interface, alternate);
    }

    /// An endpoint's halt has been cleared.
    fn halt_cleared(&mut self, endpoint: EndpointAddress) {
        let _ = endpoint;
    }

    /// The bus was reset.
    fn reset(&mut self) {}
}
