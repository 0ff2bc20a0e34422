//! Bulk-only transport: a command, its data, its status.
//!
//! Where data comes to the host it is asked for together with the command, since the device has nothing to send before it has
//! that, and the status as soon as the data has ended, on the USB thread: a read then costs one turn of the driver's thread
//! instead of three. (Asking for the status sooner is too much for some devices: QEMU's loses one that is waited for before
//! the data has ended.) What goes wrong is put right as BOT says: a halted endpoint is cleared and the status read again
//! (figure 2), anything else is followed by reset recovery (5.3.4).

use super::{CONTROL, PATIENCE, Storage};
use crate::protocol::{CSW_LENGTH, Command, CommandStatus, CommandWrapper, RESET, StatusWrapper};
use std::sync::mpsc::channel;
use udrv_usb::{Completion, EndpointAddress, Error, Pending, Result, Setup, Status, Transfer};

/// What a command moves.
pub(super) enum Data<'a> {
    None,
    /// Up to as many bytes, to the host.
    In(usize),
    Out(&'a [u8]),
}

/// How a command ended that the transport carried out.
pub(super) enum Outcome {
    Good(Vec<u8>),
    Failed,
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
        let command = Transfer::bulk(self.bulk_out, wrapper.to_bytes().to_vec());
        let (moved, status) = match data {
            Data::In(length) => {
                let mut buffer = std::mem::take(&mut self.spare);
                buffer.resize(*length, 0);
                self.take_in(command, Transfer::bulk(self.bulk_in, buffer), name)?
            }
            Data::None | Data::Out(_) => {
                self.transfer(command)?.into_data(self.device.address(), name, PATIENCE)?;
                if let Data::Out(bytes) = data {
                    let completion = self.transfer(Transfer::bulk(self.bulk_out, bytes.to_vec()))?;
                    self.moved(completion, self.bulk_out, name)?;
                }
                (Vec::new(), None)
            }
        };
        let status = self.read_status(status, name)?;
        self.judge(&status, moved, into_host, length, name)
    }

    /// Command and data stage of a read, and the status if the data came without an error.
    fn take_in(&self, command: Transfer, data: Transfer, name: &str) -> Result<(Vec<u8>, Option<Completion>)> {
        let command = self.device.submit(command, PATIENCE)?;
        let (tell, told) = channel();
        let (device, status) = (self.device.clone(), Transfer::bulk(self.bulk_in, vec![0; CSW_LENGTH]));
        let then = move |data: Completion| {
            let next = (data.status == Status::Completed).then(|| device.submit(status, PATIENCE));
            let _ = tell.send((data, next));
        };
        let data = match self.device.submit_then(data, PATIENCE, then) {
            Ok(data) => data,
            Err(refused) => {
                command.cancel();
                drop(command.wait());
                return Err(refused.into());
            }
        };
        let command = command.wait().into_data(self.device.address(), name, PATIENCE);
        if command.is_err() {
            data.cancel();
        }
        // It ends by its own deadline.
        let late = || Error::Timeout { what: format!("{}: {name}", self.device.address()), after: PATIENCE };
        let (data, status) = told.recv_timeout(PATIENCE * 2).map_err(|_| late())?;
        let status = status.transpose()?.map(Pending::wait);
        command?;
        Ok((self.moved(data, self.bulk_in, name)?, status))
    }

    /// The data stage's end; a device that has none of it, or not all, may halt the endpoint (BOT, 6.7).
    fn moved(&self, completion: Completion, endpoint: EndpointAddress, name: &str) -> Result<Vec<u8>> {
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
        mut data: Vec<u8>,
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
