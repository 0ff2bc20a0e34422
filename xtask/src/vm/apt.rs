//! What the host brings, or gets from its Debian mirror: programs, packages, and folders made from them once.

use anyhow::{Context as _, Result, bail, ensure};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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

/// Installs the packages whose programs are missing; `wanted` has pairs of a program and its package.
pub(crate) fn install_missing(wanted: &[(&str, &str)]) -> Result<()> {
    let missing = |&&(program, _): &&(&str, &str)| find_program(program).is_none();
    let mut packages: Vec<&str> = wanted.iter().filter(missing).map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    need_apt().with_context(|| format!("packages {list} are missing"))?;
    ensure!(is_root(), "packages {list} are missing: install them (apt-get install {list}), or run as root");
    eprintln!("vm: installing {list}");
    with_apt_update(|| {
        let mut install = Command::new("apt-get");
        install.args(["install", "--yes", "--no-install-recommends"]).args(&packages);
        output_of(install.env("DEBIAN_FRONTEND", "noninteractive"))
    })?;
    match wanted.iter().find(missing) {
        Some((program, package)) => bail!("{package} is installed, but there is no {program} in PATH"),
        None => Ok(()),
    }
}

pub(crate) fn need_apt() -> Result<()> {
    ensure!(find_program("apt-get").is_some(), "there is no apt-get: this needs Debian 12 or a relative of it");
    Ok(())
}

/// Tries `attempt`; once more after `apt-get update` if it failed and we may.
pub(crate) fn with_apt_update<T>(attempt: impl Fn() -> Result<T>) -> Result<T> {
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

/// Unpacks a package's files below `tree` and removes the package.
pub(crate) fn unpack(package: &Path, tree: &Path) -> Result<()> {
    output_of(Command::new("dpkg").arg("-x").arg(package).arg(tree))?;
    fs::remove_file(package).with_context(|| format!("cannot remove {}", package.display()))
}

/// The packages (`*.deb`) that lie in `dir`.
pub(crate) fn packages_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let files = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let files = files.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>()?;
    Ok(files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
}

/// The folder `cache/name`, made by `fill` if it is not there yet.
///
/// It is made under another name and renamed, so that neither an interrupted nor a concurrent run is ever taken for a finished one.
pub(crate) fn make_once(cache: &Path, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let dir = cache.join(name);
    if dir.is_dir() {
        return Ok(dir);
    }
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    remove_unfinished(cache)?;
    let unfinished = cache.join(format!("{UNFINISHED}{}", std::process::id()));
    fs::create_dir(&unfinished).with_context(|| format!("cannot create {}", unfinished.display()))?;
    let filled = fill(&unfinished);
    // it fails if another run was quicker, and then that one's folder is as good
    let renamed = filled.and_then(|()| match fs::rename(&unfinished, &dir) {
        Err(error) if !dir.is_dir() => Err(error).with_context(|| format!("cannot create {}", dir.display())),
        _ => Ok(dir),
    });
    if unfinished.is_dir() {
        fs::remove_dir_all(&unfinished)?;
    }
    renamed
}

const UNFINISHED: &str = "unfinished-";

/// What runs that were interrupted have left.
fn remove_unfinished(cache: &Path) -> Result<()> {
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(UNFINISHED));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // another run may be removing the same one
            drop(fs::remove_dir_all(entry.path()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        drop(fs::remove_dir_all(&dir));
        dir
    }

    #[test]
    fn make_once_that_fails_leaves_nothing_and_is_tried_again() {
        let cache = scratch("make-once");
        let failed = make_once(&cache, "it", |dir| {
            fs::write(dir.join("half"), "")?;
            bail!("interrupted")
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(&cache).expect("the cache").count(), 0);

        let made = make_once(&cache, "it", |dir| Ok(fs::write(dir.join("whole"), "")?)).expect("made");
        assert!(made.join("whole").is_file() && !made.join("half").exists());
        let again = make_once(&cache, "it", |_| bail!("must not be made twice")).expect("cached");
        assert_eq!(again, made);
        fs::remove_dir_all(cache).expect("removed");
    }
}
