//! `stub-driver usb serve`: the node of one USB device for one driver at a time.
//!
//! The connection is the lease. However the driver ends, the kernel closes the connection; then what it left in flight is
//! ended, its interfaces are released, the device is reset, and the next driver may have it. When the stub is told to end,
//! the kernel's drivers get the device back.

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use udrv_backend::Error;
use udrv_usb::host::{Custody, UsbAddress};
use udrv_usb::lease;

/// `stub-driver usb serve`
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// The device: usb:BUS-PORT or usb:VID:PID[:SERIAL].
    device: UsbAddress,
    /// Where the socket goes; it is called after the device (usb-1-2.sock).
    #[arg(long, default_value = "/run/udrv")]
    socket_dir: PathBuf,
    /// The user who may have the device; root only if not given.
    #[arg(long)]
    owner: Option<String>,
}

/// Serves until SIGTERM or SIGINT, or until the device is unplugged.
///
/// # Errors
/// What keeps it from taking the device or listening.
pub fn run(args: &ServeArgs) -> Result<()> {
    let signals = signals()?;
    let custody = Custody::take(&args.device)?;
    let path = args.socket_dir.join(format!("{}.sock", custody.address().replace(':', "-")));
    let socket = Socket::listen(&path, args.owner.as_deref())?;
    println!("serving {} at unix:{}", custody.address(), path.display());
    println!("ready");
    let ended = serve(&custody, &socket.listener, &signals);
    drop(socket);
    ended
}

fn signals() -> Result<SignalFd> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.add(Signal::SIGINT);
    mask.thread_block().context("cannot block signals")?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("cannot wait for signals")
}

/// A listening socket, and its name in the file system for as long as it listens.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    fn listen(path: &Path, owner: Option<&str>) -> Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        // One that a dead stub has left; a living one still holds the device, and taking it has failed.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove the old {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
        let socket = Self { listener, path: path.to_owned() };
        socket.listener.set_nonblocking(true)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        if let Some(name) = owner {
            let uid = match name.parse() {
                Ok(number) => nix::unistd::Uid::from_raw(number),
                Err(_) => {
                    nix::unistd::User::from_name(name)?.with_context(|| format!("there is no user `{name}`"))?.uid
                }
            };
            nix::unistd::chown(path, Some(uid), None)
                .with_context(|| format!("cannot give {} to {name}", path.display()))?;
        }
        Ok(socket)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "removing the socket");
        }
    }
}

fn serve(custody: &Custody, listener: &UnixListener, signals: &SignalFd) -> Result<()> {
    let mut driver: Option<UnixStream> = None;
    loop {
        let (told, knocked, ended) = {
            let mut waited =
                vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            waited.extend(driver.as_ref().map(|driver| PollFd::new(driver.as_fd(), PollFlags::POLLIN)));
            // No deadline: waiting for drivers is what it is for, and a signal ends it.
            match poll(&mut waited, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for drivers"),
            }
            let happened = |at: usize| waited.get(at).and_then(PollFd::any).unwrap_or(false);
            (happened(0), happened(1), happened(2))
        };
        if told {
            return Ok(());
        }
        // A driver has nothing to say: whatever comes from it ends the lease, as its end does.
        if ended && driver.take().is_some() {
            tracing::info!(device = custody.address(), "the driver has ended");
            match custody.quiesce() {
                Err(error @ Error::Gone { .. }) => return Err(error.into()),
                Err(error) => tracing::warn!(%error, "after a driver"),
                Ok(()) => {}
            }
        }
        if knocked && let Ok((connection, _)) = listener.accept() {
            let answered = if driver.is_some() {
                lease::refuse(&connection, "another driver has the device")
            } else {
                lease::give(&connection, custody.address(), custody.as_fd())
            };
            match answered {
                Ok(()) if driver.is_none() => driver = Some(connection),
                Ok(()) => {}
                Err(error) => tracing::info!(%error, "a driver went away"),
            }
        }
    }
}
