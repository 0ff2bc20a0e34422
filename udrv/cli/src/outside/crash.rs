//! The core of a driver that crashed, in gdb: where its threads were, with the bundle's registers and interrupts as commands.

use super::bundle::Bundle;
use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::IntoRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How the kernel names cores (core(5)).
const PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// gdb's commands, and the part of the bundle that each shows.
const COMMANDS: [(&str, &str); 5] =
    [("all", "all"), ("regs", "registers"), ("irqs", "irqs"), ("trace", "accesses"), ("dma", "dma")];

/// What gdb is to do.
pub enum Then {
    /// Show where the threads were.
    End,
    /// That, and take commands.
    Stay,
}

/// Becomes gdb.
pub fn open(bundle: &Bundle, (core, program): (&Path, Option<&Path>), shown: &Path, then: &Then) -> Result<()> {
    let program = match program {
        Some(program) => program.to_owned(),
        None => program_of(bundle)?,
    };
    for file in [&*program, core] {
        File::open(file).map_err(|error| anyhow!("reading {}: {error}", file.display()))?;
    }
    let mut gdb = Command::new("gdb");
    gdb.arg("-q");
    // An argument, whatever the name begins with.
    gdb.arg("-se").arg(&program).arg("-c").arg(core);
    if matches!(then, Then::End) {
        gdb.arg("-batch");
    } else {
        gdb.arg("-x").arg(script(shown)?);
    }
    gdb.args(["-ex", "thread apply all backtrace"]);
    Err(anyhow!("starting gdb: {}; install it (Debian, Ubuntu: apt install gdb)", gdb.exec()))
}

fn program_of(bundle: &Bundle) -> Result<PathBuf> {
    let program =
        bundle.program.as_ref().context("the bundle does not say which program it was: name it with --program")?;
    let text = program.to_string_lossy();
    if let Some(was) = text.strip_suffix(" (deleted)") {
        bail!("{was} was removed or built anew while it ran: name the program that crashed with --program");
    }
    Ok(program.clone())
}

/// gdb's commands `udrv regs` and the like, which show the bundle: in a memfd that gdb inherits, so that no file is left behind.
fn script(bundle: &Path) -> Result<String> {
    let us = std::env::current_exe().context("finding this program")?;
    let bundle = std::path::absolute(bundle).context("finding the bundle")?;
    let [us, bundle] = [us, bundle].map(|path| quoted(&path));
    let mut text = String::from("define-prefix udrv\n");
    for (command, part) in COMMANDS {
        text += &format!("define udrv {command}\nshell {us} inspect {bundle} --show {part}\nend\n");
        text += &format!("document udrv {command}\nWhat the driver left: {part}.\nend\n");
    }
    text += "echo udrv: what the driver left is shown by `udrv all`, `udrv regs`, `udrv irqs`, `udrv trace`, `udrv dma`\\n\n";
    let file = memfd_create(c"udrv.gdb", MFdFlags::empty()).context("making gdb's commands")?;
    let mut file = File::from(file);
    file.write_all(text.as_bytes()).context("writing gdb's commands")?;
    Ok(format!("/proc/self/fd/{}", file.into_raw_fd()))
}

/// A path as one word of a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// Where the core of the process may be, if the kernel has been told to leave one.
pub fn hint(bundle: &Bundle, shown: &Path) -> Option<String> {
    let pattern = std::fs::read_to_string(PATTERN).ok()?;
    let name = bundle.program.as_ref()?.file_name()?.to_string_lossy();
    let places = places(pattern.trim_end(), bundle.folder.as_deref()?, bundle.pid, &name);
    let core = places.into_iter().find(|core| core.is_file())?;
    Some(format!("{} may be its core: udrv inspect {} --core {0}", core.display(), shown.display()))
}

/// What the pattern gives for this process; nothing if it is another program's business or depends on what is not known here.
fn places(pattern: &str, folder: &Path, pid: u32, name: &str) -> Vec<PathBuf> {
    let mut text = String::new();
    let mut rest = pattern.chars();
    while let Some(letter) = rest.next() {
        match (letter, if letter == '%' { rest.next() } else { None }) {
            ('|', _) if text.is_empty() => return Vec::new(),
            ('%', Some('p' | 'P' | 'i' | 'I')) => text += &pid.to_string(),
            // The kernel keeps 15 bytes of a name.
            ('%', Some('e')) => text.extend(name.chars().take(15)),
            ('%', Some('%')) => text.push('%'),
            ('%', _) => return Vec::new(),
            (plain, _) => text.push(plain),
        }
    }
    // kernel.core_uses_pid appends the number.
    [format!("{text}.{pid}"), text].map(|name| folder.join(name)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_is_looked_for_where_the_pattern_says() {
        let places = |pattern| places(pattern, Path::new("/home/it"), 7, "a_driver_with_a_long_name");
        assert_eq!(places("core"), [Path::new("/home/it/core.7"), Path::new("/home/it/core")]);
        assert_eq!(places("/var/%e-%p%%").last().map(PathBuf::as_path), Some(Path::new("/var/a_driver_with_a-7%")));
        assert!(places("|/usr/bin/handler %p").is_empty());
        assert!(places("core.%t").is_empty());
    }

    #[test]
    fn path_is_one_word_of_a_shell() {
        assert_eq!(quoted(Path::new("/tmp/it's here")), r"'/tmp/it'\''s here'");
    }
}
