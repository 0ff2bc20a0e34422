//! What is remembered of each taken device, in a file of its own below `/run/udrv/taken`. A reboot empties `/run`, as
//! it undoes the bindings themselves.

use super::process::{self, Process};
use super::steps::Binding;
use crate::lock::Lock;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;
use udrv_backend::{Error, Result};
use udrv_vfio::Bdf;

/// How long another process may be at work on a device: longer than any of the steps it takes.
const LOCK_LIMIT: Duration = Duration::from_secs(30);

/// One taken device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// What it was bound to before.
    #[serde(flatten)]
    pub(crate) was: Binding,
    /// Whether a person took it: it then stays taken until a person releases it.
    pub(crate) person: bool,
    /// The process that took it for as long as it lives; a person may have taken it before.
    pub(crate) process: Option<Process>,
}

/// How a device is named that has a record, and what its record is.
pub(crate) trait Named: Display + Copy {
    type Record: Serialize + DeserializeOwned;
    /// As on the command line.
    fn address(self) -> String;
    /// Whether it can be a record that we wrote: what is in it becomes parts of paths.
    fn is_plausible(record: &Self::Record) -> bool;
}

impl Named for Bdf {
    type Record = Record;

    fn address(self) -> String {
        format!("pci:{self}")
    }

    fn is_plausible(record: &Record) -> bool {
        record.was.is_plausible()
    }
}

/// The folder of records.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    folder: PathBuf,
}

impl Records {
    pub(crate) fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Makes the folder, and refuses one that somebody else could write: a record says which driver root binds.
    pub(crate) fn prepare(&self) -> Result<()> {
        let os = |error| Error::os(format!("creating {}", self.folder.display()), error);
        DirBuilder::new().recursive(true).mode(0o755).create(&self.folder).map_err(os)?;
        let found = std::fs::metadata(&self.folder).map_err(os)?;
        if found.uid() == nix::unistd::geteuid().as_raw() && found.mode() & 0o022 == 0 {
            return Ok(());
        }
        Err(Error::Unavailable {
            device: self.folder.display().to_string(),
            why: format!("it can be written by others (owner {}, mode {:o})", found.uid(), found.mode() & 0o7777),
            advice: format!("rm -r {}", self.folder.display()),
        })
    }

    /// Waits until no other process is at work on the device.
    pub(crate) fn lock(&self, device: impl Named) -> Result<Lock> {
        self.lock_within(device, LOCK_LIMIT)
    }

    fn lock_within(&self, device: impl Named, limit: Duration) -> Result<Lock> {
        let path = self.folder.join(format!(".{device}.lock"));
        let os = |error| Error::os(format!("locking {}", path.display()), error);
        crate::lock::lock(&path, limit).map_err(os)?.ok_or_else(|| locked_by_others(device, &path, limit))
    }

    pub(crate) fn read<D: Named>(&self, device: D) -> Result<Option<D::Record>> {
        let path = self.path(device);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::os(format!("reading {}", path.display()), error)),
        };
        match serde_json::from_str::<D::Record>(&text) {
            Ok(record) if D::is_plausible(&record) => Ok(Some(record)),
            _ => Err(Error::Unavailable {
                device: path.display().to_string(),
                why: "it is no record of a taken device".into(),
                advice: format!("bind {device} to its driver by hand, then remove the file"),
            }),
        }
    }

    /// Replaces the record whole: at any moment the old one or the new one is there.
    pub(crate) fn write<D: Named>(&self, device: D, record: &D::Record) -> Result<()> {
        let path = self.path(device);
        let unfinished = self.folder.join(format!(".{device}.new"));
        let written = || -> std::io::Result<()> {
            let mut file = File::create(&unfinished)?;
            serde_json::to_writer_pretty(&mut file, record)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            std::fs::rename(&unfinished, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        written().map_err(|error| Error::os(format!("writing {}", path.display()), error))
    }

    pub(crate) fn remove(&self, device: impl Named) -> Result<()> {
        let path = self.path(device);
        std::fs::remove_file(&path).map_err(|error| Error::os(format!("removing {}", path.display()), error))
    }

    /// The devices of one kind that have a record.
    pub(crate) fn devices<D: FromStr + Ord>(&self) -> Result<Vec<D>> {
        let os = |error| Error::os(format!("reading {}", self.folder.display()), error);
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(os(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            // locks and unfinished records begin with a dot
            found.extend(entry.map_err(os)?.file_name().to_str().and_then(|name| name.parse::<D>().ok()));
        }
        found.sort_unstable();
        Ok(found)
    }

    fn path(&self, device: impl Named) -> PathBuf {
        self.folder.join(device.to_string())
    }
}

impl Binding {
    /// Whether these can be names of drivers: they become parts of paths.
    fn is_plausible(&self) -> bool {
        let plain = |name: &String| !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\n', '\0']);
        self.driver.iter().chain(&self.driver_override).all(plain)
    }
}

fn locked_by_others(device: impl Named, path: &Path, limit: Duration) -> Error {
    let me = std::process::id();
    let others: Vec<_> = process::that_opened(&[path.to_owned()]).into_iter().filter(|pid| *pid != me).collect();
    let who = match others.as_slice() {
        [] => "another process".to_owned(),
        others => others.iter().copied().map(process::named).collect::<Vec<_>>().join(", "),
    };
    Error::Unavailable {
        device: device.address(),
        why: format!("{who} is still at work on it after {} s", limit.as_secs_f32()),
        advice: "if it waits in the kernel, close what uses the device, then try again".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BDF: Bdf = Bdf { domain: 0, bus: 3, device: 0, function: 0 };

    fn record() -> Record {
        let was = Binding { driver: Some("nvme".into()), driver_override: None };
        Record { was, person: true, process: Some(Process { pid: 7, start_time: 4711 }) }
    }

    fn folder() -> (tempfile::TempDir, Records) {
        let folder = tempfile::tempdir().expect("folder");
        let records = Records::at(folder.path().join("taken"));
        records.prepare().expect("prepared");
        (folder, records)
    }

    #[test]
    fn record_written_is_read_back_and_listed_until_removed() {
        let (_folder, records) = folder();
        assert_eq!(records.read(BDF).expect("none"), None);
        records.write(BDF, &record()).expect("written");
        assert_eq!(records.read(BDF).expect("read"), Some(record()));
        assert_eq!(records.devices::<Bdf>().expect("listed"), [BDF]);
        records.remove(BDF).expect("removed");
        assert_eq!(records.devices::<Bdf>().expect("listed"), []);
    }

    #[test]
    fn record_left_unfinished_by_a_crash_is_not_seen_and_not_in_the_way() {
        let (folder, records) = folder();
        std::fs::write(folder.path().join(format!("taken/.{BDF}.new")), "{\"driver\": \"nv").expect("file");
        assert_eq!(records.devices::<Bdf>().expect("listed"), []);
        assert_eq!(records.read(BDF).expect("read"), None);
        records.write(BDF, &record()).expect("written");
        assert_eq!(records.read(BDF).expect("read"), Some(record()));
    }

    #[test]
    fn record_that_is_damaged_or_names_a_path_is_refused_with_its_file() {
        let (folder, records) = folder();
        let path = folder.path().join(format!("taken/{BDF}"));
        for driver in ["\"nvme", "\"../../../tmp/x\"", "\"..\"", "\"\"", "7"] {
            let text =
                format!("{{\"driver\": {driver}, \"driver_override\": null, \"person\": true, \"process\": null}}");
            std::fs::write(&path, text).expect("file");
            let refused = records.read(BDF).expect_err(driver).to_string();
            assert!(refused.contains(&path.display().to_string()), "{refused}");
        }
    }

    #[test]
    fn folder_that_others_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, records) = folder();
        std::fs::set_permissions(folder.path().join("taken"), PermissionsExt::from_mode(0o777)).expect("mode");
        let refused = records.prepare().expect_err("writable by others").to_string();
        assert!(refused.contains("mode 777"), "{refused}");
    }

    #[test]
    fn lock_held_by_another_is_waited_for_no_longer_than_the_deadline() {
        let (_folder, records) = folder();
        let held = records.lock(BDF).expect("free");
        let refused = records.lock_within(BDF, Duration::from_millis(50)).map(drop).expect_err("held");
        assert!(refused.to_string().contains("still at work"), "{refused}");
        drop(held);
        let _held = records.lock(BDF).expect("free again");
        let file = std::fs::metadata(records.folder.join(format!(".{BDF}.lock"))).expect("the lock");
        assert_eq!(file.mode() & 0o7777, 0o600, "whoever can open it can hold it");
    }
}
