//! A driver with a bug in it, for docs/debugging.md, which finds it. With `fixed` as its second argument it has none.
//!
//! `cargo run -p udrv-examples --bin planted_bug`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain, IrqReturn};
use udrv::mmio::{Io as _, Window};
use udrv::pci::{Command, Config};
use udrv_backend::{IrqIndex, RegionIndex, Result};
use udrv_edu::registers::{FACTORIAL, INTERRUPT_ACKNOWLEDGE, INTERRUPT_STATUS, InterruptStatus, MAP, STATUS, Status};

type Registers = Window<0x1000>;

/// Takes the cause of an interrupt from the device.
fn take_cause(io: &Registers) -> Result<InterruptStatus> {
    io.write(INTERRUPT_ACKNOWLEDGE, InterruptStatus::all())?;
    io.read(INTERRUPT_STATUS)
}

/// The same, right: what is acknowledged is what was read.
fn take_cause_fixed(io: &Registers) -> Result<InterruptStatus> {
    let cause = io.read(INTERRUPT_STATUS)?;
    io.write(INTERRUPT_ACKNOWLEDGE, cause)?;
    Ok(cause)
}

#[inline(never)]
fn give_up(error: &udrv::Error) -> ! {
    eprintln!("planted_bug: {error}");
    std::process::exit(1)
}

fn main() -> anyhow::Result<()> {
    let device = udrv_examples::device_from_arguments()?;
    let take = if std::env::args().nth(2).is_some() { take_cause_fixed } else { take_cause };
    Config::new(&*device).change_command(Command::MEMORY_SPACE | Command::BUS_MASTER, Command::empty())?;
    udrv::inspect::describe(&*device, &MAP);
    let io: Arc<Registers> = Arc::new(Window::open(&device, RegionIndex::BAR0)?);
    let domain = IrqDomain::new(Delivery::Thread)?;
    let is_done = Arc::new(AtomicBool::new(false));
    let (registers, done) = (Arc::clone(&io), Arc::clone(&is_done));
    let handler = move |_| match take(&registers) {
        Ok(cause) if cause.contains(InterruptStatus::FACTORIAL) => {
            done.store(true, Ordering::Release);
            IrqReturn::Handled
        }
        _ => IrqReturn::None,
    };
    let _irq = domain.register(&device, IrqIndex::MSI, 0, handler)?;
    io.write(STATUS, Status::IRQ_ON_FACTORIAL)?;
    io.write(FACTORIAL, 5)?;
    let waited = domain
        .wait("the factorial's interrupt", Deadline::after(Duration::from_secs(2)), || is_done.load(Ordering::Acquire));
    if let Err(error) = waited {
        give_up(&error);
    }
    println!("5! = {}", io.read(FACTORIAL)?);
    Ok(())
}
