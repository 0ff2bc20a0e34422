//! The stub as a process of its own.

use anyhow::{Context as _, Result, anyhow};
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// How long it may take until it serves.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running `stub-driver serve`, ended when this goes out of scope, and with this process, whatever ends that.
pub(crate) struct Stub {
    process: Child,
    /// The first device's socket.
    pub(crate) socket: PathBuf,
}

impl Drop for Stub {
    fn drop(&mut self) {
        let _killed = self.process.kill();
        let _reaped = self.process.wait();
    }
}

impl Stub {
    /// Starts it on software models and waits until it says that it serves. `binaries` is cargo's folder of them, `sockets` exists;
    /// each model's socket is there, `NAME.sock`. `options` are of `serve`.
    pub(crate) fn start(binaries: &Path, models: &[&str], sockets: &Path, options: &[&OsStr]) -> Result<Self> {
        let program = binaries.join("stub-driver");
        let mut process = dies_with_us(&program)
            .arg("serve")
            .args(models.iter().map(|name| format!("model:{name}")))
            .arg("--socket-dir")
            .arg(sockets)
            .args(options)
            // it is seen beside other output: let it speak up only if something is wrong
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {} by setpriv", program.display()))?;
        let output = process.stdout.take().context("the stub has no output")?;
        let stub = Self { process, socket: sockets.join(format!("{}.sock", models.first().unwrap_or(&""))) };
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if line == "ready" {
                    let _listening = tell.send(());
                }
            }
        });
        told.recv_timeout(PATIENCE).map_err(|error| match error {
            RecvTimeoutError::Timeout => anyhow!("the stub did not say `ready` within {PATIENCE:?}"),
            RecvTimeoutError::Disconnected => anyhow!("the stub ended before it said `ready`: see what it said above"),
        })?;
        Ok(stub)
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// The device's address for `udrv`.
    pub(crate) fn address(&self) -> String {
        format!("unix:{}", self.socket.display())
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }
}

/// A command that the kernel kills when this process ends, in whatever way.
pub(crate) fn dies_with_us(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}
