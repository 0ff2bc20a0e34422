//! Transfers: what is asked of a device, and how it ended.

use crate::{Buffer, Error};
use std::sync::atomic::{AtomicU64, Ordering};

/// A transfer in flight, unique in this process. It is what [`crate::UsbBackend::cancel`] takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferId(pub u64);

impl TransferId {
    /// One that was never used before.
    #[must_use]
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// `bEndpointAddress` (USB 2.0, table 9-13): the number in bits 3..0, the direction in bit 7 (1 is IN, to the host).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointAddress(pub u8);

impl EndpointAddress {
    /// Endpoint zero, which every device has.
    pub const CONTROL: Self = Self(0);

    /// Whether it sends to the host.
    #[must_use]
    pub const fn is_in(self) -> bool {
        self.0 & 0x80 != 0
    }

    /// 0 to 15.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0 & 0x0f
    }
}

impl std::fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "endpoint {:#04x}", self.0)
    }
}

/// The setup packet of a control transfer (USB 2.0, table 9-2), without `wLength`, which the buffer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// `bmRequestType`: direction in bit 7, type in bits 6..5, recipient in bits 4..0.
    pub request_type: u8,
    /// `bRequest`.
    pub request: u8,
    /// `wValue`.
    pub value: u16,
    /// `wIndex`.
    pub index: u16,
}

impl Setup {
    /// Whether the data stage goes to the host.
    #[must_use]
    pub const fn is_in(&self) -> bool {
        self.request_type & 0x80 != 0
    }

    /// The eight bytes on the bus.
    #[must_use]
    pub const fn to_bytes(self, length: u16) -> [u8; 8] {
        let [value, index, length] = [self.value.to_le_bytes(), self.index.to_le_bytes(), length.to_le_bytes()];
        [self.request_type, self.request, value[0], value[1], index[0], index[1], length[0], length[1]]
    }

    /// From the eight bytes on the bus, with `wLength`.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 8]) -> (Self, u16) {
        let [request_type, request, v0, v1, i0, i1, l0, l1] = bytes;
        let setup =
            Self { request_type, request, value: u16::from_le_bytes([v0, v1]), index: u16::from_le_bytes([i0, i1]) };
        (setup, u16::from_le_bytes([l0, l1]))
    }
}

/// The four types of transfer (USB 2.0, 5.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A setup packet, then data in the direction it says.
    Control(Setup),
    /// Bulk.
    Bulk,
    /// Interrupt.
    Interrupt,
    /// One packet of each of these lengths (bytes) in successive service intervals, one after the other in the buffer.
    Isochronous(Vec<u32>),
}

bitflags::bitflags! {
    /// What is unusual about a transfer.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct TransferFlags: u32 {
        /// IN: fewer bytes than asked for are [`Status::Short`] instead of success.
        const SHORT_NOT_OK = 1;
        /// OUT, bulk: a transfer of whole packets is followed by an empty one.
        const ZERO_PACKET = 2;
    }
}

/// One transfer, with its buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Where to. For a control transfer the number counts, the direction is the setup packet's.
    pub endpoint: EndpointAddress,
    /// Which type.
    pub kind: Kind,
    /// OUT: what is sent. IN: as many bytes as are asked for; what they contain is not looked at.
    pub data: Buffer,
    /// What is unusual.
    pub flags: TransferFlags,
}

impl Transfer {
    const fn new(endpoint: EndpointAddress, kind: Kind, data: Buffer) -> Self {
        Self { endpoint, kind, data, flags: TransferFlags::empty() }
    }

    /// A control transfer on endpoint 0 whose data goes the way `setup` says; its length is `wLength`.
    #[must_use]
    pub fn control(setup: Setup, data: impl Into<Buffer>) -> Self {
        Self::new(EndpointAddress::CONTROL, Kind::Control(setup), data.into())
    }

    /// A bulk transfer; the endpoint says which way.
    #[must_use]
    pub fn bulk(endpoint: EndpointAddress, data: impl Into<Buffer>) -> Self {
        Self::new(endpoint, Kind::Bulk, data.into())
    }

    /// An interrupt transfer; the endpoint says which way.
    #[must_use]
    pub fn interrupt(endpoint: EndpointAddress, data: impl Into<Buffer>) -> Self {
        Self::new(endpoint, Kind::Interrupt, data.into())
    }

    /// An isochronous transfer of packets of these lengths, in bytes, whose sum is the buffer's length.
    #[must_use]
    pub fn isochronous(endpoint: EndpointAddress, packets: Vec<u32>, data: impl Into<Buffer>) -> Self {
        Self::new(endpoint, Kind::Isochronous(packets), data.into())
    }

    /// The same with these flags.
    #[must_use]
    pub const fn with(mut self, flags: TransferFlags) -> Self {
        self.flags = flags;
        self
    }

    /// Whether data goes to the host.
    #[must_use]
    pub const fn is_in(&self) -> bool {
        match &self.kind {
            Kind::Control(setup) => setup.is_in(),
            _ => self.endpoint.is_in(),
        }
    }

    /// What is wrong with it before any device has seen it.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        match &self.kind {
            Kind::Control(_) if self.data.len() > usize::from(u16::MAX) => {
                Err("a control transfer of over 65535 bytes")
            }
            Kind::Isochronous(packets) => {
                let sum: u64 = packets.iter().copied().map(u64::from).sum();
                let equal = sum == self.data.len() as u64;
                if packets.is_empty() || !equal {
                    Err("packet lengths that are not the buffer's length")
                } else {
                    Ok(())
                }
            }
            _ if i32::try_from(self.data.len()).is_err() => Err("a transfer of over 2 GiB"),
            _ => Ok(()),
        }
    }
}

/// How a transfer, or one packet of an isochronous one, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// As asked. An IN transfer may still have fewer bytes than asked for: see [`Completion::is_short`].
    Completed,
    /// Fewer bytes than asked for, where that was declared an error ([`TransferFlags::SHORT_NOT_OK`]).
    Short,
    /// The device answered STALL: it does not know the request, or the endpoint is halted until
    /// [`crate::UsbBackend::clear_halt`].
    Stall,
    /// The device sent more than was asked for (babble); what fitted is there.
    Overflow,
    /// Its deadline passed; what came before is there.
    Timeout,
    /// It was cancelled; what came before is there.
    Cancelled,
    /// The device is not there any more.
    Gone,
    /// No valid answer on the bus: no handshake, CRC, bit stuffing, a missed interval.
    /// So may one end that is under way while the plug is pulled, before the hub has noticed; what comes after is gone.
    Error,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Completed => "completed",
            Self::Short => "short",
            Self::Stall => "STALL",
            Self::Overflow => "overflow",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Gone => "gone",
            Self::Error => "bus error",
        })
    }
}

/// How one packet of an isochronous transfer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// How.
    pub status: Status,
    /// Bytes of the buffer that are its.
    pub length: u32,
    /// Bytes that were transferred.
    pub actual: u32,
}

/// A transfer that has ended, with its buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// How.
    pub status: Status,
    /// IN: what came, however it ended (isochronous: the whole buffer; `packets` says what in it is valid). OUT: the
    /// buffer, unchanged.
    pub data: Buffer,
    /// Bytes that were transferred.
    pub actual: usize,
    /// Bytes that were asked for.
    pub requested: usize,
    /// Isochronous: packet by packet. Otherwise empty.
    pub packets: Vec<Packet>,
}

impl Completion {
    /// A transfer that moved nothing.
    pub(crate) fn without_data(status: Status, transfer: Transfer) -> Self {
        Self::of(status, transfer, 0)
    }

    /// A transfer that moved as many bytes of its buffer; isochronous: none.
    pub(crate) fn of(status: Status, transfer: Transfer, actual: usize) -> Self {
        let requested = transfer.data.len();
        let into_host = transfer.is_in();
        let packets = match transfer.kind {
            Kind::Isochronous(lengths) => {
                lengths.into_iter().map(|length| Packet { status, length, actual: 0 }).collect()
            }
            _ => Vec::new(),
        };
        let mut data = transfer.data;
        if into_host && packets.is_empty() {
            data.truncate(actual);
        }
        Self { status, data, actual, requested, packets }
    }

    /// Whether fewer bytes were transferred than asked for.
    #[must_use]
    pub const fn is_short(&self) -> bool {
        self.actual < self.requested
    }

    /// The data, where anything but success is an error: of `doing`, with `device`.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::Timeout`] (naming `doing`, after `allowed`), and [`Error::Protocol`] for a STALL, an
    /// overflow, a short or an invalid answer.
    pub fn into_data(self, device: &str, doing: &str, allowed: std::time::Duration) -> Result<Buffer, Error> {
        match self.status {
            Status::Completed => Ok(self.data),
            Status::Gone => Err(Error::Gone { device: device.into(), why: format!("during {doing}") }),
            Status::Timeout => Err(Error::Timeout { what: format!("{device}: {doing}"), after: allowed }),
            status => Err(Error::Protocol {
                peer: device.into(),
                found: format!("{status} after {} of {} bytes of {doing}", self.actual, self.requested),
                expected: "success".into(),
            }),
        }
    }
}

/// A transfer that was not accepted: it never reached the device, and nothing will be reported of it later.
#[derive(Debug)]
pub struct Refused {
    /// Given back, unchanged.
    pub transfer: Transfer,
    /// Why.
    pub error: Error,
}

impl From<Box<Refused>> for Error {
    fn from(refused: Box<Refused>) -> Self {
        refused.error
    }
}

/// Where a transfer's end is told.
pub type Done = Box<dyn FnOnce(Completion) + Send>;
