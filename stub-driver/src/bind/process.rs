//! Processes: who took a device, whether they still live, and who has a file open.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use udrv_backend::{Error, Result};

/// A process, told from a later one with the same number by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its ID.
    pub pid: u32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`, proc(5)).
    pub start_time: u64,
}

impl Process {
    /// This one.
    ///
    /// # Errors
    /// [`Error::Os`] without `/proc`.
    pub fn current() -> Result<Self> {
        let pid = std::process::id();
        Self::running(pid).ok_or_else(|| Error::os("reading /proc/self/stat", std::io::ErrorKind::NotFound))
    }

    /// Whether it still runs. One that has ended and only waits for its parent does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Self::running(self.pid) == Some(*self)
    }

    fn running(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let start_time = start_time(&stat)?;
        Some(Self { pid, start_time })
    }
}

/// `None` for a process that has ended.
fn start_time(stat: &str) -> Option<u64> {
    // the name is in parentheses and may contain any of these characters
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

/// A process as a message names it: its number, and its name if that can be seen.
#[must_use]
pub fn named(pid: u32) -> String {
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim_end().escape_default()),
        Err(_) => format!("process {pid}"),
    }
}

/// The processes that have one of these files open, as far as we may look.
#[must_use]
pub fn that_opened(files: &[PathBuf]) -> Vec<u32> {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for process in entries(Path::new("/proc")) {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let mut opened = entries(&process.path().join("fd")).filter_map(|fd| std::fs::read_link(fd.path()).ok());
        if opened.any(|file| files.contains(&file)) {
            found.push(pid);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use udrv_backend::clock::Deadline;

    #[test]
    fn process_that_runs_is_alive_and_its_number_alone_is_not_enough() {
        let me = Process::current().expect("/proc");
        assert!(me.is_alive());
        assert!(!Process { start_time: me.start_time + 1, ..me }.is_alive());
    }

    #[test]
    fn process_that_ended_is_not_alive_although_nobody_waited_for_it() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat");
        let process = Process::running(child.id()).expect("runs");
        assert!(process.is_alive());
        child.kill().expect("kill");
        // a child that has ended can be waited for without being taken away
        let id = nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(child.id() as i32));
        let flags = nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT;
        nix::sys::wait::waitid(id, flags).expect("ended");
        assert!(!process.is_alive());
        child.wait().expect("waited");
    }

    #[test]
    fn start_time_of_a_name_with_parentheses_and_blanks_is_found() {
        let stat = "7 (a) R 1 (b c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 10";
        assert_eq!(start_time(stat), Some(4711));
        assert_eq!(start_time(&stat.replace(" S ", " Z ")), None);
        assert_eq!(start_time("7 (cut"), None);
    }

    #[test]
    fn file_that_we_have_open_is_found_open_by_us() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().canonicalize().expect("path").join("file");
        let file = std::fs::File::create(&path).expect("file");
        assert!(that_opened(std::slice::from_ref(&path)).contains(&std::process::id()));
        drop(file);
        // A program that another test starts just now has it until it is that program.
        let is_closed = || Ok(that_opened(std::slice::from_ref(&path)).is_empty());
        Deadline::after(Duration::from_secs(5)).poll("nobody to have it open", is_closed).expect("closed");
    }
}
