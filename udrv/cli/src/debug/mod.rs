//! `udrv debug`: a driver in a debugger, with commands for devices, registers and interrupts.

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

mod helpers;

#[derive(Args)]
#[command(after_help = "Examples:\n  udrv debug -- udrv run edu --device unix:/run/udrv/edu.sock\n  \
udrv debug --batch --ex 'udrv break-on-write status' --ex run --ex bt -- udrv run edu --device pci:0000:03:00.0\n  \
udrv debug --lldb -- udrv run edu --device model:edu\n\n\
In the debugger, `help udrv` lists its commands.")]
pub struct DebugArgs {
    /// Use gdb (the default).
    #[arg(long, conflicts_with = "lldb")]
    gdb: bool,
    /// Use lldb, 14 or later.
    #[arg(long)]
    lldb: bool,
    /// A command for the debugger once the program is loaded; may be given several times.
    #[arg(long = "ex", value_name = "COMMAND", allow_hyphen_values = true)]
    commands: Vec<OsString>,
    /// End when the commands are done, and ask nothing.
    #[arg(long)]
    batch: bool,
    /// Speak gdb's machine interface, for an editor.
    #[arg(long, conflicts_with_all = ["lldb", "batch"])]
    mi: bool,
    /// Reach registers by message rather than mapped, so that accesses can be seen in release builds, too.
    #[arg(long)]
    by_message: bool,
    /// Let the driver's clock go on while the debugger holds it.
    #[arg(long)]
    no_hold: bool,
    /// The driver and its arguments.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    program: Vec<OsString>,
}

pub fn run(args: &DebugArgs) -> Result<()> {
    let name = if args.lldb { "lldb" } else { "gdb" };
    let debugger = in_path(name).ok_or_else(|| {
        anyhow!(
            "there is no {name} in PATH: install it (Debian, Ubuntu: apt install {name}; Fedora: dnf install {name})"
        )
    })?;
    let us = std::env::current_exe().context("finding this program")?;
    let (program, arguments) = args.program.split_first().context("no program")?;
    let program = find_program(program, &us)?;
    let mut command = Command::new(&debugger);
    command.env("UDRV_EXE", &us);
    if args.by_message {
        command.env("UDRV_BY_MESSAGE", "1");
    }
    if args.lldb {
        lldb(&mut command, &debugger, args)?
    } else {
        gdb(&mut command, args)?
    }
    command.arg(program).args(arguments);
    Err(anyhow!("starting {name}: {}", command.exec()))
}

fn gdb(command: &mut Command, args: &DebugArgs) -> Result<()> {
    command.arg("-q");
    printers_of_rust(command);
    if args.batch {
        command.arg("-batch");
    }
    if args.mi {
        command.arg("--interpreter=mi3");
    }
    command.args(["-ex", &format!("python {}", helpers::load(helpers::GDB)?)]);
    if args.no_hold {
        command.args(["-ex", NO_HOLD]);
    }
    for each in &args.commands {
        command.arg("-ex").arg(each);
    }
    command.arg("--args");
    Ok(())
}

/// In both debuggers.
const NO_HOLD: &str = "udrv hold off";

/// Lets gdb show Rust's own types, if the toolchain is here; without it gdb would complain that it cannot.
fn printers_of_rust(command: &mut Command) {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).stdin(Stdio::null()).output();
    let sysroot = sysroot.ok().filter(|output| output.status.success());
    let folder = sysroot
        .and_then(|output| Some(Path::new(std::str::from_utf8(&output.stdout).ok()?.trim()).join("lib/rustlib/etc")));
    match folder.filter(|folder| folder.join("gdb_load_rust_pretty_printers.py").is_file()) {
        Some(folder) => {
            let shown = folder.display();
            command.args(["-iex", &format!("add-auto-load-safe-path {shown}"), "-iex", &format!("directory {shown}")]);
            command.env("PYTHONPATH", folder);
        }
        None => {
            command.args(["-iex", "set auto-load python-scripts off"]);
        }
    }
}

fn lldb(command: &mut Command, lldb: &Path, args: &DebugArgs) -> Result<()> {
    if let Some(folder) = modules_of(lldb) {
        let others = std::env::var_os("PYTHONPATH").unwrap_or_default();
        let all = std::iter::once(folder).chain(std::env::split_paths(&others));
        command.env("PYTHONPATH", std::env::join_paths(all).context("lldb's modules for Python")?);
    }
    if args.batch {
        command.arg("--batch");
    }
    command.args([
        "-o",
        &format!("script {}; import udrv_lldb; udrv_lldb.load(lldb.debugger)", helpers::load(helpers::LLDB)?),
    ]);
    if args.no_hold {
        command.args(["-o", NO_HOLD]);
    }
    for each in &args.commands {
        command.arg("-o").arg(each);
    }
    command.arg("--");
    Ok(())
}

/// Where lldb has its modules for Python: Debian 12's looks for them in a folder that it has not.
fn modules_of(lldb: &Path) -> Option<PathBuf> {
    let folders = |of: &Path| Some(std::fs::read_dir(of).ok()?.filter_map(|entry| Some(entry.ok()?.path())));
    let lib = lldb.canonicalize().ok()?.parent()?.with_file_name("lib");
    let pythons =
        folders(&lib)?.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python")));
    pythons.filter_map(|python| folders(&python)).flatten().find(|path| path.join("lldb/__init__.py").is_file())
}

fn in_path(name: impl AsRef<Path>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(&name)).find(|file| file.is_file())
}

/// The file of the program; `udrv` is this one, whether or not it is in PATH.
fn find_program(name: &OsString, us: &Path) -> Result<PathBuf> {
    let path = Path::new(name);
    if path.components().count() > 1 {
        if path.is_file() {
            return Ok(path.to_owned());
        }
        bail!("there is no program {}", path.display());
    }
    if path == Path::new("udrv") {
        return Ok(us.to_owned());
    }
    in_path(path).ok_or_else(|| anyhow!("there is no program {} in PATH", path.display()))
}
