//! Taking clients at a socket: who may come in, how many, each in a thread of its own, and all of them out at the end.

use super::socket::Listener;
use anyhow::{Context as _, Result};
use nix::sys::socket::{UnixCredentials, getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;
use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Scope};
use std::time::Duration;

/// Connections to one socket at a time, those counted that are only being told that the device is taken.
const MAX_CONNECTIONS: usize = 16;

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
        let run = move || Door { service: &*shared, connections: Mutex::default() }.run(&stopped);
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
        if self.connections().len() >= MAX_CONNECTIONS {
            tracing::warn!("{name}: refused process {pid}: {MAX_CONNECTIONS} connections already");
            return Ok(());
        }
        self.connections().insert(number, stream.try_clone()?);
        let started = thread::Builder::new().name(name.into()).spawn_scoped(scope, move || {
            if catch_unwind(AssertUnwindSafe(|| self.service.serve(stream, &peer))).is_err() {
                tracing::error!("{name}: the connection of process {pid} panicked");
            }
            self.connections().remove(&number);
        });
        if started.is_err() {
            self.connections().remove(&number);
        }
        started.map(drop)
    }
}
