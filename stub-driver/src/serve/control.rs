//! The control socket: what vfio-user has no word for. One JSON object a line, one reply a line:
//!
//! ```json
//! {"request":"status"}
//! {"request":"peek","device":"edu","region":0,"offset":0,"width":32}
//! {"request":"poke","device":"edu","region":0,"offset":4,"width":32,"value":1}
//! {"request":"raise","device":"edu","index":1,"vector":0}
//! {"request":"revoke","device":"edu"}
//! ```
//!
//! A reply is `{"ok":…}` or `{"error":"…"}`. Root and whoever runs the stub may ask about every device, anybody else about
//! those that are served to them.

use super::accept::{Running, Service};
use super::hold::HoldStatus;
use super::lease::Counters;
use super::server::{DeviceServer, PATIENCE, Served};
use super::slot::Tenant;
use super::socket::Listener;
use super::standing::tracer;
use anyhow::{Context as _, Result};
use nix::sys::socket::UnixCredentials;
use nix::sys::stat::Mode;
use nix::unistd::{Uid, geteuid};
use serde::{Deserialize, Serialize};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use udrv_backend::{Backend as _, IrqIndex, RegionIndex, Width};

/// The socket's name in the folder of the others.
pub(crate) const SOCKET: &str = "control.sock";

/// Longest line, bytes.
const MAX_LINE: usize = 4096;

/// How long a revoked lease may take to end: a device's reset is part of it.
const REVOKE_PATIENCE: Duration = Duration::from_secs(10);

/// One line to the stub.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// What is served, and to whom.
    #[serde(alias = "list")]
    Status,
    /// Reads one register, through the client's own lease: it may stand in a debugger meanwhile. A register whose reading
    /// has a side effect has it.
    Peek {
        /// Name of the device, as in [`DeviceStatus::name`].
        device: String,
        /// Region index, as in VFIO.
        region: u32,
        /// Bytes into it.
        offset: u64,
        /// 8, 16, 32 or 64.
        width: u64,
    },
    /// Writes one register, as [`Request::Peek`] reads one.
    Poke {
        /// Name of the device.
        device: String,
        /// Region index.
        region: u32,
        /// Bytes into it.
        offset: u64,
        /// 8, 16, 32 or 64.
        width: u64,
        /// What to write.
        value: u64,
    },
    /// Signals one vector as if the device had raised it.
    Raise {
        /// Name of the device.
        device: String,
        /// Interrupt index, as in VFIO.
        index: u32,
        /// The vector.
        vector: u32,
    },
    /// Ends the lease of a device now.
    Revoke {
        /// Name of the device.
        device: String,
    },
}

/// One line back.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply<T> {
    /// Done.
    Ok(T),
    /// Why not.
    Error(String),
}

/// The answer to [`Request::Status`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// The stub's process.
    pub pid: u32,
    /// What it serves.
    pub devices: Vec<DeviceStatus>,
}

/// One device.
#[derive(Debug, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// `0000:03:00.0`, `edu`.
    pub name: String,
    /// `pci:0000:03:00.0`, `model:edu`.
    pub address: String,
    /// Where it is served.
    pub socket: PathBuf,
    /// The user it is served to.
    pub owner: u32,
    /// Whether clients may map its registers.
    pub mmap: bool,
    /// The client that has it.
    pub lease: Option<LeaseStatus>,
}

/// One client.
#[derive(Debug, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// Its process.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Seconds since it came.
    pub lease_s: f64,
    /// Messages it sent.
    pub messages: u64,
    /// Reads of regions among them.
    pub reads: u64,
    /// Writes of regions.
    pub writes: u64,
    /// Changes of interrupts.
    pub irqs_set: u64,
    /// Requests that were refused.
    pub errors: u64,
    /// Bytes of its memory that the device can reach now.
    pub dma_bytes: u64,
    /// If it stands, in a debugger or by a signal: what is held back until it goes on.
    pub hold: Option<HoldStatus>,
}

/// The control socket while it is served. Dropping it removes the socket.
pub struct ControlServer(Running<Control>);

struct Control {
    listener: Listener,
    devices: Vec<Arc<Served>>,
}

impl ControlServer {
    /// Serves it in `folder`, for these devices; `owner` may connect, and whoever a device is served to.
    ///
    /// # Errors
    /// One line that says why the socket cannot be had.
    pub fn start(folder: &Path, owner: Uid, devices: &[DeviceServer]) -> Result<Self> {
        let owners = devices.iter().map(|server| server.served().export.owner());
        let listener = Listener::bind_with(&folder.join(SOCKET), owner, mode(owner, owners))?;
        let devices = devices.iter().map(|server| Arc::clone(server.served())).collect();
        Running::start(Arc::new(Control { listener, devices })).map(Self)
    }

    pub(crate) fn stop(&mut self) {
        self.0.stop();
    }
}

/// Who may connect: the owner; anybody if a device is served to somebody else. Who is then admitted is another question,
/// which [`Service::admits`] answers.
fn mode(owner: Uid, mut devices: impl Iterator<Item = Uid>) -> Mode {
    let owner_only = Mode::S_IRUSR | Mode::S_IWUSR;
    let others = Mode::S_IRGRP | Mode::S_IWGRP | Mode::S_IROTH | Mode::S_IWOTH;
    if devices.all(|device| device == owner) { owner_only } else { owner_only | others }
}

impl Service for Control {
    fn name(&self) -> &'static str {
        "control"
    }

    fn listener(&self) -> &Listener {
        &self.listener
    }

    fn admits(&self, user: Uid) -> bool {
        self.visible(user).next().is_some()
    }

    fn serve(&self, stream: UnixStream, peer: &UnixCredentials) {
        if let Err(error) = self.converse(stream, Uid::from_raw(peer.uid())) {
            tracing::warn!("control: process {} of user {}: {error:#}", peer.pid(), peer.uid());
        }
    }
}

impl Control {
    fn visible(&self, user: Uid) -> impl Iterator<Item = &Arc<Served>> {
        let all = user.is_root() || user == geteuid();
        self.devices.iter().filter(move |device| all || device.export.owner() == user)
    }

    fn find(&self, user: Uid, name: &str) -> Result<&Arc<Served>, String> {
        let known = || self.visible(user).map(|device| device.export.name()).collect::<Vec<_>>().join(", ");
        let found = self.visible(user).find(|device| device.export.name() == name);
        found.ok_or_else(|| format!("no device `{name}` is served to you: expected one of {}", known()))
    }

    fn converse(&self, mut stream: UnixStream, user: Uid) -> Result<()> {
        stream.set_write_timeout(Some(PATIENCE)).context("setting a deadline")?;
        let mut buffer = Vec::new();
        while let Some(line) = read_line(&mut stream, &mut buffer)? {
            let mut reply = match serde_json::from_slice(&line) {
                Ok(request) => self.answer(user, request),
                Err(error) => text::<()>(Err(format!("no request: {error}"))),
            };
            reply.push('\n');
            stream.write_all(reply.as_bytes()).context("replying")?;
        }
        Ok(())
    }

    fn answer(&self, user: Uid, request: Request) -> String {
        match request {
            Request::Status => {
                let devices = self.visible(user).map(|device| status(device)).collect();
                text(Ok(Status { pid: std::process::id(), devices }))
            }
            Request::Peek { device, region, offset, width: bits } => {
                let peek = |device: &Arc<Served>| {
                    let value = device.peek(RegionIndex(region), offset, width(bits)?);
                    value.map_err(|error| error.to_string())
                };
                text(self.find(user, &device).and_then(peek))
            }
            Request::Poke { device, region, offset, width: bits, value } => {
                let poke = |device: &Arc<Served>| {
                    let width = width(bits)?;
                    let written = device.reach(|device| device.write(RegionIndex(region), offset, width, value));
                    written.map_err(|error| error.to_string())
                };
                text(self.find(user, &device).and_then(poke))
            }
            Request::Raise { device, index, vector } => {
                let raise = |device: &Arc<Served>| {
                    let raised = device.reach(|device| device.fire_irq(IrqIndex(index), vector));
                    raised.map_err(|error| error.to_string())
                };
                text(self.find(user, &device).and_then(raise))
            }
            Request::Revoke { device } => {
                let why = format!("user {user} revoked its lease");
                let revoke = |device: &Arc<Served>| device.slot.revoke(&why, REVOKE_PATIENCE);
                text(self.find(user, &device).and_then(revoke))
            }
        }
    }
}

fn text<T: Serialize>(outcome: Result<T, String>) -> String {
    let reply = match outcome {
        Ok(value) => Reply::Ok(value),
        Err(why) => Reply::Error(why),
    };
    serde_json::to_string(&reply).unwrap_or_else(|error| format!("{{\"error\":\"no reply: {error}\"}}"))
}

fn status(device: &Served) -> DeviceStatus {
    let export = &device.export;
    DeviceStatus {
        name: export.name().into(),
        address: export.address().into(),
        socket: device.listener.path().into(),
        owner: export.owner().as_raw(),
        mmap: export.maps(),
        lease: device.slot.look(|tenant| tenant.map(lease_status)),
    }
}

fn lease_status(tenant: &Tenant) -> LeaseStatus {
    let Counters { messages, reads, writes, irqs_set, errors, dma_bytes } = &*tenant.counters;
    LeaseStatus {
        pid: tenant.pid,
        uid: tenant.uid,
        lease_s: tenant.since.elapsed().as_secs_f64(),
        messages: messages.get(),
        reads: reads.get(),
        writes: writes.get(),
        irqs_set: irqs_set.get(),
        errors: errors.get(),
        dma_bytes: dma_bytes.get(),
        hold: tenant.hold.status(|| tracer(u32::try_from(tenant.pid).ok()?)),
    }
}

/// A width in bits.
fn width(bits: u64) -> Result<Width, String> {
    let found = Width::ALL.into_iter().find(|width| width.bytes() * 8 == bits);
    found.ok_or_else(|| format!("width {bits} does not exist: expected 8, 16, 32 or 64"))
}

/// The next line, which must come within a deadline; `None` if the peer is done.
fn read_line(stream: &mut UnixStream, buffer: &mut Vec<u8>) -> Result<Option<Vec<u8>>> {
    let until = udrv_backend::clock::now() + PATIENCE;
    loop {
        if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let rest = buffer.split_off(end + 1);
            return Ok(Some(std::mem::replace(buffer, rest)));
        }
        anyhow::ensure!(buffer.len() < MAX_LINE, "a line of more than {MAX_LINE} bytes");
        let left = until.saturating_duration_since(udrv_backend::clock::now());
        anyhow::ensure!(!left.is_zero(), "no request within {PATIENCE:?}");
        stream.set_read_timeout(Some(left)).context("setting a deadline")?;
        let mut chunk = [0; 512];
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(None),
            Ok(read) => buffer.extend_from_slice(chunk.get(..read).unwrap_or(&chunk)),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error).context("reading"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Export;

    #[test]
    fn control_socket_opens_to_others_only_if_a_device_is_served_to_one() {
        use std::os::unix::fs::MetadataExt as _;
        let folder = tempfile::tempdir().expect("folder");
        let served_to = |owner: Uid| {
            let device: udrv_backend::AnyBackend = Arc::new(udrv_edu::model::edu());
            let export = Export::shared("edu", device);
            let server = DeviceServer::start(export, &folder.path().join("edu.sock")).expect("served");
            // Whose the control socket is differs from whose the device is.
            let control = mode(owner, std::iter::once(server.served().export.owner()));
            let listener = Listener::bind_with(&folder.path().join(SOCKET), geteuid(), control).expect("listening");
            std::fs::symlink_metadata(listener.path()).expect("there").mode() & 0o7777
        };
        assert_eq!(served_to(geteuid()), 0o600);
        assert_eq!(served_to(Uid::from_raw(65_534)), 0o666);
    }
}
