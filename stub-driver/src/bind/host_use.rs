//! What the host uses a device for: block devices below it that are mounted, swapped to or part of another block
//! device, network interfaces below it that are up, and processes that have its VFIO group open.

use super::process;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::path::{Path, PathBuf};
use udrv_vfio::{Bdf, PciDevice, Sysfs};

/// One use, as a message says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostUse {
    /// `/dev/nvme0n1p1 is mounted on /srv`.
    pub(crate) how: String,
    /// The command that ends it.
    pub(crate) end_it: String,
}

/// What this process sees of mounts and swap, as the kernel writes it (proc(5)).
#[derive(Debug, Default)]
pub(crate) struct Tables {
    /// `/proc/self/mountinfo`
    pub(crate) mounts: String,
    /// `/proc/swaps`
    pub(crate) swaps: String,
}

impl Tables {
    pub(crate) fn of_this_process() -> Self {
        let text = |path| std::fs::read_to_string(path).unwrap_or_default();
        Self { mounts: text("/proc/self/mountinfo"), swaps: text("/proc/swaps") }
    }
}

/// All uses of a device that can be seen.
pub(crate) fn of(sysfs: &Sysfs, bdf: Bdf, tables: &Tables) -> Vec<HostUse> {
    of_folder(sysfs, &sysfs.device_path(bdf), tables)
}

/// As [`of`], for a device on any bus, by its folder in sysfs.
pub(crate) fn of_folder(sysfs: &Sysfs, device: &Path, tables: &Tables) -> Vec<HostUse> {
    let Ok(device) = device.canonicalize() else { return Vec::new() };
    let mut found = Vec::new();
    for block in below(sysfs, "class/block", &device) {
        found.extend(use_of_block(&block, tables));
    }
    for interface in below(sysfs, "class/net", &device) {
        let flags = read(&interface.join("flags"));
        let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).unwrap_or(0);
        if flags & libc::IFF_UP as u32 != 0 {
            let name = name_of(&interface);
            found.push(HostUse {
                how: format!("network interface {name} is up"),
                end_it: format!("ip link set {name} down"),
            });
        }
    }
    found
}

/// The entries of a class that belong to the device.
fn below(sysfs: &Sysfs, class: &str, device: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(sysfs.path(class)).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.map(|entry| entry.path()).filter(|entry| belongs_to(entry, device)).collect();
    found.sort();
    found
}

fn belongs_to(entry: &Path, device: &Path) -> bool {
    let is_below = |path: &Path| path.canonicalize().is_ok_and(|path| path.starts_with(device));
    // A disk of an NVMe subsystem is below the subsystem, which links to each controller that reaches it.
    let links = std::fs::read_dir(entry.join("device")).into_iter().flatten().flatten();
    is_below(entry)
        || (entry.join("device/subsysnqn").exists() && links.map(|link| link.path()).any(|link| is_below(&link)))
}

fn use_of_block(block: &Path, tables: &Tables) -> Option<HostUse> {
    let name = name_of(block);
    let number = read(&block.join("dev"));
    let node = format!("/dev/{name}");
    if let Some(place) = mounted_on(&tables.mounts, &number, &node) {
        return Some(HostUse { how: format!("{node} is mounted on {place}"), end_it: format!("umount {place}") });
    }
    if tables.swaps.lines().any(|line| line.split_whitespace().next() == Some(&node)) {
        return Some(HostUse { how: format!("{node} is swap space"), end_it: format!("swapoff {node}") });
    }
    let holder = std::fs::read_dir(block.join("holders")).into_iter().flatten().flatten().next();
    if let Some(holder) = holder {
        let holder = holder.file_name().to_string_lossy().into_owned();
        return Some(HostUse {
            how: format!("{node} is part of /dev/{holder}"),
            end_it: format!("stop /dev/{holder} (dmsetup remove, mdadm --stop)"),
        });
    }
    is_claimed(&node, &number).then(|| HostUse {
        how: format!("{node} is claimed (a mount of another container, or a program)"),
        end_it: format!("fuser -v {node}"),
    })
}

/// Where the file system on a block device is mounted. Some file systems (btrfs) show a device number of their own.
fn mounted_on(mounts: &str, number: &str, node: &str) -> Option<String> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (device, place) = (fields.nth(2)?, fields.nth(1)?);
        // after the separator: file system, source
        let source = fields.skip_while(|field| *field != "-").nth(2);
        (device == number || source == Some(node)).then(|| place.to_owned())
    })
}

/// Whether the kernel refuses a second exclusive user: the only sign of mounts in other mount namespaces.
fn is_claimed(node: &str, number: &str) -> bool {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let is_it = |found: std::fs::Metadata| {
        let device = found.rdev();
        found.file_type().is_block_device() && format!("{}:{}", libc::major(device), libc::minor(device)) == number
    };
    let flags = OFlag::O_RDONLY | OFlag::O_EXCL | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    std::fs::metadata(node).is_ok_and(is_it) && matches!(open(node, flags, Mode::empty()), Err(Errno::EBUSY))
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().replace('!', "/")).unwrap_or_default()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Who drives the device's group through VFIO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VfioUser {
    /// These processes, of those that we may look at.
    Processes(Vec<u32>),
    /// Somebody: one of these, which have a VFIO device open, or a process that we cannot see, such as one in another
    /// container. An open device keeps its group open, and does not say which device it is.
    Unseen(Vec<u32>),
}

impl VfioUser {
    /// As a message names it.
    pub(crate) fn named(&self) -> String {
        match self {
            Self::Processes(pids) => all_named(pids),
            Self::Unseen(pids) if pids.is_empty() => "a process that cannot be seen from here".into(),
            Self::Unseen(pids) => format!("a process (probably {})", all_named(pids)),
        }
    }
}

fn all_named(pids: &[u32]) -> String {
    pids.iter().copied().map(process::named).collect::<Vec<_>>().join(", ")
}

/// Who has the device or its group open. A group can be open once only, so the kernel's answer to us tells.
pub(crate) fn vfio_user(sysfs: &Sysfs, device: &PciDevice) -> Option<VfioUser> {
    let group = PathBuf::from(format!("/dev/vfio/{}", device.group?));
    // iommufd: one node a device
    let nodes = std::fs::read_dir(sysfs.device_path(device.bdf).join("vfio-dev")).into_iter().flatten().flatten();
    let mut files: Vec<_> = nodes.map(|node| Path::new("/dev/vfio/devices").join(node.file_name())).collect();
    files.push(group.clone());
    let pids = process::that_opened(&files);
    if !pids.is_empty() {
        return Some(VfioUser::Processes(pids));
    }
    let opened = open(&group, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty());
    matches!(opened, Err(Errno::EBUSY))
        .then(|| VfioUser::Unseen(process::that_opened(&["anon_inode:[vfio-device]".into()])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_sysfs::FakeSysfs;

    const NVME: &str = "0000:00:06.0";
    const MOUNT: &str = "30 1 259:1 / /srv rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw\n";

    /// An NVMe controller with a disk of one partition.
    fn nvme() -> (FakeSysfs, Bdf) {
        let fake = FakeSysfs::new();
        fake.device(NVME, 0x01_0802, Some("nvme"), Some(6));
        for (path, number) in [("nvme0n1", "259:0"), ("nvme0n1/nvme0n1p1", "259:1")] {
            fake.below_device(NVME, "block", &format!("nvme/nvme0/{path}"), &[("dev", number)]);
        }
        (fake, NVME.parse().expect("address"))
    }

    fn uses(fake: &FakeSysfs, bdf: Bdf, mounts: &str, swaps: &str) -> Vec<String> {
        let tables = Tables { mounts: mounts.into(), swaps: swaps.into() };
        of(&fake.sysfs(), bdf, &tables).into_iter().map(|found| format!("{}; {}", found.how, found.end_it)).collect()
    }

    #[test]
    fn disk_that_nobody_uses_is_no_use() {
        let (fake, bdf) = nvme();
        assert_eq!(uses(&fake, bdf, "30 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "Filename\n"), [""; 0]);
    }

    #[test]
    fn partition_mounted_is_a_use_by_number_or_by_source() {
        let (fake, bdf) = nvme();
        let expected = ["/dev/nvme0n1p1 is mounted on /srv; umount /srv"];
        assert_eq!(uses(&fake, bdf, MOUNT, ""), expected);
        assert_eq!(uses(&fake, bdf, "30 1 0:40 / /srv rw - btrfs /dev/nvme0n1p1 rw\n", ""), expected);
        assert_eq!(uses(&fake, bdf, "30 1 259:1 / /srv rw - ext4 /dev/disk/by-id/7 rw\n", ""), expected);
    }

    #[test]
    fn partition_swapped_to_is_a_use() {
        let (fake, bdf) = nvme();
        let swaps = "Filename Type Size Used Priority\n/dev/nvme0n1p1 partition 8 0 -2\n";
        assert_eq!(uses(&fake, bdf, "", swaps), ["/dev/nvme0n1p1 is swap space; swapoff /dev/nvme0n1p1"]);
    }

    #[test]
    fn partition_that_another_block_device_holds_is_a_use() {
        let (fake, bdf) = nvme();
        fake.below_device(NVME, "block", "nvme/nvme0/nvme0n1/nvme0n1p1/holders/dm-0", &[]);
        let found = uses(&fake, bdf, "", "");
        assert!(found.iter().any(|found| found.starts_with("/dev/nvme0n1p1 is part of /dev/dm-0")), "{found:?}");
    }

    #[test]
    fn disk_of_another_device_is_no_use_of_this_one() {
        let (fake, _) = nvme();
        fake.device("0000:00:07.0", 0x02_0000, None, Some(7));
        assert_eq!(uses(&fake, "0000:00:07.0".parse().expect("address"), MOUNT, ""), [""; 0]);
    }

    #[test]
    fn network_interface_is_a_use_only_while_it_is_up() {
        let fake = FakeSysfs::new();
        fake.device(NVME, 0x02_0000, Some("e1000e"), Some(6));
        let bdf = NVME.parse().expect("address");
        fake.below_device(NVME, "net", "net/eth0", &[("flags", "0x1002")]);
        assert_eq!(uses(&fake, bdf, "", ""), [""; 0]);
        fake.below_device(NVME, "net", "net/eth0", &[("flags", "0x1003")]);
        assert_eq!(uses(&fake, bdf, "", ""), ["network interface eth0 is up; ip link set eth0 down"]);
    }
}
