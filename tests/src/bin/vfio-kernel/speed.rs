//! What a register read costs, by system call and mapped. Only the ratio means anything in an emulator.

use crate::{BAR0, open};
use anyhow::{Context as _, Result, ensure};
use std::sync::Arc;
use udrv::clock;
use udrv::mmio::{ByMessage, Io, Mapped};
use udrv_edu::registers::IDENTIFICATION;
use udrv_vfio::Bdf;

const READS: u32 = 2_000;

pub fn registers(bdf: Bdf) -> Result<()> {
    let device = Arc::new(open(bdf)?);
    let mapped = Mapped::<0x1000>::map(&*device, BAR0)?.context("BAR0 cannot be mapped")?;
    let by_message = ByMessage::new(Arc::clone(&device), BAR0);
    // In turns, so that what else the machine does meets both.
    let (mut load, mut call) = (u128::MAX, u128::MAX);
    for _ in 0..5 {
        load = load.min(time(&mapped)?);
        call = call.min(time(&by_message)?);
    }
    println!(
        "a 32-bit register read, best of 5 rounds of {READS}: mapped {load} ns, pread {call} ns, {:.1} times",
        call as f64 / load as f64
    );
    ensure!(call > load, "a system call was faster than a load");
    Ok(())
}

/// Nanoseconds a read.
fn time(io: &impl Io) -> Result<u128> {
    let start = clock::now();
    for _ in 0..READS {
        ensure!(io.read(IDENTIFICATION)? == 0x0100_00ed, "identification");
    }
    Ok(start.elapsed().as_nanos() / u128::from(READS))
}
