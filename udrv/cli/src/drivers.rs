//! The PCI drivers of `udrv run`, one line each of a table: what is done with any of them (faults, recordings) asks here.

use std::time::Duration;
use udrv::clock::Deadline;
use udrv::debug::trace::Identity;
use udrv::host::{Context, Host};
use udrv::irq::Delivery;
use udrv_backend::register::RegisterMap;
use udrv_backend::{AnyBackend, Result};
use udrv_edu::driver::{Tour, TourConfig};
use udrv_nvme::driver::{Controller, QueueConfig, Task, Work};
use udrv_uart16550::driver::{Serial, SerialConfig, Settings, Uart};

/// One of them.
pub struct PciDriver {
    /// Its registers; its name is theirs.
    pub map: &'static RegisterMap,
    /// Whether a device is one of its own.
    pub drives: fn(&Identity) -> bool,
    /// Starts a run that works the device, and leaves what is stored on it as it is.
    pub exercise: fn(&mut Host, AnyBackend) -> Result<()>,
}

/// All of them.
static DRIVERS: [PciDriver; 3] = [
    PciDriver {
        map: &udrv_edu::registers::MAP,
        drives: |device| (device.vendor, device.device) == (udrv_edu::registers::VENDOR, udrv_edu::registers::DEVICE),
        exercise: edu,
    },
    PciDriver {
        map: &udrv_nvme::registers::MAP,
        drives: |device| device.class == udrv_nvme::registers::CLASS,
        exercise: nvme,
    },
    PciDriver {
        map: &udrv_uart16550::registers::MAP,
        drives: |device| device.class == udrv_uart16550::registers::CLASS,
        exercise: uart16550,
    },
];

/// By its name, for the command line.
pub fn named(name: &str) -> std::result::Result<&'static PciDriver, String> {
    let names = || DRIVERS.each_ref().map(|driver| driver.map.device).join(", ");
    DRIVERS.iter().find(|driver| driver.map.device == name).ok_or_else(|| format!("expected one of {}", names()))
}

/// By the device.
pub fn of(device: &Identity) -> Option<&'static PciDriver> {
    DRIVERS.iter().find(|driver| (driver.drives)(device))
}

fn edu(host: &mut Host, device: AnyBackend) -> Result<()> {
    host.start::<Tour>(device, Delivery::Thread, TourConfig { irq: None, samples: 20, tell: Box::new(|_| {}) })
}

/// Everything that only reads: a disk's contents are its owner's.
fn nvme(host: &mut Host, device: AnyBackend) -> Result<()> {
    let job = |controller: &mut Controller, _: &Context| {
        controller.smart()?;
        controller.error_log()?;
        let Some(first) = controller.namespace_ids()?.first().copied() else { return Ok(()) };
        let namespace = controller.namespace(first)?;
        let config = QueueConfig { timeout: Duration::from_secs(1), ..QueueConfig::default() };
        let mut queue = controller.io_queue(config)?;
        // One PRP entry, two, and a list of them.
        for pages in [1, 2, 16] {
            queue.read(&namespace, 0, &mut vec![0; pages * 4096])?;
        }
        Ok(())
    };
    host.start::<Task>(device, Delivery::Thread, Work { queues: 1, job: Box::new(job) })
}

/// A line is sent; what comes back, from a plug in the socket say, is read.
fn uart16550(host: &mut Host, device: AnyBackend) -> Result<()> {
    const LINE: &[u8] = b"The quick brown fox jumps over the lazy dog.\r\n";
    let job = |uart: &Uart, _: &Context| {
        uart.write(LINE)?;
        uart.drain(Deadline::after(Duration::from_secs(2)))?;
        uart.read(&mut [0; LINE.len()]).map(drop)
    };
    let config = SerialConfig { settings: Settings::default(), wake: Box::new(|| ()), job: Box::new(job) };
    host.start::<Serial>(device, Delivery::Thread, config)
}
