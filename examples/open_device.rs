//! Opens a device and says what it is.
//!
//! `cargo run -p udrv-examples --bin open_device -- unix:/run/udrv/edu.sock`

use udrv::pci::Config;
use udrv_backend::{IrqIndex, RegionIndex};

fn main() -> anyhow::Result<()> {
    let device = udrv_examples::device_from_arguments()?;

    // Configuration space is a region like any other; `Config` knows its registers.
    let (vendor, id) = Config::new(&*device).id()?;
    println!("{} is {vendor:04x}:{id:04x}", device.info().address);

    // Regions and interrupts have VFIO's numbers: regions 0 to 5 are the BARs, 7 is configuration space.
    for index in (0..device.info().regions).map(RegionIndex) {
        let region = device.region(index)?;
        if region.size > 0 {
            println!("region {index}: {} bytes", region.size);
        }
    }
    for index in (0..device.info().irqs).map(IrqIndex) {
        let irq = device.irq(index)?;
        if irq.count > 0 {
            println!("{index}: {} vector(s)", irq.count);
        }
    }

    // What is optional is an `Option`: ask, and have it, or not.
    println!("reset: {}", if device.resettable().is_some() { "yes" } else { "no" });
    Ok(())
}
