//! A serial port for other programs: a pseudo-terminal (pty(7)) whose far side is a driver.
//!
//! Whoever opens [`Pty::path`] has a serial port: what it writes comes here as [`PtyEvent::Data`], what is written here it
//! reads, and the speed and format it sets come as [`PtyEvent::Settings`]. It may close and open it again as often as it
//! likes. Nothing here waits: [`Pty`] is one descriptor ([`AsFd`]) that is readable while [`Pty::event`] has something to tell,
//! for `poll(2)` or any event loop.
//!
//! The kernel tells the far side of new settings only if it may take line editing from the terminal as well (`EXTPROC`), which
//! would break every program that reads lines. So they are looked at before data is taken, and every [`LOOK`].
//!
//! What a pseudo-terminal has not: modem lines (opened and closed, or a speed of 0, stand for DTR), break, and other formats than
//! 8 data bits without parity (the kernel puts those back): who needs them tells the driver in another way.

use crate::{Error, Result};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, inotify};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{ControlModes, InputModes, OptionalActions, QueueSelector, Termios};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How late new settings are noticed while nothing is written, at most.
pub const LOOK: Duration = Duration::from_millis(100);

/// Bytes in one [`PtyEvent::Data`], at most.
pub const PIECE: usize = 4096;

/// What the terminal is before anybody sets it otherwise.
const DEFAULT_BAUD: u32 = 9600;

/// What the program on the terminal has set (termios(3)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineSettings {
    /// Bits a second, also ones that have no `B…` constant; 0 asks for the end of the connection (DTR off).
    pub baud: u32,
    /// 1 or 2.
    pub stop_bits: u8,
    /// RTS and CTS (`CRTSCTS`).
    pub hardware_flow: bool,
    /// XON and XOFF to what the device sends (`IXOFF`) or takes (`IXON`).
    pub software_flow: bool,
}

/// What has happened on the terminal's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PtyEvent {
    /// Somebody has opened it, while nobody had; with these settings.
    Opened(LineSettings),
    /// The last one who had it open has closed it. What nobody had read is gone, and what is kept for him must go too. Without
    /// an [`PtyEvent::Opened`] before it, it is of one who was given something and had closed it before that was told. Who opens
    /// it before a look at it finds it closed is taken for the same one.
    Closed,
    /// Other settings hold from here on.
    Settings(LineSettings),
    /// This was written to it; never empty.
    Data(Vec<u8>),
    /// After a [`Pty::write`] that did not take all: there is room again.
    Room,
}

/// The far side of a pseudo-terminal. Dropping it hangs up whoever has the terminal open, and removes the link.
#[derive(Debug)]
pub struct Pty {
    /// Readable while there is something to tell.
    any: OwnedFd,
    far: OwnedFd,
    /// Readable after somebody has opened the terminal.
    opens: OwnedFd,
    /// Readable every [`LOOK`] while it is open.
    look: OwnedFd,
    path: PathBuf,
    link: Option<PathBuf>,
    is_open: bool,
    wants_room: bool,
    /// Something may have been given to one of whom [`Pty::event`] has not told.
    was_early: bool,
    settings: LineSettings,
}

impl Pty {
    /// A new one, which nobody has open: raw, 9600 bits a second, 1 stop bit.
    ///
    /// # Errors
    /// [`Error::Os`] if the kernel has no more, or no `/dev/pts`.
    pub fn open() -> Result<Self> {
        Self::make().map_err(|error| Error::os("making a pseudo-terminal (is /dev/pts mounted?)", error))
    }

    fn make() -> std::result::Result<Self, Errno> {
        let far = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&far, OFlags::RDWR | OFlags::NONBLOCK)?;
        grantpt(&far)?;
        unlockpt(&far)?;
        let path = PathBuf::from(ptsname(&far, Vec::new())?.to_string_lossy().into_owned());
        let mut termios = rustix::termios::tcgetattr(&far)?;
        termios.make_raw();
        termios.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
        termios.set_speed(DEFAULT_BAUD)?;
        rustix::termios::tcsetattr(&far, OptionalActions::Now, &termios)?;
        // Only a terminal that was closed once says that it is closed.
        drop(near(&path)?);
        let opens = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&opens, &path, inotify::WatchFlags::OPEN)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let look = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let any = epoll::create(CreateFlags::CLOEXEC)?;
        for fd in [&opens, &look] {
            epoll::add(&any, fd, EventData::new_u64(0), EventFlags::IN)?;
        }
        let settings = LineSettings::from(&termios);
        Ok(Self {
            any,
            far,
            opens,
            look,
            path,
            link: None,
            is_open: false,
            wants_room: false,
            was_early: false,
            settings,
        })
    }

    /// The terminal: `/dev/pts/N`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a symbolic link to the terminal, which is removed with the [`Pty`]. One that is there is replaced if it is a
    /// link that leads nowhere or to another pseudo-terminal (an earlier driver's that was killed), and nothing else is.
    ///
    /// # Errors
    /// [`Error::Os`] if something is there, or the folder is not to be written to.
    pub fn link(&mut self, link: &Path) -> Result<()> {
        if let Ok(target) = std::fs::read_link(link)
            && (target.starts_with("/dev/pts") || !link.exists())
        {
            let _raced = std::fs::remove_file(link);
        }
        std::os::unix::fs::symlink(&self.path, link)
            .map_err(|error| Error::os(format!("linking {} to {}", link.display(), self.path.display()), error))?;
        self.link = Some(link.to_owned());
        Ok(())
    }

    /// Whether somebody has it open, as far as [`Pty::event`] has told.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.is_open
    }

    /// The settings that [`Pty::event`] has told last.
    #[must_use]
    pub const fn settings(&self) -> LineSettings {
        self.settings
    }

    /// What has happened, one thing after the other; `None` once there is no more for now.
    ///
    /// # Errors
    /// [`Error::Os`] for what the kernel should never answer.
    pub fn event(&mut self) -> Result<Option<PtyEvent>> {
        self.look().map_err(|error| Error::os(format!("reading {}", self.path.display()), error))
    }

    fn look(&mut self) -> std::result::Result<Option<PtyEvent>, Errno> {
        drain(&self.opens)?;
        drain(&self.look)?;
        if !self.is_open {
            if self.ready(PollFlags::IN)?.contains(PollFlags::HUP) {
                return Ok(self.was_early.then(|| self.forget()));
            }
            epoll::add(&self.any, &self.far, EventData::new_u64(0), self.wanted())?;
            self.set_timer(LOOK)?;
            (self.is_open, self.was_early) = (true, false);
            self.settings = LineSettings::from(&rustix::termios::tcgetattr(&self.far)?);
            return Ok(Some(PtyEvent::Opened(self.settings)));
        }
        let settings = LineSettings::from(&rustix::termios::tcgetattr(&self.far)?);
        if settings != self.settings {
            self.settings = settings;
            return Ok(Some(PtyEvent::Settings(settings)));
        }
        let mut piece = vec![0; PIECE];
        match rustix::io::read(&self.far, &mut piece[..]) {
            Ok(0) | Err(Errno::IO) => return self.close().map(Some),
            Ok(length) => {
                piece.truncate(length);
                return Ok(Some(PtyEvent::Data(piece)));
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        if self.wants_room && self.ready(PollFlags::OUT)?.contains(PollFlags::OUT) {
            self.want_room(false)?;
            return Ok(Some(PtyEvent::Room));
        }
        Ok(None)
    }

    fn close(&mut self) -> std::result::Result<PtyEvent, Errno> {
        self.is_open = false;
        // It would be ready, hung up, until it is opened again.
        epoll::delete(&self.any, &self.far)?;
        self.set_timer(Duration::ZERO)?;
        Ok(self.forget())
    }

    /// Nobody has it: what was for the one who had is dropped.
    fn forget(&mut self) -> PtyEvent {
        (self.wants_room, self.was_early) = (false, false);
        // The next one must not read what was meant for this one; what it may have written already is left.
        if let Ok(near) = near(&self.path) {
            let _gone = rustix::termios::tcflush(&near, QueueSelector::IFlush);
        }
        PtyEvent::Closed
    }

    /// Gives the terminal's reader as many of `bytes` as there is room for (some thousand that were not read), and says how
    /// many; if not all, [`PtyEvent::Room`] comes when there is room again. While nobody has it open all of them are
    /// dropped, as those a serial port receives then; who has just opened it gets them, whether or not [`Pty::event`] has
    /// told of that.
    ///
    /// # Errors
    /// [`Error::Os`] for what the kernel should never answer.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let written = match self.put(bytes) {
            Ok(written) => written,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            // Closed, which `event` will tell.
            Err(Errno::IO) => return Ok(bytes.len()),
            Err(error) => return Err(Error::os(format!("writing {}", self.path.display()), error)),
        };
        if written < bytes.len() {
            self.want_room(true)
                .map_err(|error| Error::os(format!("waiting for room in {}", self.path.display()), error))?;
        }
        Ok(written)
    }

    /// For who waits for room only, since it has no place for [`PtyEvent::Data`] now: to be polled for `POLLOUT`.
    #[must_use]
    pub fn room(&self) -> BorrowedFd<'_> {
        self.far.as_fd()
    }

    /// As [`Pty::write`]; as many as there are where they are dropped.
    fn put(&mut self, bytes: &[u8]) -> std::result::Result<usize, Errno> {
        if !self.is_open {
            if self.ready(PollFlags::IN)?.contains(PollFlags::HUP) {
                if self.was_early {
                    // Whoever opens it next must not read what the one had who has closed it; that it was, is still to be told.
                    self.forget();
                    self.was_early = true;
                }
                return Ok(bytes.len());
            }
            self.was_early = true;
        }
        rustix::io::write(&self.far, bytes)
    }

    fn want_room(&mut self, wanted: bool) -> std::result::Result<(), Errno> {
        self.wants_room = wanted;
        // Before it is known to be open it is not waited for.
        if self.is_open { epoll::modify(&self.any, &self.far, EventData::new_u64(0), self.wanted()) } else { Ok(()) }
    }

    fn wanted(&self) -> EventFlags {
        if self.wants_room { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN }
    }

    fn ready(&self, events: PollFlags) -> std::result::Result<PollFlags, Errno> {
        let mut fds = [PollFd::new(&self.far, events)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        let [fd] = fds;
        Ok(fd.revents())
    }

    fn set_timer(&self, every: Duration) -> std::result::Result<(), Errno> {
        let every = Timespec { tv_sec: 0, tv_nsec: every.subsec_nanos().into() };
        let timer = Itimerspec { it_interval: every, it_value: every };
        rustix::time::timerfd_settime(&self.look, TimerfdTimerFlags::empty(), &timer).map(drop)
    }
}

impl AsFd for Pty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.any.as_fd()
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        // Not one that another program has put in its place.
        if let Some(link) = &self.link
            && std::fs::read_link(link).is_ok_and(|target| target == self.path)
        {
            let _gone = std::fs::remove_file(link);
        }
    }
}

/// The terminal's own side, as a program would open it.
fn near(path: &Path) -> std::result::Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

/// Takes what only wakes.
fn drain(fd: &OwnedFd) -> std::result::Result<(), Errno> {
    let mut told = [0; 1024];
    match rustix::io::read(fd, &mut told[..]) {
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}

impl From<&Termios> for LineSettings {
    fn from(termios: &Termios) -> Self {
        let has = |mode| termios.control_modes.contains(mode);
        Self {
            baud: termios.output_speed(),
            stop_bits: if has(ControlModes::CSTOPB) { 2 } else { 1 },
            hardware_flow: has(ControlModes::CRTSCTS),
            software_flow: termios.input_modes.intersects(InputModes::IXON | InputModes::IXOFF),
        }
    }
}
