//! What the conformance suite needs to know of the device.

use crate::registers::{
    BUFFER_OFFSET, DMA_ADDRESS_BITS, DMA_COMMAND, DMA_COUNT, DMA_DESTINATION, DMA_SOURCE, DmaCommand,
    INTERRUPT_ACKNOWLEDGE, INTERRUPT_RAISE,
};
use std::time::Duration;
use udrv_backend::conformance::{Interrupt, Knowledge, Scratch, Transfer};
use udrv_backend::{Backend, Error, RegionIndex, Result, Width};

/// QEMU's device takes 100 ms for a transfer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The education device. Only 4-byte accesses are made: every backend carries them whole.
pub const KNOWLEDGE: Knowledge = Knowledge {
    scratch: &[Scratch { region: RegionIndex::BAR0, offset: DMA_SOURCE.offset, width: Width::Bits32, reset: None }],
    interrupt: Some(Interrupt {
        vectors: 1,
        raise: |device, _| write(device, INTERRUPT_RAISE.offset, 1),
        acknowledge: |device| write(device, INTERRUPT_ACKNOWLEDGE.offset, u64::from(u32::MAX)),
    }),
    transfer: Some(Transfer {
        mask: (1 << DMA_ADDRESS_BITS) - 1,
        to_device: |device, iova| transfer(device, iova, BUFFER_OFFSET, DmaCommand::START),
        to_memory: |device, iova| transfer(device, BUFFER_OFFSET, iova, DmaCommand::START | DmaCommand::TO_MEMORY),
    }),
};

fn write(device: &dyn Backend, offset: u64, value: u64) -> Result<()> {
    device.write(RegionIndex::BAR0, offset, Width::Bits32, value)
}

fn transfer(device: &dyn Backend, source: u64, destination: u64, command: DmaCommand) -> Result<()> {
    write(device, DMA_SOURCE.offset, source)?;
    write(device, DMA_DESTINATION.offset, destination)?;
    write(device, DMA_COUNT.offset, Transfer::LENGTH as u64)?;
    write(device, DMA_COMMAND.offset, command.bits())?;
    let until = udrv_backend::clock::now() + PATIENCE;
    while device.read(RegionIndex::BAR0, DMA_COMMAND.offset, Width::Bits32)? & DmaCommand::START.bits() != 0 {
        if udrv_backend::clock::now() > until {
            return Err(Error::Timeout { what: "the end of a DMA transfer".into(), after: PATIENCE });
        }
        std::thread::yield_now();
    }
    Ok(())
}
