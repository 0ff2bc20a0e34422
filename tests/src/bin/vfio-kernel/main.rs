//! Checks of the VFIO backend against the kernel itself: `vfio-kernel CHECK BDF`, as root, the device bound to vfio-pci.
//! Scenarios of the virtual machine run it; each check says what it found and ends with status 1 at the first thing
//! that is not so.

mod dma;
mod irq;
mod refuse;
mod speed;

use anyhow::{Context as _, Result, bail, ensure};
use std::process::ExitCode;
use udrv_backend::pci::{Command, Config};
use udrv_backend::{Backend, Error, RegionIndex, Width};
use udrv_vfio::{Bdf, VfioBackend};

const BAR0: RegionIndex = RegionIndex::BAR0;

type Check = fn(Bdf) -> Result<()>;

/// The edu device unless the name says otherwise.
const CHECKS: &[(&str, Check)] = &[
    ("access", access),
    ("busy", busy),
    ("intx", irq::intx_stays_masked_until_unmasked),
    ("one-kind", irq::one_kind_at_a_time),
    ("relay", irq::message_reaches_socket_and_pipe),
    ("request", irq::removal_is_requested),
    ("nvme-msix", irq::msix_holes_growth_and_reset),
    ("nvme-rollback", irq::failed_growth_keeps_what_was_armed_and_signals_it),
    ("e1000e-reset", irq::reset_unmasks_intx),
    ("dma", dma::bookkeeping),
    ("memlock", dma::memlock),
    ("fault", dma::fault),
    ("huge-pages", dma::huge_pages),
    ("speed", speed::registers),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.as_slice() {
        [name, bdf] => run(name, bdf),
        _ => Err(anyhow::anyhow!("usage: vfio-kernel CHECK BDF")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vfio-kernel: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(name: &str, bdf: &str) -> Result<()> {
    let Some((_, check)) = CHECKS.iter().find(|(check, _)| *check == name) else {
        let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
        bail!("no check is called `{name}`: expected one of {}", names.join(", "));
    };
    check(bdf.parse()?).with_context(|| format!("{name} of {bdf}"))?;
    println!("ok  {name}");
    Ok(())
}

fn open(bdf: Bdf) -> Result<VfioBackend> {
    let device = VfioBackend::open(bdf)?;
    Config::new(&device).change_command(Command::MEMORY_SPACE | Command::BUS_MASTER, Command::INTERRUPT_DISABLE)?;
    Ok(device)
}

/// Accesses that fit, do not fit, and that the kernel refuses.
fn access(bdf: Bdf) -> Result<()> {
    let device = open(bdf)?;
    ensure!(device.resettable().is_none(), "edu claims that it can be reset");
    let size = device.region(BAR0)?.size;
    ensure!(device.read(BAR0, 0, Width::Bits32)? == 0x0100_00ed, "identification");
    device.write(BAR0, 4, Width::Bits32, 0x1234_5678)?;
    ensure!(device.read(BAR0, 4, Width::Bits32)? == u64::from(!0x1234_5678_u32), "liveness");
    device.write(BAR0, 0x80, Width::Bits64, 0x0765_4321)?;
    ensure!(device.read(BAR0, 0x80, Width::Bits32)? == 0x0765_4321, "the low half of a 64-bit write");
    ensure!(matches!(device.read(BAR0, size, Width::Bits32), Err(Error::OutOfRegion { .. })), "past the end");
    ensure!(matches!(device.read(BAR0, u64::MAX - 3, Width::Bits32), Err(Error::OutOfRegion { .. })), "overflow");
    ensure!(matches!(device.read(BAR0, 2, Width::Bits32), Err(Error::Unaligned { .. })), "unaligned");
    ensure!(matches!(device.write(BAR0, 4, Width::Bits8, 256), Err(Error::ValueTooWide { .. })), "too wide");
    ensure!(matches!(device.read(RegionIndex(1), 0, Width::Bits8), Err(Error::OutOfRegion { .. })), "no BAR1");
    ensure!(matches!(device.read(RegionIndex(9), 0, Width::Bits8), Err(Error::NoSuchRegion { .. })), "no region 9");
    ensure!(device.region(RegionIndex::VGA)?.size == 0, "edu has no VGA ranges");

    // EIO of a device that is there: not gone, and the error says what to do.
    Config::new(&device).change_command(Command::empty(), Command::MEMORY_SPACE)?;
    match device.read(BAR0, 0, Width::Bits32) {
        Err(error @ Error::Os { .. }) => ensure!(error.to_string().contains("MEMORY_SPACE"), "no advice in: {error}"),
        other => bail!("with memory decoding off a read gave {other:?}"),
    }
    Ok(())
}

/// A device opens once, and the second who tries is told who has it.
fn busy(bdf: Bdf) -> Result<()> {
    let first = open(bdf)?;
    let error = VfioBackend::open(bdf).err().context("a device opened twice")?;
    let me = format!("process {}", std::process::id());
    ensure!(matches!(error, Error::Unavailable { .. }) && error.to_string().contains(&me), "not named: {error}");
    drop(first);
    open(bdf).context("after the first was closed")?;
    Ok(())
}
