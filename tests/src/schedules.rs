//! Drivers of the edu device for placed interrupts, with bugs and without, for any edu device: the model, one behind a socket, and
//! the one in the virtual machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use udrv::dma::{FromDevice, ToDevice};
use udrv::irq::{IrqReturn, Registration};
use udrv::mmio::{ByMessage, Io as _};
use udrv::pci::{Command, Config};
use udrv::schedules::{Run, Schedules};
use udrv_backend::{AnyBackend, Backend, IrqIndex, RegionIndex, Result, Width};
use udrv_edu::driver::Edu;
use udrv_edu::registers::{INTERRUPT_ACKNOWLEDGE, INTERRUPT_RAISE, INTERRUPT_STATUS, InterruptStatus, LIVENESS};

/// The cause that placed interrupt `irq` raises.
pub const fn cause(irq: usize) -> InterruptStatus {
    InterruptStatus::from_bits_retain(0x10 << irq)
}

fn raise(irq: usize) -> impl Fn(&dyn Backend) -> Result<()> {
    move |device| {
        let bits = u64::from(cause(irq).bits());
        device.write(RegionIndex::BAR0, INTERRUPT_RAISE.offset, Width::Bits32, bits)
    }
}

/// An edu device, with two causes to place.
pub fn on(device: impl Fn() -> AnyBackend + 'static) -> Schedules {
    Schedules::on(device).raise(raise(0)).raise(raise(1))
}

type Registers = Arc<ByMessage<dyn Backend>>;

/// A driver so small that its bugs are its whole difference: a handler that gathers causes, and work that takes them.
struct Small {
    io: Registers,
    causes: Arc<AtomicU32>,
    _irq: Registration,
    up_at: u64,
}

impl Small {
    fn new(run: &Run, acknowledge: fn(InterruptStatus) -> InterruptStatus) -> Result<Self> {
        Config::new(&*run.device).change_command(Command::BUS_MASTER, Command::empty())?;
        let io: Registers = Arc::new(ByMessage::new(Arc::clone(&run.device), RegionIndex::BAR0));
        let causes = Arc::new(AtomicU32::new(0));
        let handler = {
            let (io, causes) = (Arc::clone(&io), Arc::clone(&causes));
            move |_| match io.read(INTERRUPT_STATUS) {
                Ok(status) if !status.is_empty() => {
                    causes.fetch_or(status.bits(), Ordering::SeqCst);
                    io.write(INTERRUPT_ACKNOWLEDGE, acknowledge(status)).expect("a model");
                    IrqReturn::Handled
                }
                _ => IrqReturn::None,
            }
        };
        let irq = run.irqs.register(&run.device, IrqIndex::MSI, 0, handler)?;
        Ok(Self { io, causes, _irq: irq, up_at: run.accesses() })
    }

    /// Takes the causes out, with a register access in the middle, as a driver that has more to read would.
    fn take(&self) -> Result<u32> {
        let causes = self.causes.load(Ordering::SeqCst);
        self.io.read(LIVENESS)?;
        self.causes.store(0, Ordering::SeqCst);
        Ok(causes)
    }
}

/// Whether all causes that were raised since `up_at` are among those seen.
fn nothing_lost(run: &Run, up_at: u64, seen: u32) -> std::result::Result<(), String> {
    let raised = run
        .raised()
        .iter()
        .filter(|placement| placement.access >= up_at)
        .fold(0, |all, placement| all | cause(placement.irq).bits());
    match raised & !seen {
        0 => Ok(()),
        lost => Err(format!("cause {lost:#x} was lost")),
    }
}

/// Acknowledges more than it has read.
///
/// # Errors
/// What was lost.
pub fn hasty(run: &Run) -> std::result::Result<(), String> {
    let small = Small::new(run, |_| InterruptStatus::all()).map_err(|error| error.to_string())?;
    small.io.write(LIVENESS, 1).map_err(|error| error.to_string())?;
    run.irqs.deliver();
    nothing_lost(run, small.up_at, small.causes.load(Ordering::SeqCst))
}

/// Takes what the handler left, with or without interrupts off meanwhile.
///
/// # Errors
/// What was lost.
pub fn taking(run: &Run, in_section: bool) -> std::result::Result<(), String> {
    let small = Small::new(run, |status| status).map_err(|error| error.to_string())?;
    let mut seen = 0;
    for _ in 0..2 {
        let taken = if in_section { run.irqs.off(|_off| small.take()) } else { small.take() };
        seen |= taken.map_err(|error| error.to_string())?;
    }
    run.irqs.deliver();
    nothing_lost(run, small.up_at, seen | small.causes.load(Ordering::SeqCst))
}

/// The real one: a factorial, and DMA both ways.
///
/// # Errors
/// What the driver said.
///
/// # Panics
/// If a result is wrong, or a cause was lost.
pub fn edu_works(run: &Run) -> Result<()> {
    let io = ByMessage::new(Arc::clone(&run.device), RegionIndex::BAR0);
    let edu = Edu::attach(&run.device, io, &run.irqs, IrqIndex::MSI)?;
    let up_at = run.accesses();
    assert_eq!(edu.factorial(5)?, 120);
    let mut out = edu.pool().alloc::<ToDevice>(8)?;
    out.write(0, b"schedule")?;
    edu.copy_to_device(out)?;
    let mut back = [0; 8];
    edu.copy_from_device(edu.pool().alloc::<FromDevice>(8)?)?.read(0, &mut back)?;
    assert_eq!(&back, b"schedule");
    run.irqs.deliver();
    for placement in run.raised().iter().filter(|placement| placement.access >= up_at) {
        assert!(edu.has_seen(cause(placement.irq)), "cause {:#x} was lost", cause(placement.irq).bits());
    }
    Ok(())
}
