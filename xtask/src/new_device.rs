//! `cargo xtask new-device NAME`: lays out a device's folder. What it lays out is a whole small device, which adds two numbers, so that
//! it compiles, passes its tests, and is then changed a register at a time; docs/writing-a-driver.md goes through it.

use crate::{cargo, vm};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

#[derive(clap::Args)]
pub(crate) struct NewDeviceArgs {
    /// Of the folder and, after `udrv-`, of the crate: lower-case letters, digits and `-`.
    name: String,
    /// The workspace to lay it out in [default: this one].
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
}

/// Where each file goes, and what is in it.
const FILES: [(&str, &str); 8] = [
    ("devices/@NAME@/Cargo.toml", include_str!("new_device/Cargo.toml.in")),
    ("devices/@NAME@/src/lib.rs", include_str!("new_device/lib.rs.in")),
    ("devices/@NAME@/src/registers.rs", include_str!("new_device/registers.rs.in")),
    ("devices/@NAME@/src/driver.rs", include_str!("new_device/driver.rs.in")),
    ("devices/@NAME@/src/model.rs", include_str!("new_device/model.rs.in")),
    ("devices/@NAME@/tests/model.rs", include_str!("new_device/tests-model.rs.in")),
    ("devices/@NAME@/tests/driver.rs", include_str!("new_device/tests-driver.rs.in")),
    ("docs/devices/@NAME@.md", include_str!("new_device/page.md.in")),
];

/// In the workspace's manifest, the lines that new ones are put before.
const MEMBERS_END: &str = "    \"examples\", ";
const DEPENDENCIES_END: &str = "stub-driver = { path = \"stub-driver\" }\n";

pub(crate) fn run(args: &NewDeviceArgs) -> Result<()> {
    let name = args.name.as_str();
    let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase());
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    ensure!(
        starts_well && plain && !name.ends_with('-'),
        "`{name}` is no name for a device: expected lower-case letters, digits and -, such as my-device"
    );
    let root = args.root.clone().unwrap_or_else(vm::repo_root);
    let folder = root.join("devices").join(name);
    ensure!(!folder.exists(), "{} is there already: choose another name, or remove it", folder.display());
    let manifest = root.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
    let text = with_lines(&text, name).with_context(|| format!("{} is not as expected", manifest.display()))?;
    for (path, content) in FILES {
        write(&root.join(filled(path, name)), &filled(content, name))?;
    }
    write(&manifest, &text)?;
    // Cargo.lock gets its entry, or whoever builds with --locked would be refused. This asks for the crates of this platform only:
    // those of others need not be there.
    let mut lock = cargo();
    lock.args(["tree", "--offline", "--depth=0", "--package", &format!("udrv-{name}")]);
    lock.current_dir(&root).stdout(Stdio::null());
    crate::succeed(&mut lock)?;
    // The order of imports depends on the name.
    crate::succeed(cargo().args(["fmt", "--package", &format!("udrv-{name}")]).current_dir(&root))?;
    println!("laid out {}: registers, driver, model, their tests, and docs/devices/{name}.md", folder.display());
    println!("next: cargo test -p udrv-{name}, then docs/writing-a-driver.md");
    Ok(())
}

fn filled(template: &str, name: &str) -> String {
    template.replace("@NAME@", name).replace("@IDENT@", &name.replace('-', "_"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().context("a file without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The workspace's manifest with the new member, and the dependency by which others use it.
fn with_lines(manifest: &str, name: &str) -> Result<String> {
    let (members, rest) = manifest.split_once(MEMBERS_END).context("it has no line of members to go before")?;
    let (dependencies, rest) =
        rest.split_once(DEPENDENCIES_END).context("it has no line of dependencies to go before")?;
    Ok(format!(
        "{members}    \"devices/{name}\",\n{MEMBERS_END}{dependencies}udrv-{name} = {{ path = \"devices/{name}\", \
         default-features = false }}\n{DEPENDENCIES_END}{rest}"
    ))
}
