//! The process at the other end, as far as it can be seen from here, and what it leaves behind when it ends without letting go
//! of its device.
//!
//! What it shows of itself is its inspection page, found through `/proc` when its lease begins and kept open, so that it is
//! still there when the process is not. Nothing in it is trusted: it is printed, and it says which of the client's own
//! device's registers are read for the bundle.

use super::hold::Hold;
use super::standing::Watch;
use nix::sys::socket::UnixCredentials;
use nix::unistd::{Gid, Uid, fchown};
use serde::Serialize;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use udrv_backend::{AnyBackend, Backend as _, RegionIndex, Width};
use udrv_inspect::layout::{DEVICES, TEXT, device};
use udrv_inspect::{DeviceState, Found, Registers, Snapshot};

/// Bundles kept of each device.
const KEPT: usize = 16;
/// Registers that a bundle may have.
const MAX_REGISTERS: usize = 4096;

/// A client's process during its lease.
pub(super) struct Client {
    pid: u32,
    uid: u32,
    program: Option<PathBuf>,
    /// Where it worked, and where a core of it may be.
    folder: Option<PathBuf>,
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
    folder: Option<&'a Path>,
    registers: Vec<Value>,
    state: &'a Snapshot,
}

#[derive(Serialize)]
struct Value {
    name: String,
    offset: u64,
    width_bits: u64,
    value: Option<u64>,
    bits: Option<String>,
    error: Option<String>,
}

impl Client {
    pub(super) fn of(peer: &UnixCredentials) -> Self {
        let pid = u32::try_from(peer.pid()).unwrap_or(0);
        let [program, folder] = ["exe", "cwd"].map(|link| std::fs::read_link(format!("/proc/{pid}/{link}")).ok());
        let page = udrv_inspect::find(pid).ok();
        let panic = page.as_ref().and_then(|page| page.snapshot.panic.clone());
        Self { pid, uid: peer.uid(), program, folder, page, panic }
    }

    /// Looks whether it stands, until the guard is dropped. What then is held of it, `hold` has.
    pub(super) fn watch(&self, hold: &Arc<Hold>) -> Option<Watch> {
        let page = self.page.as_ref().and_then(|page| page.file.try_clone().ok());
        hold.is_on().then(|| Watch::start(self.pid, page, Arc::clone(hold)))
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
        let map = held.and_then(|device| device.registers.clone());
        let map = map.or_else(|| map_before(&self.page.as_ref()?.file, socket));
        let registers = map.map(|map| dump(device, &map)).unwrap_or_default();
        let (program, address) = (self.program.as_deref(), device.info().address.as_str());
        let bundle = Bundle {
            bundle: 1,
            device: name,
            address,
            why,
            pid: self.pid,
            uid: self.uid,
            program,
            folder: self.folder.as_deref(),
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
    is_at(&device.address, socket)
}

fn is_at(address: &str, socket: &Path) -> bool {
    let path = address.strip_prefix("unix:").map(Path::new);
    path.is_some_and(|path| path == socket || path.file_name() == socket.file_name())
}

/// The registers of a device that is not shown any more, since a panic dropped its driver: a slot that is free keeps what it had.
fn map_before(page: &File, socket: &Path) -> Option<Registers> {
    let word = |at: usize| {
        let mut raw = [0; 8];
        page.read_exact_at(&mut raw, at as u64 * 8).ok().map(|()| u64::from_le_bytes(raw))
    };
    (0..DEVICES.count).map(|slot| DEVICES.at(slot)).find_map(|slot| {
        let length = usize::try_from(word(slot + device::ADDRESS)?).ok()?.min(device::ADDRESS_ROOM);
        let mut address = vec![0; length];
        page.read_exact_at(&mut address, (slot + device::ADDRESS + 1) as u64 * 8).ok()?;
        if !is_at(&String::from_utf8_lossy(&address), socket) {
            return None;
        }
        let (place, length) = (word(slot + device::MAP)?, word(slot + device::MAP_LENGTH)?);
        let length = usize::try_from(length).ok().filter(|length| *length <= TEXT.count * 8)?;
        let mut bytes = vec![0; length];
        page.read_exact_at(&mut bytes, place).ok()?;
        serde_json::from_slice(&bytes).ok()
    })
}

/// The registers whose reading changes nothing.
fn dump(device: &AnyBackend, map: &Registers) -> Vec<Value> {
    let registers = map.registers.iter().filter(|register| register.readable).take(MAX_REGISTERS);
    let value = |register: &udrv_inspect::Register| {
        let width = Width::ALL.into_iter().find(|width| width.bytes() * 8 == register.width)?;
        let read = device.read(RegionIndex(map.region), register.offset, width);
        Some(Value {
            name: register.name.clone(),
            offset: register.offset,
            width_bits: register.width,
            bits: read.as_ref().ok().map(|value| register.decode(*value)).filter(|bits| !bits.is_empty()),
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
