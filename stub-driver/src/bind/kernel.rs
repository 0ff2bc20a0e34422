//! The steps, made in sysfs (kernel documentation, "ABI/testing/sysfs-bus-pci"), each with a deadline.

use super::deadline;
use super::host_use::{self, VfioUser};
use super::steps::{Binding, Step, VFIO_PCI};
use crate::lock::Lock;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use udrv_backend::{Error, Result};
use udrv_vfio::{Bdf, Sysfs};

/// For a driver to let go of a device, or to take it: it may have to wait for a reset of some seconds.
const STEP_LIMIT: Duration = Duration::from_secs(20);
/// For a file that is only read.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// For modprobe, whose module may look for its devices first.
const MODPROBE_LIMIT: Duration = Duration::from_secs(20);
/// More steps than any way has, and room for another tool that interferes.
const MOST_STEPS: usize = 12;

/// What the kernel says of a device.
pub(crate) fn observe(sysfs: &Sysfs, bdf: Bdf) -> Result<Binding> {
    let only = deadline::read(&sysfs.device_path(bdf).join("driver_override"), READ_LIMIT)
        .map_err(|error| explain(sysfs, bdf, "reading its driver_override", error))?;
    let only = String::from_utf8_lossy(&only).trim().to_owned();
    let driver_override = (only != "(null)" && !only.is_empty()).then_some(only);
    Ok(Binding { driver: sysfs.device(bdf)?.driver, driver_override })
}

/// Makes steps until there is no next one. A step that fails is only a failure if it left everything as it was.
pub(crate) fn drive(sysfs: &Sysfs, bdf: Bdf, lock: &Lock, next: impl Fn(&Binding) -> Option<Step>) -> Result<Binding> {
    let mut now = observe(sysfs, bdf)?;
    for _ in 0..MOST_STEPS {
        let Some(step) = next(&now) else { return Ok(now) };
        tracing::debug!(%bdf, ?step, "binding");
        let made = make(sysfs, bdf, lock, &step);
        if let Err(error @ (Error::Timeout { .. } | Error::Gone { .. })) = made {
            return Err(error);
        }
        let after = observe(sysfs, bdf)?;
        if after == now {
            return Err(made.err().unwrap_or_else(|| without_effect(bdf, &step)));
        }
        now = after;
    }
    Err(Error::Unavailable {
        device: format!("pci:{bdf}"),
        why: "its driver keeps changing".into(),
        advice: "stop the other tool that binds it (a udev rule, driverctl), then try again".into(),
    })
}

fn make(sysfs: &Sysfs, bdf: Bdf, lock: &Lock, step: &Step) -> Result<()> {
    let of_driver = |driver: &str, file: &str| sysfs.path(format!("bus/pci/drivers/{driver}/{file}"));
    let address = bdf.to_string();
    let (path, value) = match step {
        Step::Override(driver) => {
            // an empty line lifts the restriction
            let line = format!("{}\n", driver.as_deref().unwrap_or_default());
            (sysfs.device_path(bdf).join("driver_override"), line)
        }
        Step::Unbind(driver) => (of_driver(driver, "unbind"), address),
        Step::Bind(driver) => {
            load(sysfs, driver)?;
            if sysfs.device(bdf)?.driver.is_some() {
                // the module that was just loaded found the device by itself
                return Ok(());
            }
            // `bind` of the one driver rather than `drivers_probe` of all: it cannot pick another, and tells why it failed
            (of_driver(driver, "bind"), address)
        }
    };
    deadline::write(&path, &value, lock.as_fd(), STEP_LIMIT)
        .map_err(|error| explain(sysfs, bdf, &format!("writing `{}` to {}", value.trim_end(), path.display()), error))
}

/// Says what the kernel waits for, if that can be seen.
fn explain(sysfs: &Sysfs, bdf: Bdf, doing: &str, error: Error) -> Error {
    let Error::Timeout { after, .. } = error else { return error };
    let user = sysfs.device(bdf).ok().and_then(|device| host_use::vfio_user(sysfs, &device));
    let user = user.as_ref().map_or_else(|| "a driver".to_owned(), VfioUser::named);
    Error::Timeout { what: format!("pci:{bdf}: {doing}, because the kernel waits for {user} to let go of it,"), after }
}

fn without_effect(bdf: Bdf, step: &Step) -> Error {
    let what = match step {
        Step::Override(_) => "the kernel kept the old driver_override".to_owned(),
        Step::Unbind(driver) => format!("it is still bound to {driver}"),
        Step::Bind(driver) => format!("{driver} did not take it"),
    };
    Error::Unavailable {
        device: format!("pci:{bdf}"),
        why: what,
        advice: "the kernel's log (dmesg) may say why".into(),
    }
}

/// Loads a driver's module if the driver is not there.
pub(crate) fn load(sysfs: &Sysfs, driver: &str) -> Result<()> {
    let folder = sysfs.path(format!("bus/pci/drivers/{driver}"));
    if folder.is_dir() {
        return Ok(());
    }
    // in the folder of system programs, which a PATH may lack
    let program = ["/sbin/modprobe", "/usr/sbin/modprobe"].iter().map(PathBuf::from).find(|path| path.exists());
    let mut modprobe = Command::new(program.unwrap_or_else(|| "modprobe".into()));
    let said = match deadline::run(modprobe.arg("--").arg(driver), MODPROBE_LIMIT) {
        Ok((_, said)) => said,
        Err(error) => error.to_string(),
    };
    if folder.is_dir() {
        return Ok(());
    }
    let said = said.lines().next().map(|line| format!(" ({line})")).unwrap_or_default();
    Err(Error::Unavailable {
        device: format!("driver {driver}"),
        why: format!("it is not loaded, and modprobe did not load it{said}"),
        advice: if driver == VFIO_PCI {
            "install a kernel with CONFIG_VFIO_PCI, such as a distribution's stock one".into()
        } else {
            format!("load it (modprobe {driver}), then try again")
        },
    })
}

/// Refuses whoever may not write what the steps write.
pub(crate) fn check_permission(sysfs: &Sysfs, bdf: Bdf, command: &str) -> Result<()> {
    let (why, advice) = match access(&sysfs.device_path(bdf).join("driver_override"), AccessFlags::W_OK) {
        Ok(()) => return Ok(()),
        Err(Errno::EROFS) => ("sysfs is mounted read-only", "run this outside of the container".to_owned()),
        Err(_) => ("only root may change its driver", format!("sudo stub-driver {command} {bdf}")),
    };
    Err(Error::Unavailable { device: format!("pci:{bdf}"), why: why.into(), advice })
}
