//! The socket, its connections, and their requests.

use super::budget::Budget;
use super::mailbox::{Job, Mailbox};
use super::negotiate::negotiate;
use super::peer::{LOOK, PATIENCE, Peer, wrong};
use super::wire::{self, Command, Geometry, Request, errno};
use super::{Disk, Ended};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_to, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use udrv_backend::{Error, Result};

/// A socket that clients may connect to. The file goes with it.
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Somebody else's by now, or gone: either way not ours to speak of.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Listens at `path`, for this user only. A socket that nobody listens at any more is replaced.
pub fn bind(path: &Path) -> Result<Listener> {
    let doing = || format!("listening at {}", path.display());
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket {
        if UnixStream::connect(path).is_ok() {
            return Err(Error::Unavailable {
                device: path.display().to_string(),
                why: "somebody listens there".into(),
                advice: "end that server first, or give another path".into(),
            });
        }
        std::fs::remove_file(path).map_err(|error| Error::os(doing(), error))?;
    }
    let os = |errno: nix::errno::Errno| Error::os(doing(), errno);
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None);
    let fd = fd.map_err(os)?;
    // Before it has a name: the file is made with what the socket has.
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(os)?;
    bind_to(std::os::fd::AsRawFd::as_raw_fd(&fd), &UnixAddr::new(path).map_err(os)?).map_err(os)?;
    let listener = Listener { socket: UnixListener::from(fd), path: path.into() };
    listen(&listener.socket, Backlog::new(16).map_err(os)?).map_err(os)?;
    Ok(listener)
}

/// One export, with a disk for each connection there may be.
pub struct Server<D> {
    geometry: Geometry,
    /// Those that no connection has.
    disks: Mutex<Vec<D>>,
    budget: Budget,
    /// See [`Peer::new`].
    pub(super) patience: Duration,
    /// What ended the disk, for all connections.
    failed: Mutex<Option<Error>>,
}

impl<D: Disk> Server<D> {
    pub fn new(geometry: Geometry, disks: Vec<D>) -> Self {
        let (disks, failed) = (Mutex::new(disks), Mutex::new(None));
        Self { geometry, disks, budget: Budget::default(), patience: PATIENCE, failed }
    }

    /// Serves until `stop` says so, or the disk is gone; requests that have come are answered first.
    pub fn run(&self, listener: &Listener, stop: &(dyn Fn() -> bool + Sync)) -> Result<()> {
        let ends = || stop() || lock(&self.failed).is_some();
        std::thread::scope(|scope| {
            while !ends() {
                let Some(stream) = accept(listener)? else { continue };
                let Some(disk) = lock(&self.disks).pop() else {
                    tracing::warn!("a client more than there are queues for is turned away: see --connections");
                    continue;
                };
                let serve = move || self.connection(stream, disk, &ends);
                let started = std::thread::Builder::new().name("nbd".into()).spawn_scoped(scope, serve);
                started.map_err(|error| Error::os("starting a thread for an NBD client", error))?;
            }
            Ok::<(), Error>(())
        })?;
        lock(&self.failed).take().map_or(Ok(()), Err)
    }

    fn connection(&self, stream: UnixStream, mut disk: D, ends: &(dyn Fn() -> bool + Sync)) {
        let mut peer = Peer::new(stream, self.patience, ends);
        let served = negotiate(&mut peer, &self.geometry)
            .and_then(|goes_on| if goes_on { self.requests(&mut peer, &mut disk) } else { Ok(()) });
        if let Err(error) = served {
            tracing::warn!(%error, "an NBD connection ended");
        }
        lock(&self.disks).push(disk);
    }

    /// Takes requests in on a thread of its own, and answers them on this one, until there are no more.
    fn requests(&self, peer: &mut Peer<'_>, disk: &mut D) -> Result<()> {
        let (mailbox, wake) = (Mailbox::new(&self.budget), disk.waker());
        let mut replies = peer.another()?;
        std::thread::scope(|scope| {
            let take_in = || {
                let taken = self.take_in(peer, &mailbox, &wake);
                let is_first = mailbox.close();
                if taken.is_err() {
                    // What was set aside for the rest of a request is free once the replies before it are out of the way.
                    peer.leave();
                }
                wake();
                // The end of a client that was left while it was answered is no news.
                if is_first { taken } else { Ok(()) }
            };
            let taking = std::thread::Builder::new().name("nbd-requests".into()).spawn_scoped(scope, take_in);
            let taking = taking.map_err(|error| Error::os("starting a thread for an NBD client", error))?;
            let answered = self.answer(&mut replies, disk, &mailbox);
            let panicked = |_| Err(wrong("a request that ended its thread", "an answer"));
            // That there are no more requests comes first: a client that was left for it takes no replies either.
            taking.join().unwrap_or_else(panicked).and(answered)
        })
    }

    /// Until the client has no more requests, or breaks the protocol, or the server is to end.
    fn take_in(&self, peer: &mut Peer<'_>, mailbox: &Mailbox<'_>, wake: &(dyn Fn() + Send + Sync)) -> Result<()> {
        let mut head = [0; wire::REQUEST_SIZE];
        while peer.begin(&mut head)? {
            let Some(request) = Request::decode(head) else {
                return Err(wrong("no request", "its magic number"));
            };
            if request.command == Command::Disconnect {
                return Ok(());
            }
            if request.payload > wire::MAX_DATA {
                return Err(wrong(format!("a write of {} bytes", request.payload), "32 MiB at most"));
            }
            if !mailbox.has_room_for(&request, || peer.ends()) {
                return Ok(());
            }
            let mut data = vec![0; request.payload as usize];
            peer.receive(&mut data)?;
            let refusal = self.check(&request).err();
            if refusal.is_some() {
                data = Vec::new();
            }
            if mailbox.put(Job { request, data }, refusal) {
                wake();
            }
        }
        Ok(())
    }

    /// Hands requests to the disk, and answers each when it has ended: all that were taken in, whatever happens.
    fn answer(&self, peer: &mut Peer<'_>, disk: &mut D, mailbox: &Mailbox<'_>) -> Result<()> {
        let mut sent = Ok(());
        let mut under_way = 0usize;
        let mut reply = |Ended { request, error, data }: Ended| {
            // To a client that takes no answers there are none.
            if sent.is_ok() {
                let is_read = request.command == Command::Read && error == 0;
                sent = peer.send(&wire::reply_head(request.cookie, error), if is_read { &data } else { &[] });
                if sent.is_err() {
                    mailbox.close();
                    peer.leave();
                }
            }
            // Before another request may take as much.
            drop(data);
            mailbox.answered(&request);
        };
        loop {
            while disk.has_room()
                && let Some((job, refusal)) = mailbox.take()
            {
                let is_gone = || lock(&self.failed).is_some().then_some(errno::ESHUTDOWN);
                match refusal.or_else(is_gone) {
                    Some(error) => reply(Ended { request: job.request, error, data: Vec::new() }),
                    None => {
                        disk.begin(job);
                        under_way += 1;
                    }
                }
            }
            if under_way == 0 {
                if mailbox.await_job() { continue } else { break }
            }
            let has_room = disk.has_room();
            mailbox.waits_elsewhere(true);
            let waited = disk.wait(&|| has_room && mailbox.has_job(), &mut |ended| {
                under_way = under_way.saturating_sub(1);
                reply(ended);
            });
            mailbox.waits_elsewhere(false);
            if let Err(error) = waited {
                tracing::warn!(%error, "the disk ended");
                under_way = 0;
                lock(&self.failed).get_or_insert(error);
            }
        }
        sent
    }

    /// Whether the request is one for this disk.
    fn check(&self, request: &Request) -> std::result::Result<(), u32> {
        let Geometry { bytes, block_size, read_only, can_trim, can_zero } = self.geometry;
        let length = u64::from(request.length);
        let writes = match request.command {
            Command::Flush => return Ok(()),
            Command::Read if request.length > wire::MAX_DATA => return Err(errno::EINVAL),
            Command::Read => false,
            Command::Write => true,
            Command::Trim if can_trim => true,
            Command::WriteZeroes if can_zero => true,
            _ => return Err(errno::EINVAL),
        };
        if writes && read_only {
            return Err(errno::EPERM);
        }
        if request.offset.checked_add(length).is_none_or(|end| end > bytes) {
            return Err(if writes { errno::ENOSPC } else { errno::EINVAL });
        }
        let whole = |value: u64| value.is_multiple_of(block_size.into());
        if whole(request.offset) && whole(length) { Ok(()) } else { Err(errno::EINVAL) }
    }
}

/// The next client; `None` if none comes for a while.
fn accept(listener: &Listener) -> Result<Option<UnixStream>> {
    let mut fds = [PollFd::new(listener.socket.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
    match poll(&mut fds, timeout) {
        Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(None),
        Ok(_) => {}
        Err(errno) => return Err(Error::os("waiting for NBD clients", errno)),
    }
    match listener.socket.accept() {
        // It is blocking: what accept returns does not inherit that it is not.
        Ok((stream, _)) => Ok(Some(stream)),
        Err(error) => {
            // Of a client that has left already, or for want of descriptors: neither ends the server.
            tracing::warn!(%error, "accepting an NBD client");
            Ok(None)
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
