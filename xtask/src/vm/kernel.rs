//! What a boot needs from outside: QEMU and a few programs, and Debian's stock kernel, unpacked below `target/vm` without being
//! installed.

use anyhow::{Context as _, Result, bail, ensure};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The programs a boot uses, each with the Debian package that has it.
const PROGRAMS: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("modprobe", "kmod"),
    ("depmod", "kmod"),
    // for the scenarios: the client of the USB/IP server
    ("usbip", "usbip"),
];

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
    install_missing_programs()?;
    check_busybox_is_static()?;
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    match cached(cache)? {
        Some(kernel) => Ok(kernel),
        None => download(cache).context("cannot get Debian's stock kernel"),
    }
}

/// The program's path; a user's PATH often lacks the sbin folders.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Runs `command` to its end; an error has what it said.
pub(crate) fn output_of(command: &mut Command) -> Result<String> {
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{command:?} failed ({}): {}", out.status, said.trim());
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn install_missing_programs() -> Result<()> {
    let missing = |&(program, _): &(&str, &str)| find_program(program).is_none();
    let mut packages: Vec<&str> = PROGRAMS.into_iter().filter(missing).map(|(_, package)| package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    ensure!(find_program("apt-get").is_some(), "packages {list} are missing, and there is no apt-get to install them");
    ensure!(is_root(), "packages {list} are missing: install them (apt-get install {list}), or run as root");
    eprintln!("vm: installing {list}");
    with_apt_update(|| {
        let mut install = Command::new("apt-get");
        install.args(["install", "--yes", "--no-install-recommends"]).args(&packages);
        output_of(install.env("DEBIAN_FRONTEND", "noninteractive"))
    })?;
    match PROGRAMS.iter().find(|program| missing(program)) {
        Some((program, package)) => {
            bail!("{package} is installed, but there is no {program} in PATH")
        }
        None => Ok(()),
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

/// Unpacks into a folder of its own and renames it, so that a half-finished or a concurrent download is never taken for a kernel.
fn download(cache: &Path) -> Result<Kernel> {
    ensure!(find_program("apt-get").is_some(), "there is no apt-get");
    let unfinished = cache.join(format!("unfinished-{}", std::process::id()));
    fs::create_dir_all(&unfinished)?;
    let result = unpack_into(&unfinished).and_then(|package| {
        let dir = cache.join(format!("kernel-{package}"));
        match fs::rename(&unfinished, &dir) {
            Err(error) if !dir.is_dir() => Err(error).context("cannot rename the unpacked kernel"),
            _ => open(dir),
        }
    });
    if unfinished.is_dir() {
        fs::remove_dir_all(&unfinished)?;
    }
    result
}

/// Returns the name of the kernel's package.
fn unpack_into(dir: &Path) -> Result<String> {
    eprintln!("vm: downloading Debian's stock kernel");
    let package = with_apt_update(|| {
        let package = newest_kernel_package()?;
        // "Sandbox::User": as root, apt drops to a user who may not write to our folder
        let mut fetch = Command::new("apt-get");
        output_of(fetch.args(["-o", "APT::Sandbox::User=root", "download", &package]).current_dir(dir))?;
        Ok(package)
    })?;
    let deb = fs::read_dir(dir)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download {package} left no file"))?;
    output_of(Command::new("dpkg").arg("-x").arg(&deb).arg(dir))?;
    fs::remove_file(&deb)?;
    if dir.join("usr/lib/modules").is_dir() && !dir.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", dir.join("lib"))?;
    }
    let kernel = open(dir.to_owned())?;
    let depmod = find_program("depmod").context("no depmod")?;
    output_of(Command::new(depmod).arg("-b").arg(dir).arg(&kernel.version))?;
    Ok(package)
}

fn newest_kernel_package() -> Result<String> {
    let shown = output_of(Command::new("apt-cache").args(["show", "--no-all-versions", KERNEL_PACKAGE]))?;
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: "));
    let first = depends.and_then(|list| list.split([' ', ',']).next()).filter(|name| name.starts_with("linux-image-"));
    first.map(str::to_owned).with_context(|| format!("{KERNEL_PACKAGE} does not say on which kernel it depends"))
}

/// Tries `attempt`; once more after `apt-get update` if it failed and we may.
fn with_apt_update<T>(attempt: impl Fn() -> Result<T>) -> Result<T> {
    match attempt() {
        Err(error) if is_root() => {
            eprintln!("vm: {error:#}\nvm: trying again after apt-get update");
            output_of(Command::new("apt-get").arg("update"))?;
            attempt()
        }
        result => result,
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}
