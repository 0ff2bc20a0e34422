//! The driver: a port that is read and written without waiting, over either protocol.
//!
//! Completions are interrupts of the driver's domain. Transfers from the device are asked for again as long as what came is
//! being read; if nobody reads, none is, and the device holds the other end up as its flow control says. Nothing is dropped here.

use crate::line::{Counters, LineCoding, ModemInputs, Request};
use crate::{cdc, ftdi};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use udrv::irq::{IrqDomain, IrqReturn, Registration};
use udrv_usb::{Completion, CompletionQueue, Device, EndpointAddress, Error, LINE, Refused, Result, Status, Transfer};

/// How long the device may take to answer a request.
const CONTROL: Duration = Duration::from_secs(5);

/// How long a transfer of data is waited for before it is asked for again: nobody may be sending, or the other end may hold us up.
const QUIET: Duration = Duration::from_secs(600);

/// Transfers of data from the device that are under way.
const IN_FLIGHT: u64 = 4;

/// Packets in each of them.
const PACKETS: usize = 8;

/// Bytes that may wait to be read before no more are asked for.
const UNREAD: usize = 64 << 10;

/// Bytes that may wait to be sent.
const UNSENT: usize = 64 << 10;

/// Bytes in a transfer to the device, at most. One is under way at a time: what one leaves over when its time is over comes
/// before the next.
const PIECE: usize = 16 << 10;

/// Transfers, told apart by their numbers: data from the device is 0 to [`IN_FLIGHT`].
const OUT: u64 = 100;
const NOTIFICATION: u64 = 101;

/// Which protocol to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// FTDI for its own vendor number, otherwise CDC-ACM.
    #[default]
    Auto,
    /// CDC-ACM.
    CdcAcm,
    /// FTDI, also under another vendor's number.
    Ftdi,
}

#[derive(Debug, Clone)]
enum Dialect {
    CdcAcm(cdc::Function),
    Ftdi(ftdi::Function),
}

impl Dialect {
    fn find(device: &Device, protocol: Protocol) -> Result<Self> {
        let descriptors = &device.info().descriptors;
        let configuration = descriptors.configuration(device.backend().configuration()?);
        let ftdi =
            protocol == Protocol::Ftdi || protocol == Protocol::Auto && descriptors.device.vendor == ftdi::VENDOR;
        let found = configuration.and_then(|configuration| {
            if ftdi {
                ftdi::Function::find(&descriptors.device, configuration).map(Self::Ftdi)
            } else {
                cdc::Function::find(configuration).map(Self::CdcAcm)
            }
        });
        found.ok_or_else(|| Error::Unavailable {
            device: device.address().into(),
            why: if ftdi {
                "it has no FTDI port (an interface of class ff with a bulk endpoint each way)".into()
            } else {
                "it has no CDC-ACM function (interfaces of class 02:02 and 0a, with a bulk endpoint each way)".into()
            },
            advice:
                "`udrv usb list` shows what it has; a chip of FTDI's under another vendor's number has to be called one"
                    .into(),
        })
    }

    fn interfaces(&self) -> Vec<u8> {
        match self {
            Self::CdcAcm(function) => vec![function.control, function.data],
            Self::Ftdi(function) => vec![function.interface],
        }
    }

    const fn bulk_in(&self) -> (EndpointAddress, u16) {
        match self {
            Self::CdcAcm(function) => function.bulk_in,
            Self::Ftdi(function) => function.bulk_in,
        }
    }

    const fn bulk_out(&self) -> EndpointAddress {
        match self {
            Self::CdcAcm(function) => function.bulk_out,
            Self::Ftdi(function) => function.bulk_out,
        }
    }

    const fn notifications(&self) -> Option<(EndpointAddress, u16)> {
        match self {
            Self::CdcAcm(function) => function.notifications,
            Self::Ftdi(_) => None,
        }
    }
}

/// A serial port, brought up. Dropping it turns DTR and RTS off and gives its interfaces back.
pub struct SerialPort {
    // Before the device is given back: the handler submits to it.
    registration: Option<Registration>,
    device: Device,
    shared: Arc<Shared>,
    dialect: Dialect,
    line: LineCoding,
}

struct Shared {
    device: Device,
    queue: CompletionQueue,
    state: Mutex<State>,
    /// Called after anything has changed, without a lock.
    wake: Box<dyn Fn() + Send + Sync>,
}

struct State {
    dialect: Dialect,
    unread: VecDeque<u8>,
    /// Transfers from the device that are not asked for since too much is unread.
    resting: Vec<u64>,
    unsent: VecDeque<u8>,
    sending: bool,
    counters: Counters,
    inputs: ModemInputs,
    /// Why nothing works any more.
    ended: Option<Error>,
}

impl SerialPort {
    /// Takes a device's first serial port; `wake` is called, as a handler of `irqs`, when something came, there is room again,
    /// a line has changed, or it has ended.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it has none, or another program has it; [`Error::Protocol`], [`Error::Timeout`],
    /// [`Error::Gone`].
    pub fn attach(
        device: Device,
        protocol: Protocol,
        irqs: &IrqDomain,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self> {
        let dialect = Dialect::find(&device, protocol)?;
        claim(&device, &dialect.interfaces())?;
        let state = State {
            dialect: dialect.clone(),
            unread: VecDeque::new(),
            resting: Vec::new(),
            unsent: VecDeque::new(),
            sending: false,
            counters: Counters::default(),
            inputs: ModemInputs::default(),
            ended: None,
        };
        let queue = CompletionQueue::new(&device);
        let shared = Shared { device: device.clone(), queue, state: Mutex::new(state), wake: Box::new(wake) };
        let shared = Arc::new(shared);
        let mut port = Self { registration: None, device, shared, dialect, line: LineCoding::default() };
        match &port.dialect {
            Dialect::CdcAcm(function) if function.alternate != 0 => {
                port.device.backend().set_alternate(function.data, function.alternate)?;
            }
            Dialect::CdcAcm(_) => {}
            Dialect::Ftdi(function) => port.ask(&function.start())?,
        }
        let handler = {
            let shared = Arc::clone(&port.shared);
            move |_| shared.handle()
        };
        port.registration = Some(irqs.register(&port.shared.queue.line(), LINE, 0, handler)?);
        for tag in 0..IN_FLIGHT {
            port.shared.receive(tag)?;
        }
        port.shared.listen()?;
        Ok(port)
    }

    /// What it speaks.
    #[must_use]
    pub const fn protocol(&self) -> &'static str {
        match self.dialect {
            Dialect::CdcAcm(_) => "CDC-ACM",
            Dialect::Ftdi(_) => "FTDI",
        }
    }

    /// Takes up to `most` bytes of what came; none if there is nothing.
    ///
    /// # Errors
    /// Why nothing comes any more, once all that came has been taken.
    pub fn read(&self, most: usize) -> Result<Vec<u8>> {
        let (bytes, resting) = {
            let mut state = self.shared.lock();
            let length = most.min(state.unread.len());
            let bytes: Vec<u8> = state.unread.drain(..length).collect();
            if bytes.is_empty()
                && let Some(error) = state.ended.take()
            {
                state.ended = Some(Error::Gone { device: self.device.address().into(), why: "it has ended".into() });
                return Err(error);
            }
            let rest = state.unread.len() >= UNREAD;
            (bytes, if rest { Vec::new() } else { std::mem::take(&mut state.resting) })
        };
        for tag in resting {
            self.shared.receive(tag)?;
        }
        Ok(bytes)
    }

    /// Takes as many of `bytes` to be sent as there is room for, and says how many.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let taken = {
            let mut state = self.shared.lock();
            let taken = bytes.len().min(UNSENT.saturating_sub(state.unsent.len()));
            state.unsent.extend(bytes.iter().take(taken));
            taken
        };
        self.shared.send();
        taken
    }

    /// Bytes there is room for.
    #[must_use]
    pub fn room(&self) -> usize {
        UNSENT.saturating_sub(self.shared.lock().unsent.len())
    }

    /// Whether the device has taken everything.
    #[must_use]
    pub fn is_sent(&self) -> bool {
        let state = self.shared.lock();
        state.unsent.is_empty() && !state.sending
    }

    /// Whether nothing is received or sent any more, since the device is gone or has failed; [`SerialPort::read`] says why.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.shared.lock().ended.is_some()
    }

    /// Bytes and errors so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.lock().counters
    }

    /// The lines as the device told them last.
    #[must_use]
    pub fn inputs(&self) -> ModemInputs {
        self.shared.lock().inputs
    }

    /// Sets speed, character and flow control.
    ///
    /// # Errors
    /// [`Error::NotSupported`] for a device that cannot; [`Error::Protocol`] for a speed it refuses; [`Error::Timeout`],
    /// [`Error::Gone`].
    pub fn set_line(&mut self, line: &LineCoding) -> Result<()> {
        match &self.dialect {
            Dialect::CdcAcm(function) if function.has_line_coding => self.ask(&[function.set_line(line)])?,
            Dialect::CdcAcm(_) => return Err(self.unable("setting the line's speed")),
            Dialect::Ftdi(function) => self.ask(&function.set_line(line)?)?,
        }
        self.line = *line;
        Ok(())
    }

    /// Turns DTR and RTS on or off.
    ///
    /// # Errors
    /// As [`SerialPort::set_line`].
    pub fn set_outputs(&self, dtr: bool, rts: bool) -> Result<()> {
        match &self.dialect {
            Dialect::CdcAcm(function) if function.has_line_coding => self.ask(&[function.set_outputs(dtr, rts)]),
            Dialect::CdcAcm(_) => Err(self.unable("setting modem lines")),
            Dialect::Ftdi(function) => self.ask(&[function.set_outputs(dtr, rts)]),
        }
    }

    /// Begins or ends a break. It does not wait for what is being sent.
    ///
    /// # Errors
    /// As [`SerialPort::set_line`].
    pub fn set_break(&self, on: bool) -> Result<()> {
        match &self.dialect {
            Dialect::CdcAcm(function) if function.has_break => self.ask(&[function.set_break(on)]),
            Dialect::CdcAcm(_) => Err(self.unable("break")),
            Dialect::Ftdi(function) => self.ask(&[function.set_data(&self.line, on)]),
        }
    }

    fn unable(&self, what: &'static str) -> Error {
        Error::NotSupported { what, by: format!("{} (its descriptor says so)", self.device.address()) }
    }

    fn ask(&self, requests: &[Request]) -> Result<()> {
        requests
            .iter()
            .try_for_each(|request| self.device.control_out(request.setup, &request.data, CONTROL, request.name))
    }
}

/// Claims all of these interfaces, or none.
fn claim(device: &Device, interfaces: &[u8]) -> Result<()> {
    for (at, interface) in interfaces.iter().enumerate() {
        if let Err(error) = device.backend().claim(*interface) {
            for claimed in interfaces.iter().take(at) {
                let _gone = device.backend().release(*claimed);
            }
            return Err(error);
        }
    }
    Ok(())
}

impl Drop for SerialPort {
    fn drop(&mut self) {
        if self.registration.is_some() && !self.has_ended() {
            let _unable = self.set_outputs(false, false);
        }
        // No handler runs after this, so nothing is asked for again.
        drop(self.registration.take());
        for interface in self.dialect.interfaces() {
            // What is in flight is ended by the release.
            let _gone = self.device.backend().release(interface);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receive(&self, tag: u64) -> std::result::Result<(), Box<Refused>> {
        let (endpoint, size) = self.lock().dialect.bulk_in();
        let transfer = Transfer::bulk(endpoint, vec![0; usize::from(size) * PACKETS]);
        self.queue.submit(&self.device, transfer, QUIET, tag).map(drop)
    }

    fn listen(&self) -> std::result::Result<(), Box<Refused>> {
        let notifications = self.lock().dialect.notifications();
        let Some((endpoint, size)) = notifications else { return Ok(()) };
        // Whole packets, and no fewer than the longest notification that is understood.
        let packets = 16_usize.div_ceil(usize::from(size).max(1));
        let transfer = Transfer::interrupt(endpoint, vec![0; usize::from(size) * packets]);
        self.queue.submit(&self.device, transfer, QUIET, NOTIFICATION).map(drop)
    }

    /// Sends what waits to be sent, if nothing is under way.
    fn send(&self) {
        let transfer = {
            let mut state = self.lock();
            if state.sending || state.unsent.is_empty() || state.ended.is_some() {
                return;
            }
            let length = state.unsent.len().min(PIECE);
            state.sending = true;
            Transfer::bulk(state.dialect.bulk_out(), state.unsent.drain(..length).collect())
        };
        if let Err(refused) = self.queue.submit(&self.device, transfer, QUIET, OUT) {
            self.end(refused.error);
        }
    }

    fn end(&self, error: Error) {
        self.lock().ended.get_or_insert(error);
    }

    fn handle(&self) -> IrqReturn {
        let mut found = IrqReturn::None;
        while let Some((tag, completion)) = self.queue.pop() {
            found = IrqReturn::Handled;
            let done = match tag {
                OUT => self.sent(completion),
                NOTIFICATION => self.notified(completion),
                _ => self.received(tag, completion),
            };
            if let Err(error) = done {
                self.end(error);
            }
        }
        if found == IrqReturn::Handled {
            (self.wake)();
        }
        found
    }

    fn received(&self, tag: u64, completion: Completion) -> Result<()> {
        let bytes = self.bytes(completion, "receiving")?;
        {
            let mut state = self.lock();
            let State { dialect, unread, counters, inputs, .. } = &mut *state;
            let before = unread.len();
            match dialect {
                Dialect::CdcAcm(_) => unread.extend(&bytes),
                Dialect::Ftdi(function) => {
                    let told = function.received(&bytes, counters, |data| unread.extend(data));
                    *inputs = told.unwrap_or(*inputs);
                }
            }
            counters.received += (unread.len() - before) as u64;
            if unread.len() >= UNREAD {
                state.resting.push(tag);
                return Ok(());
            }
        }
        Ok(self.receive(tag)?)
    }

    fn notified(&self, completion: Completion) -> Result<()> {
        let bytes = self.bytes(completion, "a notification")?;
        {
            let mut state = self.lock();
            let State { counters, inputs, .. } = &mut *state;
            *inputs = cdc::notified(&bytes, counters).unwrap_or(*inputs);
        }
        Ok(self.listen()?)
    }

    fn sent(&self, completion: Completion) -> Result<()> {
        {
            let mut state = self.lock();
            state.sending = false;
            state.counters.sent += completion.actual as u64;
            // Nothing of what the device has not taken is lost, and it comes before what was written later.
            let left = completion.data.get(completion.actual..).unwrap_or_default();
            for byte in left.iter().rev() {
                state.unsent.push_front(*byte);
            }
        }
        self.bytes(completion, "sending")?;
        self.send();
        Ok(())
    }

    /// What a transfer brought. One whose time was over is as good as one that ended.
    fn bytes(&self, completion: Completion, doing: &str) -> Result<Vec<u8>> {
        match completion.status {
            Status::Completed | Status::Timeout => Ok(completion.data),
            // Not by us: no handler runs after we have cancelled.
            Status::Cancelled => {
                Err(Error::Gone { device: self.device.address().into(), why: format!("{doing} was cancelled") })
            }
            _ => completion.into_data(self.device.address(), doing, QUIET),
        }
    }
}
