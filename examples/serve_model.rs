//! A device of your own in software, served over a socket as real hardware is.
//!
//! `cargo run -p udrv-examples --bin serve_model`

use std::sync::Arc;
use stub_driver::serve::{DeviceServer, Export};
use udrv_backend::{RegionIndex, Width};
use udrv_model::{Bar, Bus, DeviceModel, Identity, ModelBackend};

/// A device with one register, which adds up what is written to it. A model is its state and what accesses do to it;
/// configuration space, interrupts and DMA are the library's.
#[derive(Default)]
struct Adder {
    sum: u32,
}

impl DeviceModel for Adder {
    fn identity(&self) -> Identity {
        let mut bars = [Bar::None; 6];
        bars[0] = Bar::Registers(4096);
        Identity {
            vendor: 0x1234,
            device: 0xadd0,
            subsystem_vendor: 0,
            subsystem: 0,
            revision: 1,
            class: 0x00_ff_00,
            bars,
            interrupt_pin: 0,
            msi_vectors: 0,
            msix: None,
            resettable: true,
        }
    }
    fn read(&mut self, _bar: u32, offset: u64, width: Width) -> u64 {
        if offset == 0 { self.sum.into() } else { width.all_ones() }
    }
    fn write(&mut self, _bar: u32, offset: u64, _width: Width, value: u64, _bus: &mut Bus<'_>) {
        if offset == 0 {
            self.sum = self.sum.wrapping_add(value as u32);
        }
    }
    fn line(&self) -> bool {
        false
    }
    fn messages(&self) -> &[u64] {
        &[]
    }
    fn reset(&mut self) {
        *self = Self::default();
    }
}

fn main() -> anyhow::Result<()> {
    let model = ModelBackend::new("adder", Adder::default());
    let socket = std::env::temp_dir().join(format!("udrv-adder-{}.sock", std::process::id()));
    let server = DeviceServer::start(Export::shared("adder", Arc::new(model)), &socket)?;

    // Any vfio-user client can connect now: QEMU, `udrv info`, or this one.
    let device = udrv::open(&format!("unix:{}", socket.display()))?;
    device.write(RegionIndex::BAR0, 0, Width::Bits32, 40)?;
    device.write(RegionIndex::BAR0, 0, Width::Bits32, 2)?;
    println!("sum: {}", device.read(RegionIndex::BAR0, 0, Width::Bits32)?);

    drop(device);
    drop(server);
    Ok(())
}
