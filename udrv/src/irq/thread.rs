//! Thread delivery: one mio loop over the domain's eventfds.

use super::domain::WeakShared;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use udrv_backend::{Error, Result};

const STOP: Token = Token(usize::MAX);

type EventFds = Mutex<BTreeMap<u64, Arc<EventFd>>>;

pub(super) struct Listener {
    registry: Registry,
    stop: Waker,
    fds: Arc<EventFds>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    pub(super) fn start(domain: WeakShared) -> Result<Self> {
        let os = |error: std::io::Error| Error::os("starting an interrupt thread", error);
        let mut poll = Poll::new().map_err(os)?;
        let registry = poll.registry().try_clone().map_err(os)?;
        let stop = Waker::new(&registry, STOP).map_err(os)?;
        let fds = Arc::new(EventFds::default());
        let seen = Arc::clone(&fds);
        let serve = move || {
            let mut events = Events::with_capacity(64);
            loop {
                // No deadline: waiting for interrupts is this thread's purpose, and `stop` wakes it.
                match poll.poll(&mut events, None) {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(error) => return tracing::error!(%error, "an interrupt thread cannot wait"),
                    Ok(()) => {}
                }
                if events.iter().any(|event| event.token() == STOP) {
                    return;
                }
                let Some(domain) = domain.upgrade() else { return };
                for event in &events {
                    let id = event.token().0 as u64;
                    let fd = seen.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
                    // EAGAIN: spurious readiness, which mio allows.
                    if let Some(count) = fd.and_then(|fd| fd.read().ok()) {
                        domain.mark(id, count);
                    }
                }
                domain.deliver();
            }
        };
        let thread = std::thread::Builder::new().name("udrv-irq".into()).spawn(serve).map_err(os)?;
        Ok(Self { registry, stop, fds, thread: Some(thread) })
    }

    /// A new eventfd in the loop; returned for use as a trigger.
    pub(super) fn add(&self, id: u64) -> Result<Arc<EventFd>> {
        let os = |error: std::io::Error| Error::os("adding an eventfd to the interrupt thread", error);
        let fd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_err(|e| os(e.into()))?;
        let fd = Arc::new(fd);
        self.fds.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::clone(&fd));
        let raw = fd.as_fd().as_raw_fd();
        self.registry.register(&mut SourceFd(&raw), Token(id as usize), Interest::READABLE).map_err(os)?;
        Ok(fd)
    }

    pub(super) fn remove(&self, id: u64) {
        if let Some(fd) = self.fds.lock().unwrap_or_else(PoisonError::into_inner).remove(&id) {
            let raw = fd.as_fd().as_raw_fd();
            if let Err(error) = self.registry.deregister(&mut SourceFd(&raw)) {
                tracing::warn!(%error, "removing an eventfd from the interrupt thread");
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let woken = self.stop.wake();
        let Some(thread) = self.thread.take() else { return };
        // The last clone of a domain may be dropped by a handler, on this very thread.
        if woken.is_ok() && thread.thread().id() != std::thread::current().id() {
            let _ended = thread.join();
        }
    }
}
