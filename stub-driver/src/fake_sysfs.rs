//! A sysfs tree in a temporary folder, for tests of what is read from one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use udrv_vfio::Sysfs;

pub(crate) struct FakeSysfs {
    folder: tempfile::TempDir,
}

impl FakeSysfs {
    pub(crate) fn new() -> Self {
        let fake = Self { folder: tempfile::tempdir().expect("folder") };
        for folder in ["bus/pci/devices", "bus/pci/drivers/vfio-pci", "class/block", "class/net"] {
            fs::create_dir_all(fake.root().join(folder)).expect("folder");
        }
        fake
    }

    pub(crate) fn root(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn sysfs(&self) -> Sysfs {
        Sysfs::at(self.root())
    }

    /// Adds a device, without a way to reset it.
    pub(crate) fn device(&self, bdf: &str, class: u32, driver: Option<&str>, group: Option<u32>) {
        let device = self.device_folder(bdf);
        fs::create_dir_all(&device).expect("folder");
        symlink(&device, self.root().join("bus/pci/devices").join(bdf)).expect("link");
        self.attributes(
            &device,
            &[
                ("vendor", "0x1b36"),
                ("device", "0x0010"),
                ("class", &format!("{class:#08x}")),
                ("driver_override", "(null)"),
            ],
        );
        if let Some(driver) = driver {
            let driver = self.root().join("bus/pci/drivers").join(driver);
            fs::create_dir_all(&driver).expect("folder");
            symlink(driver, device.join("driver")).expect("link");
        }
        if let Some(group) = group {
            let group = self.root().join(format!("kernel/iommu_groups/{group}"));
            fs::create_dir_all(group.join("devices")).expect("folder");
            symlink(&device, group.join("devices").join(bdf)).expect("link");
            symlink(group, device.join("iommu_group")).expect("link");
        }
    }

    /// Sets one of a device's files.
    pub(crate) fn set(&self, bdf: &str, name: &str, content: &str) {
        self.attributes(&self.device_folder(bdf), &[(name, content)]);
    }

    /// Adds a device of a class at a path below a PCI device.
    pub(crate) fn below_device(&self, bdf: &str, class: &str, path: &str, attributes: &[(&str, &str)]) {
        let folder = self.device_folder(bdf).join(path);
        fs::create_dir_all(&folder).expect("folder");
        let link = self.root().join("class").join(class).join(folder.file_name().expect("a name"));
        if !link.exists() {
            symlink(&folder, link).expect("link");
        }
        self.attributes(&folder, attributes);
    }

    fn device_folder(&self, bdf: &str) -> PathBuf {
        self.root().join("devices/pci0000:00").join(bdf)
    }

    fn attributes(&self, folder: &Path, attributes: &[(&str, &str)]) {
        for (name, content) in attributes {
            fs::write(folder.join(name), format!("{content}\n")).expect("file");
        }
    }
}
