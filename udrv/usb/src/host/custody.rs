//! A device held for another process: taken from the kernel's drivers, and given back whatever way that process ends.
//!
//! Whoever opens a usbfs node and passes the descriptor on shares it: what the other process claims is claimed by the open
//! file, which stays open here. So after that process is dead the interfaces can be released, which ends the transfers it
//! left in flight; and then, not before, the kernel's drivers get them back. Should it live on, with the descriptor, its open
//! file loses the right to claim, to reset and to disconnect: the kernel keeps this by the file, so that what is done here
//! afterwards goes through another one.
//!
//! This goes past libusb on purpose: transfers of the other process would come up in libusb here, with that process's
//! pointers in them.
#![expect(unsafe_code, reason = "usbfs's ioctls (linux/usbdevice_fs.h) have no safe binding")]

use super::sysfs::Sysfs;
use super::{UsbAddress, list};
use crate::descriptor::Configuration;
use crate::{Error, Result};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

/// `_IOR('U', 16, unsigned int)`.
const RELEASE_INTERFACE: libc::c_ulong = 0x8004_5510;
/// `_IOWR('U', 18, struct usbdevfs_ioctl)`, on a machine of 64 bits.
const INTERFACE_IOCTL: libc::c_ulong = 0xc010_5512;
/// `_IO('U', 20)`.
const RESET: libc::c_ulong = 0x5514;
/// `_IOW('U', 30, __u32)`.
const DROP_PRIVILEGES: libc::c_ulong = 0x4004_551e;
/// `_IO('U', 22)`, within [`INTERFACE_IOCTL`].
const DISCONNECT: libc::c_int = 0x5516;
/// `_IO('U', 23)`, within [`INTERFACE_IOCTL`].
const CONNECT: libc::c_int = 0x5517;

/// `struct usbdevfs_ioctl`.
#[repr(C)]
struct InterfaceIoctl {
    interface: libc::c_int,
    code: libc::c_int,
    data: *mut libc::c_void,
}

/// What a device was before it was taken: all that giving it back needs, should whoever took it be dead by then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// Where it is plugged in, such as `usb:1-2`.
    pub address: String,
    /// Its number on the bus, which is another one once it was plugged in anew.
    pub number: u8,
    /// `bConfigurationValue`.
    pub configuration: u8,
    /// The interfaces that kernel drivers had.
    pub driven: BTreeSet<u8>,
}

/// A device's node, open. Dropping it gives the device back, if it was taken.
pub struct Custody {
    /// What the other process is given.
    node: File,
    /// For the kernel's drivers.
    own: File,
    port: UsbAddress,
    address: String,
    interfaces: Vec<u8>,
    before: Before,
    taken: bool,
}

impl Custody {
    /// Opens the device's node, and changes nothing yet.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if there is no such device, or a program has an interface; [`Error::Os`] without permission.
    pub fn open(address: &UsbAddress) -> Result<Self> {
        let context = rusb::Context::new().map_err(|error| super::failed("starting libusb", error))?;
        let device = list::find(&context, address)?;
        let (bus, ports) = (device.bus_number(), device.port_numbers().unwrap_or_default());
        let path = format!("/dev/bus/usb/{bus:03}/{:03}", device.address());
        let port = UsbAddress::Port { bus, ports: ports.clone() };
        let address = port.to_string();
        let open = || {
            let node = OpenOptions::new().read(true).write(true).open(&path);
            node.map_err(|error| Error::os(format!("opening {path}, the node of {address}"), error))
        };
        let (node, own) = (open()?, open()?);
        let sysfs = Sysfs::new(bus, &ports);
        let configuration = sysfs.text("bConfigurationValue").and_then(|text| text.parse().ok()).unwrap_or(0);
        let bytes = sysfs.descriptors().unwrap_or_default();
        let configurations = list::split(&bytes);
        let mut parsed = configurations.iter().filter_map(|one| Configuration::parse(one).ok());
        let interfaces = parsed.find(|one| one.value == configuration).map(|one| one.numbers()).unwrap_or_default();
        let mut driven = BTreeSet::new();
        for &interface in &interfaces {
            match sysfs.driver(configuration, interface).as_deref() {
                None => {}
                Some("usbfs") => {
                    let (device, why) = (address, format!("a program has interface {interface}"));
                    let advice = "end that program (fuser -v /dev/bus/usb/*/* names it)".into();
                    return Err(Error::Unavailable { device, why, advice });
                }
                Some(_) => drop(driven.insert(interface)),
            }
        }
        let before = Before { address: address.clone(), number: device.address(), configuration, driven };
        Ok(Self { node, own, port, address, interfaces, before, taken: false })
    }

    /// What is to be remembered before it is taken.
    #[must_use]
    pub const fn before(&self) -> &Before {
        &self.before
    }

    /// Goes on from where a dead process left it: what kernel drivers had then, they are given as well.
    pub fn inherit(&mut self, before: &Before) {
        if (&before.address, before.number) == (&self.before.address, self.before.number) {
            self.before.driven.extend(&before.driven);
        }
    }

    /// Whether an interface that a kernel driver had has none.
    #[must_use]
    pub fn lacks_drivers(&self) -> bool {
        self.before.driven.iter().any(|&interface| self.driver_of(interface).is_none())
    }

    /// Takes all its interfaces from their kernel drivers.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::Os`]; what was taken so far goes back when this is dropped.
    pub fn take(&mut self) -> Result<()> {
        self.taken = true;
        for &interface in &self.before.driven {
            match self.on_interface(interface, DISCONNECT, "taking it from its kernel driver") {
                // None has it: it was left so, or has lost it in the meantime.
                Err(Error::Os { cause, .. }) if cause.raw_os_error() == Some(libc::ENODATA) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Its folder in sysfs.
    #[must_use]
    pub fn folder(&self) -> std::path::PathBuf {
        let UsbAddress::Port { bus, ports } = &self.port else { return std::path::PathBuf::new() };
        Sysfs::new(*bus, ports).folder().to_owned()
    }

    /// Where it is plugged in.
    #[must_use]
    pub const fn port(&self) -> &UsbAddress {
        &self.port
    }

    /// Ends what its user left in flight, releases and resets it, and gives it back to the kernel's drivers.
    ///
    /// # Errors
    /// The first thing that went wrong; everything is tried nevertheless. [`Error::Gone`] if it was unplugged.
    pub fn give_back(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.taken) {
            return Ok(());
        }
        let mut outcome = self.quiesce();
        if matches!(outcome, Err(Error::Gone { .. })) {
            return outcome;
        }
        self.drop_privileges();
        for &interface in &self.before.driven {
            let connected = self.connect(interface);
            if outcome.is_ok() {
                outcome = connected;
            }
        }
        outcome
    }

    /// Lets the kernel's drivers have an interface.
    fn connect(&self, interface: u8) -> Result<()> {
        let connect = || match self.on_interface(interface, CONNECT, "giving it back to its kernel driver") {
            // Somebody has it.
            Err(Error::Os { cause, .. }) if cause.raw_os_error() == Some(libc::EBUSY) => Ok(()),
            other => other,
        };
        connect()?;
        if self.driver_of(interface).as_deref() != Some("usbfs") {
            return Ok(());
        }
        // A driver that lives on has kept the node, and was faster.
        self.on_interface(interface, DISCONNECT, "taking it from a driver whose lease is over")?;
        connect()
    }

    fn driver_of(&self, interface: u8) -> Option<String> {
        let UsbAddress::Port { bus, ports } = &self.port else { return None };
        Sysfs::new(*bus, ports).driver(self.before.configuration, interface)
    }

    /// Its address, by port.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    fn on_interface(&self, interface: u8, code: libc::c_int, doing: &str) -> Result<()> {
        let mut argument = InterfaceIoctl { interface: interface.into(), code, data: std::ptr::null_mut() };
        // SAFETY: the structure is the one that this ioctl takes, and lives through the call; both codes take no data.
        let result = unsafe { libc::ioctl(self.own.as_raw_fd(), INTERFACE_IOCTL, &raw mut argument) };
        self.check(result, || format!("interface {interface}, {doing}"))
    }

    fn release(&self, interface: u8) -> Result<()> {
        let number = libc::c_uint::from(interface);
        // SAFETY: the ioctl reads one unsigned int, which lives through the call.
        let result = unsafe { libc::ioctl(self.node.as_raw_fd(), RELEASE_INTERFACE, &raw const number) };
        self.check(result, || format!("releasing interface {interface}"))
    }

    fn reset(&self) -> Result<()> {
        // SAFETY: the ioctl takes no argument.
        let result = unsafe { libc::ioctl(self.node.as_raw_fd(), RESET) };
        self.check(result, || "resetting it".into())
    }

    /// From now on no interface can be claimed through the node that was given away, and nothing that others have be disturbed.
    fn drop_privileges(&self) {
        let interfaces: u32 = 0;
        // SAFETY: the ioctl reads a mask of 32 bits, which lives through the call.
        let result = unsafe { libc::ioctl(self.node.as_raw_fd(), DROP_PRIVILEGES, &raw const interfaces) };
        if let Err(error) = self.check(result, || "taking the rights of its driver".into()) {
            // Before Linux 4.6.
            tracing::debug!(%error, "a driver that lives on keeps its rights");
        }
    }

    fn check(&self, result: libc::c_int, doing: impl FnOnce() -> String) -> Result<()> {
        if result >= 0 {
            return Ok(());
        }
        match Errno::last() {
            Errno::ENODEV => Err(Error::Gone { device: self.address.clone(), why: doing() }),
            errno => Err(Error::os(format!("{}: {}", self.address, doing()), errno)),
        }
    }

    /// Ends what is in flight, releases every interface, and resets the device.
    fn quiesce(&self) -> Result<()> {
        for &interface in &self.interfaces {
            match self.release(interface) {
                // EINVAL: not claimed.
                Err(Error::Os { cause, .. }) if cause.raw_os_error() == Some(libc::EINVAL) => {}
                other => other?,
            }
        }
        self.reset()
    }
}

impl AsFd for Custody {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.node.as_fd()
    }
}

impl Drop for Custody {
    fn drop(&mut self) {
        match self.end() {
            Ok(()) | Err(Error::Gone { .. }) => {}
            Err(error) => tracing::warn!(%error, "giving a USB device back"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `_IOC` of asm-generic/ioctl.h.
    const fn ioc(direction: libc::c_ulong, number: libc::c_ulong, size: usize) -> libc::c_ulong {
        direction << 30 | (size as libc::c_ulong) << 16 | (b'U' as libc::c_ulong) << 8 | number
    }

    #[test]
    fn ioctl_numbers_are_those_of_the_header() {
        const READ: libc::c_ulong = 2;
        const BOTH: libc::c_ulong = 3;
        assert_eq!(RELEASE_INTERFACE, ioc(READ, 16, size_of::<libc::c_uint>()));
        assert_eq!(INTERFACE_IOCTL, ioc(BOTH, 18, size_of::<InterfaceIoctl>()));
        assert_eq!(RESET, ioc(0, 20, 0));
        assert_eq!(DROP_PRIVILEGES, ioc(1, 30, size_of::<u32>()));
        assert_eq!([DISCONNECT, CONNECT].map(|code| code as libc::c_ulong), [ioc(0, 22, 0), ioc(0, 23, 0)]);
    }
}
