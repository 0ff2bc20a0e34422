//! Locks among the processes of this machine, as files that nobody else can open: whoever can open one can hold it
//! (flock(2) asks for no right to write).

use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;
use udrv_backend::clock::now;

/// A lock; gone with the last process that has it open.
pub(crate) type Lock = Flock<File>;

/// A lock whose file is removed when this is dropped.
pub(crate) struct Brief {
    path: PathBuf,
    _lock: Lock,
}

impl Drop for Brief {
    fn drop(&mut self) {
        // While it is held: whoever waits for it finds that it is not the file at the path any more.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// As [`lock`], for a lock whose file is not to stay.
///
/// # Errors
/// As [`lock`].
pub(crate) fn briefly(path: &Path, limit: Duration) -> Result<Option<Brief>> {
    Ok(lock(path, limit)?.map(|lock| Brief { path: path.into(), _lock: lock }))
}

/// Locks the file, made if it is not there; `None` if somebody else still has it after `limit`.
///
/// # Errors
/// What opening or locking it gave; [`ErrorKind::PermissionDenied`] if it is somebody else's, or others can open it.
pub(crate) fn lock(path: &Path, limit: Duration) -> Result<Option<Lock>> {
    let until = now() + limit;
    loop {
        let file = open(path)?;
        let (sender, locked) = mpsc::channel();
        // A lock got after the deadline goes with the message that nobody receives.
        std::thread::Builder::new().spawn(move || sender.send(Flock::lock(file, FlockArg::LockExclusive)))?;
        let lock = match locked.recv_timeout(until.saturating_duration_since(now())) {
            Ok(Ok(lock)) => lock,
            Ok(Err((_, errno))) => return Err(errno.into()),
            Err(_) => return Ok(None),
        };
        // Who had it may have removed it, and the next has made another.
        let identity = |file: &Metadata| (file.dev(), file.ino());
        let locked = identity(&lock.metadata()?);
        if std::fs::symlink_metadata(path).is_ok_and(|found| identity(&found) == locked) {
            return Ok(Some(lock));
        }
    }
}

fn open(path: &Path) -> Result<File> {
    // Not waiting, in case somebody has put a FIFO there.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut open = OpenOptions::new();
    let file = open.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    let ours = found.uid() == nix::unistd::geteuid().as_raw() && found.mode() & 0o077 == 0;
    if found.is_file() && ours {
        return Ok(file);
    }
    let why = format!("others can hold this lock (owner {}, mode {:o}); remove it", found.uid(), found.mode());
    Err(Error::new(ErrorKind::PermissionDenied, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const SHORT: Duration = Duration::from_millis(50);

    #[test]
    fn lock_file_can_be_opened_by_its_maker_only() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("lock");
        let _held = lock(&path, SHORT).expect("made").expect("free");
        assert_eq!(std::fs::metadata(&path).expect("there").mode() & 0o7777, 0o600);
    }

    #[test]
    fn lock_file_that_others_can_open_or_that_is_no_file_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("lock");
        std::fs::write(&path, "").expect("file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("mode");
        assert_eq!(lock(&path, SHORT).map(drop).expect_err("open to all").kind(), ErrorKind::PermissionDenied);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
        std::os::unix::fs::symlink(&path, folder.path().join("link")).expect("link");
        lock(&folder.path().join("link"), SHORT).map(drop).expect_err("a link");
        nix::unistd::mkfifo(&folder.path().join("fifo"), nix::sys::stat::Mode::S_IRUSR).expect("a FIFO");
        lock(&folder.path().join("fifo"), SHORT).map(drop).expect_err("a FIFO");
    }

    #[test]
    fn lock_that_is_held_is_waited_for_no_longer_than_the_deadline() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("lock");
        let held = lock(&path, SHORT).expect("made").expect("free");
        assert!(lock(&path, SHORT).expect("no error").is_none());
        drop(held);
        assert!(lock(&path, Duration::from_secs(20)).expect("no error").is_some());
    }

    #[test]
    fn brief_lock_removed_by_its_holder_is_still_had_by_one_at_a_time() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("lock");
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let _held = briefly(&path, Duration::from_secs(20)).expect("no error").expect("my turn");
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0, "two have it");
                        std::thread::yield_now();
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(!path.exists(), "the file is left");
    }
}
