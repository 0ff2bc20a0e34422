//! Taking clients at a socket: who may come in, how many, each in a thread of its own, and all of them out at the end.

use super::socket::Listener;
use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{UnixCredentials, getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;
use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Scope};
use std::time::Duration;

/// Connections to one socket at a time, those counted that are only being told that the device is taken.
const MAX_CONNECTIONS: usize = 16;

/// How long to wait for a connection whose peer has gone to end.
const MAKE_ROOM: Duration = Duration::from_secs(1);

/// How long to wait before trying again where the system has no descriptor or thread left.
const RETRY: Duration = Duration::from_millis(100);

/// What is behind a socket.
pub(super) trait Service: Send + Sync + 'static {
    /// For logs.
    fn name(&self) -> &str;
    /// The socket.
    fn listener(&self) -> &Listener;
    /// Whether this user may come in.
    fn admits(&self, user: Uid) -> bool;
    /// Serves one client until it goes, or its stream is shut down.
    fn serve(&self, stream: UnixStream, peer: &UnixCredentials);
}

/// A service that runs. Dropping it shuts every connection down and waits for all of them to end.
pub(super) struct Running<S: Service> {
    service: Arc<S>,
    /// Dropped to end the thread's waits.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl<S: Service> Running<S> {
    pub(super) fn start(service: Arc<S>) -> Result<Self> {
        let (stop, stopped) = channel();
        let shared = Arc::clone(&service);
        let run =
            move || Door { service: &*shared, connections: Mutex::default(), one_ended: Condvar::new() }.run(&stopped);
        let thread = thread::Builder::new().name(service.name().into()).spawn(run).context("starting a thread")?;
        Ok(Self { service, stop: Some(stop), thread: Some(thread) })
    }

    pub(super) const fn service(&self) -> &Arc<S> {
        &self.service
    }

    /// Begins to end, without waiting for it.
    pub(super) fn stop(&mut self) {
        self.service.listener().shut();
        self.stop = None;
    }
}

impl<S: Service> Drop for Running<S> {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("{}: its thread panicked", self.service.name());
        }
    }
}

struct Door<'a, S> {
    service: &'a S,
    /// Every connection, so that all can be shut down at the end.
    connections: Mutex<BTreeMap<u64, UnixStream>>,
    one_ended: Condvar,
}

impl<S: Service> Door<'_, S> {
    fn run(&self, stopped: &Receiver<()>) {
        thread::scope(|scope| {
            for number in 0.. {
                let admitted = match self.service.listener().accept() {
                    Ok(stream) => self.admit(scope, number, stream),
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                    Err(error) => Err(error),
                };
                if let Err(error) = admitted {
                    tracing::error!("{}: cannot take a client: {error}", self.service.name());
                    if stopped.recv_timeout(RETRY) == Err(RecvTimeoutError::Disconnected) {
                        break;
                    }
                }
            }
            for stream in self.connections().values() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
    }

    fn connections(&self) -> MutexGuard<'_, BTreeMap<u64, UnixStream>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, number: u64) {
        self.connections().remove(&number);
        self.one_ended.notify_all();
    }

    /// Whether one more connection is allowed. Those whose peer has gone end soon, and are waited for: a burst of clients
    /// that came and went must not keep the next one out.
    fn has_room(&self) -> bool {
        let full = |all: &mut BTreeMap<u64, UnixStream>| all.len() >= MAX_CONNECTIONS && all.values().any(has_hung_up);
        let waited = self.one_ended.wait_timeout_while(self.connections(), MAKE_ROOM, full);
        waited.unwrap_or_else(PoisonError::into_inner).0.len() < MAX_CONNECTIONS
    }

    /// Starts a connection's thread, unless the peer may not have one.
    fn admit<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        number: u64,
        stream: UnixStream,
    ) -> std::io::Result<()> {
        let name = self.service.name();
        let peer = getsockopt(&stream, PeerCredentials)?;
        let (pid, uid) = (peer.pid(), peer.uid());
        if !self.service.admits(Uid::from_raw(uid)) {
            tracing::warn!("{name}: refused process {pid} of user {uid}: not served to that user");
            return Ok(());
        }
        if !self.has_room() {
            tracing::warn!("{name}: refused process {pid}: {MAX_CONNECTIONS} connections already");
            return Ok(());
        }
        self.connections().insert(number, stream.try_clone()?);
        let started = thread::Builder::new().name(name.into()).spawn_scoped(scope, move || {
            if catch_unwind(AssertUnwindSafe(|| self.service.serve(stream, &peer))).is_err() {
                tracing::error!("{name}: the connection of process {pid} panicked");
            }
            self.remove(number);
        });
        if started.is_err() {
            self.remove(number);
        }
        started.map(drop)
    }
}

/// Whether the peer has closed its end.
pub(super) fn has_hung_up(stream: &UnixStream) -> bool {
    // POLLHUP, once both directions are closed, is reported unasked.
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
