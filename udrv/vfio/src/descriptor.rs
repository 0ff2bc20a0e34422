//! What kind of file a descriptor is that somebody else opened. It is asked of the kernel only: the file's own file system
//! may be the other side itself (FUSE), and never answer.

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{UnixAddr, getsockname};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use udrv_backend::{Error, Result};

/// Whether it is memory: a memfd, or a file of tmpfs or hugetlbfs. Reading, writing or pinning a page of anything else
/// asks its file system.
#[must_use]
pub fn is_memory(fd: BorrowedFd<'_>) -> bool {
    // Only these file systems have seals (fcntl(2)).
    fcntl(fd, FcntlArg::F_GET_SEALS).is_ok()
}

/// What an eventfd has counted that nobody has read yet; `None` for any other file. Nothing is taken from it.
#[must_use]
pub fn eventfd_count(fd: BorrowedFd<'_>) -> Option<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    // In hexadecimal (proc_pid_fdinfo(5)).
    let count = info.lines().find_map(|line| line.strip_prefix("eventfd-count:"))?;
    u64::from_str_radix(count.trim(), 16).ok()
}

/// What can be signalled as an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalKind {
    /// eventfd(2).
    EventFd,
    /// A Unix socket. Others may make a writer wait for a reader, whatever MSG_DONTWAIT says.
    Socket,
    /// A pipe without a name: one with a name has a file system.
    Pipe,
}

impl SignalKind {
    /// Which of them it is.
    ///
    /// # Errors
    /// [`Error::NotSupported`] for any other file, which it names.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self> {
        // The link's text is made by the kernel, for any descriptor.
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let kind = std::fs::read_link(&link).map_err(|error| Error::os(format!("reading {link}"), error))?;
        let kind = kind.to_string_lossy();
        match &*kind {
            "anon_inode:[eventfd]" => Ok(Self::EventFd),
            socket if socket.starts_with("socket:[") && is_unix(fd) => Ok(Self::Socket),
            pipe if pipe.starts_with("pipe:[") => Ok(Self::Pipe),
            other => Err(Error::NotSupported {
                what: "an interrupt's descriptor that is no eventfd, Unix socket or pipe",
                by: format!("this stub (the descriptor is `{other}`)"),
            }),
        }
    }
}

fn is_unix(socket: BorrowedFd<'_>) -> bool {
    getsockname::<UnixAddr>(socket.as_raw_fd()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn memory_is_a_memfd_or_a_file_of_tmpfs_and_nothing_else() {
        let memfd = nix::sys::memfd::memfd_create(c"ram", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).expect("a memfd");
        assert!(is_memory(memfd.as_fd()));
        for other in ["/proc/self/maps", "/proc/self/mem", "/dev/zero", "/dev/null"] {
            assert!(!is_memory(std::fs::File::open(other).expect(other).as_fd()), "{other}");
        }
        let (read, _write) = std::io::pipe().expect("a pipe");
        assert!(!is_memory(read.as_fd()));
    }
}
