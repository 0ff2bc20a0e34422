//! Where signals come in: the descriptors of a domain's sources, in one mio poll, and the sleep on them.
//!
//! The eight bytes of a trigger are a count. They add up to statistics and nothing else: that a descriptor was readable at
//! all is what makes its source pending.

use super::source::Source;
use super::sync::lock;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use udrv_backend::{Error, Result};

const NUDGE: Token = Token(usize::MAX);

/// Reads of one socket in a row. One that is written to without end must not keep us: the rest is found next time.
const READS: usize = 64;

pub(super) struct Inlet {
    poll: Mutex<(Poll, Events)>,
    registry: Registry,
    ports: Mutex<BTreeMap<u32, Port>>,
    /// Breaks the sleep of the thread that waits here.
    nudge: EventFd,
}

struct Port {
    fd: OwnedFd,
    /// A socket, which is read until it is empty; an eventfd or a timerfd is with one read.
    is_stream: bool,
    source: Arc<Source>,
}

impl Inlet {
    /// With `nudge_polled`, [`Inlet::block`] is woken by a nudge; otherwise [`Inlet::sleep`] is.
    pub(super) fn new(nudge_polled: bool) -> Result<Self> {
        let os = |error: std::io::Error| Error::os("making a domain's event loop", error);
        let poll = Poll::new().map_err(os)?;
        let registry = poll.registry().try_clone().map_err(os)?;
        let nudge = event_fd()?;
        if nudge_polled {
            let raw = nudge.as_fd().as_raw_fd();
            registry.register(&mut SourceFd(&raw), NUDGE, Interest::READABLE).map_err(os)?;
        }
        Ok(Self { poll: Mutex::new((poll, Events::with_capacity(64))), registry, ports: Mutex::default(), nudge })
    }

    pub(super) fn add(&self, source: &Arc<Source>, fd: OwnedFd, is_stream: bool) -> Result<()> {
        let (raw, token) = (fd.as_raw_fd(), Token(source.rank() as usize));
        // Before it is polled: an event must find its port.
        lock(&self.ports).insert(source.rank(), Port { fd, is_stream, source: Arc::clone(source) });
        let added = self.registry.register(&mut SourceFd(&raw), token, Interest::READABLE);
        added.map_err(|error| Error::os("adding a descriptor to a domain's event loop", error))
    }

    pub(super) fn remove(&self, rank: u32) {
        if let Some(port) = lock(&self.ports).remove(&rank) {
            // It may be gone already; closing it removes it as well, unless the other side holds a duplicate.
            let _gone = self.registry.deregister(&mut SourceFd(&port.fd.as_raw_fd()));
        }
    }

    pub(super) fn nudge(&self) {
        // It fails only when 2^64 nudges wait.
        let _full = self.nudge.write(1);
    }

    /// Waits without limit for a signal or a nudge, and reports signals as [`Inlet::collect`] does.
    pub(super) fn block(&self, found: impl FnMut(&Arc<Source>, u64)) -> Result<()> {
        self.poll(None, found)
    }

    /// Reads what has come, without waiting, and reports each source's signals.
    pub(super) fn collect(&self, found: impl FnMut(&Arc<Source>, u64)) -> Result<()> {
        self.poll(Some(Duration::ZERO), found)
    }

    fn poll(&self, limit: Option<Duration>, mut found: impl FnMut(&Arc<Source>, u64)) -> Result<()> {
        let (poll, events) = &mut *lock(&self.poll);
        match poll.poll(events, limit) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(Error::os("waiting for interrupts", error)),
        }
        for event in &*events {
            if event.token() == NUDGE {
                let _read = self.nudge.read();
                continue;
            }
            let ports = lock(&self.ports);
            let Some(port) = ports.get(&(event.token().0 as u32)) else { continue };
            if let Some(count) = self.read(event.token(), port) {
                found(&port.source, count);
            }
        }
        Ok(())
    }

    /// The signals that wait in one port, if any: readiness may be spurious.
    fn read(&self, token: Token, port: &Port) -> Option<u64> {
        let mut bytes = [0; 1024];
        let mut count = None;
        for _ in 0..READS {
            match nix::unistd::read(&port.fd, &mut bytes) {
                Err(Errno::EINTR) => {}
                Err(_) | Ok(0) => return count,
                Ok(length) => {
                    let read = bytes.get(..length).unwrap_or(&bytes);
                    let counts = read.chunks(8).map(|chunk| chunk.try_into().map_or(1, u64::from_ne_bytes));
                    let sum = counts.fold(0, u64::saturating_add).max(1);
                    count = Some(count.map_or(sum, |before: u64| before.saturating_add(sum)));
                    if !port.is_stream {
                        return count;
                    }
                }
            }
        }
        // Readiness is told once: ask for it again.
        let again = self.registry.reregister(&mut SourceFd(&port.fd.as_raw_fd()), token, Interest::READABLE);
        if let Err(error) = again {
            tracing::error!(%error, "an interrupt's socket cannot be watched any more");
        }
        count
    }

    /// Sleeps until a descriptor is readable, a nudge, any Unix signal, or `limit`.
    pub(super) fn sleep(&self, limit: Option<Duration>) -> Result<()> {
        let mut fds =
            [self.registry.as_fd(), self.nudge.as_fd()].map(|fd: BorrowedFd<'_>| PollFd::new(fd, PollFlags::POLLIN));
        match ppoll(&mut fds, limit.map(Into::into), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::os("waiting for interrupts", errno)),
        }
        let _spurious = self.nudge.read();
        Ok(())
    }
}

/// An eventfd that does not block.
pub(super) fn event_fd() -> Result<EventFd> {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
        .map_err(|errno| Error::os("making an eventfd", errno))
}
