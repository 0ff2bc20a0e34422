//! The contract: [`UsbBackend`], whatever transfers can be submitted to.

use crate::descriptor::Descriptors;
use crate::transfer::{Done, Refused, Transfer, TransferId};
use crate::{Buffer, EndpointAddress, Result};
use serde::Serialize;
use std::sync::Arc;

/// How fast a device is connected (USB 3.2, chapter 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Speed {
    /// Not known.
    Unknown,
    /// 1.5 Mbit/s.
    Low,
    /// 12 Mbit/s.
    Full,
    /// 480 Mbit/s.
    High,
    /// 5 Gbit/s.
    Super,
    /// 10 Gbit/s and more.
    SuperPlus,
}

impl std::fmt::Display for Speed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown speed",
            Self::Low => "1.5 Mbit/s",
            Self::Full => "12 Mbit/s",
            Self::High => "480 Mbit/s",
            Self::Super => "5 Gbit/s",
            Self::SuperPlus => "10 Gbit/s",
        })
    }
}

/// What is known of a device once it is open.
#[derive(Debug, Clone, PartialEq)]
pub struct UsbInfo {
    /// The address it was opened by, such as `usb:1-2` or `model:usb-storage`.
    pub address: String,
    /// The bus's number.
    pub bus: u8,
    /// The device's number on it (1 to 127).
    pub number: u8,
    /// The ports from the root hub to it; empty for a model.
    pub ports: Vec<u8>,
    /// How fast it is connected.
    pub speed: Speed,
    /// What it says of itself, as it was when opened.
    pub descriptors: Descriptors,
}

/// One USB device.
///
/// A device on the bus through libusb, a software model and a device of another machine are backends; a recorder and a
/// fault plan are backends around one. Whoever drives a device takes a [`crate::Device`], which adds deadlines and
/// waiting to a backend.
///
/// # Promises
/// * A transfer that [`UsbBackend::submit`] accepted ends exactly once: `done` is called with its buffer. One that it
///   refused comes back at once, and `done` is dropped.
/// * Transfers of one endpoint end in the order in which they were submitted, except those cancelled.
/// * What arrived before a transfer was cancelled, or failed, is in its completion.
/// * Once the device is gone every transfer in flight ends with [`crate::Status::Gone`], and so does every later one,
///   or it is refused with [`crate::Error::Gone`].
/// * Dropping the backend ends what is in flight, releases the interfaces, and then gives them back to the kernel
///   drivers they had.
pub trait UsbBackend: Send + Sync {
    /// What the device says of itself.
    fn info(&self) -> &UsbInfo;

    /// Starts a transfer. `done` is called on any thread, perhaps before this returns: it must not wait for another
    /// transfer.
    ///
    /// # Errors
    /// [`Refused`], with the transfer, and as its error: [`crate::Error::Protocol`] for one that cannot be,
    /// [`crate::Error::Gone`], [`crate::Error::Unavailable`] where memory for transfers is short,
    /// [`crate::Error::Os`].
    fn submit(&self, id: TransferId, transfer: Transfer, done: Done) -> std::result::Result<(), Box<Refused>>;

    /// Memory for a transfer's data: such that nothing needs to be copied between it and the device, where there is any.
    /// What it costs to get is worth it for large transfers that use it again and again.
    fn buffer(&self, length: usize) -> Buffer {
        Buffer::zeroed(length)
    }

    /// Asks for the end of one transfer; it still ends by `done`, with [`crate::Status::Cancelled`] unless it was
    /// faster. Its neighbours go on. One that has ended is not an error.
    fn cancel(&self, id: TransferId);

    /// `bConfigurationValue` of the active configuration, 0 for none.
    ///
    /// # Errors
    /// [`crate::Error::Gone`], [`crate::Error::Os`], here and below.
    fn configuration(&self) -> Result<u8>;

    /// SET_CONFIGURATION. Interfaces must not be claimed.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`] if an interface is in use.
    fn set_configuration(&self, value: u8) -> Result<()>;

    /// Takes an interface, from its kernel driver if it has one.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`] if there is no such interface, or another program holds it.
    fn claim(&self, interface: u8) -> Result<()>;

    /// Ends what is in flight on an interface and lets go of it. Its kernel driver comes back when all are released.
    ///
    /// # Errors
    /// See [`UsbBackend::configuration`].
    fn release(&self, interface: u8) -> Result<()>;

    /// Gives the device back in the middle of whatever its driver does, for a process that was told to end: nothing is taken
    /// any more, what is in flight ends, and the kernel's drivers find the device as after power-on.
    ///
    /// A `release` that another thread calls meanwhile returns when this is done: that thread may end the process.
    ///
    /// # Errors
    /// See [`UsbBackend::configuration`].
    fn abandon(&self) -> Result<()> {
        let configurations = &self.info().descriptors.configurations;
        configurations.iter().flat_map(|one| one.numbers()).try_for_each(|interface| self.release(interface))
    }

    /// SET_INTERFACE.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`] if there is no such setting.
    fn set_alternate(&self, interface: u8, alternate: u8) -> Result<()>;

    /// CLEAR_FEATURE(ENDPOINT_HALT), and the data toggle with it.
    ///
    /// # Errors
    /// See [`UsbBackend::configuration`].
    fn clear_halt(&self, endpoint: EndpointAddress) -> Result<()>;

    /// Resets the port: the device is as after power-on, configuration and alternate settings are restored.
    ///
    /// # Errors
    /// [`crate::Error::Gone`] if it came back as something else.
    fn reset(&self) -> Result<()>;
}

/// A backend whose kind is chosen at run time, by its address.
pub type AnyUsb = Arc<dyn UsbBackend>;
