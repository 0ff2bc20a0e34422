//! From a PCI address to an open device: container, group, device, and why one of them cannot be had.
//!
//! The container is vfio-ioctls'. The rest is not its `VfioDevice`, whose drop looks the group up in sysfs and panics when
//! the device has been removed meanwhile, and whose errors leave out the errno of the calls that fail most.

use crate::{Bdf, PciDevice, Sysfs, uapi};
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use udrv_backend::{Error, Result};
use vfio_bindings::bindings::vfio::{VFIO_GROUP_FLAGS_VIABLE, VFIO_TYPE1v2_IOMMU};
use vfio_ioctls::{VfioContainer, VfioError};

const MODULES: &str = "load its modules: modprobe -a vfio-pci vfio_iommu_type1";

/// An open device. Fields are closed in this order: a group can only be left by a container once its devices are closed.
pub(crate) struct Attached {
    pub(crate) device: OwnedFd,
    _group: File,
    pub(crate) container: VfioContainer,
    /// What sysfs said of it.
    pub(crate) pci: PciDevice,
}

impl Attached {
    pub(crate) fn container_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.container)
    }
}

/// vfio-ioctls has no `AsFd` yet.
#[expect(unsafe_code, reason = "a descriptor is borrowed from a type that only has AsRawFd")]
fn borrow(container: &VfioContainer) -> BorrowedFd<'_> {
    // SAFETY: the container keeps its file open as long as it lives, which is as long as the result is borrowed.
    unsafe { BorrowedFd::borrow_raw(container.as_raw_fd()) }
}

/// Opens a device that is bound to vfio-pci. Changes nothing if it cannot.
pub(crate) fn attach(bdf: Bdf) -> Result<Attached> {
    let sysfs = Sysfs::default();
    let pci = sysfs.device(bdf)?;
    let number = check(&sysfs, &pci)?;
    let refused = |why: String, advice: &str| unavailable(bdf, why, advice);
    let container = VfioContainer::new(None).map_err(|error| match error {
        VfioError::OpenContainer(error) => open_failed(bdf, Path::new("/dev/vfio/vfio"), error),
        VfioError::VfioExtension => refused("the kernel's VFIO has no type 1 IOMMU".into(), MODULES),
        other => refused(other.to_string(), "this needs a Linux kernel with VFIO"),
    })?;
    let path = PathBuf::from(format!("/dev/vfio/{number}"));
    let group =
        OpenOptions::new().read(true).write(true).open(&path).map_err(|error| open_failed(bdf, &path, error))?;
    let os = |doing: &str, error: io::Error| Error::os(format!("pci:{bdf}: {doing}"), error);
    let status = uapi::group_status(group.as_fd()).map_err(|error| os("asking for its group's status", error))?;
    if status & VFIO_GROUP_FLAGS_VIABLE == 0 {
        // Siblings changed since sysfs was looked at, or are not PCI devices.
        return Err(refused(format!("its IOMMU group {number} is not viable"), "`stub-driver doctor` shows the group"));
    }
    uapi::set_container(group.as_fd(), borrow(&container))
        .map_err(|error| os("putting its group into a container", error))?;
    uapi::set_iommu(borrow(&container), VFIO_TYPE1v2_IOMMU).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM) => refused(
            "the IOMMU does not remap interrupts, so the device could forge any".into(),
            "enable interrupt remapping in the firmware; or, if you trust the device, load vfio_iommu_type1 with \
             allow_unsafe_interrupts=1",
        ),
        _ => os("attaching its group to the IOMMU", error),
    })?;
    let name = CString::new(bdf.to_string()).map_err(|error| os("naming the device", error.into()))?;
    let device = uapi::device_fd(group.as_fd(), &name).map_err(|error| os("opening it in its group", error))?;
    Ok(Attached { device, _group: group, container, pci })
}

/// What can be known before anything is opened. Returns the group's number.
fn check(sysfs: &Sysfs, pci: &PciDevice) -> Result<u32> {
    let bdf = pci.bdf;
    let no_iommu = || {
        unavailable(
            bdf,
            "no IOMMU stands between it and memory".into(),
            "enable VT-d or AMD-Vi in the firmware and boot with intel_iommu=on (Intel); AMD needs no option",
        )
    };
    let group = pci.group.ok_or_else(no_iommu)?;
    // VFIO's own no-IOMMU mode makes a group for a device that has none. Its DMA could reach all of memory.
    let name = std::fs::read_to_string(sysfs.path(format!("kernel/iommu_groups/{group}/name"))).unwrap_or_default();
    if name.trim() == "vfio-noiommu" {
        return Err(no_iommu());
    }
    if !pci.is_on_vfio() {
        let why = match &pci.driver {
            Some(driver) => format!("it is bound to the driver {driver}, not to vfio-pci"),
            None => "it is not bound to vfio-pci".into(),
        };
        return Err(unavailable(bdf, why, &format!("bind it first: stub-driver bind {bdf}")));
    }
    let siblings = sysfs.siblings_in_the_way(pci)?;
    if siblings.is_empty() {
        return Ok(group);
    }
    let name = |sibling: &PciDevice| format!("{} ({})", sibling.bdf, sibling.driver.as_deref().unwrap_or("no driver"));
    let names: Vec<String> = siblings.iter().map(name).collect();
    Err(unavailable(
        bdf,
        format!("its IOMMU group {group} is not viable: kernel drivers hold {}", names.join(", ")),
        "unbind those too: echo BDF > /sys/bus/pci/drivers/DRIVER/unbind as root, for each",
    ))
}

fn unavailable(bdf: Bdf, why: String, advice: &str) -> Error {
    Error::Unavailable { device: format!("pci:{bdf}"), why, advice: advice.into() }
}

/// Why a file below /dev/vfio cannot be opened.
fn open_failed(bdf: Bdf, path: &Path, error: io::Error) -> Error {
    let shown = path.display();
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::PermissionDenied, _) => {
            let owner = std::fs::metadata(path).map_or_else(
                |_| "somebody else".into(),
                |file| format!("uid {} with mode {:03o}", file.uid(), file.mode() & 0o777),
            );
            let me = nix::unistd::geteuid();
            let advice =
                format!("run as that user, or: chown {me} {shown}; or let the stub (stub-driver serve) open it");
            unavailable(bdf, format!("uid {me} may not open {shown}, which belongs to {owner}"), &advice)
        }
        (ErrorKind::NotFound, _) => unavailable(bdf, format!("there is no {shown}"), MODULES),
        (_, Some(libc::EBUSY)) => {
            let (why, advice) = match holder(path) {
                Some((pid, name)) => (
                    format!("process {pid} ({name}) has it open"),
                    format!("end that process, or use the device through it ({shown} opens once)"),
                ),
                None => (
                    format!("another process has {shown} open"),
                    format!("`fuser -v {shown}` as root names it; it opens once"),
                ),
            };
            unavailable(bdf, why, &advice)
        }
        _ => Error::os(format!("pci:{bdf}: opening {shown}"), error),
    }
}

/// A process that has `path` open, as far as /proc shows us others' descriptors.
fn holder(path: &Path) -> Option<(u32, String)> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find_map(|pid| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let mut links = open.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
        links.any(|link| link == path).then(|| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            (pid, name.trim().to_owned())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(driver: Option<&str>, group: Option<u32>) -> PciDevice {
        let bdf = "0000:00:04.0".parse().expect("an address");
        let driver = driver.map(str::to_owned);
        PciDevice { bdf, vendor: 0x1234, device: 0x11e8, class: 0x00ff_0000, driver, group, reset_methods: Vec::new() }
    }

    #[test]
    fn device_without_an_iommu_is_refused_before_its_driver_is_looked_at() {
        let error = check(&Sysfs::at("/nowhere"), &device(None, None)).expect_err("no group").to_string();
        assert!(error.contains("no IOMMU") && error.contains("intel_iommu=on"), "{error}");
    }

    #[test]
    fn device_of_another_driver_is_refused_with_the_command_that_binds_it() {
        for (driver, named) in [(Some("nvme"), "driver nvme"), (None, "not bound")] {
            let error = check(&Sysfs::at("/nowhere"), &device(driver, Some(1))).expect_err("unbound").to_string();
            assert!(error.contains(named) && error.contains("stub-driver bind 0000:00:04.0"), "{error}");
        }
    }

    #[test]
    fn holder_of_a_file_of_this_process_is_this_process() {
        let path = std::env::current_exe().expect("our own program");
        let _open = File::open(&path).expect("readable");
        // Another process may run the same program, so only that somebody is found is certain.
        let (pid, _) = holder(&path).expect("at least this process has it open");
        assert!(pid > 0);
        assert_eq!(holder(Path::new("/nowhere")), None);
    }
}
