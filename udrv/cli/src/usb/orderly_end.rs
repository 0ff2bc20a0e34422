//! SIGINT and SIGTERM while a driver has a USB device: the kernel's driver gets it back before the process ends.
//!
//! (SIGKILL cannot be answered: for that there is the stub, `stub-driver serve`.)

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use udrv_usb::{AnyUsb, UsbBackend};

/// A signal has come, and a thread that gives the device back will end the process.
static ENDING: AtomicBool = AtomicBool::new(false);

/// How long giving back may take: transfers end within 10 s, and a reset takes some.
const GIVING_BACK: Duration = Duration::from_secs(30);

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
        ENDING.store(true, Ordering::Release);
        if let Some(device) = device.upgrade()
            && let Err(error) = device.abandon()
        {
            eprintln!("udrv: giving the device back: {error}");
        }
        // What a shell says of a process that a signal has ended.
        std::process::exit(128 + signal as i32);
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("cannot start a thread")?;
    Ok(())
}

/// What a driver's end is worth. Where a signal has ended it, the process ends as told by the signal, and here is waited for
/// that.
pub fn conclude(outcome: Result<()>) -> Result<()> {
    if ENDING.load(Ordering::Acquire) {
        std::thread::park_timeout(GIVING_BACK);
    }
    outcome
}
