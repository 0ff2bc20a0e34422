//! The driver: a port that is read and written without waiting, over either protocol.
//!
//! Completions are interrupts of the driver's domain. Transfers from the device are asked for again as long as what came is
//! being read; if nobody reads, none is, and the device holds the other end up as its flow control says. Nothing is dropped here.

mod dialect;
mod shared;

pub use dialect::Protocol;

use crate::line::{Counters, LineCoding, ModemInputs, Request};
use dialect::Dialect;
use shared::{Shared, State, UNREAD};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use udrv::irq::{IrqDomain, Registration};
use udrv_usb::{CompletionQueue, Device, Error, LINE, Result};

/// How long the device may take to answer a request.
const CONTROL: Duration = Duration::from_secs(5);

/// Transfers of data from the device that are under way.
const IN_FLIGHT: u64 = 4;

/// Bytes that may wait to be sent.
const UNSENT: usize = 64 << 10;

/// A serial port, brought up. Dropping it turns DTR and RTS off and gives its interfaces back.
pub struct SerialPort {
    // Before the device is given back: the handler submits to it.
    registration: Option<Registration>,
    device: Device,
    shared: Arc<Shared>,
    dialect: Dialect,
    line: LineCoding,
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
