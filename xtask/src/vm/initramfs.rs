//! The guest's first file system: busybox, an init script, and kernel modules.

use super::apt::{find_program, output_of};
use super::kernel::Kernel;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Writes it to `archive`: `init` as /init, and `modules` with what they depend on in /modules, whose file names /modules.order
/// lists in load order.
pub(crate) fn build(kernel: &Kernel, modules: &[&str], init: &str, archive: &Path) -> Result<()> {
    let tree = archive.with_extension("d");
    fill(kernel, modules, init, &tree)
        .and_then(|()| pack(&tree, archive))
        .with_context(|| format!("cannot build {}", archive.display()))?;
    fs::remove_dir_all(&tree)?;
    Ok(())
}

fn fill(kernel: &Kernel, modules: &[&str], init: &str, tree: &Path) -> Result<()> {
    for folder in ["bin", "dev", "modules"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    fs::copy(find_program("busybox").context("no busybox")?, tree.join("bin/busybox"))?;
    fs::write(tree.join("init"), init)?;
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755))?;
    let mut order = String::new();
    for module in with_dependencies(kernel, modules)? {
        let name = module.file_name().context("a module without a name")?.to_string_lossy().into_owned();
        let plain = name.strip_suffix(".xz").unwrap_or(&name);
        let copy = tree.join("modules").join(plain);
        if plain == name {
            fs::copy(&module, copy)?;
        } else {
            let unpacked = Command::new("xz").arg("-dc").arg(&module).output().context("cannot start xz")?;
            ensure!(unpacked.status.success(), "cannot unpack {}", module.display());
            fs::write(copy, unpacked.stdout)?;
        }
        order += &format!("{plain}\n");
    }
    fs::write(tree.join("modules.order"), order)?;
    Ok(())
}

fn pack(tree: &Path, archive: &Path) -> Result<()> {
    let files = output_of(Command::new("find").arg(".").current_dir(tree))?;
    let mut cpio = Command::new("cpio")
        .args(["--quiet", "--create", "--format=newc"])
        .current_dir(tree)
        .stdin(Stdio::piped())
        .stdout(fs::File::create(archive)?)
        .spawn()
        .context("cannot start cpio")?;
    cpio.stdin.take().context("no pipe to cpio")?.write_all(files.as_bytes())?;
    ensure!(cpio.wait()?.success(), "cpio failed");
    Ok(())
}

/// The files of `modules` and of all they depend on, dependencies first, each once; what is built into the kernel has none.
fn with_dependencies(kernel: &Kernel, modules: &[&str]) -> Result<Vec<PathBuf>> {
    let modprobe = find_program("modprobe").context("no modprobe")?;
    let mut files: Vec<PathBuf> = Vec::new();
    for module in modules {
        let mut show = Command::new(&modprobe);
        show.arg("-d").arg(&kernel.dir).args(["-S", &kernel.version, "--show-depends", module]);
        for line in output_of(&mut show)?.lines() {
            // options from the host's modprobe.d may follow; they are not for this kernel
            let file = line.strip_prefix("insmod ").and_then(|rest| rest.split_whitespace().next()).map(PathBuf::from);
            files.extend(file.filter(|file| !files.contains(file)));
        }
    }
    Ok(files)
}
