//! A section with interrupts off: what arrives in it is delivered at its end.
//!
//! `cargo run -p udrv-examples --bin interrupts_off`

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain, IrqReturn};
use udrv_backend::IrqIndex;

fn main() -> anyhow::Result<()> {
    let device = udrv_examples::device_from_arguments()?;
    let domain = IrqDomain::new(Delivery::Thread)?;
    let runs = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&runs);
    let irq = domain.register(&device, IrqIndex::MSI, 0, move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        IrqReturn::Handled
    })?;

    domain.off(|_off| -> anyhow::Result<()> {
        // As if the device had raised it twice.
        device.fire_irq(IrqIndex::MSI, 0)?;
        device.fire_irq(IrqIndex::MSI, 0)?;
        // Both have arrived; no handler runs, on any thread, however long this takes.
        Deadline::after(Duration::from_secs(2)).poll("the marks", || Ok(irq.stats().raised == 2))?;
        println!("in the section: raised {}, handler ran {} times", irq.stats().raised, runs.load(Ordering::SeqCst));
        Ok(())
    })?;

    // The end of the outermost section has delivered what was pending, as one.
    println!("after it: handler ran {} time", runs.load(Ordering::SeqCst));
    Ok(())
}
