//! Reads and writes of sysfs files that may block in the kernel, with a deadline.
//!
//! Unbinding vfio-pci waits, not to be interrupted, until the last user has closed the device, and meanwhile holds the
//! device's lock, so that reading some of its files waits too. A thread in such a call keeps its whole process from
//! ending. So a child makes the call; what it does not finish in time it finishes, or waits for, alone.
#![expect(unsafe_code, reason = "fork, close_range and _exit are unsafe to call")]

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2};
use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;
use udrv_backend::{Error, Result};

/// Longest content read; what is read here is a name or the head of config space.
const LONGEST: usize = 256;

/// Writes `value` to a file. If `limit` passes first, the write goes on without us, and `guard` stays open in the child
/// until it has ended: a lock held on it is held on.
///
/// # Errors
/// [`Error::Os`]; [`Error::Timeout`].
pub(crate) fn write(path: &Path, value: &str, guard: BorrowedFd<'_>, limit: Duration) -> Result<()> {
    let doing = || format!("writing `{}` to {}", value.trim_end(), path.display());
    let file = OpenOptions::new().write(true).open(path).map_err(|error| Error::os(doing(), error))?;
    in_child(&file, Some(guard), Call::Write(value.as_bytes()), limit, &doing).map(drop)
}

/// Reads the first 256 bytes of a file.
///
/// # Errors
/// [`Error::Os`]; [`Error::Timeout`].
pub(crate) fn read(path: &Path, limit: Duration) -> Result<Vec<u8>> {
    let doing = || format!("reading {}", path.display());
    let file = File::open(path).map_err(|error| Error::os(doing(), error))?;
    in_child(&file, None, Call::Read, limit, &doing)
}

#[derive(Clone, Copy)]
enum Call<'a> {
    Read,
    Write(&'a [u8]),
}

fn in_child(
    file: &File,
    guard: Option<BorrowedFd<'_>>,
    call: Call<'_>,
    limit: Duration,
    doing: &dyn Fn() -> String,
) -> Result<Vec<u8>> {
    let os = |error: Errno| Error::os(doing(), error);
    let (answer, answers) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(os)?;
    // SAFETY: until it ends, the child makes only async-signal-safe system calls and allocates nothing, so a lock that
    // another thread held at the fork does not matter.
    match unsafe { fork() }.map_err(os)? {
        ForkResult::Child => child(file, &answers, guard, call),
        ForkResult::Parent { child } => {
            drop(answers);
            // Without a thread the child stays a zombie until we end, which harms less than giving up its answer.
            if let Err(error) = aside(move || _ = waitpid(child, None)) {
                tracing::warn!(%error, %child, "no thread to reap the child with");
            }
        }
    }
    let answer = answer_within(answer, limit).map_err(os)?;
    match answer.as_deref() {
        Some([0, content @ ..]) => Ok(content.to_vec()),
        Some([errno, ..]) => Err(os(Errno::from_raw(i32::from(*errno)))),
        Some([]) => Err(os(Errno::ECHILD)),
        None => Err(Error::Timeout { what: doing(), after: limit }),
    }
}

/// The child's answer: an errno and, if that is 0, what was read; nothing if it was killed. `None` at the deadline.
fn answer_within(answer: OwnedFd, limit: Duration) -> nix::Result<Option<Vec<u8>>> {
    let end = udrv_backend::clock::now() + limit;
    loop {
        let left = end.saturating_duration_since(udrv_backend::clock::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(answer.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return Ok(None),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => break,
            Err(error) => return Err(error),
        }
    }
    // one write of the child, of less than PIPE_BUF bytes, arrives whole
    let mut bytes = vec![0; 1 + LONGEST];
    let length = nix::unistd::read(&answer, &mut bytes)?;
    bytes.truncate(length);
    Ok(Some(bytes))
}

/// What the child does. Of our descriptors it keeps only those it needs: it may live long.
fn child(file: &File, answers: &OwnedFd, guard: Option<BorrowedFd<'_>>, call: Call<'_>) -> ! {
    // Not std's: those allocate when they are first used.
    // SAFETY: 0 is open from `keep_only` on, or the call fails with EBADF; nothing here closes it.
    let input = unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) };
    // SAFETY: as above.
    let output = unsafe { BorrowedFd::borrow_raw(libc::STDOUT_FILENO) };
    let mut answer = [0_u8; 1 + LONGEST];
    let done = keep_only(file, answers, guard).and_then(|()| match call {
        Call::Write(value) => nix::unistd::write(input, value).map(|_| 0),
        Call::Read => nix::unistd::read(input, &mut answer[1..]),
    });
    let length = match done {
        Ok(length) => 1 + length,
        Err(errno) => {
            answer[0] = errno as u8;
            1
        }
    };
    let told = nix::unistd::write(output, &answer[..length]);
    // SAFETY: _exit only ends this process; nothing of the parent's runs in it.
    unsafe { libc::_exit(i32::from(told.is_err())) }
}

/// The file as standard input, the answers as standard output, the guard as standard error; nothing else.
fn keep_only(file: &File, answers: &OwnedFd, guard: Option<BorrowedFd<'_>>) -> nix::Result<()> {
    dup2_stdin(file)?;
    dup2_stdout(answers)?;
    let first = match guard {
        Some(guard) => dup2_stderr(guard).map(|()| 3)?,
        None => 2,
    };
    // SAFETY: in the child nothing uses a descriptor from `first` on any more.
    Errno::result(unsafe { libc::close_range(first, libc::c_uint::MAX, 0) }).map(drop)
}

/// Does `work` on a thread of its own.
pub(super) fn aside(work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().spawn(work).map(drop)
}

/// Kills a program; it may take its time to die.
fn end(mut child: std::process::Child) -> std::io::Result<()> {
    child.kill()?;
    aside(move || drop(child.wait()))
}

/// Runs a program to its end and returns whether it succeeded, with what it said.
///
/// # Errors
/// [`Error::Os`] if it cannot be started; [`Error::Timeout`], and it is killed.
pub(crate) fn run(command: &mut std::process::Command, limit: Duration) -> Result<(bool, String)> {
    use std::process::Stdio;
    let what = format!("{command:?}").replace('"', "");
    let os = |error: std::io::Error| Error::os(format!("running {what}"), error);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(os)?;
    let (sender, said) = std::sync::mpsc::channel();
    if let Some(mut errors) = child.stderr.take() {
        let reading = aside(move || {
            let mut text = String::new();
            drop(errors.read_to_string(&mut text));
            // nobody listens any more after the deadline
            drop(sender.send(text));
        });
        if let Err(error) = reading {
            end(child).map_err(os)?;
            return Err(os(error));
        }
    }
    match said.recv_timeout(limit) {
        Ok(text) => Ok((child.wait().map_err(os)?.success(), text.trim().to_owned())),
        Err(_) => {
            end(child).map_err(os)?;
            Err(Error::Timeout { what: format!("the end of {what}"), after: limit })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[test]
    fn read_of_a_file_returns_its_content() {
        let content = read(Path::new("/proc/self/comm"), LIMIT).expect("readable");
        assert!(content.ends_with(b"\n"), "{content:?}");
    }

    #[test]
    fn write_that_the_kernel_refuses_is_its_error() {
        let guard = File::open("/dev/null").expect("/dev/null");
        let refused = write(Path::new("/dev/full"), "x", guard.as_fd(), LIMIT).expect_err("full");
        assert_eq!(refused.errno(), libc::ENOSPC);
        assert!(refused.to_string().contains("writing `x` to /dev/full"), "{refused}");
    }

    #[test]
    fn read_that_blocks_ends_at_its_deadline() {
        let folder = tempfile::tempdir().expect("folder");
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("fifo");
        // both ends open here: opening returns at once, and reading waits
        let ends = OpenOptions::new().read(true).write(true).open(&fifo).expect("open");
        let waited = read(&fifo, Duration::from_millis(50)).expect_err("nothing to read");
        assert!(matches!(waited, Error::Timeout { .. }), "{waited}");
        drop(ends);
    }

    #[test]
    fn program_that_does_not_end_is_killed_at_the_deadline() {
        let mut endless = std::process::Command::new("sleep");
        let waited = run(endless.arg("100"), Duration::from_millis(50)).expect_err("endless");
        assert!(waited.to_string().contains("sleep 100"), "{waited}");
    }
}
