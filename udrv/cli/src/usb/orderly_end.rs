//! SIGINT and SIGTERM while a driver has a USB device: the kernel's driver gets it back before the process ends.
//!
//! (SIGKILL cannot be answered: for that there is the stub, `stub-driver usb serve`.)

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};
use std::sync::{Arc, Weak};
use udrv_usb::{AnyUsb, UsbBackend};

/// Keeps the signals from this thread and from those it will start.
pub fn block() -> Result<SigSet> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("cannot block signals")?;
    Ok(signals)
}

/// Waits for them on a thread of its own.
pub fn give_back_on(signals: SigSet, device: &AnyUsb) -> Result<()> {
    let device: Weak<dyn UsbBackend> = Arc::downgrade(device);
    let wait = move || {
        let Ok(signal) = signals.wait() else { return };
        if let Some(device) = device.upgrade() {
            let configurations = &device.info().descriptors.configurations;
            for interface in configurations.iter().flat_map(|configuration| configuration.numbers()) {
                // Ends what is in flight; one that was not claimed is not an error.
                if let Err(error) = device.release(interface) {
                    eprintln!("udrv: giving interface {interface} back: {error}");
                }
            }
        }
        // What a shell says of a process that a signal has ended.
        std::process::exit(128 + signal as i32);
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("cannot start a thread")?;
    Ok(())
}
