//! The messages of USB/IP, version 1.1.1 (Linux, Documentation/usb/usbip_protocol.rst). Everything is big-endian, but the
//! setup packet, which is as on the bus. No I/O here; what comes from a peer gives an error, never a panic.

use crate::{Packet, Speed, Status, UsbInfo};

/// `USBIP_VERSION`.
const VERSION: u16 = 0x0111;

const OP_REQ_DEVLIST: u16 = 0x8005;
const OP_REP_DEVLIST: u16 = 0x0005;
const OP_REQ_IMPORT: u16 = 0x8003;
const OP_REP_IMPORT: u16 = 0x0003;

const CMD_SUBMIT: u32 = 1;
const CMD_UNLINK: u32 = 2;
const RET_SUBMIT: u32 = 3;
const RET_UNLINK: u32 = 4;

/// Bytes of an operation's header.
pub const OPERATION: usize = 8;
/// Bytes of a bus id.
pub const BUS_ID: usize = 32;
/// Bytes of a command's or an answer's header.
pub const HEADER: usize = 48;
/// Bytes of an isochronous packet's descriptor.
pub const PACKET: usize = 16;

/// `URB_SHORT_NOT_OK`, in `transfer_flags`.
pub const SHORT_NOT_OK: u32 = 0x0001;
/// `URB_ZERO_PACKET`.
pub const ZERO_PACKET: u32 = 0x0040;

/// Most packets of an isochronous transfer (Linux, `USBIP_MAX_ISO_PACKETS`).
pub const MAX_PACKETS: u32 = 1024;
/// Most bytes of a transfer: what usbfs holds by default.
pub const MAX_TRANSFER: u32 = 16 << 20;

/// What a client may ask first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// OP_REQ_DEVLIST: which devices there are.
    List,
    /// OP_REQ_IMPORT: one of them; its bus id follows.
    Import,
}

impl Operation {
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8; OPERATION]) -> Result<Self, String> {
        let [v0, v1, c0, c1, ..] = *bytes;
        let (version, code) = (u16::from_be_bytes([v0, v1]), u16::from_be_bytes([c0, c1]));
        match code {
            _ if version != VERSION => Err(format!("version {version:#06x}, not {VERSION:#06x}")),
            OP_REQ_DEVLIST => Ok(Self::List),
            OP_REQ_IMPORT => Ok(Self::Import),
            code => Err(format!("operation {code:#06x}")),
        }
    }
}

/// A bus id, up to its first zero; `None` if it is no text.
#[must_use]
pub fn bus_id(bytes: &[u8; BUS_ID]) -> Option<&str> {
    let length = bytes.iter().position(|&byte| byte == 0)?;
    std::str::from_utf8(bytes.get(..length)?).ok()
}

/// How an import ended (Linux, tools/usb/usbip/libsrc/usbip_common.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportStatus {
    /// ST_OK.
    Ok = 0,
    /// ST_NA.
    Refused = 1,
    /// ST_DEV_BUSY: another client has it.
    Busy = 2,
    /// ST_NODEV.
    NoDevice = 4,
}

fn operation(code: u16, status: u32) -> Vec<u8> {
    [VERSION.to_be_bytes().as_slice(), &code.to_be_bytes(), &status.to_be_bytes()].concat()
}

/// OP_REP_DEVLIST.
#[must_use]
pub fn device_list(devices: &[(&str, &UsbInfo, u8)]) -> Vec<u8> {
    let mut bytes = operation(OP_REP_DEVLIST, 0);
    bytes.extend(u32::try_from(devices.len()).unwrap_or(u32::MAX).to_be_bytes());
    for (bus_id, info, configuration) in devices {
        bytes.extend(device(bus_id, info, *configuration));
        for number in interfaces(info, *configuration) {
            let found = info.descriptors.configuration(*configuration).and_then(|one| one.interface(number, 0));
            let (class, subclass, protocol) = found.map_or((0, 0, 0), |interface| interface.class);
            bytes.extend([class, subclass, protocol, 0]);
        }
    }
    bytes
}

/// OP_REP_IMPORT; a device only if it succeeded.
#[must_use]
pub fn imported(status: ImportStatus, imported: Option<(&str, &UsbInfo, u8)>) -> Vec<u8> {
    let mut bytes = operation(OP_REP_IMPORT, status as u32);
    bytes.extend(imported.map(|(bus_id, info, configuration)| device(bus_id, info, configuration)).unwrap_or_default());
    bytes
}

fn interfaces(info: &UsbInfo, configuration: u8) -> Vec<u8> {
    info.descriptors.configuration(configuration).map(|one| one.numbers()).unwrap_or_default()
}

/// A device's record of 312 bytes.
fn device(bus_id: &str, info: &UsbInfo, configuration: u8) -> Vec<u8> {
    let descriptor = &info.descriptors.device;
    let mut bytes = padded(&format!("/sys/bus/usb/devices/{bus_id}"), 256);
    bytes.extend(padded(bus_id, BUS_ID));
    for word in [u32::from(info.bus), u32::from(info.number), speed(info.speed)] {
        bytes.extend(word.to_be_bytes());
    }
    for word in [descriptor.vendor, descriptor.product, descriptor.release] {
        bytes.extend(word.to_be_bytes());
    }
    let (class, subclass, protocol) = descriptor.class;
    let count = u8::try_from(interfaces(info, configuration).len()).unwrap_or(u8::MAX);
    bytes.extend([class, subclass, protocol, configuration, descriptor.configurations, count]);
    bytes
}

fn padded(text: &str, length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = text.bytes().take(length - 1).collect();
    bytes.resize(length, 0);
    bytes
}

/// `enum usb_device_speed` (linux/usb/ch9.h).
const fn speed(speed: Speed) -> u32 {
    match speed {
        Speed::Unknown => 0,
        Speed::Low => 1,
        Speed::Full => 2,
        Speed::High => 3,
        Speed::Super => 5,
        Speed::SuperPlus => 6,
    }
}

/// What a client sends once it has a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// USBIP_CMD_SUBMIT. The data follows if it is OUT, then `packets` descriptors.
    Submit(Submit),
    /// USBIP_CMD_UNLINK.
    Unlink {
        /// Its own number.
        seqnum: u32,
        /// The transfer's that is to end.
        victim: u32,
    },
}

/// A transfer as a client asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submit {
    /// What the answer is told by.
    pub seqnum: u32,
    /// Data goes to the host.
    pub is_in: bool,
    /// Endpoint number, 0 to 15.
    pub endpoint: u8,
    /// `transfer_flags`.
    pub flags: u32,
    /// Bytes of the buffer.
    pub length: u32,
    /// Isochronous packets; 0 for other types.
    pub packets: u32,
    /// The setup packet of a control transfer.
    pub setup: [u8; 8],
}

impl Submit {
    /// Bytes that follow the header: data, then packet descriptors.
    #[must_use]
    pub const fn follows(&self) -> (usize, usize) {
        let data = if self.is_in { 0 } else { self.length as usize };
        (data, self.packets as usize * PACKET)
    }
}

impl Command {
    /// # Errors
    /// What is wrong with it: the stream cannot be followed any further.
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Self, String> {
        let word = |index: usize| {
            let four = bytes.get(index * 4..).and_then(|rest| rest.first_chunk());
            u32::from_be_bytes(four.copied().unwrap_or_default())
        };
        let (command, seqnum, direction, endpoint) = (word(0), word(1), word(3), word(4));
        match command {
            CMD_UNLINK => Ok(Self::Unlink { seqnum, victim: word(5) }),
            CMD_SUBMIT => {
                let (flags, length, packets) = (word(5), word(6), word(8));
                // Both stand for "not isochronous".
                let packets = if packets == u32::MAX { 0 } else { packets };
                let endpoint = u8::try_from(endpoint).ok().filter(|endpoint| *endpoint < 16);
                let endpoint = endpoint.ok_or_else(|| format!("endpoint {}", word(4)))?;
                if direction > 1 || length > MAX_TRANSFER || packets > MAX_PACKETS {
                    return Err(format!("direction {direction}, {length} bytes, {packets} packets"));
                }
                let setup = bytes.get(40..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
                Ok(Self::Submit(Submit { seqnum, is_in: direction == 1, endpoint, flags, length, packets, setup }))
            }
            command => Err(format!("command {command}")),
        }
    }
}

/// The lengths of isochronous packets, from their descriptors; an error unless they lie one after the other and fill the
/// buffer of `length` bytes at most.
///
/// # Errors
/// What is wrong with them.
pub fn packet_lengths(descriptors: &[u8], length: u32) -> Result<Vec<u32>, String> {
    let mut sum = 0u32;
    let mut lengths = Vec::new();
    for descriptor in descriptors.chunks_exact(PACKET) {
        let word = |at: usize| {
            let four = descriptor.get(at..).and_then(|rest| rest.first_chunk());
            u32::from_be_bytes(four.copied().unwrap_or_default())
        };
        let (offset, size) = (word(0), word(4));
        let end = sum.checked_add(size).filter(|end| offset == sum && *end <= length);
        sum = end.ok_or_else(|| format!("a packet of {size} bytes at {offset} of {length}"))?;
        lengths.push(size);
    }
    Ok(lengths)
}

/// The kernel's errno, negative, for how a transfer ended (Linux, Documentation/driver-api/usb/error-codes.rst).
#[must_use]
pub const fn errno(status: Status) -> i32 {
    match status {
        Status::Completed => 0,
        Status::Short => -121,     // EREMOTEIO
        Status::Stall => -32,      // EPIPE
        Status::Overflow => -75,   // EOVERFLOW
        Status::Timeout => -110,   // ETIMEDOUT
        Status::Cancelled => -104, // ECONNRESET
        Status::Gone => -108,      // ESHUTDOWN
        Status::Error => -71,      // EPROTO
    }
}

fn answer(command: u32, seqnum: u32, words: [u32; 5]) -> Vec<u8> {
    // devid, direction and endpoint are zero in answers
    let mut bytes: Vec<u8> = [command, seqnum, 0, 0, 0].into_iter().chain(words).flat_map(u32::to_be_bytes).collect();
    bytes.resize(HEADER, 0);
    bytes
}

/// USBIP_RET_SUBMIT. `data` is what came (IN; isochronous packets without the gaps between them), `actual` how much was
/// transferred.
#[must_use]
pub fn submitted(seqnum: u32, status: i32, actual: u32, data: &[u8], packets: &[Packet]) -> Vec<u8> {
    let count = u32::try_from(packets.len()).unwrap_or(u32::MAX);
    let failed = packets.iter().filter(|packet| packet.status != Status::Completed).count();
    let failed = u32::try_from(failed).unwrap_or(u32::MAX);
    let mut bytes = answer(RET_SUBMIT, seqnum, [status.cast_unsigned(), actual, 0, count, failed]);
    bytes.extend(data);
    let mut offset = 0u32;
    for packet in packets {
        let status = errno(packet.status).cast_unsigned();
        bytes.extend([offset, packet.length, packet.actual, status].into_iter().flat_map(u32::to_be_bytes));
        offset = offset.saturating_add(packet.length);
    }
    bytes
}

/// USBIP_RET_UNLINK.
#[must_use]
pub fn unlinked(seqnum: u32, status: i32) -> Vec<u8> {
    answer(RET_UNLINK, seqnum, [status.cast_unsigned(), 0, 0, 0, 0])
}
