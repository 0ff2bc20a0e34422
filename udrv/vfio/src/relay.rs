//! Interrupts for triggers that the kernel cannot signal itself.
//!
//! The kernel's VFIO signals eventfds only. For any other trigger it is given an eventfd of ours, and one thread a
//! backend reads the count and writes it on, as the 8 bytes that [`Trigger`] specifies. A descriptor may come from a
//! hostile client: nothing here waits for one, or asks its file system anything.

use crate::descriptor::SignalKind;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use udrv_backend::{Error, Result, Trigger};
use udrv_signal::Sink;

const STOP: Token = Token(usize::MAX);

/// How a trigger is signalled.
pub(crate) enum Way {
    /// By the kernel.
    Direct(OwnedFd),
    /// By us.
    Relayed(Sink),
}

impl Way {
    /// Keeps a duplicate of a trigger.
    pub(crate) fn to(trigger: Trigger<'_>) -> Result<Self> {
        if SignalKind::of(trigger)? != SignalKind::EventFd {
            return Ok(Self::Relayed(Sink::new(trigger)?));
        }
        let fd = trigger.try_clone_to_owned().map_err(|error| Error::os("keeping an interrupt's descriptor", error))?;
        Ok(Self::Direct(fd))
    }
}

struct Entry {
    event: Arc<EventFd>,
    target: Sink,
}

impl Entry {
    /// Writes on what has been counted; nothing if nothing has.
    fn forward(&mut self) {
        // EAGAIN: spurious readiness, which mio allows.
        if let Ok(count) = self.event.read() {
            self.target.signal(count);
        }
    }
}

type Entries = Mutex<BTreeMap<usize, Entry>>;

fn lock(entries: &Entries) -> MutexGuard<'_, BTreeMap<usize, Entry>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread, and what it waits for. Joined when dropped.
pub(crate) struct Relay {
    registry: Registry,
    stop: Waker,
    entries: Arc<Entries>,
    next: usize,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    pub(crate) fn start() -> Result<Self> {
        let os = |error: std::io::Error| Error::os("starting the thread that relays interrupts", error);
        let mut poll = Poll::new().map_err(os)?;
        let registry = poll.registry().try_clone().map_err(os)?;
        let stop = Waker::new(&registry, STOP).map_err(os)?;
        let entries = Arc::new(Entries::default());
        let seen = Arc::clone(&entries);
        let serve = move || {
            let mut events = Events::with_capacity(64);
            loop {
                // No deadline: waiting for interrupts is this thread's purpose, and `stop` wakes it.
                match poll.poll(&mut events, None) {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(error) => return tracing::error!(%error, "the interrupt relay cannot wait"),
                    Ok(()) => {}
                }
                for event in &events {
                    if event.token() == STOP {
                        return;
                    }
                    if let Some(entry) = lock(&seen).get_mut(&event.token().0) {
                        entry.forward();
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("udrv-irq-relay".into()).spawn(serve).map_err(os)?;
        Ok(Self { registry, stop, entries, next: 0, thread: Some(thread) })
    }

    /// A new eventfd whose signals go to `target` as long as the ticket lives.
    pub(crate) fn add(&mut self, target: Sink) -> Result<Ticket> {
        let os = |error: std::io::Error| Error::os("making an eventfd for the interrupt relay", error);
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let event = Arc::new(EventFd::from_flags(flags).map_err(|errno| os(errno.into()))?);
        let registry = self.registry.try_clone().map_err(os)?;
        let key = self.next;
        self.next += 1;
        lock(&self.entries).insert(key, Entry { event: Arc::clone(&event), target });
        // From here on a failure drops the ticket, which takes the entry out again.
        let ticket = Ticket { event, key, entries: Arc::clone(&self.entries), registry };
        let raw = ticket.event.as_fd().as_raw_fd();
        self.registry.register(&mut SourceFd(&raw), Token(key), Interest::READABLE).map_err(os)?;
        Ok(ticket)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let woken = self.stop.wake();
        let Some(thread) = self.thread.take() else { return };
        if woken.is_ok() {
            let _ended = thread.join();
        }
    }
}

/// One relayed trigger. Dropped once the kernel has let go of its eventfd; what was counted by then is written on first.
pub(crate) struct Ticket {
    /// What the kernel is given.
    pub(crate) event: Arc<EventFd>,
    key: usize,
    entries: Arc<Entries>,
    registry: Registry,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(mut entry) = lock(&self.entries).remove(&self.key) {
            entry.forward();
        }
        let raw = self.event.as_fd().as_raw_fd();
        if let Err(error) = self.registry.deregister(&mut SourceFd(&raw)) {
            tracing::debug!(%error, "an eventfd was not in the interrupt relay");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn relayed(trigger: Trigger<'_>) -> Sink {
        match Way::to(trigger).expect("a trigger") {
            Way::Relayed(target) => target,
            Way::Direct(_) => panic!("taken for an eventfd"),
        }
    }

    #[test]
    fn signals_counted_by_the_eventfd_arrive_as_one_native_u64() {
        let (mut ours, theirs) = UnixStream::pair().expect("a socketpair");
        ours.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        let mut relay = Relay::start().expect("a relay");
        let ticket = relay.add(relayed(theirs.as_fd())).expect("room");
        ticket.event.write(3).expect("signalled");
        let mut bytes = [0; 8];
        ours.read_exact(&mut bytes).expect("relayed");
        assert_eq!(u64::from_ne_bytes(bytes), 3);
    }

    #[test]
    fn ticket_dropped_with_a_signal_waiting_delivers_it() {
        let (mut ours, theirs) = UnixStream::pair().expect("a socketpair");
        ours.set_nonblocking(true).expect("non-blocking");
        let mut relay = Relay::start().expect("a relay");
        let ticket = relay.add(relayed(theirs.as_fd())).expect("room");
        ticket.event.write(1).expect("signalled");
        drop(ticket);
        let mut bytes = [0; 8];
        assert_eq!(ours.read(&mut bytes).expect("delivered before the drop returned"), 8);
        assert!(lock(&relay.entries).is_empty());
    }

    #[test]
    fn eventfd_is_told_from_what_must_be_relayed() {
        let event = EventFd::new().expect("an eventfd");
        assert!(matches!(Way::to(event.as_fd()), Ok(Way::Direct(_))));
        let file = std::fs::File::open("/dev/null").expect("/dev/null");
        let refused = Way::to(file.as_fd()).err().expect("neither eventfd, socket nor pipe");
        assert!(refused.to_string().contains("/dev/null"), "{refused}");
    }
}
