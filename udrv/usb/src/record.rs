//! The traffic of a device as a pcapng file that Wireshark opens: a [`UsbBackend`] around any other.
//!
//! The format is that of the kernel's usbmon (link type 220, LINKTYPE_USB_LINUX_MMAPPED; Linux,
//! Documentation/usb/usbmon.rst): a packet for each submission and one for each end, with data where it is. Numbers are
//! in this machine's byte order, as the section header says.

use crate::backend::{AnyUsb, UsbBackend, UsbInfo};
use crate::transfer::{Completion, Done, EndpointAddress, Kind, Packet, Refused, Status, Transfer, TransferId};
use crate::{Buffer, Error, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const LINK_TYPE: u16 = 220;

/// Most bytes of data kept of one transfer.
const SNAPSHOT: usize = 256 << 10;

/// EINPROGRESS, negative: what usbmon says of a submission.
const IN_PROGRESS: i32 = -115;

/// A device whose traffic is recorded.
pub struct Recorder {
    inner: AnyUsb,
    file: Arc<Recording>,
}

/// The file. Errors while writing end the recording, not the traffic.
struct Recording {
    file: Mutex<Option<Box<dyn Write + Send>>>,
    bus: u16,
    number: u8,
}

impl Recorder {
    /// Records into a new file.
    ///
    /// # Errors
    /// [`Error::Os`] if it cannot be created.
    pub fn create(inner: AnyUsb, path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|error| Error::os(format!("creating {}", path.display()), error))?;
        Self::new(inner, Box::new(BufWriter::new(file)))
    }

    /// Records into anything that takes bytes.
    ///
    /// # Errors
    /// [`Error::Os`] if it does not take the file's beginning.
    pub fn new(inner: AnyUsb, mut file: Box<dyn Write + Send>) -> Result<Self> {
        let version = [1u16, 0].map(u16::to_ne_bytes).concat();
        let section = [BYTE_ORDER_MAGIC.to_ne_bytes().to_vec(), version, vec![0xff; 8]].concat();
        let interface = [LINK_TYPE.to_ne_bytes().to_vec(), vec![0; 6]].concat();
        let begin = [block(SECTION_HEADER, &section), block(INTERFACE_DESCRIPTION, &interface)].concat();
        file.write_all(&begin).map_err(|error| Error::os("beginning a recording", error))?;
        let (bus, number) = (inner.info().bus.into(), inner.info().number);
        let recording = Recording { file: Mutex::new(Some(file)), bus, number };
        Ok(Self { inner, file: Arc::new(recording) })
    }
}

/// A block with its length before and after it (pcapng, 3.1); the body is a multiple of four bytes.
fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 12).unwrap_or(u32::MAX).to_ne_bytes();
    [kind.to_ne_bytes().as_slice(), &length, body, &length].concat()
}

/// One event of usbmon.
struct Event<'a> {
    id: TransferId,
    /// `S` or `C`.
    what: u8,
    endpoint: u8,
    kind: &'a Kind,
    status: i32,
    /// Bytes asked for, or transferred.
    length: usize,
    data: &'a [u8],
    has_data: bool,
    packets: &'a [Packet],
}

impl Recording {
    fn write(&self, event: &Event<'_>) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = file.as_mut() else { return };
        if let Err(error) = open.write_all(&packet(self.bus, self.number, event)) {
            tracing::error!(%error, "a recording ends here");
            *file = None;
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let file = self.file.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = file.as_mut().map(Write::flush) {
            tracing::error!(%error, "the end of a recording is lost");
        }
    }
}

/// An enhanced packet block (pcapng, 4.3) with usbmon's header of 64 bytes (`struct usbmon_packet`).
fn packet(bus: u16, number: u8, event: &Event<'_>) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let micros = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
    let word = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).to_ne_bytes();
    let transfer_type = match event.kind {
        Kind::Isochronous(_) => 0,
        Kind::Interrupt => 1,
        Kind::Control(_) => 2,
        Kind::Bulk => 3,
    };
    let kept = event.data.get(..event.data.len().min(SNAPSHOT)).unwrap_or_default();
    let setup = match event.kind {
        Kind::Control(setup) if event.what == b'S' => {
            Some(setup.to_bytes(u16::try_from(event.length).unwrap_or(u16::MAX)))
        }
        _ => None,
    };
    let mut bytes = event.id.0.to_ne_bytes().to_vec();
    bytes.extend([event.what, transfer_type, event.endpoint, number]);
    bytes.extend(bus.to_ne_bytes());
    bytes.extend([if setup.is_some() { 0 } else { b'-' }, if event.has_data { 0 } else { b'<' }]);
    bytes.extend(now.as_secs().to_ne_bytes());
    bytes.extend(now.subsec_micros().to_ne_bytes());
    bytes.extend(event.status.to_ne_bytes());
    bytes.extend(word(event.length));
    let descriptors: Vec<u8> = event
        .packets
        .iter()
        .scan(0u32, |offset, packet| {
            let at = std::mem::replace(offset, offset.saturating_add(packet.length));
            let length = if event.what == b'S' { packet.length } else { packet.actual };
            Some([errno(packet.status).to_ne_bytes(), at.to_ne_bytes(), length.to_ne_bytes(), [0; 4]].concat())
        })
        .flatten()
        .collect();
    bytes.extend(word(kept.len() + descriptors.len()));
    match (setup, event.packets) {
        (Some(setup), _) => bytes.extend(setup),
        (None, packets) => {
            let failed = packets.iter().filter(|packet| packet.status != Status::Completed).count();
            bytes.extend([word(failed), word(packets.len())].concat());
        }
    }
    // interval, start frame, flags, number of packet descriptors
    bytes.extend([[0; 4], [0; 4], [0; 4], word(event.packets.len())].concat());
    bytes.extend(descriptors);
    bytes.extend(kept);

    let length = word(bytes.len());
    let [h0, h1, h2, h3, l0, l1, l2, l3] = micros.to_be_bytes();
    let (high, low) = (u32::from_be_bytes([h0, h1, h2, h3]), u32::from_be_bytes([l0, l1, l2, l3]));
    let mut body = [0u32.to_ne_bytes(), high.to_ne_bytes(), low.to_ne_bytes(), length, length].concat();
    body.extend(&bytes);
    body.resize(body.len().next_multiple_of(4), 0);
    block(ENHANCED_PACKET, &body)
}

/// The kernel's errno, negative (Linux, Documentation/driver-api/usb/error-codes.rst).
const fn errno(status: Status) -> i32 {
    match status {
        Status::Completed => 0,
        Status::Short => -121,
        Status::Stall => -32,
        Status::Overflow => -75,
        Status::Timeout | Status::Cancelled => -2,
        Status::Gone => -108,
        Status::Error => -71,
    }
}

impl UsbBackend for Recorder {
    fn info(&self) -> &UsbInfo {
        self.inner.info()
    }

    fn submit(&self, id: TransferId, transfer: Transfer, done: Done) -> std::result::Result<(), Box<Refused>> {
        let (is_in, kind) = (transfer.is_in(), transfer.kind.clone());
        let endpoint = transfer.endpoint.number() | u8::from(is_in) << 7;
        let asked: Vec<Packet> = match &kind {
            Kind::Isochronous(lengths) => {
                lengths.iter().map(|&length| Packet { status: Status::Completed, length, actual: 0 }).collect()
            }
            _ => Vec::new(),
        };
        let data = if is_in { &[] } else { &*transfer.data };
        let length = transfer.data.len();
        let submitted = Event {
            id,
            what: b'S',
            endpoint,
            kind: &kind,
            status: IN_PROGRESS,
            length,
            data,
            has_data: !is_in,
            packets: &asked,
        };
        self.file.write(&submitted);
        let file = Arc::clone(&self.file);
        let told = move |completion: Completion| {
            let data = if is_in { &*completion.data } else { &[] };
            let (status, packets) = (errno(completion.status), completion.packets.as_slice());
            let ended = Event {
                id,
                what: b'C',
                endpoint,
                kind: &kind,
                status,
                length: completion.actual,
                data,
                has_data: is_in,
                packets,
            };
            file.write(&ended);
            done(completion);
        };
        self.inner.submit(id, transfer, Box::new(told))
    }

    fn buffer(&self, length: usize) -> Buffer {
        self.inner.buffer(length)
    }

    fn cancel(&self, id: TransferId) {
        self.inner.cancel(id);
    }

    fn configuration(&self) -> Result<u8> {
        self.inner.configuration()
    }

    fn set_configuration(&self, value: u8) -> Result<()> {
        self.inner.set_configuration(value)
    }

    fn claim(&self, interface: u8) -> Result<()> {
        self.inner.claim(interface)
    }

    fn release(&self, interface: u8) -> Result<()> {
        self.inner.release(interface)
    }

    fn set_alternate(&self, interface: u8, alternate: u8) -> Result<()> {
        self.inner.set_alternate(interface, alternate)
    }

    fn clear_halt(&self, endpoint: EndpointAddress) -> Result<()> {
        self.inner.clear_halt(endpoint)
    }

    fn reset(&self) -> Result<()> {
        self.inner.reset()
    }
}
