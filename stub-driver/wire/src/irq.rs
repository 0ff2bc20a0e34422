//! Interrupts: sections "`VFIO_USER_DEVICE_GET_IRQ_INFO`" and "`VFIO_USER_DEVICE_SET_IRQS`".

use crate::codec::{Reader, Writer, len32, wide};
use crate::{Command, Expected, WireError};

bitflags::bitflags! {
    /// Attributes of an interrupt type. Bits without a name are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IrqFlags: u32 {
        /// Can signal eventfds.
        const EVENTFD = 1 << 0;
        /// Can be masked and unmasked.
        const MASKABLE = 1 << 1;
        /// Masks itself when it triggers; the client unmasks.
        const AUTOMASKED = 1 << 2;
        /// Sub-indexes can only be enabled as a set.
        const NORESIZE = 1 << 3;
        const _ = !0;
    }
}

const INFO_SIZE: u32 = 16;
const SET_SIZE: u32 = 20;
const DATA_NONE: u32 = 1 << 0;
const DATA_BOOL: u32 = 1 << 1;
const DATA_EVENTFD: u32 = 1 << 2;
const DATA_MASK: u32 = 0x07;
const ACTION_MASK: u32 = 1 << 3;
const ACTION_UNMASK: u32 = 1 << 4;
const ACTION_TRIGGER: u32 = 1 << 5;
const ACTION_BITS: u32 = 0x38;

/// Asks for [`IrqInfo`]. The other fields, and bytes after the 16 of the structure, are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceGetIrqInfo {
    /// Bytes of reply payload the client has room for; at least 16.
    pub argsz: u32,
    /// The interrupt type, for instance [`crate::pci::MSIX_IRQ`].
    pub index: u32,
}

/// The reply to DEVICE_GET_IRQ_INFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfo {
    /// Attributes.
    pub flags: IrqFlags,
    /// The interrupt type.
    pub index: u32,
    /// Number of interrupts of the type.
    pub count: u32,
}

/// What to do to the interrupts of a [`DeviceSetIrqs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// Mask, or signal the eventfd when the interrupt is masked.
    Mask,
    /// Unmask, or signal the eventfd when the interrupt is unmasked.
    Unmask,
    /// Trigger, or signal the eventfd when the interrupt triggers.
    Trigger,
}

/// What comes with a [`DeviceSetIrqs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqData<'a> {
    /// Nothing: the action applies to every interrupt of the range.
    None,
    /// One byte an interrupt: the action applies where it is not 0.
    Bool(&'a [u8]),
    /// File descriptors beside the message, one an interrupt, or none at all to take the assigned ones away.
    Eventfd,
}

/// Acts on the interrupts `start .. start + count` of type `index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSetIrqs<'a> {
    /// What to do.
    pub action: IrqAction,
    /// To which of the range, or by which file descriptors.
    pub data: IrqData<'a>,
    /// The interrupt type.
    pub index: u32,
    /// The first interrupt.
    pub start: u32,
    /// How many; the length of the `Bool` data. `start + count` fits 32 bits. 0, with `start` 0, only for
    /// `Trigger` with `None`, which disables the whole type.
    pub count: u32,
}

impl DeviceGetIrqInfo {
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(Command::DEVICE_GET_IRQ_INFO, payload, 16)?;
        let argsz = r.argsz(INFO_SIZE)?;
        r.u32()?; // flags
        Ok(Self { argsz, index: r.u32()? })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        Writer::default().u32(self.argsz).u32(0).u32(self.index).u32(0).done()
    }
}

impl IrqInfo {
    /// Reads the payload of a DEVICE_GET_IRQ_INFO reply; a longer one is legal and its end ignored.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(Command::DEVICE_GET_IRQ_INFO, payload, 16)?;
        r.argsz(INFO_SIZE)?;
        Ok(Self { flags: IrqFlags::from_bits_retain(r.u32()?), index: r.u32()?, count: r.u32()? })
    }

    /// The payload of a DEVICE_GET_IRQ_INFO reply.
    pub fn encode(&self) -> Vec<u8> {
        Writer::default().u32(INFO_SIZE).u32(self.flags.bits()).u32(self.index).u32(self.count).done()
    }
}

impl<'a> DeviceSetIrqs<'a> {
    pub(crate) fn decode(payload: &'a [u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(Command::DEVICE_SET_IRQS, payload, 20)?;
        let argsz = r.argsz(SET_SIZE)?;
        if u64::from(argsz) != wide(payload.len()) {
            return Err(WireError::invalid(r.command, "argsz", argsz, Expected::Exactly(wide(payload.len()))));
        }
        let (flags, index, start, count) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
        let bad_flags = |rule| WireError::invalid(Command::DEVICE_SET_IRQS, "flags", flags, Expected::Rule(rule));
        if flags & !(DATA_MASK | ACTION_BITS) != 0 {
            return Err(bad_flags("bits 0 to 5 only"));
        }
        let action = match flags & ACTION_BITS {
            ACTION_MASK => IrqAction::Mask,
            ACTION_UNMASK => IrqAction::Unmask,
            ACTION_TRIGGER => IrqAction::Trigger,
            _ => return Err(bad_flags("exactly one of MASK, UNMASK and TRIGGER")),
        };
        let data = match flags & DATA_MASK {
            DATA_NONE => IrqData::None,
            DATA_BOOL => IrqData::Bool(r.rest()),
            DATA_EVENTFD => IrqData::Eventfd,
            _ => {
                return Err(bad_flags("exactly one of DATA_NONE, DATA_BOOL and DATA_EVENTFD"));
            }
        };
        let set = Self { action, data, index, start, count };
        set.check_range(r.rest().len())?;
        Ok(set)
    }

    /// The rules on *start*, *count* and the length of *data*.
    fn check_range(&self, data_len: usize) -> Result<(), WireError> {
        let invalid =
            |field, found: u32, expected| Err(WireError::invalid(Command::DEVICE_SET_IRQS, field, found, expected));
        if self.start.checked_add(self.count).is_none() {
            return invalid("count", self.count, Expected::Rule("start + count below 2^32"));
        }
        if self.count == 0 {
            if (self.action, self.data) != (IrqAction::Trigger, IrqData::None) {
                return invalid("count", 0, Expected::Rule("not 0, except for TRIGGER with DATA_NONE"));
            }
            if self.start != 0 {
                return invalid("start", self.start, Expected::Rule("0 with a count of 0"));
            }
        }
        let wanted = if matches!(self.data, IrqData::Bool(_)) { u64::from(self.count) } else { 0 };
        if wide(data_len) != wanted {
            return Err(WireError::invalid(
                Command::DEVICE_SET_IRQS,
                "data length",
                wide(data_len),
                Expected::Exactly(wanted),
            ));
        }
        Ok(())
    }

    /// Checks how many file descriptors came with the message: one an interrupt or none for [`IrqData::Eventfd`], else none.
    pub fn check_fds(&self, fds: usize) -> Result<(), WireError> {
        let wanted = if self.data == IrqData::Eventfd { u64::from(self.count) } else { 0 };
        if fds == 0 || wide(fds) == wanted {
            return Ok(());
        }
        Err(WireError::invalid(Command::DEVICE_SET_IRQS, "file descriptors", wide(fds), Expected::Exactly(wanted)))
    }

    /// Checks that the range lies inside the `available` interrupts of the type.
    pub fn check_count(&self, available: u32) -> Result<(), WireError> {
        if self.start.checked_add(self.count).is_none_or(|end| end > available) {
            let expected = Expected::Rule("start + count within the interrupts of the type");
            return Err(WireError::invalid(Command::DEVICE_SET_IRQS, "start", self.start, expected));
        }
        Ok(())
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let action = match self.action {
            IrqAction::Mask => ACTION_MASK,
            IrqAction::Unmask => ACTION_UNMASK,
            IrqAction::Trigger => ACTION_TRIGGER,
        };
        let (data_type, bytes): (u32, &[u8]) = match self.data {
            IrqData::None => (DATA_NONE, &[]),
            IrqData::Bool(bytes) => (DATA_BOOL, bytes),
            IrqData::Eventfd => (DATA_EVENTFD, &[]),
        };
        Writer::default()
            .u32(SET_SIZE.saturating_add(len32(bytes.len())))
            .u32(action | data_type)
            .u32(self.index)
            .u32(self.start)
            .u32(self.count)
            .bytes(bytes)
            .done()
    }
}
