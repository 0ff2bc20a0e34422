//! The 16550 driver: bytes both ways by a level interrupt. Runs unchanged on every backend.
//!
//! The interrupt handler moves characters between the device's FIFOs and two queues; [`Uart::read`] and [`Uart::write`] take
//! from them and fill them, and never wait. Nothing is dropped for want of room here: with a queue full, received characters
//! stay in the device, and the other end is asked to wait by RTS; what the device then loses it counts itself, as an overrun.

mod port;
mod settings;
mod test;

pub use settings::{Parity, Settings, StopBits};

use crate::registers::{CLASS, LineControl, LineStatus, MAP, ModemControl, ModemStatus};
use port::Port;
use std::sync::Arc;
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::host::{Context, Driver};
use udrv::irq::{IrqDomain, IrqLock, IrqReturn, IrqStats, Registration};
use udrv::mmio::{Io, Window};
use udrv::pci::{Command, Config};
use udrv_backend::{AnyBackend, Error, IrqIndex, RegionIndex, Result};

/// BAR 0, all of it.
const REGISTERS: usize = 8;

/// What has happened since the device was taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Characters received.
    pub received: u64,
    /// Characters given to the transmitter.
    pub sent: u64,
    /// Times that characters were lost because the device had no room: at least one each.
    pub overruns: u64,
    /// Characters of wrong parity; they are received all the same.
    pub parity_errors: u64,
    /// Characters without a stop bit; they are received all the same.
    pub framing_errors: u64,
    /// Breaks; the null character that stands for one in the device is not received.
    pub breaks: u64,
    /// Changes of CTS, DSR and DCD, and ends of a ring.
    pub modem_changes: u64,
}

/// The device, brought up.
pub struct Uart<I: Io = Window<REGISTERS>> {
    // Dropped first: no handler runs when the port goes.
    irq: Registration,
    port: Arc<IrqLock<Port<I>>>,
    irqs: IrqDomain,
}

impl<I: Io + 'static> Uart<I> {
    /// Takes the device: checks what it is, tests it in loopback mode, sets the line, takes its pin. `wake` is called, in the
    /// handler, whenever there may be something new to read, room to write, or a change of the modem's lines.
    ///
    /// # Errors
    /// [`Error::Protocol`] if the device is no 16550, or fails its test; [`Error::Unavailable`] for settings that it does not
    /// have; what the backend says otherwise.
    pub fn attach(
        device: &AnyBackend,
        io: I,
        irqs: &IrqDomain,
        settings: Settings,
        wake: impl Fn() + Send + 'static,
    ) -> Result<Self> {
        let address = &device.info().address;
        let config = Config::new(&**device);
        let class = config.class()?;
        if class != CLASS {
            return Err(Error::Protocol {
                peer: address.clone(),
                found: format!("class code {class:06x}"),
                expected: format!("{CLASS:06x}, a 16550 serial port"),
            });
        }
        config.change_command(Command::IO_SPACE | Command::MEMORY_SPACE, Command::INTERRUPT_DISABLE)?;
        udrv::inspect::describe(&**device, &MAP);
        let mut port = Port::new(io, address, wake);
        port.quiet()?;
        port.set_line(settings)?;
        port.test()?;
        port.set_line(settings)?;
        port.begin()?;
        let port = Arc::new(IrqLock::new(irqs, port));
        let handler = {
            let port = Arc::clone(&port);
            move |_| if port.lock().serve() { IrqReturn::Handled } else { IrqReturn::None }
        };
        let irq = irqs.register(device, IrqIndex::INTX, 0, handler)?;
        port.lock().enable()?;
        Ok(Self { irq, port, irqs: irqs.clone() })
    }

    /// Takes what has been received, as much as there is and fits; 0 if nothing has.
    ///
    /// # Errors
    /// What the handler met last, once; as [`udrv_backend::Backend::write`].
    pub fn read(&self, into: &mut [u8]) -> Result<usize> {
        self.port.lock().read(into)
    }

    /// Leaves bytes to be sent, as many as there is room for; 0 if there is none.
    ///
    /// # Errors
    /// As [`Uart::read`].
    pub fn write(&self, from: &[u8]) -> Result<usize> {
        self.port.lock().write(from)
    }

    /// Bytes that [`Uart::write`] would take now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.port.lock().room()
    }

    /// Waits until there is something to read.
    ///
    /// # Errors
    /// [`Error::Timeout`]; what the handler met, so that a device that is gone is not waited for.
    pub fn wait_readable(&self, deadline: Deadline) -> Result<()> {
        self.wait("a character from the serial line", deadline, |port| port.has_received())
    }

    /// Waits until everything written is on its way out of the device.
    ///
    /// # Errors
    /// As [`Uart::wait_readable`].
    pub fn drain(&self, deadline: Deadline) -> Result<()> {
        self.wait("the transmitter's queue to empty", deadline, |port| port.has_handed_over())?;
        deadline.poll("LSR TRANSMITTER_EMPTY", || {
            let mut port = self.port.lock();
            Ok(port.line_status()?.contains(LineStatus::TRANSMITTER_EMPTY))
        })
    }

    fn wait(&self, what: &str, deadline: Deadline, done: impl Fn(&Port<I>) -> bool) -> Result<()> {
        self.irqs.wait(what, deadline, || {
            let port = self.port.lock();
            done(&port) || port.has_failed()
        })?;
        self.port.lock().check()
    }

    /// Changes speed and format, once what was written before has been sent.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for settings that the device does not have; as [`Uart::drain`].
    pub fn set_line(&self, settings: Settings, deadline: Deadline) -> Result<()> {
        settings.check(&self.port.lock().address)?;
        self.drain(deadline)?;
        self.port.lock().set_line(settings)
    }

    /// Holds the line at 0, or lets it go. The caller says for how long.
    ///
    /// # Errors
    /// As [`Uart::read`].
    pub fn set_break(&self, on: bool) -> Result<()> {
        self.port.lock().change_line_control(LineControl::BREAK, on)
    }

    /// Sets DTR. RTS is the driver's own: it says whether there is room.
    ///
    /// # Errors
    /// As [`Uart::read`].
    pub fn set_dtr(&self, on: bool) -> Result<()> {
        self.port.lock().change_modem(ModemControl::DTR, on)
    }

    /// CTS, DSR, RI and DCD as they were last seen, and are told of at each change.
    #[must_use]
    pub fn modem(&self) -> ModemStatus {
        self.port.lock().modem
    }

    /// What has happened.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.port.lock().counts
    }

    /// What its interrupt has seen.
    #[must_use]
    pub fn irq_stats(&self) -> IrqStats {
        self.irq.stats()
    }

    /// Tells the device to be quiet, and the other end that nobody is here.
    ///
    /// # Errors
    /// As [`Uart::read`].
    pub fn shut_down(&self) -> Result<()> {
        self.port.lock().quiet()
    }
}

/// What is to be done with the port.
pub type Job = Box<dyn FnOnce(&Uart, &Context) -> Result<()> + Send>;

/// How [`Serial`] is to work.
pub struct SerialConfig {
    /// Speed and format.
    pub settings: Settings,
    /// As in [`Uart::attach`].
    pub wake: Box<dyn Fn() + Send>,
    /// What is to be done.
    pub job: Job,
}

/// A port under the host's supervision: brought up, given to its job, shut down.
pub struct Serial {
    uart: Uart,
    job: Option<Job>,
}

/// How long what was written last may take to leave: a FIFO of characters at 50 baud takes 4 s.
const LAST_WORDS: Duration = Duration::from_secs(5);

impl Driver for Serial {
    type Config = SerialConfig;

    fn probe(context: &Context, config: SerialConfig) -> Result<Self> {
        let window = Window::open(&context.device, RegionIndex::BAR0)?;
        let uart = Uart::attach(&context.device, window, &context.irqs, config.settings, config.wake)?;
        Ok(Self { uart, job: Some(config.job) })
    }

    fn run(&mut self, context: &Context) -> Result<()> {
        self.job.take().map_or(Ok(()), |job| job(&self.uart, context))
    }

    fn remove(&mut self, _context: &Context) -> Result<()> {
        let drained = self.uart.drain(Deadline::after(LAST_WORDS));
        self.uart.shut_down()?;
        drained
    }
}
