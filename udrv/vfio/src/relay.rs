//! Interrupts for triggers that the kernel cannot signal itself.
//!
//! The kernel's VFIO signals eventfds only. For any other trigger it is given an eventfd of ours, and one thread
//! reads the count and writes it on, as the 8 bytes that [`Trigger`] specifies. A descriptor may come from a
//! hostile client: nothing here waits for one, or asks its file system anything. What a target has no room for is kept, as a
//! count, until it has; while the relay is held, everything is.

use crate::descriptor::{SignalKind, eventfd_count};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use udrv_backend::{Error, Result, Trigger};
use udrv_signal::Sink;

const STOP: Token = Token(usize::MAX);

/// How a trigger is signalled.
pub enum Way {
    /// By the kernel.
    Direct(OwnedFd),
    /// By us.
    Relayed(Sink),
}

impl Way {
    /// Keeps a duplicate of a trigger.
    ///
    /// # Errors
    /// [`Error::NotSupported`] if it is no eventfd, socket or pipe; [`Error::Os`] if it cannot be kept.
    pub fn to(trigger: Trigger<'_>) -> Result<Self> {
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
    /// Counted, and not yet written: the target is full.
    owed: u64,
    /// Whether the thread is told when the target has room.
    waits_for_room: bool,
}

impl Entry {
    /// Writes on what has been counted; nothing if nothing has.
    fn forward(&mut self, key: usize, registry: &Registry) {
        // EAGAIN: spurious readiness, which mio allows.
        if let Ok(count) = self.event.read() {
            self.owed = self.owed.saturating_add(count);
        }
        if self.owed > 0 && self.target.signal(self.owed) {
            self.owed = 0;
        }
        self.wait_for_room(self.owed > 0, key, registry);
    }

    fn wait_for_room(&mut self, wanted: bool, key: usize, registry: &Registry) {
        if wanted == self.waits_for_room {
            return;
        }
        let raw = self.target.as_fd().as_raw_fd();
        let mut source = SourceFd(&raw);
        let changed = if wanted {
            registry.register(&mut source, Token(key), Interest::WRITABLE)
        } else {
            registry.deregister(&mut source)
        };
        match changed {
            Ok(()) => self.waits_for_room = wanted,
            // What is owed goes with the next signal then.
            Err(error) => tracing::debug!(%error, "waiting for room in an interrupt's target"),
        }
    }
}

#[derive(Default)]
struct Entries {
    by_key: BTreeMap<usize, Entry>,
    held: bool,
}

fn lock(entries: &Mutex<Entries>) -> MutexGuard<'_, Entries> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread, and what it waits for. Joined when dropped.
pub struct Relay {
    registry: Registry,
    stop: Waker,
    entries: Arc<Mutex<Entries>>,
    next: usize,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Error::Os`] where the system has no descriptor or thread left.
    pub fn start() -> Result<Self> {
        let os = |error: std::io::Error| Error::os("starting the thread that relays interrupts", error);
        let poll = Poll::new().map_err(os)?;
        let registry = poll.registry().try_clone().map_err(os)?;
        let stop = Waker::new(&registry, STOP).map_err(os)?;
        let entries = Arc::new(Mutex::default());
        let seen = Arc::clone(&entries);
        let serve = move || serve(poll, &seen);
        let thread = std::thread::Builder::new().name("udrv-irq-relay".into()).spawn(serve).map_err(os)?;
        Ok(Self { registry, stop, entries, next: 0, thread: Some(thread) })
    }

    /// A new eventfd whose signals go to `target` as long as the ticket lives.
    ///
    /// # Errors
    /// [`Error::Os`] where the system has no descriptor left.
    pub fn add(&mut self, target: Sink) -> Result<Ticket> {
        let os = |error: std::io::Error| Error::os("making an eventfd for the interrupt relay", error);
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let event = Arc::new(EventFd::from_flags(flags).map_err(|errno| os(errno.into()))?);
        let registry = self.registry.try_clone().map_err(os)?;
        let key = self.next;
        self.next += 1;
        let entry = Entry { event: Arc::clone(&event), target, owed: 0, waits_for_room: false };
        lock(&self.entries).by_key.insert(key, entry);
        // From here on a failure drops the ticket, which takes the entry out again.
        let ticket = Ticket { event, key, entries: Arc::clone(&self.entries), registry };
        let raw = ticket.event.as_fd().as_raw_fd();
        self.registry.register(&mut SourceFd(&raw), Token(key), Interest::READABLE).map_err(os)?;
        Ok(ticket)
    }

    /// Writes nothing on, and counts, until [`Relay::go_on`].
    pub fn hold(&self) {
        lock(&self.entries).held = true;
    }

    /// Writes on what was counted meanwhile, of each trigger as one, before it returns.
    pub fn go_on(&self) {
        let mut entries = lock(&self.entries);
        entries.held = false;
        entries.by_key.iter_mut().for_each(|(key, entry)| entry.forward(*key, &self.registry));
    }
}

fn serve(mut poll: Poll, entries: &Mutex<Entries>) {
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
            let mut entries = lock(entries);
            let key = event.token().0;
            if !entries.held
                && let Some(entry) = entries.by_key.get_mut(&key)
            {
                entry.forward(key, poll.registry());
            }
        }
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

/// One relayed trigger. Dropped once the device has let go of its eventfd; what was counted by then is written on first.
pub struct Ticket {
    event: Arc<EventFd>,
    key: usize,
    entries: Arc<Mutex<Entries>>,
    registry: Registry,
}

impl Ticket {
    /// How many signals have been counted that the target does not have yet.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        // Under the lock, or what is just being written on would be in neither number.
        let entries = lock(&self.entries);
        let owed = entries.by_key.get(&self.key).map_or(0, |entry| entry.owed);
        owed.saturating_add(eventfd_count(self.as_fd()).unwrap_or(0))
    }
}

/// What the device is given.
impl AsFd for Ticket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(mut entry) = lock(&self.entries).by_key.remove(&self.key) {
            entry.forward(self.key, &self.registry);
            entry.wait_for_room(false, self.key, &self.registry);
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

    /// Reads what has arrived until it adds up to `wanted`. Returns the largest of it.
    #[track_caller]
    fn read_all(ours: &mut UnixStream, wanted: u64) -> u64 {
        ours.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        let (mut sum, mut most) = (0, 0);
        while sum < wanted {
            let mut bytes = [0; 8];
            ours.read_exact(&mut bytes).unwrap_or_else(|error| panic!("{sum} of {wanted} came: {error}"));
            let count = u64::from_ne_bytes(bytes);
            sum += count;
            most = most.max(count);
        }
        assert_eq!(sum, wanted);
        most
    }

    #[test]
    fn signals_that_a_full_target_had_no_room_for_are_written_when_it_has() {
        let (mut ours, theirs) = UnixStream::pair().expect("a socketpair");
        let mut relay = Relay::start().expect("a relay");
        let ticket = relay.add(relayed(theirs.as_fd())).expect("room");
        for _ in 0..10_000 {
            ticket.event.write(1).expect("signalled");
            // Each by itself: the eventfd would make one of many.
            udrv_backend::clock::Deadline::after(PATIENCE)
                .poll("the relay", || Ok(eventfd_count(ticket.as_fd()) == Some(0)))
                .expect("read");
        }
        let most = read_all(&mut ours, 10_000);
        assert!(most > 1000, "it never was full, so this tests nothing");
        assert_eq!(ticket.waiting(), 0);
    }

    #[test]
    fn held_relay_counts_and_writes_all_of_it_as_one_when_it_goes_on() {
        let (mut ours, theirs) = UnixStream::pair().expect("a socketpair");
        let mut relay = Relay::start().expect("a relay");
        let ticket = relay.add(relayed(theirs.as_fd())).expect("room");
        relay.hold();
        for _ in 0..1000 {
            ticket.event.write(1).expect("signalled");
        }
        assert_eq!(ticket.waiting(), 1000);
        relay.go_on();
        assert_eq!(read_all(&mut ours, 1000), 1000);
        ticket.event.write(1).expect("signalled");
        assert_eq!(read_all(&mut ours, 1), 1);
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
        assert!(lock(&relay.entries).by_key.is_empty());
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
