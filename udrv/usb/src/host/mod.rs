//! Devices on this machine's buses, through libusb and the kernel's usbfs.
//!
//! rusb finds, opens, claims and attaches; transfers go through libusb's asynchronous interface (`transfer.rs`, `flight.rs`;
//! unsafe there, in `mapping.rs`, `pollfds.rs` and `custody.rs`). libusb's descriptors are in the loop of this process's USB
//! thread, and what it completes is told after it has returned, when none of its locks is held: so a completion or a hotplug
//! event may open, close and submit.

mod address;
mod custody;
mod device;
mod flight;
mod hotplug;
mod list;
mod mapping;
mod pollfds;
mod sysfs;
mod transfer;

pub use address::UsbAddress;
pub use custody::{Before, Custody};
pub use hotplug::{Hotplug, HotplugEvent};
pub use list::{Listed, ListedInterface, split as split_descriptors};
pub(crate) use mapping::Mapping;

use crate::reactor::{Reactor, Source};
use crate::{Device, Error, Result};
use rusb::UsbContext as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// This machine's USB. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    bus: Arc<Bus>,
}

/// One libusb context, in the loop.
struct Bus {
    context: rusb::Context,
    reactor: Reactor,
    finished: transfer::Finished,
    /// URBs in flight at most.
    urbs: Arc<AtomicUsize>,
    hotplug: Arc<hotplug::Events>,
    /// What libusb calls for as long as this lives, and no longer: nobody handles its events when it goes.
    callbacks: Mutex<Option<(pollfds::Notifiers, Option<rusb::Registration<rusb::Context>>)>>,
}

impl Host {
    /// # Errors
    /// [`Error::Unavailable`] on a machine without USB; [`Error::Os`] if libusb or the loop cannot be started.
    pub fn new() -> Result<Self> {
        if !std::path::Path::new("/sys/bus/usb").exists() {
            let why = "this kernel has no USB (there is no /sys/bus/usb)".into();
            let advice = "load a host controller's driver (modprobe xhci_pci), or use a model".into();
            return Err(Error::Unavailable { device: "USB".into(), why, advice });
        }
        let context = rusb::Context::new().map_err(|error| failed("starting libusb", error))?;
        Self::with(context)
    }

    fn with(context: rusb::Context) -> Result<Self> {
        let reactor = Reactor::shared()?;
        let bus = Arc::new(Bus {
            context,
            reactor: reactor.clone(),
            finished: Arc::default(),
            urbs: Arc::default(),
            hotplug: Arc::default(),
            callbacks: Mutex::new(None),
        });
        let source: Weak<dyn Source> = Arc::downgrade(&bus) as Weak<dyn Source>;
        let notifiers = pollfds::Notifiers::new(&bus.context, reactor, source)?;
        let registration = hotplug::register(&bus.context, &bus.hotplug);
        *bus.callbacks.lock().unwrap_or_else(PoisonError::into_inner) = Some((notifiers, registration));
        Ok(Self { bus })
    }

    /// Every device on every bus, hubs included.
    ///
    /// # Errors
    /// [`Error::Os`] if the buses cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>> {
        list::list(&self.bus.context)
    }

    /// Opens the device of this address. Nothing is claimed, and the kernel's driver stays, until an interface is claimed.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if there is none, more than one, or no permission.
    pub fn open(&self, address: &UsbAddress) -> Result<Device> {
        let found = list::find(&self.bus.context, address)?;
        Device::new(Arc::new(device::HostDevice::open(&self.bus, &found)?))
    }

    /// The device that a stub serves at this socket (`stub-driver serve`), which has opened its node for us.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if another driver has it; [`Error::Protocol`] if no stub listens there; [`Error::Os`].
    pub fn lease(socket: &std::path::Path) -> Result<Device> {
        let lease = crate::lease::ask(socket)?;
        // Its node may be all that this process can see of the buses.
        let context = rusb::Context::new()
            .or_else(|_| rusb::disable_device_discovery().and_then(|()| rusb::Context::new()))
            .map_err(|error| failed("starting libusb", error))?;
        let host = Self::with(context)?;
        Device::new(Arc::new(device::HostDevice::wrap(&host.bus, lease)?))
    }

    /// Arrivals and removals from now on.
    ///
    /// # Errors
    /// [`Error::NotSupported`] if libusb has no hotplug here.
    pub fn hotplug(&self) -> Result<Hotplug> {
        let callbacks = self.bus.callbacks.lock().unwrap_or_else(PoisonError::into_inner);
        if callbacks.as_ref().is_none_or(|(_, registration)| registration.is_none()) {
            return Err(Error::NotSupported { what: "hotplug", by: "libusb here".into() });
        }
        Ok(self.bus.hotplug.subscribe(Arc::clone(&self.bus) as Arc<dyn Send + Sync>))
    }
}

/// URBs of a device that libusb reaps in one round, at most (`op_handle_events` of linux_usbfs.c).
const REAPED: usize = 26;

impl Source for Bus {
    fn ready(&self) {
        let mut finished = Vec::new();
        // Readiness is not told again, and one round need not leave nothing.
        loop {
            let all_reaped = self.urbs.load(Ordering::Relaxed) < REAPED;
            if let Err(error) = self.context.handle_events(Some(Duration::ZERO)) {
                return tracing::warn!(%error, "libusb cannot handle events");
            }
            transfer::take(&self.finished, &mut finished);
            self.hotplug.tell();
            for (done, completion) in finished.drain(..) {
                done(completion);
            }
            // What is submitted from here on, and ends, is told.
            if all_reaped || !self.any_ready() {
                return;
            }
        }
    }
}

impl Bus {
    fn any_ready(&self) -> bool {
        let callbacks = self.callbacks.lock().unwrap_or_else(PoisonError::into_inner);
        callbacks.as_ref().is_some_and(|(notifiers, _)| notifiers.any_ready())
    }
}

/// libusb's error as ours.
fn failed(doing: impl Into<String>, error: rusb::Error) -> Error {
    let doing = doing.into();
    let errno = match error {
        rusb::Error::NoDevice => {
            return Error::Gone { device: "the USB device".into(), why: doing };
        }
        rusb::Error::Access => libc::EACCES,
        rusb::Error::Busy => libc::EBUSY,
        rusb::Error::NotFound => libc::ENOENT,
        rusb::Error::InvalidParam => libc::EINVAL,
        rusb::Error::NoMem => libc::ENOMEM,
        rusb::Error::NotSupported => libc::EOPNOTSUPP,
        rusb::Error::Timeout => libc::ETIMEDOUT,
        rusb::Error::Pipe => libc::EPIPE,
        _ => libc::EIO,
    };
    Error::os(doing, std::io::Error::from_raw_os_error(errno))
}
