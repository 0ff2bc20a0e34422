//! Where signals come in: the descriptors of a domain's sources, in one mio poll, and the sleep on them.
//!
//! The eight bytes of a trigger are a count. They add up to statistics and nothing else: that a descriptor was readable at
//! all is what makes its source pending.

use super::Delivery;
use super::direct::Direct;
use super::ranks::Ranks;
use super::source::Source;
use super::sync::{MutexGuard, lock};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{MsgFlags, recv};
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
    ports: Mutex<Ports>,
    /// Held while lines are taken, armed or given back, as the kernel's `request_mutex` is: never while handlers are waited for.
    requests: Mutex<()>,
    /// The only descriptor, used without the event loop; see `direct.rs`. Changed with `ports` locked.
    direct: Mutex<Option<Arc<Direct>>>,
    delivery: Delivery,
    /// Breaks the sleep of the thread that waits here.
    nudge: EventFd,
}

#[derive(Default)]
struct Ports {
    by_rank: Ranks<Port>,
    /// Counts changes.
    version: u64,
}

struct Port {
    fd: OwnedFd,
    kind: Kind,
    source: Arc<Source>,
}

/// What a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Event,
    Timer,
    /// A socket, which is read until it is empty; the others are with one read.
    Stream,
}

impl Inlet {
    /// In thread delivery [`Inlet::block`] is woken by a nudge; otherwise [`Inlet::sleep`] is.
    pub(super) fn new(delivery: Delivery) -> Result<Self> {
        let os = |error: std::io::Error| Error::os("making a domain's event loop", error);
        let poll = Poll::new().map_err(os)?;
        let registry = poll.registry().try_clone().map_err(os)?;
        let nudge = event_fd()?;
        if delivery == Delivery::Thread {
            let raw = nudge.as_fd().as_raw_fd();
            registry.register(&mut SourceFd(&raw), NUDGE, Interest::READABLE).map_err(os)?;
        }
        let poll = Mutex::new((poll, Events::with_capacity(64)));
        Ok(Self {
            poll,
            registry,
            ports: Mutex::default(),
            requests: Mutex::default(),
            direct: Mutex::default(),
            delivery,
            nudge,
        })
    }

    /// Keeps others from taking, arming or giving back a line of the domain.
    pub(super) fn alone(&self) -> MutexGuard<'_, ()> {
        lock(&self.requests)
    }

    /// Whether a source has a descriptor here.
    pub(super) fn has(&self, rank: u32) -> bool {
        lock(&self.ports).by_rank.get(rank).is_some()
    }

    pub(super) fn add(&self, source: &Arc<Source>, fd: OwnedFd, kind: Kind) -> Result<()> {
        let (raw, token) = (fd.as_raw_fd(), Token(source.rank() as usize));
        // Before it is polled: an event must find its port.
        self.change(|ports| ports.insert(source.rank(), Port { fd, kind, source: Arc::clone(source) }));
        let added = self.registry.register(&mut SourceFd(&raw), token, Interest::READABLE);
        added.map_err(|error| Error::os("adding a descriptor to a domain's event loop", error))
    }

    pub(super) fn remove(&self, rank: u32) {
        if let Some(port) = self.change(|ports| ports.remove(rank)) {
            // It may be gone already; closing it removes it as well, unless the other side holds a duplicate.
            let _gone = self.registry.deregister(&mut SourceFd(&port.fd.as_raw_fd()));
        }
    }

    /// Changes the table. Who sleeps on the only descriptor looks again.
    fn change<T>(&self, change: impl FnOnce(&mut Ranks<Port>) -> T) -> T {
        let mut ports = lock(&self.ports);
        let changed = change(&mut ports.by_rank);
        ports.version += 1;
        let mut direct = lock(&self.direct);
        // Otherwise the event loop is slept on, which sees the change itself.
        let is_slept_on = direct.is_some();
        if self.delivery == Delivery::Signal {
            *direct = ports.only(Kind::Stream).map(Arc::new);
        }
        drop((direct, ports));
        if is_slept_on {
            self.nudge();
        }
        changed
    }

    pub(super) fn nudge(&self) {
        // It fails only when 2^64 nudges wait.
        let _full = self.nudge.write(1);
        if self.delivery == Delivery::Thread
            && let Some(direct) = &*lock(&self.direct)
        {
            direct.nudge();
        }
    }

    /// How [`Inlet::block`] is to wait; a nudge from now on ends that. What is left of the way before is reported.
    pub(super) fn prepare(&self, found: impl FnOnce(&Arc<Source>, u64)) -> Option<Arc<Direct>> {
        let ports = lock(&self.ports);
        let mut direct = lock(&self.direct);
        if direct.as_ref().is_some_and(|direct| direct.version() == ports.version) {
            return direct.clone();
        }
        let before = std::mem::take(&mut *direct);
        *direct = ports.only(Kind::Event).filter(Direct::may_block).map(Arc::new);
        let now = direct.clone();
        drop((direct, ports));
        if let Some(before) = before
            && let Some(count) = before.finish()
        {
            found(before.source(), count);
        }
        now
    }

    /// Waits without limit for a signal or a nudge, calls `woken`, and reports signals as [`Inlet::collect`] does.
    pub(super) fn block(
        &self,
        direct: Option<Arc<Direct>>,
        woken: impl FnOnce(),
        mut found: impl FnMut(&Arc<Source>, u64),
    ) -> Result<()> {
        let Some(direct) = direct else { return self.poll(None, woken, found) };
        let count = direct.block(&self.nudge);
        woken();
        if let Some(count) = count? {
            found(direct.source(), count);
        }
        Ok(())
    }

    /// Reads what has come, without waiting, and reports each source's signals.
    pub(super) fn collect(&self, mut found: impl FnMut(&Arc<Source>, u64)) -> Result<()> {
        let direct = lock(&self.direct);
        let Some(only) = &*direct else {
            drop(direct);
            return self.poll(Some(Duration::ZERO), || (), found);
        };
        if let Some(count) = read_stream(only.as_fd()).0 {
            found(only.source(), count);
        }
        Ok(())
    }

    fn poll(
        &self,
        limit: Option<Duration>,
        woken: impl FnOnce(),
        mut found: impl FnMut(&Arc<Source>, u64),
    ) -> Result<()> {
        let (poll, events) = &mut *lock(&self.poll);
        let polled = poll.poll(events, limit);
        woken();
        match polled {
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
            let Some(port) = ports.by_rank.get(event.token().0 as u32) else { continue };
            if let Some(count) = self.read(event.token(), port) {
                found(&port.source, count);
            }
        }
        Ok(())
    }

    /// The signals that wait in one port, if any: readiness may be spurious.
    fn read(&self, token: Token, port: &Port) -> Option<u64> {
        if port.kind != Kind::Stream {
            let mut bytes = [0; 8];
            return nix::unistd::read(&port.fd, &mut bytes).is_ok().then(|| u64::from_ne_bytes(bytes).max(1));
        }
        let (count, is_empty) = read_stream(port.fd.as_fd());
        if !is_empty {
            // Readiness is told once: ask for it again.
            let again = self.registry.reregister(&mut SourceFd(&port.fd.as_raw_fd()), token, Interest::READABLE);
            if let Err(error) = again {
                tracing::error!(%error, "an interrupt's socket cannot be watched any more");
            }
        }
        count
    }

    /// Sleeps until a descriptor is readable, a nudge, any Unix signal, or `limit`.
    pub(super) fn sleep(&self, limit: Option<Duration>) -> Result<()> {
        let direct = lock(&self.direct).clone();
        let input = direct.as_ref().map_or_else(|| self.registry.as_fd(), |direct| direct.as_fd());
        let mut fds = [input, self.nudge.as_fd()].map(|fd: BorrowedFd<'_>| PollFd::new(fd, PollFlags::POLLIN));
        match ppoll(&mut fds, limit.map(Into::into), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::os("waiting for interrupts", errno)),
        }
        // After a Unix signal this is unknown, and the next sleep finds it.
        if fds.iter().skip(1).any(|fd| fd.any().unwrap_or(false)) {
            let _read = self.nudge.read();
        }
        Ok(())
    }
}

impl Ports {
    /// The only descriptor, if there is one and it is of this kind.
    fn only(&self, kind: Kind) -> Option<Direct> {
        let port = self.by_rank.values().next().filter(|port| port.kind == kind && self.by_rank.len() == 1)?;
        Direct::new(&port.fd, &port.source, self.version)
    }
}

/// The signals that wait in a socket, if any, and whether it is empty now.
fn read_stream(socket: BorrowedFd<'_>) -> (Option<u64>, bool) {
    let (mut bytes, mut count) = ([0; 256], None::<u64>);
    for _ in 0..READS {
        match recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EINTR) => {}
            Err(_) | Ok(0) => return (count, true),
            Ok(length) => {
                let read = bytes.get(..length).unwrap_or(&bytes);
                let counts = read.chunks(8).map(|chunk| chunk.try_into().map_or(1, u64::from_ne_bytes));
                let sum = counts.fold(0, u64::saturating_add).max(1);
                count = Some(count.map_or(sum, |before| before.saturating_add(sum)));
                // Less than asked for: there was no more (epoll(7), on edge-triggered streams).
                if length < bytes.len() {
                    return (count, true);
                }
            }
        }
    }
    (count, false)
}

/// An eventfd that does not block.
pub(super) fn event_fd() -> Result<EventFd> {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
        .map_err(|errno| Error::os("making an eventfd", errno))
}
