//! `udrv debug`: a driver in a debugger, with commands for devices, registers and interrupts.

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What gdb runs: in this binary, so that it is always of the same version.
const GDB_HELPERS: &str = include_str!("../gdb/udrv.py");

#[derive(Args)]
#[command(after_help = "Examples:\n  udrv debug -- udrv run edu --device unix:/run/udrv/edu.sock\n  \
udrv debug --batch --ex 'udrv break-on-write status' --ex run --ex bt -- udrv run edu --device pci:0000:03:00.0\n\n\
In gdb, `help udrv` lists its commands.")]
pub struct DebugArgs {
    /// Use gdb (the default).
    #[arg(long, conflicts_with = "lldb")]
    gdb: bool,
    /// Use lldb, without udrv's commands: those of the shell do the same (udrv irqs --pid PID).
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
    let mut command = Command::new(debugger);
    command.env("UDRV_EXE", &us);
    if args.by_message {
        command.env("UDRV_BY_MESSAGE", "1");
    }
    if args.lldb {
        lldb(&mut command, args)
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
    // An inherited memfd: no file is left behind, and nobody can change what gdb runs.
    let helpers = memfd_create(c"udrv.py", MFdFlags::empty()).context("making gdb's helpers")?;
    let mut helpers = File::from(helpers);
    helpers.write_all(GDB_HELPERS.as_bytes()).context("writing gdb's helpers")?;
    let fd = helpers.as_raw_fd();
    let load = format!(
        "python import os; f = os.fdopen({fd}); f.seek(0); code = f.read(); f.close(); exec(compile(code, 'udrv.py', 'exec'))"
    );
    command.args(["-ex", &load]);
    let _kept_over_exec = helpers.into_raw_fd();
    if args.no_hold {
        command.args(["-ex", "set udrv-hold off"]);
    }
    for each in &args.commands {
        command.arg("-ex").arg(each);
    }
    command.arg("--args");
    Ok(())
}

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

fn lldb(command: &mut Command, args: &DebugArgs) {
    if args.batch {
        command.arg("--batch");
    }
    command.args(["-o", "process handle SIGIO --stop false --notify false --pass true"]);
    for each in &args.commands {
        command.arg("-o").arg(each);
    }
    command.arg("--");
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
