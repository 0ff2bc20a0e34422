//! A USB device while it is taken from the kernel's drivers, with a record of it, so that it goes back to them even if this
//! process is killed: then by the next stub.

use crate::bind::TAKEN;
use crate::bind::host_use;
use crate::bind::process::{self, Process};
use crate::bind::record::{Named, Records};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd};
use udrv_backend::{Error, Result};
use udrv_usb::host::{Before, Custody, UsbAddress};
use udrv_vfio::Sysfs;

/// One taken device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// What it was before.
    before: Before,
    /// Who has taken it.
    process: Process,
}

impl Named for &UsbAddress {
    type Record = Record;

    fn address(self) -> String {
        self.to_string()
    }

    fn is_plausible(record: &Record) -> bool {
        record.before.address.parse::<UsbAddress>().is_ok()
    }
}

/// A device taken from its kernel drivers; given back when dropped.
pub(crate) struct Taken {
    custody: Option<Custody>,
    records: Records,
}

impl Taken {
    /// Takes it, having recorded what it was.
    ///
    /// # Errors
    /// [`Error::Unavailable`] naming what stands in the way: no such device, in use by the host, a program or another stub;
    /// [`Error::Os`]. Nothing is changed then.
    pub(crate) fn take(address: &UsbAddress) -> Result<Self> {
        let mut custody = Custody::open(address)?;
        let records = Records::at(TAKEN);
        records.prepare()?;
        let _lock = records.lock(custody.port())?;
        if let Some(record) = records.read(custody.port())? {
            refuse_if_held(&custody, record.process)?;
            custody.inherit(&record.before);
        }
        refuse_if_used(&custody)?;
        records.write(custody.port(), &Record { before: custody.before().clone(), process: Process::current()? })?;
        let mut taken = Self { custody: Some(custody), records };
        taken.custody.as_mut().map_or(Ok(()), Custody::take)?;
        Ok(taken)
    }

    /// Where it is plugged in, and its node.
    pub(crate) fn node(&self) -> Option<(&str, BorrowedFd<'_>)> {
        self.custody.as_ref().map(|custody| (custody.before().address.as_str(), custody.as_fd()))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Some(custody) = self.custody.take() else { return };
        let port = custody.port().clone();
        let outcome = custody.give_back().or_else(|error| match error {
            // Nobody has it any more.
            Error::Gone { .. } => Ok(()),
            other => Err(other),
        });
        match outcome.and_then(|()| self.records.remove(&port)) {
            Ok(()) => tracing::info!("{port}: given back"),
            Err(error) => tracing::error!("{port}: cannot be given back: {error}"),
        }
    }
}

fn refuse_if_held(custody: &Custody, process: Process) -> Result<()> {
    if !process.is_alive() {
        return Ok(());
    }
    Err(Error::Unavailable {
        device: custody.before().address.clone(),
        why: format!("{} has taken it", process::named(process.pid)),
        advice: format!("it serves the device: kill {}", process.pid),
    })
}

fn refuse_if_used(custody: &Custody) -> Result<()> {
    let tables = host_use::Tables::of_this_process();
    match host_use::of_folder(&Sysfs::default(), &custody.folder(), &tables).into_iter().next() {
        Some(found) => Err(Error::Unavailable {
            device: custody.before().address.clone(),
            why: format!("the host uses it: {}", found.how),
            advice: format!("`{}` first", found.end_it),
        }),
        None => Ok(()),
    }
}

/// Gives back what stubs that are dead by now had taken; returns which.
///
/// # Errors
/// [`Error::Os`] if the records cannot be read. A device that cannot be given back is logged and left.
pub(crate) fn repair() -> Result<Vec<UsbAddress>> {
    let records = Records::at(TAKEN);
    let mut repaired = Vec::new();
    for port in records.devices::<UsbAddress>()? {
        match repair_device(&records, &port) {
            Ok(true) => repaired.push(port),
            Ok(false) => {}
            Err(error) => tracing::warn!("left taken by a stub that died, and cannot be given back: {error}"),
        }
    }
    Ok(repaired)
}

/// Whether it had been left, and is given back.
fn repair_device(records: &Records, port: &UsbAddress) -> Result<bool> {
    records.prepare()?;
    let _lock = records.lock(port)?;
    let Some(record) = records.read(port)?.filter(|record| !record.process.is_alive()) else { return Ok(false) };
    let gives_back = || -> Result<bool> {
        let mut custody = match Custody::open(port) {
            Err(error @ Error::Unavailable { .. }) if exists(port) => return Err(error),
            // It was unplugged, and what is plugged in anew has its drivers.
            Err(Error::Unavailable { .. }) => return Ok(false),
            other => other?,
        };
        custody.inherit(&record.before);
        if !custody.lacks_drivers() {
            return Ok(false);
        }
        custody.take()?;
        custody.give_back()?;
        Ok(true)
    };
    let given_back = gives_back()?;
    records.remove(port)?;
    Ok(given_back)
}

fn exists(port: &UsbAddress) -> bool {
    let name = port.to_string();
    let name = name.strip_prefix("usb:").unwrap_or(&name);
    std::path::Path::new("/sys/bus/usb/devices").join(name).exists()
}
