//! The device's side: two channels out, one in. It has no clock: it takes what comes, and gives its samples as fast as it is asked.

use crate::pace::Pace;
use crate::protocol::{
    CONTROL_CLASS, CS_ENDPOINT, CS_INTERFACE, FEATURE_UNIT, GET_CUR, GET_MAX, MUTE, SAMPLING_FREQ, SET_CUR,
    STREAMING_CLASS, TO_ENDPOINT, TO_INTERFACE, VOLUME,
};
use udrv_usb::software::{Handshake, Identity, Model, Reply};
use udrv_usb::{EndpointAddress, Setup, Speed};

/// Where it is played to.
pub const PLAY: EndpointAddress = EndpointAddress(0x01);
/// Where it says how much it takes.
pub const FEEDBACK: EndpointAddress = EndpointAddress(0x82);
/// Where it is captured from.
pub const CAPTURE: EndpointAddress = EndpointAddress(0x83);

/// As loud as it goes, in 1/256 dB: 6 dB.
pub const LOUDEST: i16 = 6 * 256;

const UNIT: u8 = 2;
const PLAY_PACKET: u16 = 200;
const CAPTURE_PACKET: u16 = 100;

/// A sound device.
#[derive(Debug)]
pub struct Sound {
    played: Vec<u8>,
    /// Bytes of each packet.
    packets: Vec<usize>,
    /// What the microphone hears is counted up.
    heard: i16,
    capture: Pace,
    rates: [u32; 2],
    volume: i16,
    muted: bool,
    alternates: [u8; 3],
    /// Frames a millisecond that it says it takes, in 2^-14; nothing if not given.
    feedback: Option<u32>,
}

impl Default for Sound {
    fn default() -> Self {
        Self {
            played: Vec::new(),
            packets: Vec::new(),
            heard: 0,
            capture: Pace::new(48_000, (1, 1000)),
            rates: [48_000; 2],
            volume: 0,
            muted: true,
            alternates: [0; 3],
            feedback: None,
        }
    }
}

impl Sound {
    /// All that was played.
    #[must_use]
    pub fn played(&self) -> &[u8] {
        &self.played
    }

    /// Bytes of each packet of it.
    #[must_use]
    pub fn packets(&self) -> &[usize] {
        &self.packets
    }

    /// Hz of what is played and of what is captured.
    #[must_use]
    pub const fn rates(&self) -> [u32; 2] {
        self.rates
    }

    /// In 1/256 dB, and whether nothing is heard at all.
    #[must_use]
    pub const fn volume(&self) -> (i16, bool) {
        (self.volume, self.muted)
    }

    /// The alternate setting of each interface.
    #[must_use]
    pub const fn alternates(&self) -> [u8; 3] {
        self.alternates
    }

    /// What it says that it takes a millisecond, in 2^-14 of a frame.
    pub const fn set_feedback(&mut self, frames: u32) {
        self.feedback = Some(frames);
    }

    fn rate_control(&mut self, setup: &Setup, data: &[u8]) -> Reply {
        let at = match EndpointAddress(setup.index.to_le_bytes()[0]) {
            PLAY => 0,
            CAPTURE => 1,
            _ => return Reply::Stall,
        };
        let [control, _] = setup.value.to_be_bytes();
        let Some(rate) = self.rates.get_mut(at) else { return Reply::Stall };
        match (control, setup.request, data) {
            (SAMPLING_FREQ, SET_CUR, &[a, b, c]) => {
                let asked = u32::from_le_bytes([a, b, c, 0]);
                if ![44_100, 48_000].contains(&asked) {
                    return Reply::Stall;
                }
                *rate = asked;
                self.capture = Pace::new(self.rates[1], (1, 1000));
                Reply::Data(Vec::new())
            }
            (SAMPLING_FREQ, GET_CUR, _) => Reply::Data(rate.to_le_bytes()[..3].to_vec()),
            _ => Reply::Stall,
        }
    }

    fn unit_control(&mut self, setup: &Setup, data: &[u8]) -> Reply {
        if setup.index != u16::from_be_bytes([UNIT, 0]) {
            return Reply::Stall;
        }
        match (setup.value.to_be_bytes(), setup.request, data) {
            ([MUTE, 0], SET_CUR, &[muted]) => self.muted = muted != 0,
            ([MUTE, 0], GET_CUR, _) => return Reply::Data(vec![u8::from(self.muted)]),
            ([VOLUME, 0], SET_CUR, &[low, high]) => self.volume = i16::from_le_bytes([low, high]).min(LOUDEST),
            ([VOLUME, 0], GET_CUR, _) => return Reply::Data(self.volume.to_le_bytes().to_vec()),
            ([VOLUME, 0], GET_MAX, _) => return Reply::Data(LOUDEST.to_le_bytes().to_vec()),
            _ => return Reply::Stall,
        }
        Reply::Data(Vec::new())
    }
}

impl Model for Sound {
    fn identity(&self) -> Identity {
        let ((control, control_sub), (stream, stream_sub)) = (CONTROL_CLASS, STREAMING_CLASS);
        let (cs, ep) = (CS_INTERFACE, CS_ENDPOINT);
        let [p0, p1] = PLAY_PACKET.to_le_bytes();
        let [c0, c1] = CAPTURE_PACKET.to_le_bytes();
        #[rustfmt::skip]
        let body = [
            9, 4, 0, 0, 0, control, control_sub, 0, 0,
            // header of two streams; USB stream -> feature unit -> speaker; microphone -> USB stream
            10, cs, 1, 0x00, 0x01, 62, 0, 2, 1, 2,
            12, cs, 2, 1, 0x01, 0x01, 0, 2, 3, 0, 0, 0,
            10, cs, FEATURE_UNIT, UNIT, 1, 1, 3, 0, 0, 0,
            9, cs, 3, 3, 0x01, 0x03, 0, UNIT, 0,
            12, cs, 2, 4, 0x01, 0x02, 0, 1, 0, 0, 0, 0,
            9, cs, 3, 5, 0x01, 0x01, 0, 4, 0,
            // out: 2 x 16 bits at 44.1 or 48 kHz, by its own clock, with feedback
            9, 4, 1, 0, 0, stream, stream_sub, 0, 0,
            9, 4, 1, 1, 2, stream, stream_sub, 0, 0,
            7, cs, 1, 1, 1, 1, 0,
            14, cs, 2, 1, 2, 2, 16, 2, 0x44, 0xac, 0, 0x80, 0xbb, 0,
            9, 5, PLAY.0, 0x05, p0, p1, 1, 0, FEEDBACK.0,
            7, ep, 1, 1, 0, 0, 0,
            9, 5, FEEDBACK.0, 0x11, 3, 0, 1, 4, 0,
            // in: 1 x 16 bits
            9, 4, 2, 0, 0, stream, stream_sub, 0, 0,
            9, 4, 2, 1, 1, stream, stream_sub, 0, 0,
            7, cs, 1, 5, 1, 1, 0,
            14, cs, 2, 1, 1, 2, 16, 2, 0x44, 0xac, 0, 0x80, 0xbb, 0,
            9, 5, CAPTURE.0, 0x05, c0, c1, 1, 0, 0,
            7, ep, 1, 1, 0, 0, 0,
        ];
        Identity::new(Speed::Full, (0x1209, 0x0006), 3, &body, ["udrv", "Software Sound", "1"])
    }

    fn control(&mut self, setup: &Setup, data: &[u8]) -> Reply {
        match setup.request_type & 0x7f {
            TO_ENDPOINT => self.rate_control(setup, data),
            TO_INTERFACE => self.unit_control(setup, data),
            _ => Reply::Stall,
        }
    }

    fn receive(&mut self, _endpoint: EndpointAddress, packet: &[u8]) -> Handshake {
        self.played.extend_from_slice(packet);
        self.packets.push(packet.len());
        Handshake::Ack
    }

    fn send(&mut self, endpoint: EndpointAddress, _max_packet: usize) -> Reply {
        if endpoint == FEEDBACK {
            let told = self.feedback.map(|frames| frames.to_le_bytes()[..3].to_vec());
            return told.map_or(Reply::Nak, Reply::Data);
        }
        let mut packet = Vec::new();
        for _ in 0..self.capture.packet() {
            packet.extend(self.heard.to_le_bytes());
            self.heard = self.heard.wrapping_add(1);
        }
        Reply::Data(packet)
    }

    fn alternate_set(&mut self, interface: u8, alternate: u8) {
        if let Some(its) = self.alternates.get_mut(usize::from(interface)) {
            *its = alternate;
        }
    }

    fn reset(&mut self) {
        *self = Self::default();
    }
}
