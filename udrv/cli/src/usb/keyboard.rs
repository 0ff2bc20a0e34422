//! `udrv run usb-keyboard`.

use anyhow::{Result, bail};
use clap::Args;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain};
use udrv_usb_keyboard::driver::Keyboard;

#[derive(Args)]
pub struct KeyboardArgs {
    #[command(flatten)]
    device: super::DeviceArgs,
    /// Stop after this many seconds.
    #[arg(long, default_value_t = 24 * 3600)]
    seconds: u64,
    /// Stop after this many key events.
    #[arg(long, default_value_t = usize::MAX)]
    events: usize,
}

pub fn run(args: &KeyboardArgs) -> Result<()> {
    let device = args.device.open()?;
    let irqs = IrqDomain::new(Delivery::Thread)?;
    let count = Arc::new(AtomicUsize::new(0));
    let tell = {
        let count = Arc::clone(&count);
        move |event: udrv_usb_keyboard::protocol::KeyEvent| {
            println!("{} {}", if event.pressed { "press  " } else { "release" }, event.key);
            count.fetch_add(1, Ordering::Relaxed);
        }
    };
    let keyboard = Keyboard::attach(device, &irqs, tell)?;
    eprintln!("ready: type on that keyboard");
    let deadline = Deadline::after(Duration::from_secs(args.seconds));
    let enough = || count.load(Ordering::Relaxed) >= args.events;
    let waited = irqs.wait("the last key", deadline, || enough() || keyboard.has_ended());
    if let Some(error) = keyboard.take_error() {
        bail!(error);
    }
    // The time being over is no error unless a number of events was asked for.
    if args.events < usize::MAX { Ok(waited?) } else { Ok(()) }
}
