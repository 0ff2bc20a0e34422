//! Triggers, the pin's level and mask, and the messages a device has sent.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::SockType};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use udrv_backend::{Error, IrqIndex, Result, Trigger};

/// Where one vector is signalled.
enum Sink {
    /// Written without waiting whatever flags its owner set.
    Socket(UnixStream),
    /// An eventfd, which takes 2⁶⁴ - 2 signals before a write would wait; or a pipe, opened so that it never waits.
    File(std::fs::File),
}

impl Sink {
    fn new(trigger: Trigger<'_>) -> Result<Self> {
        let fd: OwnedFd =
            trigger.try_clone_to_owned().map_err(|error| Error::os("keeping an interrupt's descriptor", error))?;
        if getsockopt(&fd, SockType).is_ok() {
            return Ok(Self::Socket(fd.into()));
        }
        // Only a pipe has this, and asking does not reach a file system.
        if fcntl(&fd, FcntlArg::F_GETPIPE_SZ).is_ok() {
            // Opened anew, since O_NONBLOCK on its owner's own description would be seen by the owner.
            let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let pipe = OpenOptions::new().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(link);
            return pipe.map(Self::File).map_err(|error| Error::os("opening an interrupt's pipe for writing", error));
        }
        Ok(Self::File(fd.into()))
    }

    fn signal(&mut self) {
        let one = 1u64.to_ne_bytes();
        // A sink that is full has signals waiting already, and one that is gone has nobody to tell.
        match self {
            Self::Socket(socket) => {
                use nix::sys::socket::{MsgFlags, send};
                let _ = send(socket.as_raw_fd(), &one, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
            }
            Self::File(file) => {
                let room = poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO);
                if room == Ok(1) {
                    let _ = file.write(&one);
                }
            }
        }
    }
}

/// The triggers of one device, and what its pin and its messages were last seen to be.
pub(crate) struct Lines {
    pin: Vec<Option<Sink>>,
    msi: Vec<Option<Sink>>,
    msix: Vec<Option<Sink>>,
    level: bool,
    masked: bool,
    sent: Vec<u64>,
}

fn unarmed(count: usize) -> Vec<Option<Sink>> {
    std::iter::repeat_with(|| None).take(count).collect()
}

fn is_armed(vectors: &[Option<Sink>]) -> bool {
    vectors.iter().any(Option::is_some)
}

impl Lines {
    pub(crate) fn new(pin: u32, msi: u32, msix: u32, sent: &[u64]) -> Self {
        let [pin, msi, msix] = [pin, msi, msix].map(|count| unarmed(count as usize));
        Self { pin, msi, msix, level: false, masked: false, sent: sent.to_vec() }
    }

    fn vectors(&mut self, index: IrqIndex) -> &mut [Option<Sink>] {
        match index {
            IrqIndex::INTX => &mut self.pin,
            IrqIndex::MSI => &mut self.msi,
            IrqIndex::MSIX => &mut self.msix,
            _ => &mut [],
        }
    }

    pub(crate) fn count(&self, index: IrqIndex) -> u32 {
        let vectors = match index {
            IrqIndex::INTX => &self.pin,
            IrqIndex::MSI => &self.msi,
            IrqIndex::MSIX => &self.msix,
            _ => return 0,
        };
        vectors.len() as u32
    }

    /// Which other index is armed: a function uses one at a time (PCI 3.0, 6.8).
    pub(crate) fn armed_beside(&self, index: IrqIndex) -> Option<IrqIndex> {
        let all = [(IrqIndex::INTX, &self.pin), (IrqIndex::MSI, &self.msi), (IrqIndex::MSIX, &self.msix)];
        all.into_iter().find(|(other, vectors)| *other != index && is_armed(vectors)).map(|(other, _)| other)
    }

    /// The device's output after an access: the pin's level, and how many messages each vector has sent so far; those
    /// sent while it may not are lost.
    pub(crate) fn update(&mut self, level: bool, sent: &[u64], may_send: bool) {
        self.level = level;
        self.signal_pin();
        let armed = if is_armed(&self.msix) { &mut self.msix } else { &mut self.msi };
        for (vector, (now, before)) in sent.iter().zip(&mut self.sent).enumerate() {
            let news = *now != *before;
            *before = *now;
            // A function that has been given fewer vectors than it uses folds them (PCI 3.0, 6.8.3.4).
            let slot = vector.checked_rem(armed.len()).and_then(|vector| armed.get_mut(vector));
            if let Some(Some(sink)) = slot.filter(|_| news && may_send) {
                sink.signal();
            }
        }
    }

    /// After a reset. The counts of messages start over; that is no message, for bus mastering is off.
    pub(crate) fn reset(&mut self) {
        self.masked = false;
    }

    fn signal_pin(&mut self) {
        if self.level
            && !self.masked
            && let Some(Some(sink)) = self.pin.first_mut()
        {
            self.masked = true;
            sink.signal();
        }
    }

    pub(crate) fn set(&mut self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        let sinks: Vec<_> = triggers.iter().map(|trigger| trigger.map(Sink::new).transpose()).collect::<Result<_>>()?;
        for (slot, sink) in self.vectors(index).iter_mut().skip(start as usize).zip(sinks) {
            *slot = sink;
        }
        self.forget_mask();
        Ok(())
    }

    pub(crate) fn disable(&mut self, index: IrqIndex) {
        self.vectors(index).fill_with(|| None);
        self.forget_mask();
    }

    /// A pin without a trigger has no mask.
    fn forget_mask(&mut self) {
        self.masked &= is_armed(&self.pin);
    }

    pub(crate) fn mask_pin(&mut self, masked: bool) {
        self.masked = masked;
        self.forget_mask();
        self.signal_pin();
    }

    pub(crate) fn fire(&mut self, index: IrqIndex, vector: u32) {
        if let Some(Some(sink)) = self.vectors(index).get_mut(vector as usize) {
            sink.signal();
        }
    }
}
