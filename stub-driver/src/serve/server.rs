//! One device on one socket: one client at a time has the lease.

use super::accept::{Running, Service};
use super::client::Client;
use super::export::Export;
use super::hold::Hold;
use super::lease::{Counters, Lease};
use super::refusal::Refusal;
use super::session::{self, Hello, LIMITS, Session};
use super::slot::{Slot, Tenant};
use super::socket::Listener;
use super::standing::stands;
use anyhow::Result;
use nix::sys::socket::UnixCredentials;
use nix::unistd::{Uid, geteuid};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use udrv_backend::{AnyBackend, Backend as _, Error, RegionIndex, Width};
use udrv_channel::Channel;
use udrv_wire::Errno;

/// How long a client may take over its first message, the rest of a message once begun, and taking a reply.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A device while it is served. Dropping it ends the lease in order, and removes the socket.
pub struct DeviceServer(Running<Served>);

/// What the connections and the control socket share.
pub(super) struct Served {
    pub(super) export: Export,
    pub(super) slot: Slot,
    pub(super) listener: Listener,
    patience: Duration,
}

impl DeviceServer {
    /// Serves a device at the socket `path`, in threads of its own.
    ///
    /// # Errors
    /// One line that says why the socket cannot be had.
    pub fn start(export: Export, path: &Path) -> Result<Self> {
        Self::start_with(export, path, PATIENCE)
    }

    /// As [`DeviceServer::start`], with another patience than [`PATIENCE`].
    ///
    /// # Errors
    /// As [`DeviceServer::start`].
    pub fn start_with(export: Export, path: &Path, patience: Duration) -> Result<Self> {
        let listener = Listener::bind(path, export.owner())?;
        Running::start(Arc::new(Served { export, slot: Slot::new(), listener, patience })).map(Self)
    }

    /// The socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.service().listener.path()
    }

    pub(super) const fn served(&self) -> &Arc<Served> {
        self.0.service()
    }

    /// Reads one register through the client's own lease, which may stand still in a debugger meanwhile. A register whose
    /// reading has a side effect has it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where a device is open only during a lease and nobody has it; as
    /// [`Backend::read`](udrv_backend::Backend::read).
    pub fn peek(&self, region: RegionIndex, offset: u64, width: Width) -> Result<u64, Error> {
        self.0.service().peek(region, offset, width)
    }

    /// Begins to end: no client is taken any more, and the lease is being ended. Dropping waits until that is done.
    pub fn stop(&mut self) {
        self.0.service().slot.close();
        self.0.stop();
    }
}

impl Drop for DeviceServer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Service for Served {
    fn name(&self) -> &str {
        self.export.name()
    }

    fn listener(&self) -> &Listener {
        &self.listener
    }

    /// The owner, and whoever runs this process.
    fn admits(&self, user: Uid) -> bool {
        user == self.export.owner() || user == geteuid()
    }

    fn serve(&self, stream: UnixStream, peer: &UnixCredentials) {
        let why = self.converse(stream, peer).unwrap_or_else(|error| error.to_string());
        tracing::info!("{}: process {} of user {} left: {why}", self.export.name(), peer.pid(), peer.uid());
    }
}

impl Served {
    pub(super) fn peek(&self, region: RegionIndex, offset: u64, width: Width) -> Result<u64, Error> {
        self.reach(|device| device.read(region, offset, width))
    }

    /// Does something with the device that a client has, or that is open anyway.
    pub(super) fn reach<T>(&self, act: impl FnOnce(&AnyBackend) -> Result<T, Error>) -> Result<T, Error> {
        self.slot.look(|tenant| {
            let leased = tenant.and_then(|tenant| tenant.device.as_ref());
            let device = leased.or(self.export.shared_device()).ok_or_else(|| Error::Unavailable {
                device: self.export.address().into(),
                why: "nobody has it, and it is open only during a lease".into(),
                advice: "start its driver first".into(),
            })?;
            act(device)
        })
    }

    /// From the first message to the end of the lease.
    fn converse(&self, stream: UnixStream, peer: &UnixCredentials) -> std::io::Result<String> {
        if let Some(address) = self.export.passed_on() {
            return self.pass_on(address, &stream, peer);
        }
        let handle = stream.try_clone()?;
        let mut channel = Channel::new(stream, LIMITS, self.patience)?;
        let hello = match session::greet(&channel) {
            Ok(hello) => hello,
            Err(why) => return Ok(why),
        };
        let counters = Arc::new(Counters::default());
        let hold = Arc::new(Hold::new(self.export.holds()));
        let tenant = Tenant {
            pid: peer.pid(),
            uid: peer.uid(),
            since: udrv_backend::clock::now(),
            counters: Arc::clone(&counters),
            hold: Arc::clone(&hold),
            stream: handle,
            device: None,
            revoked: None,
        };
        if let Err(why) = self.slot.take(tenant) {
            return Ok(hello.turn_away(&channel, Refusal::new(Errno::EBUSY, why)));
        }
        let tenancy = Tenancy(self);
        // Not before: those who stand without a lease would be as many as may come in, and keep all others out.
        if self.export.holds() {
            let pid = u32::try_from(peer.pid()).unwrap_or(0);
            channel = channel.excused_while(move || stands(pid));
        }
        let lease = |opened| Lease::new(opened, (counters, hold), self.export.no_mappings());
        let opened = self.export.lease().and_then(lease);
        Ok(match opened {
            Ok(lease) => self.hold(&channel, &hello, lease, (&tenancy, peer)),
            Err(error) => {
                tracing::error!("{}: cannot be opened: {error}", self.export.name());
                hello.turn_away(&channel, error.into())
            }
        })
    }

    /// One lease, ended in order even if the device panicked.
    fn hold(
        &self,
        channel: &Channel,
        hello: &Hello,
        mut lease: Lease,
        (_until_freed, peer): (&Tenancy<'_>, &UnixCredentials),
    ) -> String {
        let client = Client::of(peer);
        let watch = client.watch(&lease.hold);
        let name = self.export.name();
        tracing::info!("{name}: leased");
        self.slot.opened(&lease.device);
        let talk = || Session { channel, lease: &mut lease, mmap: self.export.maps(), name }.run(hello);
        let why = catch_unwind(AssertUnwindSafe(talk)).unwrap_or_else(|_| "its device panicked".into());
        drop(watch);
        let revoked = self.slot.ending();
        // The client sees at once that it is over; the device may take its time.
        let _ = channel.stream().shutdown(Shutdown::Both);
        // Before the end, which takes the device's state away.
        let place = (self.listener.path(), self.export.owner());
        let look = || client.post_mortem(&lease.device, name, place, revoked.is_some());
        if catch_unwind(AssertUnwindSafe(look)).is_err() {
            tracing::error!("{name}: looking at what its client left panicked");
        }
        lease.end(name);
        revoked.unwrap_or(why)
    }
}

/// Frees the lease when dropped, whatever happened.
pub(super) struct Tenancy<'a>(pub(super) &'a Served);

impl Drop for Tenancy<'_> {
    fn drop(&mut self) {
        self.0.slot.free();
    }
}
