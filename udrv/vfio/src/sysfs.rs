//! What `/sys` says of PCI devices and their IOMMU groups. Reads only.

use crate::Bdf;
use std::path::{Path, PathBuf};
use udrv_backend::{Error, Result};

/// A sysfs tree: `/sys`, or one made by a test.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self { root: "/sys".into() }
    }
}

/// One PCI function, as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciDevice {
    /// Its address.
    pub bdf: Bdf,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class code: base class, subclass, interface in the low 24 bits.
    pub class: u32,
    /// The kernel driver that it is bound to.
    pub driver: Option<String>,
    /// Its IOMMU group; `None` without an IOMMU.
    pub group: Option<u32>,
    /// How the kernel can reset it, best first (`reset_method`); empty if it cannot.
    pub reset_methods: Vec<String>,
}

impl PciDevice {
    /// Whether it is a bridge of any kind (base class 06h), which VFIO does not hand out.
    #[must_use]
    pub const fn is_bridge(&self) -> bool {
        self.class >> 16 == 0x06
    }

    /// Whether a VFIO driver has it: vfio-pci, or a variant such as mlx5_vfio_pci.
    #[must_use]
    pub fn is_on_vfio(&self) -> bool {
        self.driver.as_deref().is_some_and(is_vfio_driver)
    }

    /// Whether its driver keeps its group from being used through VFIO. Every device of a group must be unbound or on a
    /// driver that leaves DMA to the group's owner: the VFIO drivers, pci-stub, and pcieport for PCI Express ports. Any
    /// other driver counts, that of an ISA bridge included (Linux 5.19, `driver_managed_dma` of `struct pci_driver`).
    #[must_use]
    pub fn blocks_group(&self) -> bool {
        let harmless = |driver: &str| is_vfio_driver(driver) || driver == "pci-stub" || driver == "pcieport";
        self.driver.as_deref().is_some_and(|driver| !harmless(driver))
    }
}

impl Sysfs {
    /// The tree below another folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A path in the tree.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.join(below)
    }

    /// The folder of one device.
    #[must_use]
    pub fn device_path(&self, bdf: Bdf) -> PathBuf {
        self.path(format!("bus/pci/devices/{bdf}"))
    }

    /// Every PCI function, ascending.
    ///
    /// # Errors
    /// [`Error::Os`] if there is no PCI bus in the tree.
    pub fn devices(&self) -> Result<Vec<Bdf>> {
        self.names("bus/pci/devices")
    }

    /// The functions of one IOMMU group, ascending.
    ///
    /// # Errors
    /// [`Error::Os`] if there is no such group.
    pub fn group(&self, number: u32) -> Result<Vec<Bdf>> {
        self.names(&format!("kernel/iommu_groups/{number}/devices"))
    }

    fn names(&self, below: &str) -> Result<Vec<Bdf>> {
        let folder = self.path(below);
        let os = |error: std::io::Error| Error::os(format!("reading {}", folder.display()), error);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(os)? {
            // A group may hold devices of other buses.
            found.extend(entry.map_err(os)?.file_name().to_str().and_then(|name| name.parse::<Bdf>().ok()));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Looks at one device.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if there is none at this address; [`Error::Os`].
    pub fn device(&self, bdf: Bdf) -> Result<PciDevice> {
        let folder = self.device_path(bdf);
        if !folder.is_dir() {
            return Err(Error::Unavailable {
                device: format!("pci:{bdf}"),
                why: "there is no such PCI device".into(),
                advice: "`stub-driver list` shows those there are".into(),
            });
        }
        let text = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(|error| Error::os(format!("reading {}", path.display()), error))
        };
        let number = |name: &str| -> Result<u32> {
            let text = text(name)?;
            u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).map_err(|_| Error::Protocol {
                peer: folder.join(name).display().to_string(),
                found: format!("`{}`", text.trim()),
                expected: "a hexadecimal number".into(),
            })
        };
        let reset_methods = text("reset_method").unwrap_or_default();
        Ok(PciDevice {
            bdf,
            vendor: number("vendor")? as u16,
            device: number("device")? as u16,
            class: number("class")?,
            driver: link_name(&folder.join("driver")),
            group: link_name(&folder.join("iommu_group")).and_then(|name| name.parse().ok()),
            reset_methods: reset_methods.split_whitespace().map(str::to_owned).collect(),
        })
    }

    /// The other functions of a device's group that keep it from being used through VFIO.
    ///
    /// # Errors
    /// As [`Sysfs::device`] and [`Sysfs::group`].
    pub fn siblings_in_the_way(&self, device: &PciDevice) -> Result<Vec<PciDevice>> {
        let Some(group) = device.group else { return Ok(Vec::new()) };
        let others = self.group(group)?.into_iter().filter(|bdf| *bdf != device.bdf);
        let others = others.map(|bdf| self.device(bdf)).collect::<Result<Vec<_>>>()?;
        Ok(others.into_iter().filter(PciDevice::blocks_group).collect())
    }
}

fn is_vfio_driver(name: &str) -> bool {
    name.ends_with("vfio-pci") || name.ends_with("vfio_pci")
}

/// The last part of where a link points.
fn link_name(link: &Path) -> Option<String> {
    std::fs::read_link(link).ok()?.file_name()?.to_str().map(str::to_owned)
}
