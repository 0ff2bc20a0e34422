//! What every device needs of the machine.

use super::Finding;
use crate::bind::TAKEN;
use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::{AccessFlags, access, geteuid};
use std::path::Path;
use udrv_vfio::Sysfs;

/// The bytes that the smallest driver of this kit maps for DMA: that of `edu`, 16 buffers of 4 KiB.
const SMALLEST_POOL: u64 = 16 * 4096;
/// Enough for queues and buffers of a controller such as NVMe; what systemd gives to services and logins (2024).
const COMFORTABLE: u64 = 8 << 20;

pub(super) fn look(sysfs: &Sysfs) -> Vec<Finding> {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let dependencies = release.map(|release| format!("/lib/modules/{release}/modules.dep")).unwrap_or_default();
    let dependencies = std::fs::read_to_string(dependencies).ok();
    vec![
        iommu(sysfs),
        module(sysfs, "vfio-pci", "vfio-pci module", dependencies.as_deref()),
        module(sysfs, "vfio_iommu_type1", "type1 module", dependencies.as_deref()),
        container(Path::new("/dev/vfio/vfio")),
        memlock(),
        lockdown(std::fs::read_to_string(sysfs.path("kernel/security/lockdown")).ok().as_deref()),
        permission(),
        records(Path::new(TAKEN)),
    ]
}

/// For a person whose machine has no IOMMU groups. The firmware's tables say which IOMMU there is: a table that is there means
/// that the firmware has it on, so that the kernel is what is missing.
pub(crate) fn how_to_turn_on_the_iommu(sysfs: &Sysfs) -> &'static str {
    let table = |name: &str| sysfs.path("firmware/acpi/tables").join(name).exists();
    if table("DMAR") {
        "boot with the kernel parameter intel_iommu=on (the firmware has VT-d on)"
    } else if table("IVRS") {
        "boot without the kernel parameters amd_iommu=off and iommu=off (the firmware has AMD-Vi on)"
    } else {
        "turn on VT-d (Intel), AMD-Vi or the SMMU in the firmware, and with VT-d boot with the kernel parameter intel_iommu=on"
    }
}

fn iommu(sysfs: &Sysfs) -> Finding {
    let groups = std::fs::read_dir(sysfs.path("kernel/iommu_groups")).map_or(0, |groups| groups.flatten().count());
    match groups {
        0 => Finding::fail("IOMMU", "it is off: there are no IOMMU groups", how_to_turn_on_the_iommu(sysfs)),
        _ => Finding::ok("IOMMU", format!("on, with {groups} groups")),
    }
}

fn module(sysfs: &Sysfs, name: &'static str, what: &'static str, dependencies: Option<&str>) -> Finding {
    let loaded = sysfs.path("module").join(name.replace('-', "_")).is_dir();
    match dependencies.map(|text| is_loadable(text, name)) {
        _ if loaded => Finding::ok(what, "loaded"),
        Some(true) => Finding::warn(what, "not loaded; it is when a device is bound", format!("modprobe {name}")),
        Some(false) => Finding::fail(
            what,
            format!("this kernel does not have {name}"),
            "boot a kernel built with CONFIG_VFIO_PCI and CONFIG_VFIO_IOMMU_TYPE1",
        ),
        None => Finding::fail(
            what,
            "not loaded, and the modules of this kernel are not installed here",
            format!("on the host: modprobe {name}"),
        ),
    }
}

/// Whether `modules.dep` lists it: lines such as `kernel/drivers/vfio/pci/vfio-pci.ko.xz: ...`.
fn is_loadable(dependencies: &str, name: &str) -> bool {
    dependencies.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        file.split_once(".ko").is_some_and(|(module, _)| module.replace('-', "_") == name.replace('-', "_"))
    })
}

fn container(node: &Path) -> Finding {
    let what = "VFIO container";
    let named = node.display();
    match access(node, AccessFlags::R_OK | AccessFlags::W_OK) {
        Ok(()) => Finding::ok(what, format!("{named} can be opened")),
        Err(Errno::EACCES) => Finding::warn(
            what,
            format!("{named} cannot be opened by this user, who can drive devices through a stub only"),
            format!("for pci: addresses, chmod 0666 {named} (the kernel's own default; groups protect devices)"),
        ),
        Err(_) => Finding::fail(what, format!("{named} does not exist"), "modprobe vfio"),
    }
}

fn memlock() -> Finding {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((soft, hard)) => judge_memlock(soft, hard, may_lock_anything(&status)),
        Err(error) => Finding::warn("memlock", format!("the limit cannot be read ({error})"), "ulimit -l shows it"),
    }
}

/// CAP_IPC_LOCK, bit 14 of the effective set: the kernel then counts no limit (capabilities(7)).
fn may_lock_anything(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    effective.is_some_and(|set| set & (1 << 14) != 0)
}

fn judge_memlock(soft: u64, hard: u64, exempt: bool) -> Finding {
    let need = format!(
        "every byte mapped for DMA counts, in the process that maps it (the stub, for its clients): the edu driver maps {}, \
a virtual machine all of its memory",
        size(SMALLEST_POOL)
    );
    let detail = format!("the limit is {} (at most {}); {need}", size(soft), size(hard));
    let fix = if soft < hard && hard >= COMFORTABLE {
        format!("ulimit -l {}", if hard == RLIM_INFINITY { "unlimited".into() } else { (hard >> 10).to_string() })
    } else {
        "as root, prlimit --memlock=unlimited --pid $$ for this shell, or LimitMEMLOCK=infinity in the unit of the service".into()
    };
    match soft {
        _ if exempt => Finding::ok("memlock", format!("CAP_IPC_LOCK: the limit of {} does not count here", size(soft))),
        _ if soft < SMALLEST_POOL => Finding::fail("memlock", detail, fix),
        _ if soft < COMFORTABLE => Finding::warn("memlock", detail, fix),
        _ => Finding::ok("memlock", detail),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        RLIM_INFINITY => "unlimited".into(),
        _ if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        _ => format!("{} KiB", bytes >> 10),
    }
}

fn lockdown(modes: Option<&str>) -> Finding {
    let what = "lockdown";
    let Some(modes) = modes else {
        return Finding::ok(what, "not seen (no lockdown in this kernel, or no securityfs)");
    };
    let mode = modes.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("unknown", |(mode, _)| mode);
    match mode {
        "none" => Finding::ok(what, "off"),
        mode => Finding::ok(what, format!("{mode}: VFIO works; mappings of sysfs `resourceN`, not used here, do not")),
    }
}

fn permission() -> Finding {
    let user = geteuid();
    if user.is_root() {
        return Finding::ok("user", "root: may bind devices and serve them");
    }
    let detail = format!("user {user} may run drivers, and neither bind devices nor see all that root would here");
    Finding::warn("user", detail, "sudo stub-driver doctor")
}

/// The nearest folder that exists decides.
fn records(folder: &Path) -> Finding {
    let what = "records";
    let existing = folder.ancestors().find(|folder| folder.exists()).unwrap_or(folder);
    match access(existing, AccessFlags::W_OK) {
        Ok(()) => Finding::ok(what, format!("{} can be written", folder.display())),
        Err(Errno::EACCES) if !geteuid().is_root() => {
            Finding::warn(what, format!("{} is for root to write", folder.display()), "sudo stub-driver doctor")
        }
        Err(error) => Finding::fail(
            what,
            format!("{} cannot be written ({})", existing.display(), error.desc()),
            format!("mount a tmpfs on /run, or as root: mkdir -p {}", folder.display()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use crate::fake_sysfs::FakeSysfs;

    #[test]
    fn machine_without_iommu_groups_fails_and_names_firmware_or_kernel_parameter() {
        let fix = |tables: &[&str]| {
            let fake = FakeSysfs::new();
            for table in tables {
                std::fs::create_dir_all(fake.root().join("firmware/acpi/tables").join(table)).expect("folder");
            }
            let finding = iommu(&fake.sysfs());
            assert_eq!(finding.level, Level::Fail);
            finding.fix.expect("a way")
        };
        assert!(fix(&["DMAR"]).starts_with("boot with the kernel parameter intel_iommu=on"));
        assert!(fix(&["IVRS"]).starts_with("boot without the kernel parameters amd_iommu=off"));
        assert!(fix(&[]).contains("in the firmware"));
    }

    #[test]
    fn module_is_ok_loaded_a_warning_loadable_and_a_failure_otherwise() {
        let fake = FakeSysfs::new();
        let level = |dependencies| module(&fake.sysfs(), "vfio-pci", "vfio-pci module", dependencies).level;
        assert_eq!(
            level(Some("kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz\n")),
            Level::Warn
        );
        assert_eq!(level(Some("kernel/drivers/vfio/vfio.ko: kernel/x/vfio-pci.ko\n")), Level::Fail);
        assert_eq!(level(None), Level::Fail);
        std::fs::create_dir_all(fake.root().join("module/vfio_pci")).expect("folder");
        assert_eq!(level(None), Level::Ok);
    }

    #[test]
    fn memlock_below_the_smallest_pool_fails_with_the_amount_and_the_command() {
        let finding = judge_memlock(32 << 10, RLIM_INFINITY, false);
        assert_eq!(finding.level, Level::Fail);
        assert!(finding.detail.contains("32 KiB") && finding.detail.contains("64 KiB"), "{finding:?}");
        assert_eq!(finding.fix.as_deref(), Some("ulimit -l unlimited"));
    }

    #[test]
    fn memlock_is_moot_with_the_capability_and_a_warning_when_small() {
        assert_eq!(judge_memlock(0, 0, true).level, Level::Ok);
        assert_eq!(judge_memlock(64 << 10, 64 << 10, false).level, Level::Warn);
        assert_eq!(judge_memlock(8 << 20, 8 << 20, false).level, Level::Ok);
        assert!(may_lock_anything("Name:\tx\nCapEff:\t0000000000004000\n"));
        assert!(!may_lock_anything("CapPrm:\t0000000000004000\nCapEff:\tffffffffffffbfff\n"));
    }

    #[test]
    fn lockdown_names_the_mode_that_is_on() {
        assert_eq!(lockdown(Some("[none] integrity confidentiality\n")).detail, "off");
        assert!(lockdown(Some("none [integrity] confidentiality\n")).detail.starts_with("integrity:"));
        assert!(lockdown(None).detail.starts_with("not seen"));
    }
}
