//! `udrv run usb-serial`: a pseudo-terminal in front of the port, for any program that opens serial ports.
//!
//! One loop over three descriptors: the terminal, the driver's wake-ups, the signals. What one side cannot take yet is left with
//! the other, so that flow control reaches from the program to the other end of the line.

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain};
use udrv::pty::{LineSettings, Pty, PtyEvent};
use udrv_usb::Error;
use udrv_usb_serial::driver::{Protocol, SerialPort};
use udrv_usb_serial::line::{Flow, Format, LineCoding, ModemInputs, StopBits};

/// How long what is being sent may take before new settings apply to it all the same, and before the end.
const DRAIN: Duration = Duration::from_secs(2);

/// A break, as tcsendbreak(3) makes one.
const BREAK: Duration = Duration::from_millis(250);

/// Bytes given to the terminal at once.
const PIECE: usize = 16 << 10;

#[derive(Args)]
#[command(
    after_help = "SIGUSR1 sends a break of 250 ms (`kill -USR1 PID`): a pseudo-terminal has no way to ask for one."
)]
pub struct SerialArgs {
    #[command(flatten)]
    device: super::DeviceArgs,
    /// What the device speaks.
    #[arg(long, value_enum, default_value = "auto")]
    protocol: ProtocolName,
    /// A symbolic link to the terminal, for as long as the driver runs.
    #[arg(long, value_name = "PATH")]
    link: Option<PathBuf>,
    /// The format of a character, such as 7E1 (a terminal has no way to ask for any but 8N1 and 8N2).
    #[arg(long)]
    format: Option<Format>,
    /// The speed, whatever the program on the terminal sets.
    #[arg(long)]
    baud: Option<u32>,
}

#[derive(Clone, Copy, ValueEnum)]
enum ProtocolName {
    /// FTDI for devices of FTDI's, otherwise CDC-ACM.
    Auto,
    /// The standard's abstract control model.
    CdcAcm,
    /// FTDI's, also for their chips under another vendor's number.
    Ftdi,
}

pub fn run(args: &SerialArgs) -> Result<()> {
    let (device, signals) = args.device.open_until_signal()?;
    let mut bridge = Bridge::new(args, device, signals)?;
    println!("{}", bridge.pty.path().display());
    eprintln!("ready: {} at {}", bridge.port.protocol(), bridge.pty.path().display());
    let ended = bridge.serve();
    eprintln!("{}", bridge.port.counters());
    ended
}

/// The terminal, the port, and what is between them.
struct Bridge<'a> {
    args: &'a SerialArgs,
    pty: Pty,
    port: SerialPort,
    woken: Arc<EventFd>,
    signals: SignalFd,
    /// From the port, and the terminal had no room.
    held: Vec<u8>,
    /// Settings that wait until what was written before them is sent.
    settings: Option<(LineSettings, Deadline)>,
    line_break: Option<Break>,
    inputs: ModemInputs,
    _irqs: IrqDomain,
}

/// A break that was asked for. Nothing is sent meanwhile.
#[derive(Clone, Copy)]
enum Break {
    /// It begins when what was written before it is sent, or then.
    Waits(Deadline),
    /// It ends then.
    Lasts(Deadline),
}

impl<'a> Bridge<'a> {
    fn new(args: &'a SerialArgs, device: udrv_usb::Device, signals: SignalFd) -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let woken = Arc::new(EventFd::from_flags(flags).context("cannot make an eventfd")?);
        let irqs = IrqDomain::new(Delivery::Thread)?;
        let protocol = match args.protocol {
            ProtocolName::Auto => Protocol::Auto,
            ProtocolName::CdcAcm => Protocol::CdcAcm,
            ProtocolName::Ftdi => Protocol::Ftdi,
        };
        let wake = {
            let woken = Arc::clone(&woken);
            // One that is full is readable already.
            move || {
                let _full = woken.write(1);
            }
        };
        let port = SerialPort::attach(device, protocol, &irqs, wake)?;
        let pty = Pty::open()?;
        let inputs = port.inputs();
        let mut bridge = Self {
            args,
            pty,
            port,
            woken,
            signals,
            held: Vec::new(),
            settings: None,
            line_break: None,
            inputs,
            _irqs: irqs,
        };
        let settings = bridge.pty.settings();
        bridge.apply(settings)?;
        // Whoever finds the link may use it.
        if let Some(link) = &args.link {
            bridge.pty.link(link)?;
        }
        Ok(bridge)
    }

    /// Until a signal, or the device's end, which is an error.
    fn serve(&mut self) -> Result<()> {
        loop {
            self.wait()?;
            match self.signals.read_signal().context("cannot read signals")? {
                Some(signal) if signal.ssi_signo == Signal::SIGUSR1 as u32 => {
                    self.line_break.get_or_insert(Break::Waits(Deadline::after(DRAIN)));
                }
                Some(_) => {
                    if let Some(Break::Lasts(_)) = self.line_break {
                        self.port.set_break(false).or_else(unsupported)?;
                    }
                    self.port.set_outputs(false, false).or_else(unsupported)?;
                    return Ok(());
                }
                None => {}
            }
            let _count = self.woken.read();
            self.feed_terminal()?;
            self.take_from_terminal()?;
            self.go_on_with_break()?;
            if self.port.inputs() != self.inputs {
                self.inputs = self.port.inputs();
                eprintln!("lines: {}", self.inputs);
            }
        }
    }

    /// Whether what the terminal has to tell can be taken now.
    fn listens(&self) -> bool {
        self.settings.is_none() && self.line_break.is_none() && self.port.room() >= udrv::pty::PIECE
    }

    /// For as long as nothing happens; only settings that wait, and a break, have a deadline.
    fn wait(&self) -> Result<()> {
        let mut waited = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.woken.as_fd(), PollFlags::POLLIN),
        ];
        if self.listens() {
            waited.push(PollFd::new(self.pty.as_fd(), PollFlags::POLLIN));
        } else if !self.held.is_empty() {
            waited.push(PollFd::new(self.pty.room(), PollFlags::POLLOUT));
        }
        let breaks = self.line_break.map(|(Break::Waits(deadline) | Break::Lasts(deadline))| deadline);
        let deadlines = self.settings.as_ref().map(|(_, deadline)| *deadline).into_iter().chain(breaks);
        let left = deadlines.map(|deadline| deadline.remaining().unwrap_or_default()).min();
        let timeout = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
        match poll(&mut waited, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("cannot wait for terminal and device"),
        }
    }

    fn feed_terminal(&mut self) -> Result<()> {
        loop {
            if self.held.is_empty() {
                self.held = self.port.read(PIECE)?;
            }
            if self.held.is_empty() {
                return Ok(());
            }
            let written = self.pty.write(&self.held)?;
            self.held.drain(..written);
            if !self.held.is_empty() {
                return Ok(());
            }
        }
    }

    /// What came for the one who has closed the terminal: the next one may have opened it already.
    fn forget(&mut self) -> Result<()> {
        self.held.clear();
        // What comes meanwhile is not waited for.
        while self.port.read(PIECE)?.len() == PIECE {}
        Ok(())
    }

    fn take_from_terminal(&mut self) -> Result<()> {
        if let Some((settings, deadline)) = self.settings.take() {
            if !self.port.is_sent() && deadline.remaining().is_some() {
                self.settings = Some((settings, deadline));
                return Ok(());
            }
            self.apply(settings)?;
        }
        while self.listens() {
            match self.pty.event()? {
                None => return Ok(()),
                Some(PtyEvent::Data(bytes)) => self.send(&bytes)?,
                Some(PtyEvent::Opened(settings)) => {
                    self.apply(settings)?;
                    self.port.set_outputs(true, true).or_else(unsupported)?;
                }
                Some(PtyEvent::Closed) => {
                    self.forget()?;
                    self.port.set_outputs(false, false).or_else(unsupported)?;
                }
                Some(PtyEvent::Settings(settings)) => self.settings = Some((settings, Deadline::after(DRAIN))),
                Some(PtyEvent::Room) => self.feed_terminal()?,
            }
        }
        Ok(())
    }

    fn go_on_with_break(&mut self) -> Result<()> {
        match self.line_break {
            Some(Break::Waits(deadline)) if self.port.is_sent() || deadline.remaining().is_none() => {
                self.line_break = match self.port.set_break(true) {
                    Ok(()) => Some(Break::Lasts(Deadline::after(BREAK))),
                    Err(error @ (Error::Protocol { .. } | Error::NotSupported { .. })) => {
                        eprintln!("udrv: {error}");
                        None
                    }
                    Err(error) => return Err(error.into()),
                };
            }
            Some(Break::Lasts(deadline)) if deadline.remaining().is_none() => {
                self.line_break = None;
                self.port.set_break(false)?;
                eprintln!("break: {} ms", BREAK.as_millis());
            }
            _ => return Ok(()),
        }
        // What was left in the terminal meanwhile.
        if self.line_break.is_none() { self.take_from_terminal() } else { Ok(()) }
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        let sent = self.port.write(bytes);
        anyhow::ensure!(sent == bytes.len(), "the port has no room for {} bytes", bytes.len() - sent);
        Ok(())
    }

    fn apply(&mut self, settings: LineSettings) -> Result<()> {
        // B0: hang up (termios(3)).
        if settings.baud == 0 {
            return Ok(self.port.set_outputs(false, false).or_else(unsupported)?);
        }
        let stop_bits = if settings.stop_bits == 2 { StopBits::Two } else { StopBits::One };
        let format = self.args.format.unwrap_or(Format { stop_bits, ..Format::default() });
        let flow = match (settings.hardware_flow, settings.software_flow) {
            (true, _) => Flow::Hardware,
            (false, true) => Flow::Software,
            (false, false) => Flow::None,
        };
        let line = LineCoding { baud: self.args.baud.unwrap_or(settings.baud), format, flow };
        match self.port.set_line(&line) {
            // What one program asks for and the device cannot do is no end for the next.
            Err(error @ (Error::Protocol { .. } | Error::NotSupported { .. })) => eprintln!("udrv: {error}"),
            other => other?,
        }
        Ok(())
    }
}

/// A device that does not know modem lines works without them.
fn unsupported(error: Error) -> std::result::Result<(), Error> {
    match error {
        Error::NotSupported { .. } | Error::Protocol { .. } => Ok(()),
        error => Err(error),
    }
}
