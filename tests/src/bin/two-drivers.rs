//! `two-drivers NVME UART`: both drivers in one host, under load. The other end of the serial line has to send back what it gets.

use anyhow::{Result, bail, ensure};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [nvme, uart] = arguments.as_slice() else { bail!("usage: two-drivers NVME UART, both pci:BDF or unix:PATH") };
    let done = udrv_tests::two_drivers::run(udrv::open(nvme)?, udrv::open(uart)?).map_err(anyhow::Error::msg)?;
    ensure!(done.disk_rounds > 1, "the disk was not at work beside the serial line: {done:?}");
    println!("ok {done:?}");
    Ok(())
}
