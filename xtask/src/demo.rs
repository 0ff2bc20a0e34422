//! `cargo xtask demo`: the stub in one process, the driver in another, and what happened between them.

use anyhow::{Context as _, Result, bail};
use std::io::{BufRead as _, BufReader, IsTerminal as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long the stub may take until it serves.
const STUB_PATIENCE: Duration = Duration::from_secs(10);

/// The stub, ended when this goes out of scope.
struct Stub(Child);

impl Drop for Stub {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

pub fn run() -> Result<()> {
    eprintln!("building the stub and the driver ...");
    crate::cargo(&["build", "--quiet", "--locked", "-p", "stub-driver", "-p", "udrv-cli"])?;
    let binaries = crate::vm::target_dir(&crate::vm::repo_root())?.join("debug");
    let sockets = std::env::temp_dir().join(format!("udrv-demo-{}", std::process::id()));
    std::fs::create_dir_all(&sockets).with_context(|| format!("creating {}", sockets.display()))?;
    let outcome = show(&binaries, &sockets);
    let _removed = std::fs::remove_dir_all(&sockets);
    outcome
}

fn show(binaries: &Path, sockets: &Path) -> Result<()> {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let (bold, off) = if !plain && std::io::stdout().is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };

    let stub = start_stub(binaries, sockets)?;
    let address = format!("unix:{}", sockets.join("edu.sock").display());
    println!("{bold}A device in one process, its driver in another{off}");
    println!("  stub-driver serve model:edu   process {}", stub.0.id());
    println!("  socket                        {}\n", sockets.join("edu.sock").display());

    println!("{bold}What the driver finds{off}   udrv info {address}");
    udrv(binaries, &["info", &address])?;
    for (mode, what) in [("thread", "interrupts through eventfds, on a thread"), ("signal", "interrupts as SIGIO")] {
        println!("\n{bold}The edu driver, {what}{off}   udrv run edu --device {address} --irq {mode}");
        udrv(binaries, &["run", "edu", "--device", &address, "--irq", mode])?;
    }
    println!("\n{bold}Next{off}");
    println!("  cargo run -p stub-driver -- list          PCI devices here, and which can be taken");
    println!("  cargo run -p stub-driver -- doctor        what this machine lacks for a real device");
    println!("  cargo xtask vm --shell                    a machine with a real IOMMU and real VFIO");
    Ok(())
}

/// Starts the stub and waits until it says that it serves.
fn start_stub(binaries: &Path, sockets: &Path) -> Result<Stub> {
    let program = binaries.join("stub-driver");
    let mut child = Command::new(&program)
        .args(["serve", "model:edu", "--socket-dir"])
        .arg(sockets)
        // What the page shows is the driver; the stub speaks up if something is wrong.
        .env("RUST_LOG", "warn")
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let output = child.stdout.take().context("the stub has no output")?;
    let stub = Stub(child);
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if line == "ready" {
                let _listening = tell.send(());
            }
        }
    });
    told.recv_timeout(STUB_PATIENCE)
        .map_err(|_| anyhow::anyhow!("the stub did not say `ready` within {STUB_PATIENCE:?}: see its output above"))?;
    Ok(stub)
}

fn udrv(binaries: &Path, arguments: &[&str]) -> Result<()> {
    let program = binaries.join("udrv");
    let status =
        Command::new(&program).args(arguments).status().with_context(|| format!("starting {}", program.display()))?;
    if !status.success() {
        bail!("udrv {} failed ({status})", arguments.join(" "));
    }
    Ok(())
}
