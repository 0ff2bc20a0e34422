//! Listening sockets as files: made for one user, replaced when their stub is dead, and removed at the end.

use crate::lock::briefly;
use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, shutdown, socket};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{Uid, fchownat, geteuid};
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest path that a socket address holds: `sun_path` has 108 bytes with the NUL (unix(7)).
const MAX_PATH: usize = 107;

/// How long another stub may be at the same socket: it makes a file or two meanwhile.
const TURN_LIMIT: Duration = Duration::from_secs(10);

/// How long whoever listens at our path already may take to have room for one more.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// A listening socket, whose file is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, so that nobody else's is removed.
    file: (u64, u64),
}

impl Listener {
    /// Listens at `path`, for `owner` alone: mode 0600.
    ///
    /// # Errors
    /// One line that says what is in the way and what to do.
    pub(super) fn bind(path: &Path, owner: Uid) -> Result<Self> {
        Self::bind_with(path, owner, Mode::S_IRUSR | Mode::S_IWUSR)
    }

    /// As [`Listener::bind`], with another mode than 0600.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub(super) fn bind_with(path: &Path, owner: Uid, mode: Mode) -> Result<Self> {
        let length = path.as_os_str().len();
        if length > MAX_PATH {
            bail!(
                "{}: {length} bytes are too long for a socket, which takes {MAX_PATH}; choose a shorter --socket-dir",
                path.display()
            );
        }
        // Between "nobody answers" and our own bind, no other stub may do the same.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        check_folder(parent)?;
        let turn = parent.join(format!(".{}.lock", path.file_name().unwrap_or_default().to_string_lossy()));
        let _turn =
            briefly(&turn, TURN_LIMIT).map_err(|error| explain(&turn, "locking", &error))?.with_context(|| {
                format!("{}: another stub is still starting there after {TURN_LIMIT:?}", path.display())
            })?;
        clear_way(path)?;

        let fd =
            socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).context("making a socket")?;
        let os = |errno: Errno| explain(path, "listening at", &errno.into());
        // The file takes its mode from the socket less the umask: it never had a wider one.
        fchmod(&fd, mode).map_err(os)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path).map_err(os)?).map_err(os)?;
        if mode.contains(Mode::S_IWOTH) {
            widen(path, mode)?;
        }
        let made = std::fs::symlink_metadata(path).map_err(|error| explain(path, "looking at", &error))?;
        let listener = Self { socket: UnixListener::from(fd), path: path.into(), file: identity(&made) };
        if made.uid() != owner.as_raw() {
            give(path, owner)?;
        }
        listen(&listener.socket, Backlog::MAXCONN).map_err(os)?;
        Ok(listener)
    }

    /// The next client.
    ///
    /// # Errors
    /// EINVAL once [`Listener::shut`]; what else accept(2) gives, such as EMFILE.
    pub(super) fn accept(&self) -> std::io::Result<UnixStream> {
        self.socket.accept().map(|(stream, _)| stream)
    }

    /// Takes no more clients; an [`Listener::accept`] that waits returns.
    pub(super) fn shut(&self) {
        // Fails only if it has been done.
        let _ = shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.file) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Refuses a folder in which anybody could replace what is made there. (In `/tmp` the sticky bit stops that.)
fn check_folder(folder: &Path) -> Result<()> {
    let found = std::fs::metadata(folder).map_err(|error| explain(folder, "looking at", &error))?;
    if found.mode() & 0o1002 == 0o002 {
        bail!(
            "{}: everybody can replace the sockets there (mode {:o}); chmod o-w it or choose another --socket-dir",
            folder.display(),
            found.mode() & 0o7777
        );
    }
    Ok(())
}

/// Gives our socket to its user: this very file, whatever is at its path meanwhile.
fn give(path: &Path, owner: Uid) -> Result<()> {
    let os = |errno: Errno| {
        anyhow::anyhow!("giving {} to user {owner}: {}; only root can serve another user", path.display(), errno.desc())
    };
    fchownat(&made_by_us(path)?, c"", Some(owner), None, AtFlags::AT_EMPTY_PATH).map_err(os)
}

/// Lets others connect to our socket, whatever the umask.
fn widen(path: &Path, mode: Mode) -> Result<()> {
    // fchmod takes no O_PATH descriptor; this link leads to the file itself.
    let file = made_by_us(path)?;
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let permissions = std::fs::Permissions::from_mode(mode.bits());
    std::fs::set_permissions(link, permissions).map_err(|error| explain(path, "opening to others", &error))
}

/// The socket that was just made at this path, and nothing that was put there since.
fn made_by_us(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let os = |errno: Errno| explain(path, "looking at", &errno.into());
    let file = nix::fcntl::open(path, flags, Mode::empty()).map_err(os)?;
    let found = fstat(&file).map_err(os)?;
    if found.st_mode & libc::S_IFMT != libc::S_IFSOCK || found.st_uid != geteuid().as_raw() {
        bail!("{} was replaced by somebody while it was made; choose another --socket-dir", path.display());
    }
    Ok(file)
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Removes the socket of a stub that is dead; anything else at this path is an error and stays.
fn clear_way(path: &Path) -> Result<()> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(explain(path, "looking at", &error)),
    };
    if !found.file_type().is_socket() {
        bail!("{} exists and is no socket; move it away or choose another --socket-dir", path.display());
    }
    match udrv_channel::connect(path, CONNECT_LIMIT) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!("{}: replacing the socket of a stub that is dead", path.display());
            std::fs::remove_file(path).map_err(|error| explain(path, "removing", &error))
        }
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(explain(path, "finding out who serves", &error)),
        // Somebody listens: also where they have no room for one more (EAGAIN).
        _ => bail!("another stub serves {}; stop it or choose another --socket-dir", path.display()),
    }
}

/// Makes the folder for sockets if only itself is missing.
///
/// # Errors
/// One line that says what is missing and what to do.
pub(super) fn make_folder(folder: &Path) -> Result<()> {
    match std::fs::DirBuilder::new().mode(0o755).create(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{} is no folder; choose another --socket-dir", folder.display())
        }
        Err(error) => Err(explain(folder, "making", &error)),
    }
}

fn explain(path: &Path, doing: &str, error: &std::io::Error) -> anyhow::Error {
    let advice = match error.kind() {
        ErrorKind::PermissionDenied => "; run as root, or choose a --socket-dir of your own",
        ErrorKind::NotFound => "; make the folder above it, or choose another --socket-dir",
        ErrorKind::AddrInUse => "; another stub was faster, choose another --socket-dir",
        _ => "",
    };
    anyhow::anyhow!("{doing} {}: {error}{advice}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{Flock, FlockArg};
    use std::fs::File;

    #[test]
    fn folder_that_somebody_has_locked_keeps_no_stub_from_starting() {
        let folder = tempfile::tempdir().expect("folder");
        let file = File::open(folder.path()).expect("opened as anybody can");
        let _held = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno).expect("locked");
        let path = folder.path().join("it.sock");
        let (sender, bound) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(Listener::bind(&path, geteuid())));
        bound.recv_timeout(TURN_LIMIT).expect("not waiting").expect("listening");
    }

    #[test]
    fn link_that_was_put_in_place_of_the_socket_is_not_followed() {
        let folder = tempfile::tempdir().expect("folder");
        let (target, link) = (folder.path().join("target"), folder.path().join("it.sock"));
        let _socket = UnixListener::bind(&target).expect("a socket");
        std::os::unix::fs::symlink(&target, &link).expect("a link");
        let refused = give(&link, Uid::from_raw(65_534)).expect_err("a link").to_string();
        assert!(refused.contains("was replaced"), "{refused}");
        assert_eq!(std::fs::metadata(&target).expect("there").uid(), geteuid().as_raw());
    }

    #[test]
    fn folder_that_everybody_can_write_is_refused_unless_sticky() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("it.sock");
        let set = |mode| std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).expect("mode");
        set(0o777);
        let refused = Listener::bind(&path, geteuid()).expect_err("writable by all").to_string();
        assert!(refused.contains("mode 777"), "{refused}");
        set(0o1777);
        Listener::bind(&path, geteuid()).expect("as in /tmp");
    }

    #[test]
    fn socket_of_a_server_that_accepts_nobody_is_left_alone_and_not_waited_for() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("it.sock");
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        bind(fd.as_raw_fd(), &UnixAddr::new(&path).expect("an address")).expect("bound");
        listen(&fd, Backlog::new(0).expect("a backlog")).expect("listening, with room for one");
        let _first = UnixStream::connect(&path).expect("the one");
        let (sender, outcome) = std::sync::mpsc::channel();
        let to = path.clone();
        std::thread::spawn(move || sender.send(Listener::bind(&to, geteuid()).map(drop)));
        let outcome = outcome.recv_timeout(Duration::from_secs(20)).expect("an outcome in time");
        assert!(outcome.expect_err("in use").to_string().contains("another stub serves"));
        assert!(path.exists());
    }
}
