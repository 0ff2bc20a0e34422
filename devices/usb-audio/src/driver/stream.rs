//! Streams: several transfers in flight, filled and emptied in the handler of their completions.

use super::{Audio, Bandwidth};
use crate::pace::Pace;
use crate::protocol::Setting;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use udrv::irq::{IrqDomain, IrqReturn, Registration};
use udrv_usb::{Completion, CompletionQueue, Device, Error, LINE, Refused, Result, Status, Transfer};

/// How long a transfer of some milliseconds may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Transfers in flight.
const IN_FLIGHT: u64 = 8;

/// Milliseconds of sound in each.
const MILLISECONDS: u32 = 8;

const FEEDBACK: u64 = 100;

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
