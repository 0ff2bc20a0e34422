//! Taking a device from its kernel driver, and giving it back.
//!
//! `steps` decides what to do next, `kernel` does it, `record` remembers what was before. All three are made for
//! being killed at any moment: whoever comes next goes on from what the kernel and the record say.

pub(crate) mod deadline;
pub(crate) mod host_use;
pub(crate) mod kernel;
pub mod process;
pub(crate) mod record;
mod steps;

use crate::lock::Lock;
use anyhow::Result as AnyResult;
use process::Process;
use record::{Record, Records};
use steps::{Binding, VFIO_PCI};
use udrv_backend::{Error, Result};
use udrv_vfio::{Bdf, PciDevice, Sysfs};

/// Where the records of taken devices are.
pub(crate) const TAKEN: &str = "/run/udrv/taken";

/// `stub-driver bind BDF`
#[derive(Debug, clap::Args)]
pub struct BindArgs {
    /// The device's PCI address, such as 0000:03:00.0.
    #[arg(value_name = "BDF")]
    device: Bdf,
    /// Take it even if the host uses it: file systems below it that are mounted will fail.
    #[arg(long)]
    force: bool,
}

/// `stub-driver release BDF`
#[derive(Debug, clap::Args)]
pub struct ReleaseArgs {
    /// The device's PCI address, such as 0000:03:00.0.
    #[arg(value_name = "BDF")]
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
    records: Records,
    even_if_in_use: bool,
}

/// How a device was found by [`Binder::take`].
struct Taken {
    /// What it was bound to before it was ever taken.
    was: Binding,
    /// It was taken already, and bound.
    again: bool,
}

/// What became of a device.
enum GivenBack {
    /// It has the driver that it had.
    To(Option<String>),
    /// A person had bound it before this process took it, so it stays bound.
    KeptForPerson,
    /// It is no longer in the machine.
    Vanished,
}

impl Default for Binder {
    fn default() -> Self {
        Self::at(Sysfs::default(), TAKEN)
    }
}

impl Binder {
    /// One that works on another tree and keeps its records in another folder.
    pub fn at(sysfs: Sysfs, records: impl Into<std::path::PathBuf>) -> Self {
        Self { sysfs, records: Records::at(records), even_if_in_use: false }
    }

    /// One that takes a device even if the host uses it: a file system below it is mounted, an interface is up.
    #[must_use]
    pub const fn even_if_in_use(mut self) -> Self {
        self.even_if_in_use = true;
        self
    }

    /// Binds a device to vfio-pci, having recorded the driver it had. Taking a device again changes only its holder: a
    /// process may take what a person has bound, which stays bound when the process ends.
    ///
    /// # Errors
    /// [`Error::Unavailable`] naming what stands in the way (no such device, no IOMMU, siblings of a group that is not
    /// viable, in use by the host, held by another process); [`Error::Os`]; [`Error::Timeout`] if the old driver does
    /// not let go. Nothing is changed then, except that after a timeout the kernel may still come to it.
    pub fn take(&self, bdf: Bdf, holder: Holder) -> Result<()> {
        self.take_device(bdf, holder).map(drop)
    }

    /// Gives a device back to the driver it had. Returns the driver that has it now: the one it had, if any; vfio-pci if
    /// a person had bound it before this process took it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it was not taken, is in use, or its driver does not take it again; [`Error::Os`];
    /// [`Error::Timeout`]. It stays recorded then, and can be given back later.
    pub fn give_back(&self, bdf: Bdf) -> Result<Option<String>> {
        Ok(match self.give_back_device(bdf)? {
            GivenBack::To(driver) => driver,
            GivenBack::KeptForPerson => Some(VFIO_PCI.into()),
            GivenBack::Vanished => None,
        })
    }

    /// Gives back what stubs that are dead by now had taken for themselves.
    ///
    /// # Errors
    /// [`Error::Os`] if the records cannot be read. A device that cannot be given back is logged and left.
    pub fn repair(&self) -> Result<Vec<Repaired>> {
        let mut repaired = Vec::new();
        for bdf in self.records.devices()? {
            match self.repair_device(bdf) {
                Ok(Some(driver)) => repaired.push(Repaired { bdf, driver }),
                Ok(None) => {}
                Err(error) => tracing::warn!("left taken by a stub that died, and cannot be given back: {error}"),
            }
        }
        Ok(repaired)
    }

    fn repair_device(&self, bdf: Bdf) -> Result<Option<Option<String>>> {
        let left = |record: &Record| record.process.is_some_and(|process| !process.is_alive());
        if !self.records.read(bdf)?.as_ref().is_some_and(left) {
            return Ok(None);
        }
        self.records.prepare()?;
        let lock = self.records.lock(bdf)?;
        // another stub may have been here before we had the lock
        let Some(record) = self.records.read(bdf)?.filter(left) else { return Ok(None) };
        if record.person {
            self.records.write(bdf, &Record { process: None, ..record })?;
            return Ok(None);
        }
        self.undo(bdf, &record.was, &lock).map(Some)
    }

    fn take_device(&self, bdf: Bdf, holder: Holder) -> Result<Taken> {
        self.check(&self.sysfs.device(bdf)?)?;
        kernel::check_permission(&self.sysfs, bdf, "bind")?;
        self.records.prepare()?;
        let lock = self.records.lock(bdf)?;
        let found = self.records.read(bdf)?;
        let device = self.sysfs.device(bdf)?;
        if !device.is_on_vfio() {
            self.check_use(bdf)?;
            kernel::load(&self.sysfs, VFIO_PCI)?;
        }
        let was = match &found {
            Some(record) => record.was.clone(),
            None => kernel::observe(&self.sysfs, bdf)?,
        };
        let wanted = held(bdf, &was, found.as_ref(), holder)?;
        if found.as_ref() != Some(&wanted) {
            self.records.write(bdf, &wanted)?;
        }
        let again = found.is_some() && device.is_on_vfio();
        if !device.is_on_vfio()
            && let Err(error) = kernel::drive(&self.sysfs, bdf, &lock, steps::towards_vfio)
        {
            // after a timeout the kernel is still at it, and the record must stay
            if found.is_none()
                && !matches!(error, Error::Timeout { .. })
                && let Err(undoing) = self.undo(bdf, &was, &lock)
            {
                tracing::error!("{undoing}; `stub-driver release {bdf}` tries again");
            }
            return Err(error);
        }
        Ok(Taken { was, again })
    }

    fn give_back_device(&self, bdf: Bdf) -> Result<GivenBack> {
        let not_taken = || Error::Unavailable {
            device: format!("pci:{bdf}"),
            why: "it was not taken by stub-driver".into(),
            advice: "`stub-driver list` shows which devices were".into(),
        };
        if self.records.read(bdf)?.is_none() {
            self.sysfs.device(bdf)?;
            return Err(not_taken());
        }
        let is_there = self.sysfs.device_path(bdf).exists();
        if is_there {
            kernel::check_permission(&self.sysfs, bdf, "release")?;
        }
        self.records.prepare()?;
        let lock = self.records.lock(bdf)?;
        let record = self.records.read(bdf)?.ok_or_else(not_taken)?;
        match record.process.filter(Process::is_alive) {
            Some(process) if process != Process::current()? => {
                return Err(held_by(bdf, process, "ending it gives the device back"));
            }
            Some(_) if record.person => {
                self.records.write(bdf, &Record { process: None, ..record })?;
                return Ok(GivenBack::KeptForPerson);
            }
            _ => {}
        }
        let driver = self.undo(bdf, &record.was, &lock)?;
        Ok(if is_there { GivenBack::To(driver) } else { GivenBack::Vanished })
    }

    /// Brings a device back to what it was, if it is still in the machine, and forgets it.
    fn undo(&self, bdf: Bdf, was: &Binding, lock: &Lock) -> Result<Option<String>> {
        if !self.sysfs.device_path(bdf).exists() {
            self.records.remove(bdf)?;
            return Ok(None);
        }
        let device = self.sysfs.device(bdf)?;
        // With a user, unbinding would wait for it in the kernel, or waits already (the driver's link is gone by then), and
        // a driver in its group would not be let in.
        let is_back = device.driver.is_some() && device.driver == was.driver;
        if !is_back && let Some(user) = host_use::vfio_user(&self.sysfs, &device) {
            return Err(Error::Unavailable {
                device: format!("pci:{bdf}"),
                why: format!("{} has its VFIO group open", user.named()),
                advice: "end that process, then try again".into(),
            });
        }
        let now = kernel::drive(&self.sysfs, bdf, lock, |now| steps::towards(was, now))?;
        self.records.remove(bdf)?;
        Ok(now.driver)
    }

    /// What stands in the way, whoever asks.
    fn check(&self, device: &PciDevice) -> Result<()> {
        let refuse = |why: String, advice: String| {
            Err(Error::Unavailable { device: format!("pci:{}", device.bdf), why, advice })
        };
        if device.is_bridge() {
            let class = crate::list::class_name(device.class);
            return refuse(
                format!("it is a bridge ({class})"),
                "VFIO takes devices that end a bus: see `stub-driver list`".into(),
            );
        }
        if device.group.is_none() {
            return refuse("it has no IOMMU group".into(), crate::doctor::how_to_turn_on_the_iommu(&self.sysfs).into());
        }
        let siblings = self.sysfs.siblings_in_the_way(device)?;
        if siblings.is_empty() {
            return Ok(());
        }
        let named: Vec<_> = siblings.iter().map(|other| format!("{} ({})", other.bdf, driver_of(other))).collect();
        let unbind =
            |other: &PciDevice| format!("echo {} > /sys/bus/pci/drivers/{}/unbind", other.bdf, driver_of(other));
        let commands: Vec<_> = siblings.iter().map(unbind).collect();
        let group = device.group.unwrap_or_default();
        refuse(
            format!("its IOMMU group {group} is not viable, because the host drives {}", named.join(", ")),
            format!("take them from the host too: {}", commands.join("; ")),
        )
    }

    fn check_use(&self, bdf: Bdf) -> Result<()> {
        if self.even_if_in_use {
            return Ok(());
        }
        match host_use::of(&self.sysfs, bdf, &host_use::Tables::of_this_process()).into_iter().next() {
            Some(found) => Err(Error::Unavailable {
                device: format!("pci:{bdf}"),
                why: format!("the host uses it: {}", found.how),
                advice: format!("`{}` first, or bind it with --force", found.end_it),
            }),
            None => Ok(()),
        }
    }
}

/// The record of a device once `holder` has it too.
fn held(bdf: Bdf, was: &Binding, found: Option<&Record>, holder: Holder) -> Result<Record> {
    let (person, process) = found.map_or((false, None), |record| (record.person, record.process));
    let process = process.filter(Process::is_alive);
    let me = Process::current()?;
    match (holder, process) {
        (Holder::Person, process) => Ok(Record { was: was.clone(), person: true, process }),
        (Holder::ThisProcess, Some(other)) if other != me => Err(held_by(bdf, other, "it serves the device")),
        (Holder::ThisProcess, _) => Ok(Record { was: was.clone(), person, process: Some(me) }),
    }
}

fn held_by(bdf: Bdf, process: Process, so: &str) -> Error {
    Error::Unavailable {
        device: format!("pci:{bdf}"),
        why: format!("{} has taken it", process::named(process.pid)),
        advice: format!("{so}: kill {}", process.pid),
    }
}

fn driver_of(device: &PciDevice) -> &str {
    device.driver.as_deref().unwrap_or("no driver")
}

/// Runs `stub-driver bind`.
///
/// # Errors
/// What [`Binder::take`] gave.
pub fn bind(args: &BindArgs) -> AnyResult<()> {
    let binder = if args.force { Binder::default().even_if_in_use() } else { Binder::default() };
    let bdf = args.device;
    let Taken { was, again } = binder.take_device(bdf, Holder::Person)?;
    let before = match was.driver.as_deref() {
        None => "it had no driver".to_owned(),
        Some(driver) => format!("it was bound to {driver}"),
    };
    if again {
        println!("{bdf} is bound to {VFIO_PCI} already: {before}. Give it back: stub-driver release {bdf}");
    } else {
        println!("{bdf} is bound to {VFIO_PCI}: {before}. Give it back: stub-driver release {bdf}");
    }
    Ok(())
}

/// Runs `stub-driver release`.
///
/// # Errors
/// What [`Binder::give_back`] gave.
pub fn release(args: &ReleaseArgs) -> AnyResult<()> {
    let bdf = args.device;
    match Binder::default().give_back_device(bdf)? {
        GivenBack::To(Some(driver)) => println!("{bdf} is bound to {driver} again"),
        GivenBack::To(None) => println!("{bdf} has no driver again"),
        GivenBack::KeptForPerson => println!("{bdf} stays bound to {VFIO_PCI}"),
        GivenBack::Vanished => println!("{bdf} is no longer in the machine: forgotten"),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
