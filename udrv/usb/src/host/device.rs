//! [`HostDevice`]: a device through usbfs as a [`UsbBackend`].

use super::mapping::Mapping;
use super::sysfs::Sysfs;
use super::transfer::{self, InFlight};
use super::{Bus, UsbAddress, failed, list};
use crate::backend::{UsbBackend, UsbInfo};
use crate::descriptor::{Configuration, Descriptors, DeviceDescriptor, Endpoint};
use crate::lease::Lease;
use crate::reactor::Source as _;
use crate::transfer::{Done, EndpointAddress, Kind, Refused, Transfer, TransferId};
use crate::{Buffer, Error, Result};
use std::collections::BTreeSet;
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// How long transfers may take to end once they are cancelled, before the device is closed over them.
const CANCEL: Duration = Duration::from_secs(10);

/// A device, open.
pub(super) struct HostDevice {
    info: UsbInfo,
    open: Option<Open>,
    bus: Arc<Bus>,
    /// The node, where a stub has opened it for us, and the connection that is the lease on it.
    lease: Option<Lease>,
}

/// What closing takes along, to another thread if need be.
struct Open {
    handle: rusb::DeviceHandle<rusb::Context>,
    in_flight: Arc<InFlight>,
    state: Mutex<State>,
    address: String,
    /// Dropped after the handle.
    _closed: LookAgain,
}

/// Has the USB thread look at libusb's descriptors once more, after a handle of this bus has been closed. libusb handles no
/// events while another thread closes one (`libusb_try_lock_events`), and what was told meanwhile is not told again.
struct LookAgain(Weak<Bus>);

impl Drop for LookAgain {
    fn drop(&mut self) {
        if let Some(bus) = self.0.upgrade() {
            let weak = Weak::clone(&self.0);
            bus.reactor.after(Duration::ZERO, move || {
                if let Some(bus) = weak.upgrade() {
                    bus.ready();
                }
            });
        }
    }
}

#[derive(Default)]
struct State {
    claimed: BTreeSet<u8>,
    /// Interfaces that a kernel driver had when we came.
    had_driver: BTreeSet<u8>,
    /// Given back in the middle of whatever was going on.
    abandoned: bool,
}

impl HostDevice {
    pub(super) fn open(bus: &Arc<Bus>, device: &rusb::Device<rusb::Context>) -> Result<Self> {
        let ports = device.port_numbers().unwrap_or_default();
        let address = UsbAddress::Port { bus: device.bus_number(), ports: ports.clone() }.to_string();
        let closed = LookAgain(Arc::downgrade(bus));
        let handle = device.open().map_err(|error| explain(&address, "opening it", error))?;
        let bytes = Sysfs::new(device.bus_number(), &ports)
            .descriptors()
            .map_err(|error| Error::os(format!("reading the descriptors of {address}"), error))?;
        Self::new(bus, (closed, handle), address, &bytes, None)
    }

    pub(super) fn wrap(bus: &Arc<Bus>, lease: Lease) -> Result<Self> {
        let address = lease.address.clone();
        let mut bytes = vec![0; 1 << 16];
        // usbfs gives the device descriptor and the configurations, as sysfs does.
        let read = nix::sys::uio::pread(&lease.node, &mut bytes, 0);
        let read = read.map_err(|error| Error::os(format!("reading the descriptors of {address}"), error))?;
        bytes.truncate(read);
        let closed = LookAgain(Arc::downgrade(bus));
        let handle = transfer::wrap(&bus.context, lease.node.as_raw_fd())
            .map_err(|error| explain(&address, "opening it", error))?;
        Self::new(bus, (closed, handle), address, &bytes, Some(lease))
    }

    fn new(
        bus: &Arc<Bus>,
        // The handle is dropped first.
        (closed, handle): (LookAgain, rusb::DeviceHandle<rusb::Context>),
        address: String,
        bytes: &[u8],
        lease: Option<Lease>,
    ) -> Result<Self> {
        let device = handle.device();
        let configurations = list::split(bytes);
        let info = UsbInfo {
            address: address.clone(),
            bus: device.bus_number(),
            number: device.address(),
            ports: device.port_numbers().unwrap_or_default(),
            speed: list::speed(device.speed()),
            descriptors: Descriptors {
                device: DeviceDescriptor::parse(bytes)?,
                configurations: configurations.iter().map(|one| Configuration::parse(one)).collect::<Result<_>>()?,
            },
        };
        let active = handle.active_configuration().unwrap_or(0);
        let numbers = info.descriptors.configuration(active).map(Configuration::numbers).unwrap_or_default();
        let had_driver =
            numbers.into_iter().filter(|number| handle.kernel_driver_active(*number).unwrap_or(false)).collect();
        // So that claiming takes the interface from its driver in one step.
        if let Err(error) = handle.set_auto_detach_kernel_driver(true) {
            tracing::debug!(%error, "no detaching of kernel drivers");
        }
        let state = Mutex::new(State { had_driver, ..State::default() });
        let in_flight = InFlight::new(Arc::clone(&bus.urbs));
        let open = Open { handle, in_flight, state, address, _closed: closed };
        Ok(Self { info, open: Some(open), bus: Arc::clone(bus), lease })
    }

    /// As [`explain`]; what fails since the device has been unplugged has other words in between.
    fn explained(&self, doing: &str, error: rusb::Error) -> Error {
        let asked = self.open.as_ref().map(|open| open.handle.kernel_driver_active(0));
        let error = if asked == Some(Err(rusb::Error::NoDevice)) { rusb::Error::NoDevice } else { error };
        explain(&self.info.address, doing, error)
    }

    fn opened(&self) -> Result<&Open> {
        // Only `drop` takes it.
        self.open.as_ref().ok_or_else(|| Error::Gone { device: self.info.address.clone(), why: "it is closed".into() })
    }

    /// The interface that a transfer needs, as usbfs sees it: that of its endpoint, or that which a control request names,
    /// unless it is a vendor's.
    fn interface_of(&self, transfer: &Transfer) -> Option<u8> {
        match &transfer.kind {
            Kind::Control(setup) if setup.request_type & 0x60 == 0x40 => None,
            Kind::Control(setup) => match (setup.request_type & 0x1f, setup.index.to_le_bytes()[0]) {
                (1, interface) => Some(interface),
                (2, endpoint) => self.interface_with(EndpointAddress(endpoint)),
                _ => None,
            },
            _ => self.interface_with(transfer.endpoint),
        }
    }

    fn interface_with(&self, address: EndpointAddress) -> Option<u8> {
        let mut interfaces = self.info.descriptors.configurations.iter().flat_map(|one| &one.interfaces);
        let has = |endpoints: &[Endpoint]| endpoints.iter().any(|endpoint| endpoint.address == address);
        interfaces.find(|interface| has(&interface.endpoints)).map(|interface| interface.number)
    }

    /// Ends what is in flight on one interface, or on all.
    ///
    /// Gives also whether a bulk transfer was among them: then the device may be in the middle of a command.
    fn quiesce(&self, interface: Option<u8>) -> Result<(&Open, bool)> {
        let open = self.opened()?;
        if self.bus.reactor.is_here() {
            return Err(Error::NotSupported {
                what: "waiting for transfers in a completion",
                by: "the USB thread".into(),
            });
        }
        let interfaces = self.info.descriptors.configurations.iter().flat_map(|one| &one.interfaces);
        let meant: BTreeSet<EndpointAddress> = interfaces
            .filter(|one| interface == Some(one.number))
            .flat_map(|one| one.endpoints.iter().map(|endpoint| endpoint.address))
            .collect();
        let ended = open.in_flight.cancel_all(|endpoint| interface.is_none() || meant.contains(&endpoint), CANCEL);
        let late = || Error::Timeout { what: format!("{}: ending its transfers", self.info.address), after: CANCEL };
        Ok((open, ended.ok_or_else(late)?))
    }
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what is in flight; then releases every interface; then, and not before, gives them back to the kernel's
    /// drivers: one that has two interfaces takes neither while a program holds the other.
    fn close(self) {
        let Some(interrupted) = self.in_flight.cancel_all(|_| true, CANCEL) else {
            let left = self.in_flight.len();
            tracing::error!(device = self.address, left, "transfers did not end when cancelled: the device stays open");
            // Closing would free what libusb still uses.
            std::mem::forget(self);
            return;
        };
        let mut state = self.lock();
        self.give_back(&mut state, interrupted);
        self.in_flight.free_idle();
    }

    /// A device that was interrupted in a command is reset before: the kernel's driver would have to wait for its end.
    ///
    /// The state stays locked: who finds an interface released may end the process, and so must find it given back too.
    fn give_back(&self, state: &mut State, interrupted: bool) {
        let claimed = std::mem::take(&mut state.claimed);
        if claimed.is_empty() {
            return;
        }
        // Between two transfers it may be in the middle of a command all the same.
        if (interrupted || state.abandoned)
            && let Err(error) = self.handle.reset()
            && error != rusb::Error::NoDevice
        {
            tracing::warn!(device = self.address, %error, "resetting a device before it is given back");
        }
        // libusb would attach each as it is released.
        if let Err(error) = self.handle.set_auto_detach_kernel_driver(false) {
            tracing::debug!(%error, "no detaching of kernel drivers");
        }
        for &interface in &claimed {
            if let Err(error) = self.handle.release_interface(interface)
                && error != rusb::Error::NoDevice
            {
                tracing::warn!(device = self.address, interface, %error, "releasing an interface");
            }
        }
        for &interface in &state.had_driver {
            match self.handle.attach_kernel_driver(interface) {
                // Busy: the driver of another interface has taken it along.
                Ok(()) | Err(rusb::Error::NoDevice | rusb::Error::Busy | rusb::Error::NotFound) => {}
                Err(error) => {
                    tracing::warn!(device = self.address, interface, %error, "giving an interface back to its kernel driver");
                }
            }
        }
        if let Err(error) = self.handle.set_auto_detach_kernel_driver(true) {
            tracing::debug!(%error, "no detaching of kernel drivers");
        }
    }
}

impl Drop for HostDevice {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else { return };
        // The last user may be a completion, on the very thread that has to bring the end of the others.
        if self.bus.reactor.is_here() && open.in_flight.len() > 0 {
            let bus = Arc::clone(&self.bus);
            let lease = self.lease.take();
            let closing = std::thread::Builder::new().name("udrv-usb-close".into());
            let started = closing.spawn(move || {
                open.close();
                drop((lease, bus));
            });
            if let Err(error) = started {
                tracing::error!(%error, "closing a USB device");
            }
        } else {
            open.close();
        }
    }
}

/// What keeps a device from being used, and what to do about it.
fn explain(address: &str, doing: &str, error: rusb::Error) -> Error {
    let unavailable = |why: String, advice: String| Error::Unavailable { device: address.into(), why, advice };
    match error {
        rusb::Error::NoDevice => Error::Gone { device: address.into(), why: format!("{doing}: it was unplugged") },
        rusb::Error::Access => unavailable(
            format!("{doing}: no permission for its node in /dev/bus/usb"),
            format!("let the stub open it for you (as root: stub-driver serve {address} --owner USER), or run as root"),
        ),
        rusb::Error::Busy => unavailable(
            format!("{doing}: another program has it"),
            "end that program (fuser -v /dev/bus/usb/*/* names it)".into(),
        ),
        rusb::Error::NotFound => unavailable(format!("{doing}: there is no such thing"), "see `udrv usb list`".into()),
        error => failed(format!("{address}: {doing}"), error),
    }
}

impl UsbBackend for HostDevice {
    fn info(&self) -> &UsbInfo {
        &self.info
    }

    fn submit(&self, id: TransferId, transfer: Transfer, done: Done) -> std::result::Result<(), Box<Refused>> {
        let open = match self.opened() {
            Ok(open) => open,
            Err(error) => return Err(Box::new(Refused { transfer, error })),
        };
        let interface = self.interface_of(&transfer);
        open.in_flight
            .submit(&open.handle, &self.bus.finished, id, transfer, interface, done)
            .map_err(|(why, transfer)| transfer::refused(&why, &self.info.address, transfer))
    }

    fn buffer(&self, length: usize) -> Buffer {
        let mapping = self.opened().ok().and_then(|open| Mapping::new(&open.handle, length));
        mapping.map_or_else(|| Buffer::zeroed(length), |mapping| Buffer::mapped(mapping, length))
    }

    fn cancel(&self, id: TransferId) {
        if let Ok(open) = self.opened() {
            open.in_flight.cancel(id);
        }
    }

    fn configuration(&self) -> Result<u8> {
        let active = self.opened()?.handle.active_configuration();
        active.map_err(|error| self.explained("reading its configuration", error))
    }

    fn set_configuration(&self, value: u8) -> Result<()> {
        let open = self.opened()?;
        let doing = format!("setting configuration {value}");
        let explained = |error| self.explained(&doing, error);
        let state = open.lock();
        if let Some(interface) = state.claimed.first() {
            let why = format!("{doing}: interface {interface} is claimed");
            let advice = "release it first".into();
            return Err(Error::Unavailable { device: self.info.address.clone(), why, advice });
        }
        // The kernel's drivers would be in the way; those of the new configuration come by themselves.
        for &interface in &state.had_driver {
            match open.handle.detach_kernel_driver(interface) {
                Ok(()) | Err(rusb::Error::NotFound) => {}
                Err(error) => return Err(explained(error)),
            }
        }
        open.handle.set_active_configuration(value).map_err(explained)
    }

    fn claim(&self, interface: u8) -> Result<()> {
        let open = self.opened()?;
        let mut state = open.lock();
        if state.claimed.contains(&interface) {
            let (why, advice) = (format!("interface {interface} is claimed"), "release it first".into());
            return Err(Error::Unavailable { device: self.info.address.clone(), why, advice });
        }
        let doing = format!("claiming interface {interface}");
        open.handle.claim_interface(interface).map_err(|error| self.explained(&doing, error))?;
        state.claimed.insert(interface);
        open.in_flight.set_claimed(interface, true);
        Ok(())
    }

    fn release(&self, interface: u8) -> Result<()> {
        // First, so that nothing is submitted any more.
        self.opened()?.in_flight.set_claimed(interface, false);
        let (open, interrupted) = self.quiesce(Some(interface))?;
        let mut state = open.lock();
        if !state.claimed.contains(&interface) {
            return Ok(());
        }
        if state.claimed.len() == 1 {
            open.give_back(&mut state, interrupted);
            return Ok(());
        }
        state.claimed.remove(&interface);
        let doing = format!("releasing interface {interface}");
        let _ = open.handle.set_auto_detach_kernel_driver(false);
        let released = open.handle.release_interface(interface);
        let _ = open.handle.set_auto_detach_kernel_driver(true);
        released.map_err(|error| self.explained(&doing, error))
    }

    fn abandon(&self) -> Result<()> {
        let open = self.opened()?;
        let mut state = open.lock();
        state.abandoned = true;
        // First, so that nothing is submitted any more.
        state.claimed.iter().for_each(|&interface| open.in_flight.set_claimed(interface, false));
        // Not held while waiting for the USB thread: a completion on it may want it.
        drop(state);
        self.quiesce(None)?;
        open.give_back(&mut open.lock(), true);
        Ok(())
    }

    fn set_alternate(&self, interface: u8, alternate: u8) -> Result<()> {
        let doing = format!("setting alternate setting {alternate} of interface {interface}");
        let set = self.quiesce(Some(interface))?.0.handle.set_alternate_setting(interface, alternate);
        set.map_err(|error| self.explained(&doing, error))
    }

    fn clear_halt(&self, endpoint: EndpointAddress) -> Result<()> {
        let open = self.opened()?;
        let state = open.lock();
        if let Some(interface) = self.interface_with(endpoint).filter(|interface| !state.claimed.contains(interface)) {
            let (why, advice) = (format!("interface {interface} is not claimed"), "claim it first".into());
            return Err(Error::Unavailable { device: self.info.address.clone(), why, advice });
        }
        let cleared = open.handle.clear_halt(endpoint.0);
        drop(state);
        cleared.map_err(|error| self.explained(&format!("clearing the halt of {endpoint}"), error))
    }

    fn reset(&self) -> Result<()> {
        match self.quiesce(None)?.0.handle.reset() {
            Ok(()) => Ok(()),
            Err(rusb::Error::NotFound) => {
                Err(Error::Gone { device: self.info.address.clone(), why: "it came back as another device".into() })
            }
            Err(error) => Err(self.explained("resetting it", error)),
        }
    }
}
