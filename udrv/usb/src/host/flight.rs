//! [`Flight`]: one of libusb's transfers with what belongs to it, behind a safe face. It is made once and used for many.
#![expect(unsafe_code, reason = "libusb's asynchronous interface has no safe binding")]

use super::transfer::{Finished, InFlight, ended};
use crate::transfer::{Completion, Done, Kind, Packet, Status, Transfer, TransferFlags, TransferId};
use libusb1_sys as ffi;
use libusb1_sys::constants as c;
use std::ffi::{c_int, c_uint};
use std::ptr::NonNull;
use std::sync::Arc;

/// `LIBUSB_TRANSFER_ADD_ZERO_PACKET` (libusb.h), which libusb1-sys does not name.
const ADD_ZERO_PACKET: u8 = 1 << 3;

/// Bytes of the setup packet, which libusb wants at the head of a control transfer's buffer.
const SETUP: usize = 8;

/// URBs that a transfer becomes at most: one for each 16 KiB, and for each 128 packets (linux_usbfs.h).
const URB_BYTES: usize = 16 << 10;
const URB_PACKETS: usize = 128;

/// A libusb transfer, ours.
pub(super) struct Flight {
    raw: NonNull<ffi::libusb_transfer>,
    /// Packets there is room for behind it.
    room: usize,
    /// A control transfer's setup packet and data.
    control: Vec<u8>,
    load: Option<Load>,
}

// SAFETY: libusb's functions on transfers may be called from any thread (libusb.h, "Multi-threaded applications and
// asynchronous I/O"), and nobody has another pointer to this one while it is ours.
unsafe impl Send for Flight {}

/// What it carries.
pub(super) struct Load {
    pub(super) id: TransferId,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) finished: Finished,
    pub(super) transfer: Transfer,
    pub(super) done: Done,
}

impl Flight {
    /// `None` without memory.
    pub(super) fn new(packets: usize) -> Option<Box<Self>> {
        let count = c_int::try_from(packets).ok()?;
        // SAFETY: takes a count, and gives a zeroed transfer with room for as many packets, or null.
        let raw = NonNull::new(unsafe { ffi::libusb_alloc_transfer(count) })?;
        Some(Box::new(Self { raw, room: packets, control: Vec::new(), load: None }))
    }

    /// Whether it can carry a transfer of so many packets.
    pub(super) const fn has_room(&self, packets: usize) -> bool {
        self.room >= packets
    }

    /// Fills it in, for `handle`, which is open for as long as it flies.
    pub(super) fn load(&mut self, handle: *mut ffi::libusb_device_handle, load: Load) {
        let load = self.load.insert(load);
        let transfer = &mut load.transfer;
        let zero_packet = transfer.flags.contains(TransferFlags::ZERO_PACKET) && !transfer.is_in();
        let (kind, lengths) = match &transfer.kind {
            Kind::Control(_) => (c::LIBUSB_TRANSFER_TYPE_CONTROL, &[] as &[u32]),
            Kind::Bulk => (c::LIBUSB_TRANSFER_TYPE_BULK, &[] as &[u32]),
            Kind::Interrupt => (c::LIBUSB_TRANSFER_TYPE_INTERRUPT, &[] as &[u32]),
            Kind::Isochronous(lengths) => (c::LIBUSB_TRANSFER_TYPE_ISOCHRONOUS, lengths.as_slice()),
        };
        let bytes: &mut [u8] = if let Kind::Control(setup) = &transfer.kind {
            let length = u16::try_from(transfer.data.len()).unwrap_or(u16::MAX);
            self.control.clear();
            self.control.extend(setup.to_bytes(length));
            if setup.is_in() {
                self.control.resize(SETUP + transfer.data.len(), 0);
            } else {
                self.control.extend(&*transfer.data);
            }
            &mut self.control
        } else {
            &mut transfer.data
        };
        let (buffer, length) = (bytes.as_mut_ptr(), bytes.len());
        // SAFETY: allocated, ours, and not in flight.
        let raw = unsafe { self.raw.as_mut() };
        raw.dev_handle = handle;
        raw.flags = if zero_packet { ADD_ZERO_PACKET } else { 0 };
        raw.endpoint =
            if matches!(transfer.kind, Kind::Control(_)) { transfer.endpoint.number() } else { transfer.endpoint.0 };
        raw.transfer_type = kind;
        raw.timeout = 0; // deadlines are kept in the loop, the same for every backend
        raw.length = c_int::try_from(length).unwrap_or(c_int::MAX);
        raw.callback = ended;
        raw.buffer = buffer;
        raw.num_iso_packets = c_int::try_from(lengths.len().min(self.room)).unwrap_or(0);
        let descriptors = raw.iso_packet_desc.as_mut_ptr();
        for (at, &length) in lengths.iter().enumerate().take(self.room) {
            // SAFETY: the allocation has as many descriptors behind the structure as there is room for packets.
            let descriptor = unsafe { descriptors.add(at) };
            let new = ffi::libusb_iso_packet_descriptor { length: c_uint::from(length), actual_length: 0, status: 0 };
            // SAFETY: within the allocation, as above, and nobody else's.
            unsafe { descriptor.write(new) };
        }
    }

    /// URBs that what it carries becomes at most.
    pub(super) fn urbs(&self) -> usize {
        self.load.as_ref().map_or(0, |load| match &load.transfer.kind {
            Kind::Control(_) => 1,
            Kind::Bulk | Kind::Interrupt => load.transfer.data.len().div_ceil(URB_BYTES).max(1),
            Kind::Isochronous(lengths) => lengths.len().div_ceil(URB_PACKETS),
        })
    }

    /// Hands itself to libusb: until the callback, which gets it back by [`Flight::back`], it is libusb's. Gives what cancels
    /// it; or itself and libusb's word if it was not taken.
    pub(super) fn submit(self: Box<Self>) -> Result<Raw, (c_int, Box<Self>)> {
        let raw = self.raw;
        let flight = Box::into_raw(self);
        // SAFETY: not in flight, and ours alone.
        unsafe { (*raw.as_ptr()).user_data = flight.cast() };
        // SAFETY: filled in by `load`. Its buffer is the flight's, which lives until the callback takes the box back.
        match unsafe { ffi::libusb_submit_transfer(raw.as_ptr()) } {
            0 => Ok(Raw(raw)),
            // SAFETY: leaked above, and not taken by libusb: no callback will take it back.
            code => Err((code, unsafe { Box::from_raw(flight) })),
        }
    }

    /// The flight that a callback is about.
    ///
    /// # Safety
    /// To be called once, by the callback, with what libusb passes to it.
    pub(super) unsafe fn back(raw: *mut ffi::libusb_transfer) -> Box<Self> {
        // SAFETY: libusb passes a transfer that was submitted, as this function demands.
        let flight = unsafe { (*raw).user_data };
        // SAFETY: `submit` has put a leaked box there, and libusb is done with it.
        unsafe { Box::from_raw(flight.cast()) }
    }

    /// Takes out what it carries, as it was submitted.
    pub(super) const fn unload(&mut self) -> Option<Load> {
        self.load.take()
    }

    /// Takes out how it ended, after the callback.
    pub(super) fn end(&mut self, load: Load, status_of: impl Fn(Status) -> Status) -> (Done, Completion) {
        // SAFETY: ours again.
        let raw = unsafe { self.raw.as_ref() };
        let count = usize::try_from(raw.num_iso_packets).unwrap_or(0);
        // SAFETY: `load` wrote as many descriptors behind the structure as num_iso_packets says.
        let descriptors = unsafe { std::slice::from_raw_parts(raw.iso_packet_desc.as_ptr(), count) };
        let packet = |one: &ffi::libusb_iso_packet_descriptor| Packet {
            status: status(one.status),
            length: one.length,
            actual: one.actual_length.min(one.length),
        };
        let packets: Vec<Packet> = descriptors.iter().map(packet).collect();
        let (status, actual) = (status_of(status(raw.status)), usize::try_from(raw.actual_length).unwrap_or(0));
        let Load { mut transfer, done, .. } = load;
        let requested = transfer.data.len();
        let actual = if packets.is_empty() {
            actual.min(requested)
        } else {
            packets.iter().map(|packet| packet.actual as usize).sum()
        };
        let is_in = transfer.is_in();
        if is_in && packets.is_empty() {
            transfer.data.truncate(actual);
            if let (Kind::Control(_), Some(came)) = (&transfer.kind, self.control.get(SETUP..SETUP + actual)) {
                transfer.data.copy_from_slice(came);
            }
        }
        let strict = is_in && transfer.flags.contains(TransferFlags::SHORT_NOT_OK);
        let status = if strict && status == Status::Completed && actual < requested { Status::Short } else { status };
        (done, Completion { status, data: transfer.data, actual, requested, packets })
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // SAFETY: from libusb_alloc_transfer, not in flight, and freed once.
        unsafe { ffi::libusb_free_transfer(self.raw.as_ptr()) };
    }
}

/// A flight that is libusb's, to be cancelled. It is valid until the callback.
pub(super) struct Raw(NonNull<ffi::libusb_transfer>);

// SAFETY: as for Flight.
unsafe impl Send for Raw {}

impl Raw {
    /// Asks for its end: libusb's word.
    ///
    /// # Safety
    /// The callback has not taken the flight back, nor does so meanwhile.
    pub(super) unsafe fn cancel(&self) -> c_int {
        // SAFETY: in flight, as this function demands.
        unsafe { ffi::libusb_cancel_transfer(self.0.as_ptr()) }
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
