//! Sends bytes to the education device by DMA and fetches them back.
//!
//! `cargo run -p udrv-examples --bin dma`

use std::time::Duration;
use udrv::clock::Deadline;
use udrv::dma::{FromDevice, Pool, ToDevice};
use udrv::mmio::{Io as _, Window};
use udrv::pci::{Command, Config, quiesce};
use udrv_backend::RegionIndex;
use udrv_edu::registers::{
    BUFFER_OFFSET, DMA_ADDRESS_BITS, DMA_COMMAND, DMA_COUNT, DMA_DESTINATION, DMA_SOURCE, DmaCommand,
};

fn main() -> anyhow::Result<()> {
    let device = udrv_examples::device_from_arguments()?;
    Config::new(&*device).change_command(Command::MEMORY_SPACE | Command::BUS_MASTER, Command::empty())?;
    let io: Window<0x1000> = Window::open(&device, RegionIndex::BAR0)?;
    let transfer = |source: u64, destination: u64, count: u64, command: DmaCommand| -> anyhow::Result<()> {
        io.write(DMA_SOURCE, source)?;
        io.write(DMA_DESTINATION, destination)?;
        io.write(DMA_COUNT, count)?;
        io.write(DMA_COMMAND, command | DmaCommand::START)?;
        let done = || Ok(!io.read(DMA_COMMAND)?.contains(DmaCommand::START));
        Ok(Deadline::after(Duration::from_secs(2)).poll("the transfer", done)?)
    };

    // Memory in reach of the device, whose addresses have 28 bits.
    let pool = Pool::new(device.clone(), 1 << 16, DMA_ADDRESS_BITS)?;

    // The direction is in the type, and the IOMMU holds the device to it.
    let text = b"there and back again";
    let mut out = pool.alloc::<ToDevice>(text.len())?;
    out.write(0, text)?;
    // While a buffer is in flight it is the device's: it cannot be read or written here.
    let flight = out.submit();
    transfer(flight.iova(), BUFFER_OFFSET, text.len() as u64, DmaCommand::empty())?;
    let _out = flight.complete();

    let flight = pool.alloc::<FromDevice>(text.len())?.submit();
    transfer(BUFFER_OFFSET, flight.iova(), text.len() as u64, DmaCommand::TO_MEMORY)?;
    let mut came = vec![0; text.len()];
    flight.complete().read(0, &mut came)?;
    println!("came back: {}", String::from_utf8_lossy(&came));

    // Bus mastering off, interrupts disarmed, reset if there is one. (A `Host` does this for its drivers.)
    quiesce(&*device)?;
    Ok(())
}
