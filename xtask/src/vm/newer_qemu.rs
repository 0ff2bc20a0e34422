//! A QEMU that speaks vfio-user as a client (10.1 and later): the one of Debian's next suite, with all its libraries, unpacked below
//! `target/vm` and started by that suite's own dynamic loader. Nothing is installed into the host, and root is not needed.

use super::apt::{find_program, make_once, need_apt, output_of, packages_in, unpack};
use crate::stub::dies_with_us;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SUITES: [&str; 2] = ["trixie", "trixie-backports"];
const PACKAGE: &str = "qemu-system-x86";

/// Of Debian, for a host whose own sources name no mirror of it.
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

pub(crate) struct NewerQemu {
    tree: PathBuf,
}

impl NewerQemu {
    /// Fetches it unless that has been done. An error says why this machine cannot have it.
    pub(crate) fn prepare(cache: &Path) -> Result<Self> {
        ensure!(cfg!(target_arch = "x86_64"), "the packages to fetch are for x86-64, and this machine is not");
        let tree = make_once(cache, &format!("qemu-{}", SUITES[1]), fetch)?;
        Ok(Self { tree })
    }

    /// The start of a command line.
    pub(crate) fn command(&self) -> Command {
        let usr = self.tree.join("usr");
        let libraries = usr.join("lib/x86_64-linux-gnu");
        let mut qemu = dies_with_us(&usr.join("lib64/ld-linux-x86-64.so.2"));
        qemu.arg("--library-path").arg(&libraries).arg(usr.join("bin/qemu-system-x86_64"));
        qemu.arg("-L").arg(usr.join("share/qemu")).arg("-L").arg(usr.join("share/seabios"));
        // or it would try the modules of the host's own QEMU
        qemu.env("QEMU_MODULE_DIR", libraries.join("qemu"));
        qemu
    }

    pub(crate) fn version(&self) -> Result<String> {
        let said = output_of(self.command().arg("--version"))?;
        Ok(said.lines().next().unwrap_or_default().to_owned())
    }
}

/// apt resolves and downloads with state of its own, in which nothing is installed, so that it brings all libraries; what the host
/// has configured for apt (proxies, say) holds here too.
fn fetch(dir: &Path) -> Result<()> {
    need_apt()?;
    let keyring = Path::new(KEYRING);
    ensure!(keyring.is_file(), "there is no {KEYRING}: install debian-archive-keyring");
    let mirror = mirror().unwrap_or_else(|| DEFAULT_MIRROR.to_owned());
    eprintln!("vm: downloading {PACKAGE} of {} from {mirror} (40 MB)", SUITES[1]);
    let apt = dir.join("apt");
    fs::create_dir_all(apt.join("lists/partial"))?;
    fs::create_dir_all(apt.join("archives/partial"))?;
    fs::write(apt.join("status"), "")?;
    let sources: String =
        SUITES.iter().map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n")).collect();
    fs::write(apt.join("sources.list"), sources)?;
    output_of(apt_get(&apt).arg("update"))?;
    output_of(
        apt_get(&apt)
            .args(["install", "--yes", "--download-only", "--no-install-recommends"])
            .args(["-t", SUITES[1], PACKAGE]),
    )?;
    let packages = packages_in(&apt.join("archives"))?;
    eprintln!("vm: unpacking {} packages", packages.len());
    for package in packages {
        unpack(&package, dir)?;
    }
    fs::remove_dir_all(&apt)?;
    let devices = output_of(NewerQemu { tree: dir.to_owned() }.command().args(["-device", "vfio-user-pci,help"]));
    devices.context("the QEMU that was fetched has no vfio-user-pci")?;
    Ok(())
}

fn apt_get(apt: &Path) -> Command {
    let own = |option: &str, value: &Path| format!("{option}={}", value.display());
    let mut command = Command::new("apt-get");
    for setting in [
        own("Dir::State", apt),
        own("Dir::State::status", &apt.join("status")),
        own("Dir::Cache", apt),
        own("Dir::Etc::sourcelist", &apt.join("sources.list")),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        "Dir::Etc::preferences=/dev/null".to_owned(),
        "Dir::Etc::preferencesparts=/dev/null".to_owned(),
        "APT::Architecture=amd64".to_owned(),
        "APT::Architectures=amd64".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
        "Acquire::Languages=none".to_owned(),
        "Acquire::Retries=3".to_owned(),
        "Debug::NoLocking=true".to_owned(),
    ] {
        command.arg("-o").arg(setting);
    }
    command
}

/// The Debian mirror that the host's own apt uses.
fn mirror() -> Option<String> {
    find_program("apt-get")?;
    mirror_of(&output_of(Command::new("apt-get").args(["update", "--print-uris"])).ok()?)
}

/// From `apt-get update --print-uris`: `'http://deb.debian.org/debian/dists/bookworm/InRelease' ...`
fn mirror_of(uris: &str) -> Option<String> {
    let bases = uris.lines().filter_map(|line| line.strip_prefix('\'')?.split_once("/dists/"));
    bases.map(|(base, _)| base).find(|base| base.starts_with("http") && base.ends_with("/debian")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_of_mixed_sources_is_debians() {
        let uris = "'https://packages.example.org/apt/dists/bookworm/InRelease' a 0 \n\
                    'http://security.example.org/debian-security/dists/bookworm-security/InRelease' b 0 \n\
                    'http://mirror.example.org/pub/debian/dists/bookworm/InRelease' c 0 \n";
        assert_eq!(mirror_of(uris).as_deref(), Some("http://mirror.example.org/pub/debian"));
    }

    #[test]
    fn mirror_of_foreign_sources_is_none() {
        assert_eq!(mirror_of("'http://archive.example.org/ubuntu/dists/noble/InRelease' a 0 \n"), None);
    }
}
