//! Takes an interrupt and waits for it.
//!
//! `cargo run -p udrv-examples --bin wait_for_interrupt`

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain, IrqReturn};
use udrv::mmio::{Io as _, Window};
use udrv::pci::{Command, Config};
use udrv_backend::{IrqIndex, RegionIndex};
use udrv_edu::registers::{INTERRUPT_ACKNOWLEDGE, INTERRUPT_RAISE, INTERRUPT_STATUS, InterruptStatus};

fn main() -> anyhow::Result<()> {
    let device = udrv_examples::device_from_arguments()?;
    // Message-signalled interrupts are writes to memory: without bus mastering there are none.
    Config::new(&*device).change_command(Command::MEMORY_SPACE | Command::BUS_MASTER, Command::empty())?;
    let io: Arc<Window<0x1000>> = Arc::new(Window::open(&device, RegionIndex::BAR0)?);

    // The handler runs on the domain's thread: it looks at the cause, acknowledges it, and leaves a mark.
    let domain = IrqDomain::new(Delivery::Thread)?;
    let seen = Arc::new(AtomicU32::new(0));
    let (registers, mark) = (Arc::clone(&io), Arc::clone(&seen));
    let handler = move |_| {
        let cause = registers.read(INTERRUPT_STATUS).unwrap_or(InterruptStatus::empty());
        if cause.is_empty() || registers.write(INTERRUPT_ACKNOWLEDGE, cause).is_err() {
            return IrqReturn::None; // not ours
        }
        mark.fetch_or(cause.bits(), Ordering::Release);
        IrqReturn::Handled
    };
    // Dropping the registration disarms the interrupt and waits for the handler.
    let registration = domain.register(&device, IrqIndex::MSI, 0, handler)?;

    io.write(INTERRUPT_RAISE, InterruptStatus::from_bits_retain(0x10))?;

    // Everything that waits has a deadline and a name, which the error would tell.
    let deadline = Deadline::after(Duration::from_secs(2));
    domain.wait("the interrupt we raised", deadline, || seen.load(Ordering::Acquire) != 0)?;

    println!("interrupt with cause {:#x}", seen.load(Ordering::Acquire));
    println!("delivered: {}", registration.stats().delivered);
    Ok(())
}
