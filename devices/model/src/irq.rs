//! Triggers, the pin's level and mask, and the edge that sends a message.

use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use udrv_backend::{Error, IrqIndex, Result, Trigger};

/// Where one vector is signalled.
enum Sink {
    /// Written without waiting whatever flags its owner set.
    Socket(UnixStream),
    /// An eventfd, which takes 2⁶⁴ - 2 signals before a write would wait.
    File(std::fs::File),
}

impl Sink {
    fn new(trigger: Trigger<'_>) -> Result<Self> {
        let fd: OwnedFd =
            trigger.try_clone_to_owned().map_err(|error| Error::os("keeping an interrupt's descriptor", error))?;
        let is_socket = nix::sys::socket::getsockopt(&fd, nix::sys::socket::sockopt::SockType).is_ok();
        Ok(if is_socket { Self::Socket(fd.into()) } else { Self::File(fd.into()) })
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
                let _ = file.write(&one);
            }
        }
    }
}

pub(crate) struct Lines {
    pin: Option<Sink>,
    level: bool,
    masked: bool,
    messages: Vec<Option<Sink>>,
    wanted: bool,
}

impl Lines {
    pub(crate) fn new(msi_vectors: u32) -> Self {
        let messages = std::iter::repeat_with(|| None).take(msi_vectors as usize).collect();
        Self { pin: None, level: false, masked: false, messages, wanted: false }
    }

    /// The device's output after an access: the pin's level, and whether it wants to send a message.
    pub(crate) fn update(&mut self, level: bool, wants: bool) {
        self.level = level;
        self.signal_pin();
        let rising = wants && !self.wanted;
        self.wanted = wants;
        // A function uses its pin or its messages, never both (PCI 3.0, 6.8.3.3): messages where they are armed.
        if rising && let Some(Some(sink)) = self.messages.first_mut() {
            sink.signal();
        }
    }

    fn signal_pin(&mut self) {
        if self.level
            && !self.masked
            && self.messages.iter().all(Option::is_none)
            && let Some(sink) = &mut self.pin
        {
            self.masked = true;
            sink.signal();
        }
    }

    pub(crate) fn set(&mut self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        let sinks: Vec<_> = triggers.iter().map(|trigger| trigger.map(Sink::new).transpose()).collect::<Result<_>>()?;
        for (vector, sink) in (start as usize..).zip(sinks) {
            if index == IrqIndex::INTX {
                self.pin = sink;
            } else if let Some(slot) = self.messages.get_mut(vector) {
                *slot = sink;
            }
        }
        Ok(())
    }

    pub(crate) fn disable(&mut self, index: IrqIndex) {
        match index {
            IrqIndex::INTX => {
                self.pin = None;
                self.masked = false;
            }
            _ => self.messages.fill_with(|| None),
        }
    }

    pub(crate) fn mask_pin(&mut self, masked: bool) {
        self.masked = masked;
        self.signal_pin();
    }

    pub(crate) fn fire(&mut self, index: IrqIndex, vector: u32) {
        match index {
            IrqIndex::INTX if self.masked => {}
            IrqIndex::INTX => {
                if let Some(sink) = &mut self.pin {
                    self.masked = true;
                    sink.signal();
                }
            }
            _ => {
                if let Some(Some(sink)) = self.messages.get_mut(vector as usize) {
                    sink.signal();
                }
            }
        }
    }
}
