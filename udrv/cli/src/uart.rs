//! `udrv run uart16550`: a serial port that other programs open.

use crate::surround::{DeviceArgs, Surrounded, conclude};
use anyhow::Result;
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::host::{Context, Host, Stop};
use udrv::irq::Delivery;
use udrv::pty::{LineSettings, Pty, PtyEvent};
use udrv_backend::{Error, Result as DriverResult};
use udrv_uart16550::driver::{Serial, SerialConfig, Settings, StopBits, Uart};

/// How late a request to stop is noticed, at most.
const LOOK_MS: u16 = 100;
/// Bytes taken from the line at once.
const PIECE: usize = 4096;
/// How long what was written before a change of speed may take to leave.
const DRAIN: Duration = Duration::from_secs(5);

#[derive(Args)]
pub struct UartArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// A symbolic link to the terminal, for as long as the driver runs.
    #[arg(long, value_name = "PATH")]
    link: Option<PathBuf>,
}

pub fn run(args: &UartArgs, stop: &Stop) -> Result<()> {
    let Surrounded { device, findings } = args.device.open(&udrv_uart16550::registers::MAP)?;
    let mut pty = Pty::open()?;
    let link = args.link.clone();
    let news = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
    let wake = {
        let news = Arc::clone(&news);
        // Full means that it is readable already.
        move || {
            let _full = news.write(1);
        }
    };
    let job = move |uart: &Uart, context: &Context| {
        // Not before the port is up: whoever finds the link may use it, and bringing up drops what comes in.
        if let Some(link) = &link {
            pty.link(link)?;
        }
        Bridge::new(pty, uart, context).run(&news)
    };
    let config = SerialConfig { settings: Settings::default(), wake: Box::new(wake), job: Box::new(job) };
    let mut host = Host::stopped_by(stop.clone());
    host.start::<Serial>(device, Delivery::Thread, config)?;
    conclude("uart16550", host.join(), findings.as_ref())
}

/// A terminal at one end, a serial line at the other.
struct Bridge<'a> {
    pty: Pty,
    uart: &'a Uart,
    context: &'a Context,
    /// Written to the terminal, and for which the driver had no room.
    to_send: Vec<u8>,
    /// Received, and for which the terminal had no room.
    to_show: Vec<u8>,
}

impl<'a> Bridge<'a> {
    const fn new(pty: Pty, uart: &'a Uart, context: &'a Context) -> Self {
        Self { pty, uart, context, to_send: Vec::new(), to_show: Vec::new() }
    }

    fn run(mut self, news: &EventFd) -> DriverResult<()> {
        // Whoever waits for this line may be gone; that is no reason to end.
        let mut out = std::io::stdout();
        drop(writeln!(out, "{}", self.pty.path().display()).and_then(|()| out.flush()));
        self.uart.set_dtr(false)?;
        while !self.context.should_stop() {
            self.wait(news)?;
            self.send()?;
            self.show()?;
        }
        self.report();
        Ok(())
    }

    /// Until there is something to do, or it is time to look whether it is to end.
    fn wait(&self, news: &EventFd) -> DriverResult<()> {
        let mut fds = vec![PollFd::new(news.as_fd(), PollFlags::POLLIN)];
        // The terminal can wait while the line is behind.
        if self.to_send.is_empty() {
            fds.push(PollFd::new(self.pty.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::from(LOOK_MS)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(Error::os("waiting for the terminal and the serial line", errno)),
        }
        // It was one wake-up, however often it was written.
        let _taken = news.read();
        Ok(())
    }

    /// From the terminal to the line.
    fn send(&mut self) -> DriverResult<()> {
        loop {
            let taken = self.uart.write(&self.to_send)?;
            self.to_send.drain(..taken);
            if !self.to_send.is_empty() {
                return Ok(());
            }
            match self.pty.event()? {
                None => return Ok(()),
                Some(PtyEvent::Data(bytes)) => self.to_send = bytes,
                Some(PtyEvent::Opened(settings) | PtyEvent::Settings(settings)) => self.apply(settings)?,
                Some(PtyEvent::Closed) => {
                    self.forget()?;
                    self.uart.set_dtr(false)?;
                }
                Some(PtyEvent::Room) => {}
            }
        }
    }

    /// From the line to the terminal.
    fn show(&mut self) -> DriverResult<()> {
        let mut bytes = [0; PIECE];
        loop {
            let shown = self.pty.write(&self.to_show)?;
            self.to_show.drain(..shown);
            if !self.to_show.is_empty() {
                return Ok(());
            }
            let received = self.uart.read(&mut bytes)?;
            if received == 0 {
                return Ok(());
            }
            self.to_show.extend(bytes.iter().take(received));
        }
    }

    /// What was received for the one who has closed the terminal: the next one may have opened it already.
    fn forget(&mut self) -> DriverResult<()> {
        self.to_show.clear();
        let mut bytes = [0; PIECE];
        // What comes meanwhile is not waited for.
        while self.uart.read(&mut bytes)? == PIECE {}
        Ok(())
    }

    /// A speed that the device does not have leaves it as it was: the terminal's program cannot be told.
    fn apply(&self, line: LineSettings) -> DriverResult<()> {
        self.uart.set_dtr(line.baud != 0)?;
        if line.baud == 0 {
            return Ok(());
        }
        let settings = Settings {
            baud: line.baud,
            stop_bits: if line.stop_bits == 2 { StopBits::Two } else { StopBits::One },
            wait_for_cts: line.hardware_flow,
            ..Settings::default()
        };
        match self.uart.set_line(settings, Deadline::after(DRAIN)) {
            Err(error @ Error::Unavailable { .. }) => {
                eprintln!("udrv: {error}");
                Ok(())
            }
            other => other,
        }
    }

    fn report(&self) {
        let counts = self.uart.counts();
        let line = format!(
            "received {}, sent {}; overruns {}, parity errors {}, framing errors {}, breaks {}, modem changes {}",
            counts.received,
            counts.sent,
            counts.overruns,
            counts.parity_errors,
            counts.framing_errors,
            counts.breaks,
            counts.modem_changes
        );
        drop(writeln!(std::io::stdout(), "{line}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use udrv::host::Ended;

    #[test]
    fn what_came_for_one_who_has_closed_the_terminal_is_not_the_next_ones() {
        let job = |uart: &Uart, context: &Context| {
            let mut bridge = Bridge::new(Pty::open()?, uart, context);
            let first = File::open(bridge.pty.path()).expect("opened");
            bridge.send()?;
            assert!(bridge.pty.is_open());
            bridge.to_show = b"held".to_vec();
            // The model's plug sends it back.
            assert_eq!(uart.write(b"q")?, 1);
            uart.wait_readable(Deadline::after(DRAIN))?;
            drop(first);
            bridge.send()?;
            assert!(!bridge.pty.is_open() && bridge.to_show.is_empty());
            assert_eq!(uart.read(&mut [0; PIECE])?, 0);
            Ok(())
        };
        let config = SerialConfig { settings: Settings::default(), wake: Box::new(|| {}), job: Box::new(job) };
        let mut host = Host::new();
        let model = Arc::new(udrv_uart16550::model::uart16550());
        host.start::<Serial>(model, Delivery::Thread, config).expect("started");
        for report in host.join() {
            assert!(matches!(report.ended, Ended::Returned), "{report:?}");
        }
    }
}
