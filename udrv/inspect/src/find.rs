//! Whose page is where: a look through `/proc`.

use crate::layout;
use crate::snapshot::Snapshot;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use udrv_backend::{Error, Result};

/// A process and what it shows.
#[derive(Debug)]
pub struct Found {
    /// The process.
    pub pid: u32,
    /// Its page, which stays readable after its end.
    pub file: File,
    /// What was in it.
    pub snapshot: Snapshot,
}

impl Found {
    /// What is in the page now.
    #[must_use]
    pub fn look(&self) -> Option<Snapshot> {
        read(&self.file)
    }
}

/// The page of a process.
///
/// # Errors
/// [`Error::Os`] if the process does not exist or may not be looked at; [`Error::Unavailable`] if it has no page.
pub fn find(pid: u32) -> Result<Found> {
    let file = page_of(pid).map_err(|error| Error::os(format!("looking at process {pid}"), error))?;
    let found = file.and_then(|file| Some(Found { pid, snapshot: read(&file)?, file }));
    found.ok_or_else(|| Error::Unavailable {
        device: format!("process {pid}"),
        why: "it shows nothing".into(),
        advice: "name one that drives a device with udrv's runtime of this version, once it has opened it".into(),
    })
}

/// All pages of processes that may be looked at.
#[must_use]
pub fn find_all() -> Vec<Found> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut found: Vec<_> = pids.filter_map(|pid| find(pid).ok()).collect();
    found.sort_unstable_by_key(|found| found.pid);
    found
}

/// The page's file, if the process has one that is its own and not another's that it looks at. It may be any memory that has
/// the name: only bytes are read from it.
///
/// # Errors
/// What reading `/proc/PID/fd` gave.
pub fn page_of(pid: u32) -> std::io::Result<Option<File>> {
    let name = format!("/memfd:{}", layout::NAME);
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        // A descriptor that was closed meanwhile is none of ours: ours is open to the end.
        let is_page =
            std::fs::read_link(&path).is_ok_and(|link| link.to_str().is_some_and(|link| link.starts_with(&name)));
        if is_page
            && let Some(file) = open(&path)
            && is_of(&file, pid)
        {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// Whether the page says it is of this process: by the number that the process itself sees.
fn is_of(file: &File, pid: u32) -> bool {
    let mut raw = [0; 8];
    let told = file.read_exact_at(&mut raw, layout::head::PID as u64 * 8).map(|()| u64::from_le_bytes(raw));
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let innermost = numbers.and_then(|numbers| numbers.split_whitespace().last()?.parse().ok());
    told.ok() == innermost
}

fn open(path: &Path) -> Option<File> {
    // To write is for those who hold the process's clock.
    let open = |write| OpenOptions::new().read(true).write(write).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    let file = open(true).or_else(|_| open(false)).ok()?;
    // Only memory has seals: nothing else is read, whose file system might not answer.
    let seals = fcntl(&file, FcntlArg::F_GET_SEALS).ok()?;
    SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK).then_some(file)
}

fn read(file: &File) -> Option<Snapshot> {
    let mut bytes = vec![0; layout::WORDS * 8];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Snapshot::parse(&bytes)
}
