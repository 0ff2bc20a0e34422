//! What the conformance suite needs to know of the device.

use crate::registers::{IER, InterruptEnable, SCR};
use udrv_backend::conformance::{Interrupt, Knowledge, Scratch};
use udrv_backend::{Backend, RegionIndex, Result, Width};

/// A serial port with no line to speak of: its transmitter is empty, and says so when asked.
pub const KNOWLEDGE: Knowledge = Knowledge {
    scratch: &[Scratch { region: RegionIndex::BAR0, offset: SCR.offset, width: Width::Bits8, reset: None }],
    interrupt: Some(Interrupt {
        vectors: 0,
        raise: |device, _| {
            // Only going from off to on is an event.
            enable(device, InterruptEnable::empty())?;
            enable(device, InterruptEnable::TRANSMITTER)
        },
        acknowledge: |device| enable(device, InterruptEnable::empty()),
    }),
    transfer: None,
};

fn enable(device: &dyn Backend, interrupts: InterruptEnable) -> Result<()> {
    device.write(RegionIndex::BAR0, IER.offset, Width::Bits8, u64::from(interrupts.bits()))
}
