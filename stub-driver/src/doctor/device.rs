//! What one device needs.

use super::Finding;
use super::host::how_to_turn_on_the_iommu;
use crate::bind::host_use::{self, Tables, VfioUser};
use crate::bind::{TAKEN, deadline, process, record::Records};
use crate::list::class_name;
use nix::unistd::{AccessFlags, access};
use std::path::PathBuf;
use std::time::Duration;
use udrv_vfio::{Bdf, PciDevice, Sysfs};

/// Config space is read in no time, unless the kernel waits for a user to give the device back.
const CONFIG_LIMIT: Duration = Duration::from_secs(2);
/// Offset of the command register, and its bus master bit (PCI Local Bus Specification 3.0, section 6.2.2).
const COMMAND: usize = 0x04;
const COMMAND_BUS_MASTER: u8 = 1 << 2;

pub(super) fn look(sysfs: &Sysfs, bdf: Bdf) -> Vec<Finding> {
    let device = match sysfs.device(bdf) {
        Ok(device) => device,
        Err(error) => return vec![Finding::fail("device", error.to_string(), "stub-driver list")],
    };
    let mut findings = vec![what_it_is(&device), group(sysfs, &device)];
    findings.extend(node(&device));
    findings.extend(taken(bdf));
    findings.extend(in_use(sysfs, &device, &Tables::of_this_process()));
    findings.push(reset(&device));
    findings.push(bus_master(sysfs, bdf));
    findings
}

fn what_it_is(device: &PciDevice) -> Finding {
    let PciDevice { bdf, vendor, device: id, .. } = device;
    let class = class_name(device.class);
    let driver = device.driver.as_deref().map_or_else(|| "no driver".into(), |driver| format!("bound to {driver}"));
    let detail = format!("{bdf} is {vendor:04x}:{id:04x}, {class}, {driver}");
    if device.is_bridge() {
        return Finding::fail("device", detail, "VFIO takes no bridges: see `stub-driver list` for devices");
    }
    Finding::ok("device", detail)
}

fn group(sysfs: &Sysfs, device: &PciDevice) -> Finding {
    let what = "group";
    let Some(number) = device.group else {
        return Finding::fail(what, "it has none: the IOMMU is off, or not before it", how_to_turn_on_the_iommu(sysfs));
    };
    let siblings = match sysfs.siblings_in_the_way(device) {
        Ok(siblings) => siblings,
        Err(error) => return Finding::warn(what, error.to_string(), "look again"),
    };
    if siblings.is_empty() {
        return Finding::ok(what, format!("{number}, viable"));
    }
    let with = |form: fn(Bdf, &str) -> String, between: &str| {
        let one = |other: &PciDevice| form(other.bdf, other.driver.as_deref().unwrap_or_default());
        siblings.iter().map(one).collect::<Vec<_>>().join(between)
    };
    Finding::fail(
        what,
        format!("{number} is not viable: the host drives {}", with(|bdf, driver| format!("{bdf} ({driver})"), ", ")),
        with(|bdf, driver| format!("echo {bdf} > /sys/bus/pci/drivers/{driver}/unbind"), "; "),
    )
}

/// The group's node exists while a device of it is bound to vfio-pci.
fn node(device: &PciDevice) -> Option<Finding> {
    let what = "group node";
    let node = PathBuf::from(format!("/dev/vfio/{}", device.group?));
    if !device.is_on_vfio() {
        return None;
    }
    let named = node.display();
    Some(match access(&node, AccessFlags::R_OK | AccessFlags::W_OK) {
        Ok(()) => Finding::ok(what, format!("{named} can be opened")),
        Err(nix::errno::Errno::EACCES) => Finding::warn(
            what,
            format!("{named} cannot be opened by this user, who can drive the device through a stub only"),
            format!("for pci:{}, chown {} {named}", device.bdf, nix::unistd::geteuid()),
        ),
        Err(error) => Finding::fail(
            what,
            format!("{named}: {}", error.desc()),
            "a container needs it passed in (--device); on a host, udevadm trigger",
        ),
    })
}

fn taken(bdf: Bdf) -> Option<Finding> {
    let what = "taken";
    let record = match Records::at(TAKEN).read(bdf) {
        Ok(record) => record?,
        Err(error) => return Some(Finding::fail(what, error.to_string(), "see that file")),
    };
    Some(match record.process {
        Some(holder) if holder.is_alive() => Finding::ok(what, format!("by {}", process::named(holder.pid))),
        _ if record.person => Finding::ok(what, "by a person, with `stub-driver bind`"),
        _ => Finding::warn(what, "by a stub that is dead", format!("stub-driver release {bdf}")),
    })
}

fn in_use(sysfs: &Sysfs, device: &PciDevice, tables: &Tables) -> Vec<Finding> {
    let what = "in use";
    let mut found = Vec::new();
    for used in host_use::of(sysfs, device.bdf, tables) {
        found.push(Finding::warn(what, format!("IN USE BY THE HOST: {}", used.how), used.end_it));
    }
    if let Some(user) = host_use::vfio_user(sysfs, device) {
        let by = user.named();
        let fix = match user {
            VfioUser::Processes(pids) => {
                format!("kill {}", pids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "))
            }
            VfioUser::Unseen(_) => "sudo stub-driver doctor may see it".into(),
        };
        found.push(Finding::warn(what, format!("{by} has its VFIO group open"), fix));
    }
    if found.is_empty() {
        found.push(Finding::ok(what, "neither by the host nor through VFIO, as far as can be seen"));
    }
    found
}

fn reset(device: &PciDevice) -> Finding {
    if device.reset_methods.is_empty() {
        return Finding::warn(
            "reset",
            "the kernel knows no way to reset it: what one user leaves in its registers, the next one finds",
            "let users that distrust each other have it only if its data sheet has a reset that the driver does",
        );
    }
    Finding::ok("reset", device.reset_methods.join(", "))
}

fn bus_master(sysfs: &Sysfs, bdf: Bdf) -> Finding {
    let what = "bus mastering";
    let config = match deadline::read(&sysfs.device_path(bdf).join("config"), CONFIG_LIMIT) {
        Ok(config) => config,
        Err(error) => return Finding::warn(what, error.to_string(), "end what uses the device, then look again"),
    };
    match config.get(COMMAND) {
        None => Finding::warn(what, "its config space cannot be read", format!("see `lspci -vvs {bdf}`")),
        Some(0xff) => Finding::warn(what, "it does not answer (config space reads all ones)", "reseat or rescan it"),
        Some(command) if command & COMMAND_BUS_MASTER != 0 => Finding::ok(what, "on: it may do DMA now"),
        Some(_) => Finding::ok(what, "off: it does no DMA now"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use crate::fake_sysfs::FakeSysfs;

    const NVME: &str = "0000:00:06.0";

    fn nvme(group: Option<u32>) -> (FakeSysfs, PciDevice) {
        let fake = FakeSysfs::new();
        fake.device(NVME, 0x01_0802, Some("nvme"), group);
        let device = fake.sysfs().device(NVME.parse().expect("address")).expect("device");
        (fake, device)
    }

    #[test]
    fn device_that_does_not_exist_is_the_only_finding() {
        let (fake, _) = nvme(None);
        let findings = look(&fake.sysfs(), "0000:77:00.0".parse().expect("address"));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].level, Level::Fail);
        assert!(findings[0].detail.contains("0000:77:00.0"), "{findings:?}");
    }

    #[test]
    fn group_that_is_not_viable_fails_with_siblings_and_commands() {
        let (fake, device) = nvme(Some(4242));
        fake.device("0000:00:06.1", 0x0c_0500, Some("i801_smbus"), Some(4242));
        let finding = group(&fake.sysfs(), &device);
        assert_eq!(finding.level, Level::Fail);
        assert!(finding.detail.contains("0000:00:06.1 (i801_smbus)"), "{finding:?}");
        assert_eq!(finding.fix.as_deref(), Some("echo 0000:00:06.1 > /sys/bus/pci/drivers/i801_smbus/unbind"));
    }

    #[test]
    fn device_without_reset_is_a_warning_that_says_what_it_means() {
        let (fake, device) = nvme(Some(4242));
        assert_eq!(reset(&device).level, Level::Warn);
        fake.set(NVME, "reset_method", "flr");
        let device = fake.sysfs().device(device.bdf).expect("device");
        assert_eq!(reset(&device), Finding::ok("reset", "flr"));
    }

    #[test]
    fn mounted_disk_below_the_device_is_a_loud_warning() {
        let (fake, device) = nvme(Some(4242));
        fake.below_device(NVME, "block", "nvme/nvme0/nvme0n1", &[("dev", "259:0")]);
        let mounts = "30 1 259:0 / /srv rw - ext4 /dev/nvme0n1 rw\n";
        let found = in_use(&fake.sysfs(), &device, &Tables { mounts: mounts.into(), swaps: String::new() });
        assert_eq!(found[0].level, Level::Warn);
        assert_eq!(found[0].detail, "IN USE BY THE HOST: /dev/nvme0n1 is mounted on /srv");
    }

    #[test]
    fn bus_mastering_is_read_from_the_command_register() {
        let (fake, device) = nvme(None);
        let cases = [
            ("\x36\x1b\x10\0\x02", "off"),
            ("\x36\x1b\x10\0\x06", "on"),
            ("\x36\x1b\x10", "its config space cannot be read"),
        ];
        for (config, expected) in cases {
            fake.set(NVME, "config", config);
            let detail = bus_master(&fake.sysfs(), device.bdf).detail;
            assert!(detail.starts_with(expected), "{config:?}: {detail}");
        }
    }
}
