//! Brings up an NVMe controller by its driver, says who it is, and reads the first block of its first namespace.
//!
//! `cargo run -p udrv-examples --bin nvme_hello -- model:nvme`

use udrv::irq::{Delivery, IrqDomain};
use udrv::mmio::Window;
use udrv::pci::quiesce;
use udrv_backend::RegionIndex;
use udrv_nvme::driver::{Controller, QueueConfig, REGISTERS};

fn main() -> anyhow::Result<()> {
    let device = udrv_examples::device_from_arguments()?;

    // Interrupts of this driver: one domain, whose thread waits for them. Registers: the start of BAR 0.
    let irqs = IrqDomain::new(Delivery::Thread)?;
    let window = Window::<REGISTERS>::open(&device, RegionIndex::BAR0)?;

    // Reset, admin queue, identify, and room for one pair of I/O queues; every wait in it has a deadline.
    let mut controller = Controller::attach(&device, window, &irqs, 1)?;
    let info = controller.info();
    println!("controller:  {}, serial number {}", info.model, info.serial);

    let namespace = controller.namespace(1)?;
    println!("namespace 1: {} blocks of {} bytes", namespace.blocks, namespace.block_size);

    // A queue belongs to one thread, and has an MSI-X vector of its own.
    let mut queue = controller.io_queue(QueueConfig::default())?;
    let mut block = vec![0; namespace.block_size as usize];
    queue.read(&namespace, 0, &mut block)?;
    println!("block 0:     {} bytes that are not zero", block.iter().filter(|byte| **byte != 0).count());

    // The device is left as a driver should leave it: shut down, interrupts and bus mastering off, reset.
    drop(queue);
    controller.shut_down()?;
    quiesce(&*device)?;
    Ok(())
}
