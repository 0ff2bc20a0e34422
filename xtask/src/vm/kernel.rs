//! Debian's stock kernel, unpacked below `target/vm` without being installed, and the programs that a boot uses.

use super::apt::{find_program, install_missing, make_once, need_apt, output_of, packages_in, unpack, with_apt_update};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs a boot uses, each with the Debian package that has it.
const PROGRAMS: [(&str, &str); 12] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("modprobe", "kmod"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    // for the scenarios: the client of the USB/IP server, and that of the NBD server with what works on it
    ("usbip", "usbip"),
    ("nbd-client", "nbd-client"),
    ("fio", "fio"),
    ("strace", "strace"),
    ("gdb", "gdb"),
    ("lldb", "lldb"),
];

/// What `cargo test` takes, machine or not: the debuggers of `udrv debug`, and NBD clients of `udrv run nvme --export`.
const TEST_PROGRAMS: [(&str, &str); 5] = [
    ("gdb", "gdb"),
    ("lldb", "lldb"),
    ("qemu-img", "qemu-utils"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
];

/// Gets what some tests run; without it they say so, and fail where CI runs.
pub(crate) fn install_test_programs() {
    if let Err(error) = install_missing(&TEST_PROGRAMS) {
        eprintln!("test: {error:#}; the tests that need them say so");
    }
}

/// The package that depends on the newest stock kernel.
const KERNEL_PACKAGE: &str = "linux-image-amd64";

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// The folder it is unpacked in; has `lib/modules`.
    pub(crate) dir: PathBuf,
    /// As `uname -r` says it.
    pub(crate) version: String,
    pub(crate) image: PathBuf,
}

/// Gets what is missing. An error says why this machine cannot run the virtual machine.
pub(crate) fn prepare(cache: &Path) -> Result<Kernel> {
    install_missing(&PROGRAMS)?;
    check_busybox_is_static()?;
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    match cached(cache)? {
        Some(kernel) => Ok(kernel),
        None => download(cache).context("cannot get Debian's stock kernel"),
    }
}

/// Nothing but the kernel is below busybox in the initramfs, no dynamic loader either.
fn check_busybox_is_static() -> Result<()> {
    let busybox = find_program("busybox").context("no busybox")?;
    let bytes = fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let loader = b"/lib64/ld-linux";
    let dynamic = bytes.windows(loader.len()).any(|window| window == loader);
    ensure!(!dynamic, "{} is not statically linked: install busybox-static", busybox.display());
    Ok(())
}

/// The newest kernel unpacked earlier.
fn cached(cache: &Path) -> Result<Option<Kernel>> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("kernel-") {
            dirs.push(entry.path());
        }
    }
    dirs.sort();
    dirs.pop().map(open).transpose()
}

fn open(dir: PathBuf) -> Result<Kernel> {
    let modules = dir.join("lib/modules");
    let mut versions = fs::read_dir(&modules).with_context(|| format!("no modules in {}", modules.display()))?;
    let version = versions.next().with_context(|| format!("{} is empty", modules.display()))??;
    let version = version.file_name().to_string_lossy().into_owned();
    let image = dir.join("boot").join(format!("vmlinuz-{version}"));
    ensure!(image.is_file(), "no kernel image {}", image.display());
    Ok(Kernel { dir, version, image })
}

fn download(cache: &Path) -> Result<Kernel> {
    need_apt()?;
    let package = with_apt_update(newest_kernel_package)?;
    eprintln!("vm: downloading Debian's stock kernel, {package}");
    let dir = make_once(cache, &format!("kernel-{package}"), |dir| {
        with_apt_update(|| {
            // "Sandbox::User": as root, apt drops to a user who may not write to our folder
            let mut fetch = Command::new("apt-get");
            output_of(fetch.args(["-o", "APT::Sandbox::User=root", "download", &package]).current_dir(dir))
        })?;
        let packages = packages_in(dir)?;
        let deb = packages.first().with_context(|| format!("apt-get download {package} left no file"))?;
        unpack(deb, dir)?;
        if dir.join("usr/lib/modules").is_dir() && !dir.join("lib").exists() {
            std::os::unix::fs::symlink("usr/lib", dir.join("lib"))?;
        }
        let depmod = find_program("depmod").context("no depmod")?;
        output_of(Command::new(depmod).arg("-b").arg(dir).arg(open(dir.to_owned())?.version))?;
        Ok(())
    })?;
    open(dir)
}

fn newest_kernel_package() -> Result<String> {
    let shown = output_of(Command::new("apt-cache").args(["show", "--no-all-versions", KERNEL_PACKAGE]))?;
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: "));
    let first = depends.and_then(|list| list.split([' ', ',']).next()).filter(|name| name.starts_with("linux-image-"));
    first.map(str::to_owned).with_context(|| format!("{KERNEL_PACKAGE} does not say on which kernel it depends"))
}
