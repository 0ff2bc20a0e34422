//! The driver: what a sound device has, its volume, its settings; and streams in `stream.rs`.

mod stream;

pub use stream::{Counters, Filled, Stream};

use crate::protocol::{
    CONTROL_CLASS, Direction, FeatureUnit, GET_CUR, GET_MAX, MUTE, SET_CUR, Setting, VOLUME, rate_request,
};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use udrv_usb::{Device, Error, Result, Setup};

/// How long the device may take to answer a request.
const CONTROL: Duration = Duration::from_secs(5);

/// A sound device. From the first stream or volume on all its sound interfaces are taken, until it is dropped: a kernel driver has
/// all of them or none.
pub struct Audio {
    device: Device,
    settings: Vec<Setting>,
    units: Vec<FeatureUnit>,
    interfaces: Vec<u8>,
    /// Of these, the ones that have been claimed.
    claimed: Mutex<Vec<u8>>,
}

/// What to look for in a device.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Which way.
    pub direction: Direction,
    /// Frames a second.
    pub rate: u32,
    /// Samples a frame; any if not given.
    pub channels: Option<u8>,
}

/// How loud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volume {
    /// As loud as it goes.
    Max,
    /// In 1/256 dB (UAC, 5.2.2.4.3.2).
    Db256(i16),
}

impl Audio {
    /// Looks at what a device says of itself. Nothing is claimed.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it has no PCM stream; [`Error::Gone`].
    pub fn new(device: Device) -> Result<Self> {
        let active = device.backend().configuration()?;
        let configuration = device.info().descriptors.configuration(active);
        let settings = configuration.map(Setting::all).unwrap_or_default();
        let units = configuration.map(FeatureUnit::all).unwrap_or_default();
        if settings.is_empty() {
            return Err(Error::Unavailable {
                device: device.address().into(),
                why: "it has no PCM stream of audio class 1 (an interface of class 01:02 with an isochronous endpoint)"
                    .into(),
                advice: "`udrv usb list` shows what it has".into(),
            });
        }
        let mut interfaces: Vec<u8> = configuration
            .into_iter()
            .flat_map(|configuration| &configuration.interfaces)
            .filter(|interface| interface.class.0 == CONTROL_CLASS.0)
            .map(|interface| interface.number)
            .collect();
        interfaces.sort_unstable();
        interfaces.dedup();
        Ok(Self { device, settings, units, interfaces, claimed: Mutex::default() })
    }

    /// Claims all interfaces, once.
    fn claim(&self) -> Result<()> {
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        for interface in self.interfaces.iter().skip(claimed.len()) {
            self.device.backend().claim(*interface)?;
            claimed.push(*interface);
        }
        Ok(())
    }

    /// What it can do.
    #[must_use]
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// The first setting that does it.
    ///
    /// # Errors
    /// [`Error::Unavailable`], with what the device has.
    pub fn find(&self, wanted: Wanted) -> Result<&Setting> {
        let speed = self.device.info().speed;
        let fits = |setting: &&Setting| {
            let (units, in_second) = setting.interval(speed);
            let most = u64::from(wanted.rate) * u64::from(units);
            setting.direction == wanted.direction
                && wanted.channels.is_none_or(|channels| channels == setting.channels)
                && wanted.rate > 0
                && setting.rates.has(wanted.rate)
                // A rate whose packets do not fit is not meant.
                && most.div_ceil(u64::from(in_second)) <= u64::from(setting.most_frames())
        };
        self.settings.iter().find(fits).ok_or_else(|| {
            let has: Vec<String> = self.settings.iter().map(Setting::to_string).collect();
            let channels = wanted.channels.map(|channels| format!(" and {channels} channels")).unwrap_or_default();
            Error::Unavailable {
                device: self.device.address().into(),
                why: format!("it has no stream of {} Hz{channels} that way", wanted.rate),
                advice: format!("it {}", has.join("; it ")),
            }
        })
    }

    /// Sets the volume of all that has one, and unmutes it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if nothing has a volume, or another program has the device; [`Error::Protocol`] for a refusal.
    pub fn set_volume(&self, volume: Volume) -> Result<()> {
        if self.units.iter().all(|unit| unit.volume.is_empty()) {
            return Err(Error::Unavailable {
                device: self.device.address().into(),
                why: "it has no volume control".into(),
                advice: "leave the volume as it is".into(),
            });
        }
        self.claim()?;
        for unit in &self.units {
            for channel in &unit.mute {
                self.set(unit.request(SET_CUR, MUTE, *channel), &[0], "SET_CUR of a mute control")?;
            }
            for channel in &unit.volume {
                let value = match volume {
                    Volume::Db256(value) => value.to_le_bytes(),
                    Volume::Max => self.most(unit, *channel)?,
                };
                self.set(unit.request(SET_CUR, VOLUME, *channel), &value, "SET_CUR of a volume control")?;
            }
        }
        Ok(())
    }

    fn most(&self, unit: &FeatureUnit, channel: u8) -> Result<[u8; 2]> {
        const WHAT: &str = "GET_MAX of a volume control";
        let bytes = self.device.control_in(unit.request(GET_MAX, VOLUME, channel), 2, CONTROL, WHAT)?;
        bytes.as_slice().try_into().map_err(|_| self.nonsense(WHAT, &bytes))
    }

    fn nonsense(&self, what: &str, bytes: &[u8]) -> Error {
        Error::Protocol {
            peer: self.device.address().into(),
            found: format!("{bytes:02x?} in answer to {what}"),
            expected: "what UAC, 5.2 says".into(),
        }
    }

    fn set(&self, setup: Setup, data: &[u8], doing: &str) -> Result<()> {
        self.device.control_out(setup, data, CONTROL, doing)
    }

    /// Brings a stream's interface to the setting and rate.
    fn open(&self, setting: &Setting, rate: u32) -> Result<Bandwidth> {
        self.claim()?;
        let bandwidth = Bandwidth { device: self.device.clone(), interface: setting.interface };
        self.device.backend().set_alternate(setting.interface, setting.alternate)?;
        if setting.has_rate_control {
            let [a, b, c, _] = rate.to_le_bytes();
            self.set(rate_request(SET_CUR, setting.endpoint), &[a, b, c], "SET_CUR of the rate")?;
            self.check_rate(setting, rate)?;
        }
        Ok(bandwidth)
    }

    /// A device may round the rate, and tells what it has; one that cannot be asked is believed.
    fn check_rate(&self, setting: &Setting, rate: u32) -> Result<()> {
        const WHAT: &str = "GET_CUR of the rate";
        match self.device.control_in(rate_request(GET_CUR, setting.endpoint), 3, CONTROL, WHAT) {
            Ok(bytes) => match bytes.as_slice() {
                &[a, b, c] if u32::from_le_bytes([a, b, c, 0]).abs_diff(rate) <= rate / 1000 => Ok(()),
                _ => Err(self.nonsense(&format!("{WHAT}, after {rate} Hz was set"), &bytes)),
            },
            Err(Error::Protocol { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Audio {
    fn drop(&mut self) {
        let claimed = self.claimed.get_mut().unwrap_or_else(PoisonError::into_inner);
        for interface in claimed.iter() {
            // What is in flight is ended by the release.
            let _gone = self.device.backend().release(*interface);
        }
    }
}

/// The time on the bus that a stream's setting takes, given back when it is dropped.
struct Bandwidth {
    device: Device,
    interface: u8,
}

impl Drop for Bandwidth {
    fn drop(&mut self) {
        // Setting 0 has none (UAC, 4.5.1); what is in flight is ended by it.
        let _gone = self.device.backend().set_alternate(self.interface, 0);
    }
}
