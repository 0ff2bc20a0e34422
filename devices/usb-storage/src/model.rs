//! The device's side: a disk in memory.

use crate::protocol::{
    CommandStatus, CommandWrapper, GET_MAX_LUN, INTERFACE_CLASS, RESET, SERVICE_READ_CAPACITY_16, Sense, StatusWrapper,
    opcode,
};
use std::collections::VecDeque;
use udrv_usb::software::{Handshake, Identity, Model, Reply};
use udrv_usb::{EndpointAddress, Setup, Speed};

/// Bytes of a block.
pub const BLOCK: usize = 512;

/// High speed's (USB 2.0, 5.8.3).
const MAX_PACKET: u16 = 512;

const BULK_IN: u8 = 0x81;
const BULK_OUT: u8 = 0x02;

/// Where the transport is (BOT, figure 1).
#[derive(Debug)]
enum Phase {
    /// A command is expected.
    Command,
    /// Data to the host, then the status. `halt` ends it with STALL instead of data.
    In { data: VecDeque<u8>, halt: bool, expected: u32, status: StatusWrapper },
    /// Data from the host to byte `at` of the medium (`None`: thrown away), then the status.
    Out { at: Option<usize>, left: u32, status: StatusWrapper },
    /// The status is due.
    Status(StatusWrapper),
    /// A command was invalid: both endpoints halt until reset recovery (BOT, 6.6.1).
    Broken,
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    medium: Vec<u8>,
    phase: Phase,
    sense: Sense,
    serial: String,
}

impl Disk {
    /// A disk with this content, cut to whole blocks.
    #[must_use]
    pub fn new(mut medium: Vec<u8>) -> Self {
        medium.truncate(medium.len() / BLOCK * BLOCK);
        Self { medium, phase: Phase::Command, sense: Sense::NONE, serial: "0123456789AB".into() }
    }

    /// The same with another serial number.
    #[must_use]
    pub fn with_serial(mut self, serial: &str) -> Self {
        self.serial = serial.to_owned();
        self
    }

    /// What is on it.
    #[must_use]
    pub fn medium(&self) -> &[u8] {
        &self.medium
    }

    fn blocks(&self) -> u64 {
        (self.medium.len() / BLOCK) as u64
    }

    fn begin(&mut self, wrapper: &CommandWrapper) -> Phase {
        if wrapper.lun != 0 {
            return self.fail(wrapper, Sense { key: Sense::ILLEGAL_REQUEST, code: 0x25, qualifier: 0 });
        }
        let command = &wrapper.command;
        let allocation = u32::from(command[4]);
        match command[0] {
            opcode::TEST_UNIT_READY | opcode::START_STOP_UNIT | opcode::PREVENT_ALLOW_REMOVAL => {
                self.answer(wrapper, Vec::new())
            }
            opcode::SYNCHRONIZE_CACHE_10 => self.answer(wrapper, Vec::new()),
            opcode::REQUEST_SENSE => {
                let sense = std::mem::replace(&mut self.sense, Sense::NONE);
                self.answer(wrapper, cut(sense.to_bytes().to_vec(), allocation))
            }
            opcode::INQUIRY if command[1] & 1 == 0 => self.answer(wrapper, cut(inquiry(), allocation)),
            // No pages, not write-protected (SPC-4, table 442).
            opcode::MODE_SENSE_6 => self.answer(wrapper, cut(vec![3, 0, 0, 0], allocation)),
            opcode::REPORT_LUNS => self.answer(wrapper, [vec![0, 0, 0, 8], vec![0; 12]].concat()),
            opcode::READ_CAPACITY_10 => {
                let last = u32::try_from(self.blocks().saturating_sub(1)).unwrap_or(u32::MAX);
                self.answer(wrapper, [last.to_be_bytes(), (BLOCK as u32).to_be_bytes()].concat())
            }
            opcode::SERVICE_ACTION_IN_16 if command[1] & 0x1f == SERVICE_READ_CAPACITY_16 => {
                let last = self.blocks().saturating_sub(1).to_be_bytes();
                let data = [last.as_slice(), &(BLOCK as u32).to_be_bytes(), &[0; 20]].concat();
                let allocation = u32::from_be_bytes([command[10], command[11], command[12], command[13]]);
                self.answer(wrapper, cut(data, allocation))
            }
            opcode::READ_10 | opcode::WRITE_10 | opcode::READ_16 | opcode::WRITE_16 => self.access(wrapper),
            opcode::INQUIRY | opcode::SERVICE_ACTION_IN_16 => self.fail(wrapper, Sense::INVALID_FIELD),
            _ => self.fail(wrapper, Sense::INVALID_OPCODE),
        }
    }

    fn access(&mut self, wrapper: &CommandWrapper) -> Phase {
        let command = &wrapper.command;
        let (lba, blocks) = match command[0] {
            opcode::READ_10 | opcode::WRITE_10 => (
                u64::from(u32::from_be_bytes([command[2], command[3], command[4], command[5]])),
                u32::from(u16::from_be_bytes([command[7], command[8]])),
            ),
            _ => {
                let [_, _, a, b, c, d, e, f, g, h, i, j, k, l, _, _] = *command;
                (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u32::from_be_bytes([i, j, k, l]))
            }
        };
        if lba.checked_add(u64::from(blocks)).is_none_or(|end| end > self.blocks()) {
            return self.fail(wrapper, Sense::OUT_OF_RANGE);
        }
        let at = usize::try_from(lba).unwrap_or(usize::MAX).saturating_mul(BLOCK);
        let length = blocks as usize * BLOCK;
        if matches!(command[0], opcode::READ_10 | opcode::READ_16) {
            let data = self.medium.get(at..at.saturating_add(length)).unwrap_or_default().to_vec();
            return self.answer(wrapper, data);
        }
        if wrapper.into_host || wrapper.length as usize != length {
            return self.disagree(wrapper);
        }
        let status = StatusWrapper { tag: wrapper.tag, residue: 0, status: CommandStatus::Passed };
        if length == 0 { Phase::Status(status) } else { Phase::Out { at: Some(at), left: wrapper.length, status } }
    }

    /// Data to the host, as much as it expects; what it expects more is residue (BOT, 6.7.2, cases 4 to 6).
    fn answer(&mut self, wrapper: &CommandWrapper, data: Vec<u8>) -> Phase {
        let expected = wrapper.length;
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        if length > expected || (length > 0 && !wrapper.into_host) {
            return self.disagree(wrapper);
        }
        let status = StatusWrapper { tag: wrapper.tag, residue: expected - length, status: CommandStatus::Passed };
        if expected == 0 {
            return Phase::Status(status);
        }
        if !wrapper.into_host {
            return Phase::Out { at: None, left: expected, status };
        }
        Phase::In { halt: data.is_empty(), data: data.into(), expected, status }
    }

    fn fail(&mut self, wrapper: &CommandWrapper, sense: Sense) -> Phase {
        self.sense = sense;
        let (tag, residue) = (wrapper.tag, wrapper.length);
        let status = StatusWrapper { tag, residue, status: CommandStatus::Failed };
        match (wrapper.length, wrapper.into_host) {
            (0, _) => Phase::Status(status),
            (expected, true) => Phase::In { data: VecDeque::new(), halt: true, expected, status },
            (left, false) => Phase::Out { at: None, left, status },
        }
    }

    /// Host and device mean different transfers (BOT, 6.7, cases 2, 3, 7, 8, 10, 13).
    fn disagree(&mut self, wrapper: &CommandWrapper) -> Phase {
        let status = StatusWrapper { tag: wrapper.tag, residue: wrapper.length, status: CommandStatus::PhaseError };
        match (wrapper.length, wrapper.into_host) {
            (0, _) => Phase::Status(status),
            (expected, true) => Phase::In { data: VecDeque::new(), halt: true, expected, status },
            (left, false) => Phase::Out { at: None, left, status },
        }
    }
}

fn cut(mut data: Vec<u8>, allocation: u32) -> Vec<u8> {
    data.truncate(allocation as usize);
    data
}

/// Standard INQUIRY data: a block device, removable, of SPC-4 (SPC-4, table 141).
fn inquiry() -> Vec<u8> {
    let header = [0x00, 0x80, 0x06, 0x02, 31, 0, 0, 0];
    [header.as_slice(), b"udrv    ", b"Software Disk   ", b"1.00"].concat()
}

impl Model for Disk {
    fn identity(&self) -> Identity {
        let (class, subclass, protocol) = INTERFACE_CLASS;
        let [low, high] = MAX_PACKET.to_le_bytes();
        #[rustfmt::skip]
        let body = [
            9, 4, 0, 0, 2, class, subclass, protocol, 0,
            7, 5, BULK_IN, 2, low, high, 0,
            7, 5, BULK_OUT, 2, low, high, 0,
        ];
        Identity::new(Speed::High, (0x1209, 0x0002), 1, &body, ["udrv", "Software Disk", &self.serial])
    }

    fn control(&mut self, setup: &Setup, _data: &[u8]) -> Reply {
        match (setup.request_type, setup.request) {
            GET_MAX_LUN => Reply::Data(vec![0]),
            RESET => {
                self.phase = Phase::Command;
                Reply::Data(Vec::new())
            }
            _ => Reply::Stall,
        }
    }

    fn receive(&mut self, _endpoint: EndpointAddress, packet: &[u8]) -> Handshake {
        match &mut self.phase {
            Phase::Command => match CommandWrapper::from_bytes(packet) {
                Some(wrapper) => {
                    self.phase = self.begin(&wrapper);
                    Handshake::Ack
                }
                None => {
                    self.phase = Phase::Broken;
                    Handshake::Stall
                }
            },
            Phase::Out { at, left, status } => {
                if let Some(at) = at {
                    let end = at.saturating_add(packet.len());
                    if let Some(to) = self.medium.get_mut(*at..end) {
                        to.copy_from_slice(packet);
                    }
                    *at = end;
                }
                *left = left.saturating_sub(u32::try_from(packet.len()).unwrap_or(u32::MAX));
                let short = packet.len() < usize::from(MAX_PACKET);
                if *left == 0 || short {
                    self.phase = Phase::Status(*status);
                }
                Handshake::Ack
            }
            // The status has not been read: not now.
            Phase::In { .. } | Phase::Status(_) => Handshake::Nak,
            Phase::Broken => Handshake::Stall,
        }
    }

    fn send(&mut self, _endpoint: EndpointAddress, max_packet: usize) -> Reply {
        match &mut self.phase {
            Phase::In { data, halt, expected, status } => {
                let packet: Vec<u8> = data.drain(..max_packet.min(data.len())).collect();
                if std::mem::take(halt) {
                    self.phase = Phase::Status(*status);
                    return Reply::Stall;
                }
                *expected = expected.saturating_sub(u32::try_from(packet.len()).unwrap_or(u32::MAX));
                // A packet that is not full ends the transfer where the host expects more.
                if packet.len() < max_packet || *expected == 0 {
                    self.phase = Phase::Status(*status);
                }
                Reply::Data(packet)
            }
            Phase::Status(status) => {
                let bytes = status.to_bytes().to_vec();
                self.phase = Phase::Command;
                Reply::Data(bytes)
            }
            Phase::Command | Phase::Out { .. } => Reply::Nak,
            Phase::Broken => Reply::Stall,
        }
    }

    fn reset(&mut self) {
        self.phase = Phase::Command;
        self.sense = Sense::NONE;
    }
}
