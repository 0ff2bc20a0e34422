//! The driver: streams whose transfers are several in flight, filled and emptied in the handler of their completions.

use crate::pace::Pace;
use crate::protocol::{
    CONTROL_CLASS, Direction, FeatureUnit, GET_CUR, GET_MAX, MUTE, SET_CUR, Setting, VOLUME, rate_request,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use udrv::irq::{IrqDomain, IrqReturn, Registration};
use udrv_usb::{Completion, CompletionQueue, Device, Error, LINE, Refused, Result, Setup, Status, Transfer};

/// How long the device may take to answer a request.
const CONTROL: Duration = Duration::from_secs(5);

/// How long a transfer of some milliseconds may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Transfers in flight.
const IN_FLIGHT: u64 = 8;

/// Milliseconds of sound in each.
const MILLISECONDS: u32 = 8;

const FEEDBACK: u64 = 100;

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

/// What a source gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// All that was asked for.
    All,
    /// This many bytes for now: the rest is silence, and an underrun.
    Some(usize),
    /// This many bytes, and there will be no more.
    Last(usize),
}

/// Fills all of a buffer, or says how much.
type Source = dyn FnMut(&mut [u8]) -> Filled + Send;

/// Takes what came, and says whether it wants more.
type Sink = dyn FnMut(&[u8]) -> bool + Send;

/// Where sound comes from or goes to.
enum End {
    Source(Box<Source>),
    Sink(Box<Sink>),
}

/// What has happened to a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames the device took, or gave.
    pub frames: u64,
    /// Times that the source had less than was needed.
    pub underruns: u64,
    /// Packets that were not transferred, or not well.
    pub lost: u64,
    /// Times that the device said how much it takes.
    pub feedback: u64,
}

/// A stream under way. Dropping it ends it.
pub struct Stream {
    // Before the bandwidth is given back: the handler submits to it.
    registration: Option<Registration>,
    shared: Arc<Shared>,
    _bandwidth: Bandwidth,
}

struct Shared {
    device: Device,
    setting: Setting,
    queue: CompletionQueue,
    state: Mutex<State>,
}

struct State {
    end: End,
    pace: Pace,
    /// Packets of one transfer.
    packets: u32,
    in_flight: u64,
    asking: bool,
    /// The source has ended, or the sink wants no more.
    over: bool,
    counters: Counters,
    error: Option<Error>,
}

impl Stream {
    /// Plays what `source` gives, in the setting's format, until it gives its last. It is called as a handler of `irqs`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if another program has the stream; [`Error::Protocol`], [`Error::Timeout`], [`Error::Gone`].
    pub fn play(
        audio: &Audio,
        setting: &Setting,
        rate: u32,
        irqs: &IrqDomain,
        source: impl FnMut(&mut [u8]) -> Filled + Send + 'static,
    ) -> Result<Self> {
        Self::start(audio, setting, rate, irqs, End::Source(Box::new(source)))
    }

    /// Gives `sink` what comes, packet by packet, until it wants no more.
    ///
    /// # Errors
    /// As [`Stream::play`].
    pub fn capture(
        audio: &Audio,
        setting: &Setting,
        rate: u32,
        irqs: &IrqDomain,
        sink: impl FnMut(&[u8]) -> bool + Send + 'static,
    ) -> Result<Self> {
        Self::start(audio, setting, rate, irqs, End::Sink(Box::new(sink)))
    }

    fn start(audio: &Audio, setting: &Setting, rate: u32, irqs: &IrqDomain, end: End) -> Result<Self> {
        let bandwidth = audio.open(setting, rate)?;
        let (units, in_second) = setting.interval(audio.device.info().speed);
        let packets = (MILLISECONDS * in_second / 1000 / units).max(1);
        let state = State {
            end,
            pace: Pace::new(rate, (units, in_second)),
            packets,
            in_flight: 0,
            asking: false,
            over: false,
            counters: Counters::default(),
            error: None,
        };
        let queue = CompletionQueue::new(&audio.device);
        let (device, setting) = (audio.device.clone(), setting.clone());
        let shared = Arc::new(Shared { device, setting, queue, state: Mutex::new(state) });
        let handler = {
            let shared = Arc::clone(&shared);
            move |_| shared.handle()
        };
        let registration = Some(irqs.register(&shared.queue.line(), LINE, 0, handler)?);
        let stream = Self { registration, shared, _bandwidth: bandwidth };
        // No handler fills a later one meanwhile and submits it first.
        irqs.off(|_| (0..IN_FLIGHT).try_for_each(|_| stream.shared.next()))?;
        Ok(stream)
    }

    /// Whether everything has been played, or captured, or it has failed.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let state = self.shared.lock();
        state.in_flight == 0 || state.error.is_some()
    }

    /// Why it has failed, once.
    #[must_use]
    pub fn take_error(&self) -> Option<Error> {
        self.shared.lock().error.take()
    }

    /// So far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.lock().counters
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // No handler runs after this, so nothing is asked for again. What is in flight ends with its bandwidth.
        drop(self.registration.take());
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the next transfer, unless it is over.
    fn next(&self) -> std::result::Result<(), Box<Refused>> {
        let Some((lengths, data)) = self.lock().transfer(&self.setting) else { return Ok(()) };
        let transfer = Transfer::isochronous(self.setting.endpoint, lengths, data);
        if let Err(refused) = self.queue.submit(&self.device, transfer, PATIENCE, 0) {
            self.lock().in_flight -= 1;
            return Err(refused);
        }
        self.ask()
    }

    /// Asks the device how much it takes, along with what it is given.
    fn ask(&self) -> std::result::Result<(), Box<Refused>> {
        let Some((endpoint, size)) = self.setting.feedback else { return Ok(()) };
        if std::mem::replace(&mut self.lock().asking, true) {
            return Ok(());
        }
        let transfer = Transfer::isochronous(endpoint, vec![size.into()], vec![0; size.into()]);
        self.queue.submit(&self.device, transfer, PATIENCE, FEEDBACK).map(drop)
    }

    fn handle(&self) -> IrqReturn {
        let mut found = IrqReturn::None;
        while let Some((tag, completion)) = self.queue.pop() {
            found = IrqReturn::Handled;
            let done = if tag == FEEDBACK { self.told(completion) } else { self.ended(completion) };
            if let Err(error) = done {
                self.lock().error.get_or_insert(error);
            }
        }
        found
    }

    fn told(&self, completion: Completion) -> Result<()> {
        let bytes = completion.packets.first().and_then(|packet| {
            let good = packet.status == Status::Completed;
            completion.data.get(..packet.actual as usize).filter(|_| good)
        });
        let mut state = self.lock();
        state.asking = false;
        if let Some(bytes) = bytes
            && state.pace.feedback(bytes)
        {
            state.counters.feedback += 1;
        }
        drop(state);
        // A packet that did not come is asked for again with the next; a device that has gone is gone.
        match completion.status {
            Status::Gone => completion.into_data(self.device.address(), "feedback", PATIENCE).map(drop),
            _ => Ok(()),
        }
    }

    fn ended(&self, completion: Completion) -> Result<()> {
        {
            let mut state = self.lock();
            state.in_flight -= 1;
            state.count(&completion, &self.setting);
            if completion.status == Status::Completed {
                state.deliver(&completion);
            }
        }
        match completion.status {
            Status::Completed => Ok(self.next()?),
            // Not by us: no handler runs after we have cancelled.
            Status::Cancelled => {
                Err(Error::Gone { device: self.device.address().into(), why: "its transfers were cancelled".into() })
            }
            _ => completion.into_data(self.device.address(), "an isochronous transfer", PATIENCE).map(drop),
        }
    }
}

impl State {
    /// The next transfer's packets and data, counted as in flight; none if it is over.
    fn transfer(&mut self, setting: &Setting) -> Option<(Vec<u32>, Vec<u8>)> {
        if self.over || self.error.is_some() {
            return None;
        }
        let frame = u32::try_from(setting.frame()).unwrap_or(u32::MAX);
        let (lengths, data) = match &mut self.end {
            End::Sink(_) => {
                let lengths = vec![setting.max_packet; self.packets as usize];
                let length = setting.max_packet as usize * lengths.len();
                (lengths, vec![0; length])
            }
            End::Source(source) => {
                let pace = &mut self.pace;
                let lengths: Vec<u32> =
                    (0..self.packets).map(|_| pace.packet().min(setting.most_frames()) * frame).collect();
                let mut data = vec![0; lengths.iter().map(|one| *one as usize).sum()];
                let filled = match source(&mut data) {
                    Filled::All => data.len(),
                    Filled::Some(filled) => {
                        self.counters.underruns += 1;
                        filled
                    }
                    Filled::Last(filled) => {
                        self.over = true;
                        filled
                    }
                };
                if filled == 0 && self.over {
                    return None;
                }
                // Silence; of samples of one byte it is in the middle (FMT, 2.2.5: PCM8 is another format, so zero is right).
                data.get_mut(filled..).unwrap_or_default().fill(0);
                (lengths, data)
            }
        };
        self.in_flight += 1;
        Some((lengths, data))
    }

    fn count(&mut self, completion: &Completion, setting: &Setting) {
        for packet in &completion.packets {
            self.counters.lost += u64::from(packet.status != Status::Completed);
            self.counters.frames += u64::from(packet.actual) / setting.frame() as u64;
        }
    }

    fn deliver(&mut self, completion: &Completion) {
        let End::Sink(sink) = &mut self.end else { return };
        let mut at = 0usize;
        for packet in &completion.packets {
            let bytes = completion.data.get(at..at.saturating_add(packet.actual as usize)).unwrap_or_default();
            if !self.over && packet.status == Status::Completed && !bytes.is_empty() && !sink(bytes) {
                self.over = true;
            }
            at = at.saturating_add(packet.length as usize);
        }
    }
}
