//! `cargo xtask demo`: the stub in one process, the driver in another, and what happened between them.

use crate::stub::Stub;
use crate::{cargo, clock, succeed, vm};
use anyhow::{Context as _, Result};
use std::io::IsTerminal as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Commands to try, and what for.
const NEXT: [(&str, &str); 4] = [
    ("cargo xtask vm --shell", "a machine with a real IOMMU and real VFIO: try `stub-driver list` there"),
    ("cargo run -p stub-driver -- list", "PCI devices here, and which of them can be taken"),
    ("cargo run -p stub-driver -- doctor", "what this machine lacks for that"),
    ("cargo run -p udrv-cli -- info model:edu", "the device in the driver's own process, without a stub"),
];

pub(crate) fn run() -> Result<()> {
    eprintln!("building the stub and the driver (the first time, that takes some minutes) ...");
    succeed(cargo().args(["build", "--quiet", "--locked", "-p", "stub-driver", "-p", "udrv-cli"]))?;
    let binaries = vm::target_dir(&vm::repo_root())?.join("debug");
    let sockets = std::env::temp_dir().join(format!("udrv-demo-{}", std::process::id()));
    std::fs::create_dir_all(&sockets).with_context(|| format!("cannot create {}", sockets.display()))?;
    let outcome = show(&binaries, &sockets);
    let _removed = std::fs::remove_dir_all(&sockets);
    outcome
}

fn show(binaries: &Path, sockets: &Path) -> Result<()> {
    let begin = clock::now();
    let stub = Stub::start(binaries, &["edu"], sockets, &[])?;
    let address = stub.address();
    heading("A device in one process, its driver in another", "");
    println!("  stub-driver serve model:edu   process {}", stub.id());
    println!("  socket                        {}", stub.socket.display());

    heading("What the driver finds", &format!("udrv info {address}"));
    udrv(binaries, &["info", &address])?;
    for (mode, what) in [("thread", "interrupts through eventfds, on a thread"), ("signal", "interrupts as SIGIO")] {
        let title = format!("The edu driver, {what}");
        heading(&title, &format!("udrv run edu --device {address} --irq {mode}"));
        udrv(binaries, &["run", "edu", "--device", &address, "--irq", mode])?;
    }
    heading(&format!("All checked, in {:.1} s. Next", begin.elapsed().as_secs_f64()), "");
    for (command, what) in NEXT {
        println!("  {command:<42} {what}");
    }
    Ok(())
}

fn heading(title: &str, command: &str) {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let (bold, dim, off) =
        if !plain && std::io::stdout().is_terminal() { ("\x1b[1m", "\x1b[2m", "\x1b[0m") } else { ("", "", "") };
    println!("\n{bold}{title}{off}");
    if !command.is_empty() {
        println!("{dim}$ {command}{off}");
    }
}

fn udrv(binaries: &Path, arguments: &[&str]) -> Result<()> {
    succeed(Command::new(binaries.join("udrv")).args(arguments).stdin(Stdio::null()))
}
