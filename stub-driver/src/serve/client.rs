//! The process at the other end, as far as it can be seen from here: whether a debugger holds it, and what it leaves behind
//! when it ends without letting go of its device.
//!
//! What it shows of itself is its inspection page, found through `/proc` when its lease begins and kept open, so that it is
//! still there when the process is not. Nothing in it is trusted: it is printed, and it says which of the client's own
//! device's registers are read for the bundle.

use nix::sys::socket::UnixCredentials;
use nix::unistd::{Gid, Uid, fchown};
use serde::Serialize;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use udrv_backend::{AnyBackend, Backend as _, RegionIndex, Width};
use udrv_inspect::layout::head;
use udrv_inspect::{DeviceState, Found, Snapshot};

/// Between two looks at whether the process stands. Also what a deadline may be early by, after it stood.
const PERIOD: Duration = Duration::from_millis(100);
/// Bundles kept of each device.
const KEPT: usize = 16;
/// Registers that a bundle may have.
const MAX_REGISTERS: usize = 4096;

/// A client's process during its lease.
pub(super) struct Client {
    pid: u32,
    uid: u32,
    program: Option<PathBuf>,
    page: Option<Found>,
    /// What it had said in a panic before.
    panic: Option<String>,
}

/// What is found after a driver's end without letting go.
#[derive(Serialize)]
struct Bundle<'a> {
    bundle: u32,
    device: &'a str,
    address: &'a str,
    why: &'a str,
    pid: u32,
    uid: u32,
    program: Option<&'a Path>,
    registers: Vec<Value>,
    state: &'a Snapshot,
}

#[derive(Serialize)]
struct Value {
    name: String,
    offset: u64,
    width: u64,
    value: Option<u64>,
    bits: Option<String>,
    error: Option<String>,
}

impl Client {
    pub(super) fn of(peer: &UnixCredentials) -> Self {
        let pid = u32::try_from(peer.pid()).unwrap_or(0);
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
        let page = udrv_inspect::find(pid).ok();
        let panic = page.as_ref().and_then(|page| page.snapshot.panic.clone());
        Self { pid, uid: peer.uid(), program, page, panic }
    }

    /// Lets its clock stand still while it stands, until the guard is dropped. A debugger's helpers do so to the moment;
    /// this is for those that have none.
    pub(super) fn watch(&self) -> Watch {
        let page = self.page.as_ref().and_then(|page| page.file.try_clone().ok());
        let (stop, stopped) = channel::<()>();
        let pid = self.pid;
        let thread = page.and_then(|page| {
            let watch = move || {
                let mut before = Standing::of(pid);
                let mut since = udrv_inspect::monotonic();
                while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                    let (now, at) = (Standing::of(pid), udrv_inspect::monotonic());
                    if now.is_still(&before) {
                        hold(&page, at.saturating_sub(since));
                    }
                    (before, since) = (now, at);
                }
            };
            std::thread::Builder::new().name("client".into()).spawn(watch).ok()
        });
        Watch { stop: Some(stop), thread }
    }

    /// Writes a bundle beside the socket, if the process ended without letting go of the device or panicked.
    /// Who still has it because it was taken from it (`revoked`) has not ended.
    pub(super) fn post_mortem(&self, device: &AnyBackend, name: &str, (socket, owner): (&Path, Uid), revoked: bool) {
        let Some(state) = self.page.as_ref().and_then(Found::look) else { return };
        let held = state.devices.iter().find(|device| is_served_at(device, socket));
        let why = if state.panic.is_some() && state.panic != self.panic {
            "its driver panicked"
        } else if held.is_some() && !revoked {
            "its driver ended without letting go of it"
        } else {
            return;
        };
        let map = held.or(state.devices.first()).and_then(|device| device.registers.as_ref());
        let registers = map.map(|map| dump(device, map)).unwrap_or_default();
        let (program, address) = (self.program.as_deref(), device.info().address.as_str());
        let bundle = Bundle {
            bundle: 1,
            device: name,
            address,
            why,
            pid: self.pid,
            uid: self.uid,
            program,
            registers,
            state: &state,
        };
        let folder = socket.with_file_name("bundles");
        match write(&folder, name, self.pid, &bundle, owner) {
            Ok(path) => tracing::warn!("{name}: {why}; look at it: udrv inspect {}", path.display()),
            Err(error) => tracing::error!("{name}: {why}; no bundle in {}: {error}", folder.display()),
        }
    }
}

fn is_served_at(device: &DeviceState, socket: &Path) -> bool {
    let path = device.address.strip_prefix("unix:").map(Path::new);
    path.is_some_and(|path| path == socket || path.file_name() == socket.file_name())
}

/// The registers whose reading changes nothing.
fn dump(device: &AnyBackend, map: &udrv_inspect::Registers) -> Vec<Value> {
    let registers = map.registers.iter().filter(|register| register.readable).take(MAX_REGISTERS);
    let value = |register: &udrv_inspect::Register| {
        let width = Width::ALL.into_iter().find(|width| width.bytes() * 8 == register.width)?;
        let read = device.read(RegionIndex(map.region), register.offset, width);
        Some(Value {
            name: register.name.clone(),
            offset: register.offset,
            width: register.width,
            bits: read.as_ref().ok().map(|value| register.decode(*value)),
            error: read.as_ref().err().map(ToString::to_string),
            value: read.ok(),
        })
    };
    registers.filter_map(value).collect()
}

fn write(folder: &Path, name: &str, pid: u32, bundle: &Bundle<'_>, owner: Uid) -> std::io::Result<PathBuf> {
    match DirBuilder::new().mode(0o755).create(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let mut ours: Vec<_> = std::fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().and_then(|file| file.to_str()).is_some_and(|file| file.starts_with(name)))
        .collect();
    ours.sort_by_key(|path| path.symlink_metadata().and_then(|it| it.modified()).ok());
    for old in ours.iter().take(ours.len().saturating_sub(KEPT - 1)) {
        std::fs::remove_file(old)?;
    }
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
    let path = folder.join(format!("{name}-{time}-{pid}.json"));
    // `create_new` follows no link.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(serde_json::to_string(bundle)?.as_bytes())?;
    fchown(&file, Some(owner), None::<Gid>)?;
    Ok(path)
}

/// Whether a process stands, and for how long its first thread had run.
#[derive(PartialEq, Eq)]
struct Standing {
    stands: bool,
    ran: Option<String>,
}

impl Standing {
    fn of(pid: u32) -> Self {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name before it may contain anything, parentheses too (proc(5)).
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        let ran = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).ok();
        Self { stands: matches!(state, Some('t' | 'T')), ran }
    }

    /// It stood all the time since then, as far as can be seen.
    fn is_still(&self, before: &Self) -> bool {
        self.stands && self.ran.is_some() && self == before
    }
}

/// Sets the process's clock back, unless a debugger's helpers do.
fn hold(page: &File, nanoseconds: u64) {
    let get = |word: usize| {
        let mut raw = [0; 8];
        page.read_exact_at(&mut raw, word as u64 * 8).map(|()| u64::from_le_bytes(raw))
    };
    if let (Ok(0), Ok(held)) = (get(head::HELD_SINCE), get(head::HELD)) {
        // A client that has made its page read only has a clock that goes on.
        let _written = page.write_all_at(&held.saturating_add(nanoseconds).to_le_bytes(), head::HELD as u64 * 8);
    }
}

/// Ends the watching when dropped.
pub(super) struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}
