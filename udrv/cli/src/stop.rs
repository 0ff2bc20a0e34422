//! Ctrl-C and SIGTERM: the first asks drivers to end, the second ends the process.

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};
use udrv::host::Stop;

/// Lets the signals make the request. Before any other thread is started: they inherit that it does not take them.
pub fn on_signal(stop: Stop) -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block().context("blocking SIGINT and SIGTERM")?;
    let wait = move || {
        if signals.wait().is_ok() {
            stop.request();
        }
        if signals.wait().is_ok() {
            // What a shell reports for SIGINT. The kernel, or the stub, quiesces the device of a process that is gone.
            std::process::exit(130);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("starting the thread for signals")?;
    Ok(())
}
