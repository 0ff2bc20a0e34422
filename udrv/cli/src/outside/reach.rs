//! How to get at a device that another process drives, without that process's help: by its stub's control socket, or by
//! the file of the region, of which pidfd_getfd(2) gives us a duplicate.

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use udrv_inspect::DeviceState;

/// How long a stub may take to answer: it may be resetting a device.
const PATIENCE: Duration = Duration::from_secs(15);
/// Longest answer believed, bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// A way to a device.
pub enum Reach {
    /// By the stub, which knows the device under this name.
    Stub(Control, String),
    /// By the files of its regions: region, file, where the region starts in it.
    Files(Vec<(u32, File, u64)>),
}

impl Reach {
    pub fn of(pid: u32, device: &DeviceState) -> Result<Self> {
        if let Some(socket) = device.address.strip_prefix("unix:")
            && let Some(control) = Control::beside(Path::new(socket))
        {
            let name = control.name_of(Path::new(socket))?;
            return Ok(Self::Stub(control, name));
        }
        let mut files = Vec::new();
        for (region, descriptor, offset) in &device.files {
            files.push((*region, File::from(duplicate(pid, *descriptor)?), *offset));
        }
        if files.is_empty() {
            let address = &device.address;
            bail!(
                "{address} cannot be reached from outside its process: let `stub-driver serve` have it, and drive it as unix:PATH"
            );
        }
        Ok(Self::Files(files))
    }

    /// One read of `width` bits.
    pub fn peek(&self, region: u32, offset: u64, width: u64) -> Result<u64> {
        match self {
            Self::Stub(control, device) => control.ask(&serde_json::json!({ "request": "peek", "device": device,
                "region": region, "offset": offset, "width": width })),
            Self::Files(files) => {
                let (file, at) = place(files, region, offset)?;
                let mut raw = [0; 8];
                let bytes = raw.get_mut(..(width / 8) as usize).ok_or_else(|| anyhow!("no width of {width} bits"))?;
                file.read_exact_at(bytes, at).with_context(|| format!("reading {offset:#x}"))?;
                Ok(u64::from_le_bytes(raw))
            }
        }
    }

    /// One write of `width` bits.
    pub fn poke(&self, region: u32, offset: u64, width: u64, value: u64) -> Result<()> {
        match self {
            Self::Stub(control, device) => control.ask(&serde_json::json!({ "request": "poke", "device": device,
                "region": region, "offset": offset, "width": width, "value": value })),
            Self::Files(files) => {
                let (file, at) = place(files, region, offset)?;
                let raw = value.to_le_bytes();
                let bytes = raw.get(..(width / 8) as usize).ok_or_else(|| anyhow!("no width of {width} bits"))?;
                file.write_all_at(bytes, at).with_context(|| format!("writing {offset:#x}"))
            }
        }
    }
}

fn place(files: &[(u32, File, u64)], region: u32, offset: u64) -> Result<(&File, u64)> {
    let found = files.iter().find(|(number, ..)| *number == region);
    let (_, file, start) =
        found.ok_or_else(|| anyhow!("region {region} cannot be reached from outside its process"))?;
    Ok((file, start.checked_add(offset).ok_or_else(|| anyhow!("{offset:#x} is no offset"))?))
}

/// A duplicate of a descriptor of another process.
pub fn duplicate(pid: u32, descriptor: i32) -> Result<OwnedFd> {
    let what = || {
        format!(
            "taking descriptor {descriptor} of process {pid} (ptrace must be allowed: as its user, with kernel.yama.ptrace_scope=0, or as root)"
        )
    };
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| anyhow!("{pid} is no process"))?;
    let handle = pidfd_open(process, PidfdFlags::empty()).with_context(|| format!("process {pid}"))?;
    pidfd_getfd(handle, descriptor, PidfdGetfdFlags::empty()).map_err(|error| anyhow!("{}: {error}", what()))
}

/// A stub's control socket.
pub struct Control(PathBuf);

impl Control {
    /// The one in the folder of a device's socket, if there is one.
    pub fn beside(socket: &Path) -> Option<Self> {
        let path = socket.with_file_name("control.sock");
        path.exists().then_some(Self(path))
    }

    /// Under which name the device of this socket is served.
    fn name_of(&self, socket: &Path) -> Result<String> {
        let status: serde_json::Value = self.ask(&serde_json::json!({ "request": "status" }))?;
        let devices =
            status.get("devices").and_then(|devices| devices.as_array()).map(Vec::as_slice).unwrap_or_default();
        let same =
            |device: &&serde_json::Value| device["socket"].as_str().is_some_and(|path| Path::new(path) == socket);
        let name = devices.iter().find(same).and_then(|device| device["name"].as_str());
        Ok(name.ok_or_else(|| anyhow!("{} does not serve {}", self.0.display(), socket.display()))?.to_owned())
    }

    /// Lets the stub signal a vector.
    pub fn raise(&self, socket: &Path, index: u32, vector: u32) -> Result<()> {
        let device = self.name_of(socket)?;
        self.ask(&serde_json::json!({ "request": "raise", "device": device, "index": index, "vector": vector }))
    }

    fn ask<T: serde::de::DeserializeOwned>(&self, request: &serde_json::Value) -> Result<T> {
        let shown = self.0.display();
        let mut stream = udrv_channel::connect(&self.0, PATIENCE).with_context(|| format!("connecting to {shown}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{request}\n").as_bytes()).with_context(|| format!("asking {shown}"))?;
        let mut line = String::new();
        let mut answer = BufReader::new(stream.take(MAX_ANSWER));
        answer.read_line(&mut line).with_context(|| format!("no answer of {shown} within {PATIENCE:?}"))?;
        let mut reply: serde_json::Value =
            serde_json::from_str(&line).with_context(|| format!("{shown} does not speak as a stub"))?;
        if let Some(why) = reply["error"].as_str() {
            bail!("{shown}: {why}");
        }
        let value = reply.get_mut("ok").map(serde_json::Value::take).unwrap_or_default();
        serde_json::from_value(value).with_context(|| format!("{shown} does not speak as a stub"))
    }
}
