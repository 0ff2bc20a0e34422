//! What a device says of its streams and controls, and the requests that set them.

use udrv_usb::descriptor::{Configuration, Endpoint, Interface, TransferType};
use udrv_usb::{EndpointAddress, Setup, Speed};

/// Class and subclass (UAC, tables ).
pub const CONTROL_CLASS: (u8, u8) = (1, 1);
/// The class of streams.
pub const STREAMING_CLASS: (u8, u8) = (1, 2);

/// `CS_INTERFACE` and `CS_ENDPOINT` (UAC, table A-4).
pub const CS_INTERFACE: u8 = 0x24;
/// See [`CS_INTERFACE`].
pub const CS_ENDPOINT: u8 = 0x25;
/// `FEATURE_UNIT` (UAC, table A-5).
pub const FEATURE_UNIT: u8 = 6;
/// `AS_GENERAL` (UAC, table A-6).
pub const AS_GENERAL: u8 = 1;
/// `FORMAT_TYPE` (UAC, table A-6).
pub const FORMAT_TYPE: u8 = 2;
/// `PCM` (FMT, table A-1).
pub const PCM: u16 = 1;

/// Requests (UAC, table A-9).
pub const SET_CUR: u8 = 0x01;
/// See [`SET_CUR`].
pub const GET_CUR: u8 = 0x81;
/// The least that can be set.
pub const GET_MIN: u8 = 0x82;
/// The most that can be set.
pub const GET_MAX: u8 = 0x83;
/// Controls of a feature unit (UAC, table A-11).
pub const MUTE: u8 = 1;
/// See [`MUTE`].
pub const VOLUME: u8 = 2;
/// The control of an endpoint (UAC, table A-19).
pub const SAMPLING_FREQ: u8 = 1;

/// `bmRequestType` of class requests to an interface and to an endpoint; bit 7 for the other direction.
pub const TO_INTERFACE: u8 = 0x21;
/// See [`TO_INTERFACE`].
pub const TO_ENDPOINT: u8 = 0x22;

/// Which way sound goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the device.
    Play,
    /// From the device.
    Capture,
}

/// The rates a setting has, in Hz (FMT, tables 2-2 and 2-3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rates {
    /// These.
    Some(Vec<u32>),
    /// Any from the first to the second.
    Between(u32, u32),
}

impl Rates {
    /// Whether this is one of them.
    #[must_use]
    pub fn has(&self, rate: u32) -> bool {
        match self {
            Self::Some(rates) => rates.contains(&rate),
            Self::Between(low, high) => (*low..=*high).contains(&rate),
        }
    }
}

impl std::fmt::Display for Rates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Some(rates) => f.write_str(&rates.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
            Self::Between(low, high) => write!(f, "{low} to {high}"),
        }
    }
}

/// Whose clock a stream runs by (USB 2.0, table 9-13, bits 3..2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synchronization {
    /// Not told.
    None,
    /// The device's own.
    Asynchronous,
    /// The data's.
    Adaptive,
    /// The bus's.
    Synchronous,
}

/// One alternate setting that carries PCM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The interface.
    pub interface: u8,
    /// The alternate setting.
    pub alternate: u8,
    /// Which way.
    pub direction: Direction,
    /// Samples in a frame.
    pub channels: u8,
    /// Bytes of a sample.
    pub subframe: u8,
    /// Bits of it that count, from the most significant on.
    pub bits: u8,
    /// Its rates.
    pub rates: Rates,
    /// Where the data goes.
    pub endpoint: EndpointAddress,
    /// Bytes in one interval, at most.
    pub max_packet: u32,
    /// `bInterval`.
    interval: u8,
    /// Whose clock.
    pub synchronization: Synchronization,
    /// Where the device says how much it takes, and bytes of a packet there.
    pub feedback: Option<(EndpointAddress, u16)>,
    /// It has a control for the rate.
    pub has_rate_control: bool,
}

/// What a descriptor of this subtype says after its first three bytes.
fn class_specific(extra: &[Vec<u8>], kind: u8, subtype: u8) -> Option<&[u8]> {
    extra.iter().find_map(|one| match one.as_slice() {
        [_, its_kind, its_subtype, body @ ..] if (*its_kind, *its_subtype) == (kind, subtype) => Some(body),
        _ => None,
    })
}

impl Setting {
    /// All settings of a configuration that carry PCM. What is incomplete, lies, or is of another format is passed over.
    #[must_use]
    pub fn all(configuration: &Configuration) -> Vec<Self> {
        configuration.interfaces.iter().filter_map(Self::of).collect()
    }

    fn of(interface: &Interface) -> Option<Self> {
        if (interface.class.0, interface.class.1) != STREAMING_CLASS {
            return None;
        }
        let [_terminal, _delay, low, high, ..] = class_specific(&interface.extra, CS_INTERFACE, AS_GENERAL)? else {
            return None;
        };
        let format = class_specific(&interface.extra, CS_INTERFACE, FORMAT_TYPE)?;
        let &[1, channels, subframe, bits, count, ref rates @ ..] = format else { return None };
        let mut rates = rates.chunks_exact(3).map(|one| match one {
            [a, b, c] => u32::from_le_bytes([*a, *b, *c, 0]),
            _ => 0,
        });
        let rates = match count {
            0 => Rates::Between(rates.next()?, rates.next()?),
            count => Rates::Some(rates.take(count.into()).collect()),
        };
        // The first that is no feedback endpoint (usage, bits 5..4).
        let isochronous = |one: &&Endpoint| one.transfer == TransferType::Isochronous;
        let data = interface.endpoints.iter().filter(isochronous).find(|one| one.attributes & 0x30 != 0x10)?;
        let direction = if data.address.is_in() { Direction::Capture } else { Direction::Play };
        let synchronization = match data.attributes >> 2 & 3 {
            0 => Synchronization::None,
            1 => Synchronization::Asynchronous,
            2 => Synchronization::Adaptive,
            _ => Synchronization::Synchronous,
        };
        let feedback = interface.endpoints.iter().filter(isochronous).find(|one| {
            one.address != data.address && one.address.is_in() && direction == Direction::Play && one.max_packet >= 3
        });
        let asynchronous = synchronization == Synchronization::Asynchronous;
        let general = class_specific(&data.extra, CS_ENDPOINT, 1);
        let usable =
            pcm(*low, *high) && channels > 0 && (1..=4).contains(&subframe) && bits > 0 && bits <= subframe * 8;
        usable.then_some(Self {
            interface: interface.number,
            alternate: interface.alternate,
            direction,
            channels,
            subframe,
            bits,
            rates,
            endpoint: data.address,
            max_packet: u32::from(data.max_packet) * u32::from(data.packets),
            interval: data.interval,
            synchronization,
            feedback: feedback.filter(|_| asynchronous).map(|one| (one.address, one.max_packet)),
            has_rate_control: general.and_then(<[u8]>::first).is_some_and(|attributes| attributes & 1 != 0),
        })
    }

    /// Bytes of one frame: a sample of each channel.
    #[must_use]
    pub fn frame(&self) -> usize {
        usize::from(self.channels) * usize::from(self.subframe)
    }

    /// Units of time of the bus (frames of 1 ms, or microframes of 125 us) from packet to packet, and how many there are in a
    /// second (USB 2.0, 5.6.4 and table 9-13).
    #[must_use]
    pub fn interval(&self, speed: Speed) -> (u32, u32) {
        let units = 1 << (self.interval.clamp(1, 16) - 1);
        (units, if matches!(speed, Speed::Low | Speed::Full) { 1000 } else { 8000 })
    }

    /// Frames in a packet, at most.
    #[must_use]
    pub fn most_frames(&self) -> u32 {
        self.max_packet / u32::try_from(self.frame()).unwrap_or(u32::MAX)
    }
}

const fn pcm(low: u8, high: u8) -> bool {
    u16::from_le_bytes([low, high]) == PCM
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let way = if self.direction == Direction::Play { "plays" } else { "captures" };
        let Self { channels, bits, rates, .. } = self;
        write!(f, "{way} {channels} x {bits} bits at {rates} Hz")
    }
}

/// A feature unit: which channels (0 is all of them) can be muted, and made louder (UAC, 4.3.2.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureUnit {
    /// `bUnitID`.
    pub unit: u8,
    /// The control interface it belongs to.
    pub interface: u8,
    /// Channels with a mute control.
    pub mute: Vec<u8>,
    /// Channels with a volume control.
    pub volume: Vec<u8>,
}

impl FeatureUnit {
    /// All of a configuration.
    #[must_use]
    pub fn all(configuration: &Configuration) -> Vec<Self> {
        let controls = configuration.interfaces.iter().filter(|one| (one.class.0, one.class.1) == CONTROL_CLASS);
        let unit = |interface: u8, bytes: &[u8]| {
            let &[length, CS_INTERFACE, FEATURE_UNIT, unit, _source, size, ref channels @ ..] = bytes else {
                return None;
            };
            // One of size 0 would have no end; the last byte is the unit's name, if it has room for one.
            let all = channels.get(..usize::from(length).checked_sub(7)?)?;
            let of = |bit: u8| {
                let channels = all.chunks_exact(usize::from(size).max(1)).zip(0..=u8::MAX);
                channels
                    .filter(move |(controls, _)| controls.first().is_some_and(|one| one & bit != 0))
                    .map(|(_, at)| at)
            };
            (size > 0).then(|| Self { unit, interface, mute: of(1).collect(), volume: of(2).collect() })
        };
        controls.flat_map(|one| one.extra.iter().filter_map(move |bytes| unit(one.number, bytes))).collect()
    }

    /// A request to one of its controls, for one channel.
    #[must_use]
    pub const fn request(&self, request: u8, control: u8, channel: u8) -> Setup {
        let index = u16::from_be_bytes([self.unit, self.interface]);
        let request_type = TO_INTERFACE | (request & 0x80);
        Setup { request_type, request, value: u16::from_be_bytes([control, channel]), index }
    }
}

/// A request to an endpoint's rate control.
#[must_use]
pub fn rate_request(request: u8, endpoint: EndpointAddress) -> Setup {
    let request_type = TO_ENDPOINT | (request & 0x80);
    Setup { request_type, request, value: u16::from_be_bytes([SAMPLING_FREQ, 0]), index: endpoint.0.into() }
}
