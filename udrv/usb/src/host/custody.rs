//! A device held for another process: taken from the kernel's drivers, and given back whatever way that process ends.
//!
//! Whoever opens a usbfs node and passes the descriptor on shares it: what the other process claims is claimed by the open
//! file, which stays open here. So after that process is dead the interfaces can be released, which ends the transfers it
//! left in flight; and then, not before, the kernel's drivers get them back.
//!
//! This goes past libusb on purpose: transfers of the other process would come up in libusb here, with that process's
//! pointers in them.
#![expect(unsafe_code, reason = "usbfs's ioctls (linux/usbdevice_fs.h) have no safe binding")]

use super::sysfs::Sysfs;
use super::{UsbAddress, list};
use crate::descriptor::Configuration;
use crate::{Error, Result};
use nix::errno::Errno;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

/// `_IOR('U', 16, unsigned int)`.
const RELEASE_INTERFACE: libc::c_ulong = 0x8004_5510;
/// `_IOWR('U', 18, struct usbdevfs_ioctl)`, on a machine of 64 bits.
const INTERFACE_IOCTL: libc::c_ulong = 0xc010_5512;
/// `_IO('U', 20)`.
const RESET: libc::c_ulong = 0x5514;
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

/// A device's node, open, with the kernel's drivers taken off.
pub struct Custody {
    node: File,
    address: String,
    interfaces: Vec<u8>,
    had_driver: Vec<u8>,
}

impl Custody {
    /// Opens the device's node and takes all its interfaces from their drivers.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if there is no such device, no permission, or a program has an interface.
    pub fn take(address: &UsbAddress) -> Result<Self> {
        let context = rusb::Context::new().map_err(|error| super::failed("starting libusb", error))?;
        let device = list::find(&context, address)?;
        let (bus, ports) = (device.bus_number(), device.port_numbers().unwrap_or_default());
        let path = format!("/dev/bus/usb/{bus:03}/{:03}", device.address());
        let address = UsbAddress::Port { bus, ports: ports.clone() }.to_string();
        let node = OpenOptions::new().read(true).write(true).open(&path);
        let node = node.map_err(|error| Error::os(format!("opening {path}, the node of {address}"), error))?;
        let sysfs = Sysfs::new(bus, &ports);
        let active = sysfs.text("bConfigurationValue").and_then(|text| text.parse().ok()).unwrap_or(0);
        let bytes = sysfs.descriptors().unwrap_or_default();
        let configurations = list::split(&bytes);
        let parsed = configurations.iter().filter_map(|one| Configuration::parse(one).ok());
        let interfaces =
            parsed.into_iter().find(|one| one.value == active).map(|one| one.numbers()).unwrap_or_default();
        let mut custody = Self { node, address, interfaces, had_driver: Vec::new() };
        for interface in custody.interfaces.clone() {
            match sysfs.driver(active, interface).as_deref() {
                None => {}
                Some("usbfs") => {
                    let (device, why) = (custody.address.clone(), format!("a program has interface {interface}"));
                    let advice = "end that program (fuser -v /dev/bus/usb/*/* names it)".into();
                    // Dropping it gives back what has been taken so far.
                    return Err(Error::Unavailable { device, why, advice });
                }
                Some(_) => {
                    custody.on_interface(interface, DISCONNECT, "taking it from its kernel driver")?;
                    custody.had_driver.push(interface);
                }
            }
        }
        Ok(custody)
    }

    /// Its address, by port.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    fn on_interface(&self, interface: u8, code: libc::c_int, doing: &str) -> Result<()> {
        let mut argument = InterfaceIoctl { interface: interface.into(), code, data: std::ptr::null_mut() };
        // SAFETY: the structure is the one that this ioctl takes, and lives through the call; both codes take no data.
        let result = unsafe { libc::ioctl(self.node.as_raw_fd(), INTERFACE_IOCTL, &raw mut argument) };
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

    fn check(&self, result: libc::c_int, doing: impl FnOnce() -> String) -> Result<()> {
        if result >= 0 {
            return Ok(());
        }
        match Errno::last() {
            Errno::ENODEV => Err(Error::Gone { device: self.address.clone(), why: doing() }),
            errno => Err(Error::os(format!("{}: {}", self.address, doing()), errno)),
        }
    }

    /// After one user and before the next: ends what is in flight, releases every interface, and resets the device.
    ///
    /// # Errors
    /// [`Error::Gone`] if it was unplugged; [`Error::Os`].
    pub fn quiesce(&self) -> Result<()> {
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
        let quiet = self.quiesce();
        if matches!(quiet, Err(Error::Gone { .. })) {
            return;
        }
        if let Err(error) = quiet {
            tracing::warn!(%error, "before giving a USB device back");
        }
        for &interface in &self.had_driver {
            match self.on_interface(interface, CONNECT, "giving it back to its kernel driver") {
                // The driver of another interface has taken it along.
                Err(Error::Os { cause, .. }) if cause.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => tracing::warn!(%error, "giving a USB device back"),
                Ok(()) => {}
            }
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
        assert_eq!([DISCONNECT, CONNECT].map(|code| code as libc::c_ulong), [ioc(0, 22, 0), ioc(0, 23, 0)]);
    }
}
