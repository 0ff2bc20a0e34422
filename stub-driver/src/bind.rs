//! Taking a device from its kernel driver, and giving it back.

use anyhow::{Result, bail};
use std::path::PathBuf;
use udrv_backend::Error;
use udrv_vfio::{Bdf, Sysfs};

/// `stub-driver bind BDF`
#[derive(Debug, clap::Args)]
pub struct BindArgs {
    /// The device's PCI address, such as 0000:03:00.0.
    device: Bdf,
}

/// `stub-driver release BDF`
#[derive(Debug, clap::Args)]
pub struct ReleaseArgs {
    /// The device's PCI address, such as 0000:03:00.0.
    device: Bdf,
}

/// Who holds a device that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// A person, by `stub-driver bind`: it stays taken until `release`.
    Person,
    /// This process: once it is dead, the next stub gives the device back.
    ThisProcess,
}

/// A device that a dead stub had left, given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// Which.
    pub bdf: Bdf,
    /// The driver that has it again; `None` if it had none.
    pub driver: Option<String>,
}

/// Where devices are taken and the records of it are kept.
#[derive(Debug, Clone)]
pub struct Binder {
    sysfs: Sysfs,
    /// One record a taken device: which driver it had, who took it. Below `/run`, which a reboot empties as it undoes
    /// the bindings themselves.
    records: PathBuf,
}

impl Default for Binder {
    fn default() -> Self {
        Self { sysfs: Sysfs::default(), records: "/run/udrv/taken".into() }
    }
}

impl Binder {
    /// Binds a device to vfio-pci, having recorded the driver it had. Taking a device again changes only its holder.
    ///
    /// # Errors
    /// [`Error::Unavailable`] naming what stands in the way (no such device, no IOMMU, siblings of a group that is not
    /// viable, held by another process); [`Error::Os`]. Nothing is changed then.
    pub fn take(&self, bdf: Bdf, holder: Holder) -> Result<(), Error> {
        let _ = (&self.sysfs, &self.records, holder);
        Err(Error::NotSupported { what: "taking a device", by: bdf.to_string() })
    }

    /// Gives a device back to the driver it had. Returns that driver, if it had one.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it was not taken or is in use; [`Error::Os`].
    pub fn give_back(&self, bdf: Bdf) -> Result<Option<String>, Error> {
        Err(Error::NotSupported { what: "giving a device back", by: bdf.to_string() })
    }

    /// Gives back what stubs that are dead by now had taken for themselves.
    ///
    /// # Errors
    /// [`Error::Os`] if the records cannot be read. A device that cannot be given back is logged and left.
    pub fn repair(&self) -> Result<Vec<Repaired>, Error> {
        Ok(Vec::new())
    }
}

/// Runs `stub-driver bind`.
///
/// # Errors
/// What [`Binder::take`] gave.
pub fn bind(args: &BindArgs) -> Result<()> {
    bail!("binding {} is not implemented", args.device)
}

/// Runs `stub-driver release`.
///
/// # Errors
/// What [`Binder::give_back`] gave.
pub fn release(args: &ReleaseArgs) -> Result<()> {
    bail!("releasing {} is not implemented", args.device)
}
