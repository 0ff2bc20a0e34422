//! libusb's asynchronous transfers, behind a safe face.
//!
//! Ownership: from a successful `libusb_submit_transfer` until its callback, libusb owns the `libusb_transfer` and the
//! buffer, which belong to a [`Flight`] that is boxed and leaked into `user_data` meanwhile. The callback takes it back.
//! A transfer is cancelled only under the lock of [`InFlight`], where the callback takes it out before it frees it.
#![expect(unsafe_code, reason = "libusb's asynchronous interface has no safe binding")]

use crate::Error;
use crate::transfer::{
    Completion, Done, EndpointAddress, Kind, Packet, Refused, Status, Transfer, TransferFlags, TransferId,
};
use libusb1_sys as ffi;
use libusb1_sys::constants as c;
use rusb::UsbContext as _;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{c_int, c_uint};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// `LIBUSB_TRANSFER_ADD_ZERO_PACKET` (libusb.h), which libusb1-sys does not name.
const ADD_ZERO_PACKET: u8 = 1 << 3;

/// What has ended, not told yet.
pub(super) type Finished = Arc<Mutex<Vec<(Done, Completion)>>>;

pub(super) fn take(finished: &Finished) -> Vec<(Done, Completion)> {
    std::mem::take(&mut *lock(finished))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Raw(*mut ffi::libusb_transfer);

// SAFETY: libusb's functions on transfers may be called from any thread (libusb.h, "Multi-threaded applications and
// asynchronous I/O"); this pointer is used only under the lock it is kept in.
unsafe impl Send for Raw {}

/// The transfers of one device that libusb owns.
#[derive(Default)]
pub(super) struct InFlight {
    table: Mutex<Table>,
    /// Signalled when one has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Table {
    transfers: HashMap<TransferId, Flying>,
    /// Interfaces that may be used. usbfs would claim any other one for whoever uses it, and so keep the kernel's driver
    /// from coming back to an interface that has just been released.
    claimed: BTreeSet<u8>,
}

struct Flying {
    endpoint: EndpointAddress,
    is_bulk: bool,
    raw: Raw,
}

/// Why a transfer was not taken.
pub(super) enum NotTaken {
    /// Its interface, this one, is not claimed.
    Unclaimed(u8),
    /// libusb's word.
    Code(c_int),
}

/// What belongs to a transfer while libusb owns it.
struct Flight {
    id: TransferId,
    in_flight: Arc<InFlight>,
    finished: Finished,
    done: Done,
    /// As submitted, but without its data.
    transfer: Transfer,
    /// The data; for a control transfer, after the eight bytes of the setup packet.
    buffer: Vec<u8>,
}

const SETUP: usize = 8;

impl InFlight {
    /// Hands a transfer to libusb.
    pub(super) fn submit(
        self: &Arc<Self>,
        handle: &rusb::DeviceHandle<rusb::Context>,
        finished: &Finished,
        id: TransferId,
        mut transfer: Transfer,
        interface: Option<u8>,
        done: Done,
    ) -> std::result::Result<(), (NotTaken, Transfer)> {
        let data = std::mem::take(&mut transfer.data);
        let buffer = match &transfer.kind {
            Kind::Control(setup) => {
                let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
                [setup.to_bytes(length).as_slice(), &data].concat()
            }
            _ => data,
        };
        let (endpoint, is_bulk) = (transfer.endpoint, transfer.kind == Kind::Bulk);
        let flight = Flight { id, in_flight: Arc::clone(self), finished: Arc::clone(finished), done, transfer, buffer };
        let packets = match &flight.transfer.kind {
            Kind::Isochronous(packets) => packets.len(),
            _ => 0,
        };
        let count = c_int::try_from(packets).unwrap_or(c_int::MAX);
        // SAFETY: takes a count, and gives a zeroed transfer with room for as many packets, or null.
        let raw = unsafe { ffi::libusb_alloc_transfer(count) };
        if raw.is_null() {
            return Err((NotTaken::Code(c::LIBUSB_ERROR_NO_MEM), flight.into_transfer()));
        }
        let flight = Box::into_raw(Box::new(flight));
        // SAFETY: raw was just allocated for as many packets as the flight's kind has; flight is a leaked box that nobody
        // else knows yet.
        unsafe { fill(raw, handle.as_raw(), flight) };
        let mut table = lock(&self.table);
        let unclaimed = interface.filter(|interface| !table.claimed.contains(interface));
        let error = match unclaimed {
            Some(interface) => NotTaken::Unclaimed(interface),
            // SAFETY: filled above. It is not in flight, and only we know it. Its buffer is the flight's, which lives until
            // the callback.
            None => match unsafe { ffi::libusb_submit_transfer(raw) } {
                0 => {
                    // The callback waits for the lock, so it finds it.
                    table.transfers.insert(id, Flying { endpoint, is_bulk, raw: Raw(raw) });
                    return Ok(());
                }
                code => NotTaken::Code(code),
            },
        };
        drop(table);
        // SAFETY: libusb did not take it, so it is still ours alone.
        unsafe { ffi::libusb_free_transfer(raw) };
        // SAFETY: leaked above; libusb did not take it, so the callback never will.
        let flight = unsafe { Box::from_raw(flight) };
        Err((error, flight.into_transfer()))
    }

    /// Asks for the end of one transfer, if it is still in flight.
    pub(super) fn cancel(&self, id: TransferId) {
        let table = lock(&self.table);
        if let Some(Flying { raw, .. }) = table.transfers.get(&id) {
            // SAFETY: it is in the map, and the lock is held: the callback has not freed it.
            let error = unsafe { ffi::libusb_cancel_transfer(raw.0) };
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

impl Flight {
    fn into_transfer(self) -> Transfer {
        let skip = if matches!(self.transfer.kind, Kind::Control(_)) { SETUP } else { 0 };
        let mut buffer = self.buffer;
        if skip > 0 {
            buffer.drain(..skip);
        }
        Transfer { data: buffer, ..self.transfer }
    }

    /// What libusb says of its end, as ours.
    fn complete(self, status: Status, actual: usize, packets: Vec<Packet>) -> (Done, Completion) {
        let Self { transfer, mut buffer, done, .. } = self;
        if matches!(transfer.kind, Kind::Control(_)) {
            buffer.drain(..SETUP.min(buffer.len()));
        }
        let requested = buffer.len();
        let actual = if packets.is_empty() {
            actual.min(requested)
        } else {
            packets.iter().map(|packet| packet.actual as usize).sum()
        };
        if transfer.is_in() && packets.is_empty() {
            buffer.truncate(actual);
        }
        let strict = transfer.is_in() && transfer.flags.contains(TransferFlags::SHORT_NOT_OK);
        let status = if strict && status == Status::Completed && actual < requested { Status::Short } else { status };
        (done, Completion { status, data: buffer, actual, requested, packets })
    }
}

/// Fills in a new transfer for a flight.
///
/// # Safety
/// `raw` is from `libusb_alloc_transfer` for as many packets as the flight has, and not in flight. `flight` is valid, and
/// nobody else's.
unsafe fn fill(raw: *mut ffi::libusb_transfer, handle: *mut ffi::libusb_device_handle, flight: *mut Flight) {
    // SAFETY: valid and nobody else's, as this function demands.
    let flight_ref = unsafe { &mut *flight };
    let is_control = matches!(flight_ref.transfer.kind, Kind::Control(_));
    let (kind, lengths) = match &flight_ref.transfer.kind {
        Kind::Control(_) => (c::LIBUSB_TRANSFER_TYPE_CONTROL, &[] as &[u32]),
        Kind::Bulk => (c::LIBUSB_TRANSFER_TYPE_BULK, &[] as &[u32]),
        Kind::Interrupt => (c::LIBUSB_TRANSFER_TYPE_INTERRUPT, &[] as &[u32]),
        Kind::Isochronous(lengths) => (c::LIBUSB_TRANSFER_TYPE_ISOCHRONOUS, lengths.as_slice()),
    };
    let zero_packet = flight_ref.transfer.flags.contains(TransferFlags::ZERO_PACKET) && !flight_ref.transfer.is_in();
    let buffer = flight_ref.buffer.as_mut_ptr();
    let length = c_int::try_from(flight_ref.buffer.len()).unwrap_or(c_int::MAX);
    let endpoint = flight_ref.transfer.endpoint;
    // SAFETY: allocated, not in flight, and nobody else's, as this function demands.
    let transfer = unsafe { &mut *raw };
    transfer.dev_handle = handle;
    transfer.flags = if zero_packet { ADD_ZERO_PACKET } else { 0 };
    transfer.endpoint = if is_control { endpoint.number() } else { endpoint.0 };
    transfer.transfer_type = kind;
    transfer.timeout = 0; // deadlines are kept in the loop, the same for every backend
    transfer.length = length;
    transfer.callback = ended;
    transfer.user_data = flight.cast();
    transfer.buffer = buffer;
    transfer.num_iso_packets = c_int::try_from(lengths.len()).unwrap_or(c_int::MAX);
    let descriptors = transfer.iso_packet_desc.as_mut_ptr();
    for (at, &length) in lengths.iter().enumerate() {
        // SAFETY: the allocation has a descriptor for each packet behind the structure.
        let descriptor = unsafe { descriptors.add(at) };
        let new = ffi::libusb_iso_packet_descriptor { length: c_uint::from(length), actual_length: 0, status: 0 };
        // SAFETY: within the allocation, as above, and nobody else's.
        unsafe { descriptor.write(new) };
    }
}

fn status(code: c_int) -> Status {
    match code {
        c::LIBUSB_TRANSFER_COMPLETED => Status::Completed,
        c::LIBUSB_TRANSFER_TIMED_OUT => Status::Timeout,
        c::LIBUSB_TRANSFER_CANCELLED => Status::Cancelled,
        c::LIBUSB_TRANSFER_STALL => Status::Stall,
        c::LIBUSB_TRANSFER_NO_DEVICE => Status::Gone,
        c::LIBUSB_TRANSFER_OVERFLOW => Status::Overflow,
        _ => Status::Error,
    }
}

/// libusb's callback: on whatever thread handles its events, with its locks held. So it only takes the flight back and
/// leaves the rest to the loop.
extern "system" fn ended(raw: *mut ffi::libusb_transfer) {
    // SAFETY: libusb calls this with a transfer that we filled and submitted, once, and is done with it.
    let transfer = unsafe { &*raw };
    // SAFETY: `fill` put a leaked box here, and this is the only callback that takes it back.
    let flight = unsafe { Box::from_raw(transfer.user_data.cast::<Flight>()) };
    let count = usize::try_from(transfer.num_iso_packets).unwrap_or(0);
    // SAFETY: `fill` wrote as many descriptors behind the structure as num_iso_packets says.
    let descriptors = unsafe { std::slice::from_raw_parts(transfer.iso_packet_desc.as_ptr(), count) };
    let packet = |one: &ffi::libusb_iso_packet_descriptor| Packet {
        status: status(one.status),
        length: one.length,
        actual: one.actual_length.min(one.length),
    };
    let packets = descriptors.iter().map(packet).collect();
    let (status, actual) = (status(transfer.status), usize::try_from(transfer.actual_length).unwrap_or(0));
    let (in_flight, finished) = (Arc::clone(&flight.in_flight), Arc::clone(&flight.finished));
    lock(&in_flight.table).transfers.remove(&flight.id);
    // SAFETY: it has ended, and is out of the map, so that nobody cancels it. libusb lets a callback free its transfer.
    unsafe { ffi::libusb_free_transfer(raw) };
    lock(&finished).push(flight.complete(status, actual, packets));
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
