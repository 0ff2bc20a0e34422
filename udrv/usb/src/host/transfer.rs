//! The transfers of one device that are in flight, through libusb's asynchronous interface.
//!
//! Ownership: from a successful `libusb_submit_transfer` until its callback, libusb owns the `libusb_transfer` and the
//! buffer, which belong to a [`Flight`] that is boxed and leaked meanwhile. The callback takes it back, and keeps it for the
//! next transfer. A transfer is cancelled only under the lock of [`InFlight`], where the callback takes it out first.
#![expect(unsafe_code, reason = "libusb's asynchronous interface has no safe binding")]

use super::flight::{Flight, Load, Raw};
use crate::Error;
use crate::transfer::{Completion, Done, EndpointAddress, Kind, Refused, Status, Transfer, TransferId};
use libusb1_sys as ffi;
use libusb1_sys::constants as c;
use rusb::UsbContext as _;
use std::collections::{BTreeSet, HashMap};
use std::ffi::c_int;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Flights kept for later transfers.
const IDLE: usize = 64;

/// What has ended, not told yet.
pub(super) type Finished = Arc<Mutex<Vec<(Done, Completion)>>>;

/// Exchanges what has ended for an empty vector, whose memory is used again.
pub(super) fn take(finished: &Finished, into: &mut Vec<(Done, Completion)>) {
    std::mem::swap(&mut *lock(finished), into);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The transfers of one device that libusb owns.
#[derive(Default)]
pub(super) struct InFlight {
    table: Mutex<Table>,
    /// Signalled when one has ended.
    ended: Condvar,
    /// URBs that all of the bus's are at most.
    urbs: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Table {
    transfers: HashMap<TransferId, Flying>,
    #[expect(clippy::vec_box, reason = "libusb is handed the box as it is: a transfer needs no new memory")]
    idle: Vec<Box<Flight>>,
    /// Interfaces that may be used. usbfs would claim any other one for whoever uses it, and so keep the kernel's driver
    /// from coming back to an interface that has just been released.
    claimed: BTreeSet<u8>,
}

struct Flying {
    endpoint: EndpointAddress,
    is_bulk: bool,
    raw: Raw,
    /// Its end was asked for. What ends as cancelled otherwise was taken from us by the kernel.
    cancelled: bool,
}

/// Why a transfer was not taken.
pub(super) enum NotTaken {
    /// Its interface, this one, is not claimed.
    Unclaimed(u8),
    /// libusb's word.
    Code(c_int),
}

impl Table {
    fn flight(&mut self, packets: usize) -> Option<Box<Flight>> {
        match self.idle.iter().rposition(|flight| flight.has_room(packets)) {
            Some(at) => Some(self.idle.swap_remove(at)),
            None => Flight::new(packets),
        }
    }

    fn keep(&mut self, flight: Box<Flight>) {
        if self.idle.len() < IDLE {
            self.idle.push(flight);
        }
    }
}

impl InFlight {
    pub(super) fn new(urbs: Arc<AtomicUsize>) -> Arc<Self> {
        Arc::new(Self { urbs, ..Self::default() })
    }

    /// Hands a transfer to libusb.
    pub(super) fn submit(
        self: &Arc<Self>,
        handle: &rusb::DeviceHandle<rusb::Context>,
        finished: &Finished,
        id: TransferId,
        transfer: Transfer,
        interface: Option<u8>,
        done: Done,
    ) -> std::result::Result<(), (NotTaken, Transfer)> {
        let (endpoint, is_bulk) = (transfer.endpoint, transfer.kind == Kind::Bulk);
        let packets = match &transfer.kind {
            Kind::Isochronous(packets) => packets.len(),
            _ => 0,
        };
        let mut table = lock(&self.table);
        if let Some(interface) = interface.filter(|interface| !table.claimed.contains(interface)) {
            return Err((NotTaken::Unclaimed(interface), transfer));
        }
        let Some(mut flight) = table.flight(packets) else {
            return Err((NotTaken::Code(c::LIBUSB_ERROR_NO_MEM), transfer));
        };
        let (in_flight, finished) = (Arc::clone(self), Arc::clone(finished));
        flight.load(handle.as_raw(), Load { id, in_flight, finished, transfer, done });
        let urbs = flight.urbs();
        self.urbs.fetch_add(urbs, Ordering::Relaxed);
        match flight.submit() {
            Ok(raw) => {
                // The callback waits for the lock, so it finds it.
                table.transfers.insert(id, Flying { endpoint, is_bulk, raw, cancelled: false });
                Ok(())
            }
            Err((code, mut flight)) => {
                self.urbs.fetch_sub(urbs, Ordering::Relaxed);
                let load = flight.unload();
                table.keep(flight);
                drop(table);
                // Between two steps of being unplugged the kernel has other words for it, of which libusb makes this one.
                let unplugged = code == c::LIBUSB_ERROR_IO && is_unplugged(handle.as_raw());
                let code = if unplugged { c::LIBUSB_ERROR_NO_DEVICE } else { code };
                // What is dropped with `done` may call.
                load.map_or(Ok(()), |load| Err((NotTaken::Code(code), load.transfer)))
            }
        }
    }

    /// Asks for the end of one transfer, if it is still in flight.
    pub(super) fn cancel(&self, id: TransferId) {
        let mut table = lock(&self.table);
        if let Some(flying) = table.transfers.get_mut(&id) {
            flying.cancelled = true;
            // SAFETY: it is in the map, and the lock is held: the callback has not taken it, nor does so meanwhile.
            let error = unsafe { flying.raw.cancel() };
            // NOT_FOUND: it has ended, or is being cancelled already.
            if error != 0 && error != c::LIBUSB_ERROR_NOT_FOUND && error != c::LIBUSB_ERROR_NO_DEVICE {
                tracing::debug!(error, "libusb_cancel_transfer");
            }
        }
    }

    /// Cancels those of the endpoints that are `meant`, and waits for their end: whether a bulk transfer was among them;
    /// `None` if they did not end within `allowed`.
    ///
    /// To be done before what makes the kernel end them by itself (releasing an interface, a reset): libusb takes what is
    /// ended that way for completed.
    pub(super) fn cancel_all(&self, meant: impl Fn(EndpointAddress) -> bool, allowed: Duration) -> Option<bool> {
        let (mut ids, bulk): (Vec<TransferId>, Vec<bool>) = {
            let table = lock(&self.table);
            let meant = table.transfers.iter().filter(|(_, flying)| meant(flying.endpoint));
            meant.map(|(id, flying)| (*id, flying.is_bulk)).unzip()
        };
        // The youngest first: an older one that is cancelled would let a younger one start.
        ids.sort_unstable_by(|a, b| b.cmp(a));
        for id in &ids {
            self.cancel(*id);
        }
        let table = lock(&self.table);
        let left = |table: &mut Table| ids.iter().any(|id| table.transfers.contains_key(id));
        let waited = self.ended.wait_timeout_while(table, allowed, left).unwrap_or_else(PoisonError::into_inner);
        (!waited.1.timed_out()).then(|| bulk.contains(&true))
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.table).transfers.len()
    }

    /// Frees what is kept for later transfers. To be done before libusb's context goes.
    pub(super) fn free_idle(&self) {
        lock(&self.table).idle.clear();
    }

    /// From now on transfers of this interface are taken, or not.
    pub(super) fn set_claimed(&self, interface: u8, claimed: bool) {
        let mut table = lock(&self.table);
        if claimed {
            table.claimed.insert(interface);
        } else {
            table.claimed.remove(&interface);
        }
    }
}

/// Whether the kernel knows that the device is unplugged. It is waited for where it is just finding that out.
fn is_unplugged(handle: *mut ffi::libusb_device_handle) -> bool {
    // SAFETY: the handle is open: it has a transfer, or the caller a reference to it. Asks the kernel, not the device.
    let active = unsafe { ffi::libusb_kernel_driver_active(handle, 0) };
    active == c::LIBUSB_ERROR_NO_DEVICE
}

/// libusb's callback: on whatever thread handles its events, with its locks held. So it only takes the flight back and
/// leaves the rest to the loop.
pub(super) extern "system" fn ended(raw: *mut ffi::libusb_transfer) {
    // SAFETY: the callback, once, with what libusb passes to it.
    let mut flight = unsafe { Flight::back(raw) };
    let urbs = flight.urbs();
    let Some(load) = flight.unload() else { return };
    let (in_flight, finished) = (Arc::clone(&load.in_flight), Arc::clone(&load.finished));
    in_flight.urbs.fetch_sub(urbs, Ordering::Relaxed);
    // SAFETY: still ours to read, in the callback.
    let handle = unsafe { (*raw).dev_handle };
    let mut table = lock(&in_flight.table);
    let cancelled = table.transfers.remove(&load.id).is_some_and(|flying| flying.cancelled);
    let ended = flight.end(load, |status| match status {
        // The kernel's doing: the device is being unplugged, or was taken from us.
        Status::Cancelled if !cancelled => Status::Gone,
        // No answer came since nobody is there any more.
        Status::Error if is_unplugged(handle) => Status::Gone,
        status => status,
    });
    // libusb does not touch it after this: a callback may even free it.
    table.keep(flight);
    drop(table);
    lock(&finished).push(ended);
    in_flight.ended.notify_all();
}

/// Why libusb did not take a transfer.
pub(super) fn refused(why: &NotTaken, device: &str, transfer: Transfer) -> Box<Refused> {
    let unavailable = |why: &str, advice: &str| Error::Unavailable {
        device: device.to_owned(),
        why: why.to_owned(),
        advice: advice.to_owned(),
    };
    let code = match why {
        NotTaken::Unclaimed(interface) => {
            let error = unavailable(&format!("interface {interface} is not claimed"), "claim it first");
            return Box::new(Refused { transfer, error });
        }
        NotTaken::Code(code) => *code,
    };
    let error = match code {
        c::LIBUSB_ERROR_NO_DEVICE => Error::Gone { device: device.into(), why: "it was unplugged".into() },
        c::LIBUSB_ERROR_NO_MEM => unavailable(
            "the kernel has no memory for more transfers",
            "keep fewer bytes in flight, or raise /sys/module/usbcore/parameters/usbfs_memory_mb (16 MiB if not set)",
        ),
        c::LIBUSB_ERROR_NOT_FOUND => {
            unavailable("there is no such endpoint in the active settings", "set the alternate setting that has it")
        }
        c::LIBUSB_ERROR_INVALID_PARAM => unavailable(
            "the kernel does not take such a transfer",
            "is the interface claimed, and the transfer of the endpoint's type and not too large?",
        ),
        _ => super::failed(format!("submitting a transfer to {device}"), rusb_error(code)),
    };
    Box::new(Refused { transfer, error })
}

fn rusb_error(code: c_int) -> rusb::Error {
    match code {
        c::LIBUSB_ERROR_ACCESS => rusb::Error::Access,
        c::LIBUSB_ERROR_BUSY => rusb::Error::Busy,
        c::LIBUSB_ERROR_NOT_SUPPORTED => rusb::Error::NotSupported,
        _ => rusb::Error::Io,
    }
}

/// A handle on a node that is open already. The caller keeps `fd` open for as long as the handle lives.
pub(super) fn wrap(
    context: &rusb::Context,
    fd: std::os::fd::RawFd,
) -> std::result::Result<rusb::DeviceHandle<rusb::Context>, rusb::Error> {
    // SAFETY: libusb uses the descriptor and does not close it; HostDevice keeps it open until after the handle is closed.
    unsafe { context.open_device_with_fd(fd) }
}
