//! Bulk-only transport: a command, its data, its status.
//!
//! The data follows the command at once, and the status the data as soon as that has ended, on the USB thread: so a command costs
//! one turn of the driver's thread instead of three. (Asking for the status sooner is too much for some devices: QEMU's loses one
//! that is waited for before the data has ended.) What goes wrong is put right as BOT says: a halted endpoint is cleared and the
//! status read again (figure 2), anything else is followed by reset recovery (5.3.4).

use super::{CONTROL, PATIENCE, Storage};
use crate::protocol::{CSW_LENGTH, Command, CommandStatus, CommandWrapper, RESET, StatusWrapper};
use std::sync::mpsc::{Receiver, Sender, channel};
use udrv_usb::{Buffer, Completion, Device, EndpointAddress, Error, Handle, Result, Setup, Status, Transfer};

/// Bytes from which on a transfer is worth memory of the device's.
const LARGE: usize = 64 << 10;

/// What a command moves.
pub(super) enum Data<'a> {
    None,
    /// Up to as many bytes, to the host.
    In(usize),
    Out(&'a [u8]),
}

/// How a command ended that the transport carried out.
pub(super) enum Outcome {
    Good(Buffer),
    Failed,
}

/// What is told of a command that is under way.
enum Told {
    /// The device has not taken the command.
    Command(Completion),
    /// The data has ended, and then the status if the data came to a good end. (Without data there is an empty end of it.)
    Data(Option<Completion>, Option<Completion>),
    /// The status could not be asked for.
    Refused(Error),
}

impl Storage {
    /// One command over the transport. Where the transport fails the device is put right, and the command tried once more
    /// unless the device took too long already: reading and writing the same blocks again changes nothing.
    pub(super) fn attempt(&mut self, command: &Command, data: &Data<'_>, name: &str) -> Result<Outcome> {
        match self.transport(command, data, name) {
            Err(Error::Gone { device, why }) => Err(Error::Gone { device, why }),
            Err(error @ Error::Timeout { .. }) => {
                self.reset_recovery(name, &error)?;
                Err(error)
            }
            Err(error) => {
                self.reset_recovery(name, &error)?;
                self.transport(command, data, name)
            }
            Ok(outcome) => Ok(outcome),
        }
    }

    fn transport(&mut self, command: &Command, data: &Data<'_>, name: &str) -> Result<Outcome> {
        self.tag = self.tag.wrapping_add(1);
        let (length, into_host) = match data {
            Data::None => (0, false),
            Data::In(length) => (*length, true),
            Data::Out(bytes) => (bytes.len(), false),
        };
        let wrapper = CommandWrapper {
            tag: self.tag,
            length: u32::try_from(length).unwrap_or(u32::MAX),
            into_host,
            lun: self.lun,
            command: command.bytes,
            command_length: command.length,
        };
        let (endpoint, transfer) = match data {
            Data::None => (self.bulk_in, None),
            Data::In(length) => (self.bulk_in, Some(Transfer::bulk(self.bulk_in, self.spare_of(*length)))),
            Data::Out(bytes) => {
                let mut buffer = self.spare_of(bytes.len());
                buffer.copy_from_slice(bytes);
                (self.bulk_out, Some(Transfer::bulk(self.bulk_out, buffer)))
            }
        };
        let (data, status) = self.exchange(wrapper.to_bytes().to_vec(), transfer, name)?;
        let moved = data.map(|data| self.moved(data, endpoint, name)).transpose()?.unwrap_or_default();
        let status = self.read_status(status, name)?;
        self.judge(&status, moved, into_host, length, name)
    }

    /// Memory for as much data, that of the command before if it is enough.
    fn spare_of(&mut self, length: usize) -> Buffer {
        let mut buffer = std::mem::take(&mut self.spare);
        if length >= LARGE && buffer.capacity() < length {
            buffer = self.device.buffer(length);
        }
        buffer.resize(length);
        buffer
    }

    /// Command and data stage, and the status if these came to a good end.
    fn exchange(
        &self,
        command: Vec<u8>,
        data: Option<Transfer>,
        name: &str,
    ) -> Result<(Option<Completion>, Option<Completion>)> {
        let (tell, told) = channel();
        let status = AfterData { device: self.device.clone(), endpoint: self.bulk_in, tell: tell.clone() };
        let command = Transfer::bulk(self.bulk_out, command);
        let Some(data) = data else {
            let then = move |command: Completion| match command.status {
                Status::Completed => status.ask(None),
                _ => drop(tell.send(Told::Command(command))),
            };
            let command = self.device.submit_then(command, PATIENCE, then)?;
            return self.await_end(&told, &command, name);
        };
        let then = move |command: Completion| {
            if command.status != Status::Completed {
                let _nobody_waits = tell.send(Told::Command(command));
            }
        };
        let command = self.device.submit_then(command, PATIENCE, then)?;
        let then = move |data: Completion| match data.status {
            Status::Completed => status.ask(Some(data)),
            _ => drop(status.tell.send(Told::Data(Some(data), None))),
        };
        match self.device.submit_then(data, PATIENCE, then) {
            Ok(data) => self.await_end(&told, &data, name),
            Err(refused) => {
                command.cancel();
                // It comes, or nobody is left to tell it.
                let _its_end = told.recv_timeout(PATIENCE);
                Err(refused.into())
            }
        }
    }

    /// Waits for the end of a command whose last transfer so far is `last`: every one ends by its own deadline.
    fn await_end(
        &self,
        told: &Receiver<Told>,
        last: &Handle,
        name: &str,
    ) -> Result<(Option<Completion>, Option<Completion>)> {
        let late = || Error::Timeout { what: format!("{}: {name}", self.device.address()), after: PATIENCE };
        // Command, data, status.
        let limit = PATIENCE * 3;
        match told.recv_timeout(limit).map_err(|_| late())? {
            Told::Data(data, status) => Ok((data, status)),
            Told::Refused(error) => Err(error),
            Told::Command(command) => {
                // The device waits for another command, and must not get the data for one.
                last.cancel();
                let _its_end = told.recv_timeout(limit);
                command.into_data(self.device.address(), name, PATIENCE)?;
                Err(late())
            }
        }
    }

    /// The data stage's end; a device that has none of it, or not all, may halt the endpoint (BOT, 6.7).
    fn moved(&self, completion: Completion, endpoint: EndpointAddress, name: &str) -> Result<Buffer> {
        if completion.status == Status::Stall {
            self.device.backend().clear_halt(endpoint)?;
            return Ok(completion.data);
        }
        completion.into_data(self.device.address(), name, PATIENCE)
    }

    /// The status, unless it has come; read a second time if the first try found the endpoint halted (BOT, figure 2).
    fn read_status(&self, came: Option<Completion>, name: &str) -> Result<StatusWrapper> {
        let transfer = || Transfer::bulk(self.bulk_in, vec![0; CSW_LENGTH]);
        let mut completion = match came {
            Some(completion) => completion,
            None => self.transfer(transfer())?,
        };
        if completion.status == Status::Stall {
            self.device.backend().clear_halt(self.bulk_in)?;
            completion = self.transfer(transfer())?;
        }
        let bytes = completion.into_data(self.device.address(), name, PATIENCE)?;
        let status = StatusWrapper::from_bytes(&bytes).filter(|status| status.tag == self.tag);
        status.ok_or_else(|| self.nonsense(&format!("{name} (its status)"), &bytes))
    }

    fn judge(
        &self,
        status: &StatusWrapper,
        mut data: Buffer,
        into_host: bool,
        length: usize,
        name: &str,
    ) -> Result<Outcome> {
        match status.status {
            CommandStatus::Passed if status.residue as usize <= length => {
                if into_host {
                    data.truncate(length - status.residue as usize);
                } else if status.residue > 0 {
                    return Err(self.nonsense(&format!("{name}: {} bytes not taken", status.residue), &[]));
                }
                Ok(Outcome::Good(data))
            }
            CommandStatus::Failed => Ok(Outcome::Failed),
            CommandStatus::Passed | CommandStatus::PhaseError => {
                Err(self.nonsense(&format!("{name}: status {status:?}"), &[]))
            }
        }
    }

    fn transfer(&self, transfer: Transfer) -> Result<Completion> {
        self.device.transfer(transfer, PATIENCE)
    }

    pub(super) fn class_request(&self, (request_type, request): (u8, u8)) -> Setup {
        Setup { request_type, request, value: 0, index: u16::from(self.interface) }
    }

    /// BOT, 5.3.4: the class's reset, then both halts, in this order.
    fn reset_recovery(&self, name: &str, error: &Error) -> Result<()> {
        tracing::info!(command = name, %error, "reset recovery");
        self.device.control_out(self.class_request(RESET), &[], CONTROL, "Bulk-Only Mass Storage Reset")?;
        self.device.backend().clear_halt(self.bulk_in)?;
        self.device.backend().clear_halt(self.bulk_out)
    }
}

/// Asks for a command's status once its data has ended, on the USB thread.
struct AfterData {
    device: Device,
    endpoint: EndpointAddress,
    tell: Sender<Told>,
}

impl AfterData {
    fn ask(self, data: Option<Completion>) {
        let tell = self.tell.clone();
        let then = move |status| drop(tell.send(Told::Data(data, Some(status))));
        let transfer = Transfer::bulk(self.endpoint, vec![0; CSW_LENGTH]);
        if let Err(refused) = self.device.submit_then(transfer, PATIENCE, then) {
            let _nobody_waits = self.tell.send(Told::Refused(refused.error));
        }
    }
}
