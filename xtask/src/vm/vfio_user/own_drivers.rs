//! A stock kernel's own drivers on our models: nvme makes a file system (MSI-X, DMA through the descriptors that QEMU sends), 8250_pci
//! talks over the serial port (INTx) to the plug in it. Then the machine is reset, with its QEMU still connected, and later there is
//! another QEMU: each time the files must be there and the line must work.
//!
//! `own_drivers.sh` is the guest's only process. It knows by the file system how far the story is.

use super::{Expected, Fact, Machine, conclude, judge};
use crate::clock;
use crate::stub::Stub;
use crate::vm::initramfs;
use crate::vm::verdict::{Outcome, Verdict};
use crate::vm::watch::End;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::Path;

const FILE_SYSTEM: &str = "vfio_user::stock_nvme_driver_makes_a_file_system_on_the_model";
const SERIAL: &str = "vfio_user::stock_serial_driver_talks_over_the_model";
const RESET: &str = "vfio_user::stock_drivers_after_a_reset_go_on";
const RECONNECTED: &str = "vfio_user::stock_drivers_of_the_next_client_go_on";

/// Their names, in their order.
pub(super) const TESTS: [&str; 4] = [FILE_SYSTEM, SERIAL, RESET, RECONNECTED];

const EXPECTED: &[Expected] = &[
    (FILE_SYSTEM, "new-disk-driver", "nvme"),
    (FILE_SYSTEM, "new-disk-sectors", "131072"),
    (FILE_SYSTEM, "new-disk-msix", "enabled"),
    (FILE_SYSTEM, "new-disk-interrupts", "some"),
    (FILE_SYSTEM, "new-files", "same"),
    (SERIAL, "new-line-driver", "serial"),
    (SERIAL, "new-line-type", "4"),
    (SERIAL, "new-line-bytes", "same"),
    (SERIAL, "new-line-interrupts", "some"),
    (SERIAL, "new-line-overruns", "none"),
    (RESET, "reset-disk-driver", "nvme"),
    (RESET, "reset-disk-interrupts", "some"),
    (RESET, "reset-files", "same"),
    (RESET, "reset-line-bytes", "same"),
    (RESET, "reset-line-interrupts", "some"),
    (RECONNECTED, "next-disk-driver", "nvme"),
    (RECONNECTED, "next-disk-interrupts", "some"),
    (RECONNECTED, "next-files", "same"),
    (RECONNECTED, "next-line-bytes", "same"),
    (RECONNECTED, "next-line-interrupts", "some"),
];

/// In their order of loading. ext4 asks for crc32c when it mounts, and here is nobody who would load it then.
const MODULES: [&str; 3] = ["nvme", "crc32c_generic", "ext4"];

/// Runs them, printing a line for each.
pub(super) fn tell(machine: &Machine<'_>, binaries: &Path) -> Result<Vec<Verdict>> {
    initramfs::build(machine.kernel, &MODULES, include_str!("own_drivers.sh"), &machine.initramfs())?;
    let sockets = std::env::temp_dir().join(format!("udrv-own-drivers-{}", std::process::id()));
    fs::create_dir_all(&sockets).with_context(|| format!("cannot create {}", sockets.display()))?;
    let told = Stub::start(binaries, &["nvme", "uart16550"], &sockets, &[]).map(|_stub| boot_twice(machine, &sockets));
    drop(fs::remove_dir_all(&sockets));
    let verdicts = told?;
    fs::remove_file(machine.initramfs())?;
    if verdicts.iter().any(|verdict| matches!(verdict.outcome, Outcome::Failed(_))) {
        println!("{}", machine.folder.log_tail());
    }
    Ok(verdicts)
}

fn boot_twice(machine: &Machine<'_>, sockets: &Path) -> Vec<Verdict> {
    let (disk, line) = (sockets.join("nvme.sock"), sockets.join("uart16550.sock"));
    let devices = [("4", disk.as_path()), ("5", line.as_path())];
    let mut verdicts = Vec::new();
    for tests in [&[FILE_SYSTEM, SERIAL, RESET][..], &[RECONNECTED]] {
        let begin = clock::now();
        let told = machine.boot(&devices, &[], "", |_| false);
        let mut duration = begin.elapsed();
        for test in tests {
            verdicts.push(conclude(test, judge_boot(test, &told), std::mem::take(&mut duration)));
        }
    }
    verdicts
}

fn judge_boot(test: &str, told: &Result<(End, Vec<Fact>)>) -> Result<()> {
    match told {
        Ok((End::Itself, facts)) => judge(EXPECTED, test, facts),
        Ok((end, facts)) => Err(anyhow::anyhow!("the machine ended so: {end:?}; it told {facts:?}")),
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_told_fails_every_test() {
        for test in TESTS {
            assert!(judge_boot(test, &Ok((End::Itself, Vec::new()))).is_err(), "{test}");
        }
    }
}
