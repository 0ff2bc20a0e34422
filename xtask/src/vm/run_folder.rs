//! The folder of one boot: what the machine is given, and what it leaves.

use anyhow::{Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// How many are kept.
const KEPT: usize = 8;
/// How much of a log is shown.
const TAIL_LINES: usize = 60;

pub(crate) struct RunFolder {
    pub(crate) path: PathBuf,
}

impl RunFolder {
    /// A new one below `cache`, of its own for this process and `purpose`; removes the oldest ones of processes that have ended.
    pub(crate) fn new(cache: &Path, purpose: &str) -> Result<Self> {
        remove_old(cache)?;
        static BOOTS: AtomicU32 = AtomicU32::new(0);
        let boot = BOOTS.fetch_add(1, Ordering::Relaxed);
        let path = cache.join(format!("run-{}-{purpose}-{boot}", std::process::id()));
        if path.exists() {
            // of an earlier process with our number
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove the old {}", path.display()))?;
        }
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path })
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The guest's console.
    pub(crate) fn log(&self) -> PathBuf {
        self.file("log")
    }

    /// What QEMU complains of.
    pub(crate) fn complaints(&self) -> PathBuf {
        self.file("qemu")
    }

    /// For a failure's report: what QEMU complained of, the end of the console's log, and where it is.
    pub(crate) fn log_tail(&self) -> String {
        let complaints = fs::read_to_string(self.complaints()).unwrap_or_default();
        let log = fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default().join("\n");
        format!("{complaints}--- end of {} ---\n{tail}\n---", self.log().display())
    }
}

fn remove_old(cache: &Path) -> Result<()> {
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let mut runs = Vec::new();
    for entry in fs::read_dir(cache).with_context(|| format!("cannot read {}", cache.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("run-")?.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let age = entry.metadata().and_then(|metadata| metadata.modified())?;
            runs.push((age, entry.path()));
        }
    }
    runs.sort();
    for (_, run) in runs.iter().rev().skip(KEPT) {
        // another xtask may be removing the same one
        drop(fs::remove_dir_all(run));
    }
    Ok(())
}
