//! USB devices: found, opened, driven, recorded, modelled.
//!
//! **Whatever is a USB device implements [`UsbBackend`]; whatever drives one takes a [`Device`].** A device on the bus
//! ([`host`], through libusb and the kernel's usbfs) and a software model ([`software`]) are backends; a recorder
//! ([`record`]) and a fault plan ([`faults`]) are backends around one.
//!
//! * A transfer is submitted with a deadline, and ends once: as it should, or with the [`Status`] that says why not. What
//!   arrived before it failed is in its [`Completion`].
//! * [`Device::submit_then`] is the core: a callback. [`Device::submit`] gives something to wait for, or to `.await`.
//!   [`CompletionQueue`] turns completions into interrupts of an interrupt domain, so that a USB driver is written with
//!   the same sections and handlers as a PCI driver.
//! * One thread serves all devices of the process, and no callback runs while a lock of this crate is held.
//!
//! What must not be here: any knowledge of a device class but its name, and any dependency on the runtime, since the
//! stub uses this crate too.

mod backend;
mod buffer;
pub mod descriptor;
mod device;
pub mod faults;
pub mod host;
pub mod lease;
mod queue;
mod reactor;
pub mod record;
pub mod software;
mod transfer;
pub mod usbip;

pub use backend::{AnyUsb, Speed, UsbBackend, UsbInfo};
pub use buffer::Buffer;
pub use device::{Device, Handle, Pending};
pub use queue::{CompletionQueue, LINE};
pub use transfer::{
    Completion, Done, EndpointAddress, Kind, Packet, Refused, Setup, Status, Transfer, TransferFlags, TransferId,
};
pub use udrv_backend::{Error, Result};
