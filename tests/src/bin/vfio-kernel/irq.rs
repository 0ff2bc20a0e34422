//! Interrupts of the real kernel.

use crate::{BAR0, open, refuse};
use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use udrv_backend::{Backend as _, Error, IrqIndex, Width};
use udrv_vfio::{Bdf, VfioBackend};

/// A signal that is to come has come by then.
const PATIENCE: u16 = 5_000;
/// A signal that is not to come would have come by then: a hundred times what one takes.
const QUIET: u16 = 100;

const RAISE: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;

fn readable(fd: impl AsFd, milliseconds: u16) -> Result<bool> {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::from(milliseconds))? > 0)
}

fn event() -> Result<EventFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?)
}

/// Waits for a signal and takes it.
fn signalled(event: &EventFd) -> Result<bool> {
    Ok(readable(event, PATIENCE)? && event.read()? > 0)
}

fn arm(device: &VfioBackend, index: IrqIndex, vector: u32, fd: BorrowedFd<'_>) -> Result<()> {
    Ok(device.set_triggers(index, vector, &[Some(fd)])?)
}

/// The kernel masks the pin before it signals, and signals again at unmasking while it is asserted.
pub fn intx_stays_masked_until_unmasked(bdf: Bdf) -> Result<()> {
    let (device, event) = (open(bdf)?, event()?);
    arm(&device, IrqIndex::INTX, 0, event.as_fd())?;
    device.write(BAR0, RAISE, Width::Bits32, 0x10)?;
    ensure!(signalled(&event)?, "the pin was not signalled");
    ensure!(!readable(&event, QUIET)?, "signalled again though masked");
    device.unmask_irq(IrqIndex::INTX, 0)?;
    ensure!(signalled(&event)?, "not signalled again though asserted");
    device.write(BAR0, ACKNOWLEDGE, Width::Bits32, 0x10)?;
    device.unmask_irq(IrqIndex::INTX, 0)?;
    ensure!(!readable(&event, QUIET)?, "signalled though no longer asserted");

    device.mask_irq(IrqIndex::INTX, 0)?;
    device.write(BAR0, RAISE, Width::Bits32, 0x10)?;
    ensure!(!readable(&event, QUIET)?, "signalled though masked by hand");
    device.write(BAR0, ACKNOWLEDGE, Width::Bits32, 0x10)?;
    device.unmask_irq(IrqIndex::INTX, 0)?;
    ensure!(!readable(&event, QUIET)?, "signalled though no longer asserted");
    device.fire_irq(IrqIndex::INTX, 0)?;
    ensure!(signalled(&event)?, "fired in vain");

    device.disable_irq(IrqIndex::INTX)?;
    device.disable_irq(IrqIndex::INTX).context("disarming what is not armed")?;
    device.fire_irq(IrqIndex::INTX, 0).context("firing what is not armed")?;
    device.write(BAR0, RAISE, Width::Bits32, 0x10)?;
    ensure!(!readable(&event, QUIET)?, "signalled though disarmed");
    Ok(device.write(BAR0, ACKNOWLEDGE, Width::Bits32, 0x10)?)
}

/// Pin or messages: the second is refused until the first is disarmed, whichever way that is done.
pub fn one_kind_at_a_time(bdf: Bdf) -> Result<()> {
    let (device, event) = (open(bdf)?, event()?);
    arm(&device, IrqIndex::INTX, 0, event.as_fd())?;
    let refused = device.set_triggers(IrqIndex::MSI, 0, &[Some(event.as_fd())]);
    ensure!(matches!(refused, Err(Error::Unavailable { .. })), "MSI beside INTx gave {refused:?}");
    device.set_triggers(IrqIndex::INTX, 0, &[None])?;
    arm(&device, IrqIndex::MSI, 0, event.as_fd())?;
    device.fire_irq(IrqIndex::MSI, 0)?;
    ensure!(signalled(&event)?, "MSI fired in vain");
    device.disable_irq(IrqIndex::MSI)?;
    arm(&device, IrqIndex::INTX, 0, event.as_fd())?;
    let beyond = device.set_triggers(IrqIndex::MSI, 0, &[None, None]);
    ensure!(matches!(beyond, Err(Error::NoSuchIrq { available: 1, .. })), "two vectors of one gave {beyond:?}");
    ensure!(device.irq(IrqIndex::ERR)?.count == 0, "a conventional PCI device reports AER");
    Ok(())
}

/// What the kernel cannot signal itself gets 8 bytes with the count.
pub fn message_reaches_socket_and_pipe(bdf: Bdf) -> Result<()> {
    let device = open(bdf)?;
    let (mut ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(Duration::from_millis(PATIENCE.into())))?;
    arm(&device, IrqIndex::MSI, 0, theirs.as_fd())?;
    drop(theirs);
    device.write(BAR0, RAISE, Width::Bits32, 1)?;
    let mut bytes = [0; 8];
    ours.read_exact(&mut bytes).context("from the socket")?;
    ensure!(u64::from_ne_bytes(bytes) == 1, "{bytes:?} is no count of 1");

    let (mut ours, theirs) = std::io::pipe()?;
    arm(&device, IrqIndex::MSI, 0, theirs.as_fd())?;
    drop(theirs);
    device.write(BAR0, RAISE, Width::Bits32, 2)?;
    ensure!(readable(&ours, PATIENCE)?, "nothing came through the pipe");
    ours.read_exact(&mut bytes)?;
    ensure!(u64::from_ne_bytes(bytes) == 1, "{bytes:?} is no count of 1");
    device.write(BAR0, ACKNOWLEDGE, Width::Bits32, u64::from(u32::MAX))?;
    drop(device);
    // The backend's duplicate was the last writer: end of file, not silence.
    ensure!(readable(&ours, PATIENCE)? && ours.read(&mut bytes)? == 0, "the trigger outlives its backend");
    Ok(())
}

/// Somebody removes the device: we are asked for it, and the removal ends once it is closed.
pub fn removal_is_requested(bdf: Bdf) -> Result<()> {
    let (device, event) = (open(bdf)?, event()?);
    arm(&device, IrqIndex::REQ, 0, event.as_fd())?;
    let remove = std::thread::spawn(move || std::fs::write(format!("/sys/bus/pci/devices/{bdf}/remove"), "1"));
    ensure!(signalled(&event)?, "nobody asked for the device");
    ensure!(device.read(BAR0, 0, Width::Bits32)? == 0x0100_00ed, "the device went before it was given back");
    ensure!(!remove.is_finished(), "the removal did not wait");
    drop(device);
    remove.join().map_err(|_| anyhow::anyhow!("the removing thread panicked"))?.context("removing it")?;
    Ok(())
}

/// Any order, holes, more vectors than were enabled at first, and a reset: what is armed fires, and nothing else.
pub fn msix_holes_growth_and_reset(bdf: Bdf) -> Result<()> {
    let device = open(bdf)?;
    let count = device.irq(IrqIndex::MSIX)?.count;
    ensure!(count > 40, "this check needs more than 40 vectors, the device has {count}");
    let events: Vec<EventFd> = (0..4).map(|_| event()).collect::<Result<_>>()?;
    let [a, b, c, d] = events.as_slice() else { unreachable!("four were made") };
    device.set_triggers(IrqIndex::MSIX, 3, &[Some(a.as_fd()), None, Some(b.as_fd())])?;
    arm(&device, IrqIndex::MSIX, 0, c.as_fd())?;
    let fire_all = || (0..count).try_for_each(|vector| device.fire_irq(IrqIndex::MSIX, vector));
    fire_all()?;
    for (name, event, expected) in [("3", a, 1), ("5", b, 1), ("0", c, 1)] {
        ensure!(event.read() == Ok(expected), "vector {name} did not fire once");
    }
    // Beyond the 32 that are enabled at first: those armed before are signalled once more rather than lost.
    arm(&device, IrqIndex::MSIX, 40, d.as_fd())?;
    for event in [a, b, c] {
        ensure!(event.read().is_ok(), "not signalled after vectors were added");
    }
    d.read().ok();
    device.set_triggers(IrqIndex::MSIX, 5, &[None])?;
    fire_all()?;
    let fired = |event: &EventFd| event.read().unwrap_or(0);
    ensure!([a, b, c, d].map(fired) == [1, 0, 1, 1], "after growing, or disarming vector 5");
    device.resettable().context("an NVMe controller without a reset")?.reset()?;
    fire_all()?;
    ensure!([a, b, c, d].map(fired) == [1, 0, 1, 1], "after a reset");
    device.disable_irq(IrqIndex::MSIX)?;
    fire_all()?;
    ensure!([a, b, c, d].map(fired) == [0; 4], "after disarming");
    Ok(())
}

/// More vectors than the kernel has enabled, which it then refuses: what was armed before is armed again, and signalled once, for
/// what came while nothing was armed.
pub fn failed_growth_keeps_what_was_armed_and_signals_it(bdf: Bdf) -> Result<()> {
    let device = open(bdf)?;
    let events: Vec<EventFd> = (0..3).map(|_| event()).collect::<Result<_>>()?;
    let [a, b, c] = events.as_slice() else { unreachable!("three were made") };
    device.set_triggers(IrqIndex::MSIX, 0, &[Some(a.as_fd()), None, None, Some(b.as_fd())])?;
    // All are taken down, and that more come up is refused.
    refuse::set_irqs_after(1);
    let refused = device.set_triggers(IrqIndex::MSIX, 40, &[Some(c.as_fd())]);
    ensure!(refuse::has_refused(), "the kernel was not asked twice");
    ensure!(matches!(refused, Err(Error::Os { .. })), "refused, arming gave {refused:?}");
    ensure!(signalled(a)? && signalled(b)?, "not signalled after what was armed before was armed again");

    let fired = |event: &EventFd| event.read().unwrap_or(0);
    let fire_all = || [0, 1, 3, 40].into_iter().try_for_each(|vector| device.fire_irq(IrqIndex::MSIX, vector));
    fire_all()?;
    ensure!([a, b, c].map(fired) == [1, 1, 0], "after the change that was rolled back");
    arm(&device, IrqIndex::MSIX, 40, c.as_fd()).context("again")?;
    let _signalled = [a, b, c].map(fired);
    fire_all()?;
    ensure!([a, b, c].map(fired) == [1, 1, 1], "after it was made");
    Ok(device.disable_irq(IrqIndex::MSIX)?)
}

/// A pin that was signalled, and is therefore masked, is not any more after a reset.
pub fn reset_unmasks_intx(bdf: Bdf) -> Result<()> {
    // Intel 82574 datasheet, 10.2.4: cause (written bits are cleared), cause set, mask set, mask clear; and the cause
    // "link status change".
    const ICR: u64 = 0xc0;
    const ICS: u64 = 0xc8;
    const IMS: u64 = 0xd0;
    const IMC: u64 = 0xd8;
    const LSC: u64 = 1 << 2;
    let (device, event) = (open(bdf)?, event()?);
    arm(&device, IrqIndex::INTX, 0, event.as_fd())?;
    let raise = || -> Result<()> {
        device.write(BAR0, IMS, Width::Bits32, LSC)?;
        Ok(device.write(BAR0, ICS, Width::Bits32, LSC)?)
    };
    raise()?;
    ensure!(signalled(&event)?, "the pin was not signalled");
    device.resettable().context("an e1000e without a reset")?.reset()?;
    // QEMU's device keeps its state, so that the pin, unmasked, is signalled at once; a real one is quiet.
    device.write(BAR0, IMC, Width::Bits32, u64::from(u32::MAX))?;
    device.write(BAR0, ICR, Width::Bits32, u64::from(u32::MAX))?;
    while readable(&event, QUIET)? {
        event.read()?;
        device.unmask_irq(IrqIndex::INTX, 0)?;
    }
    raise()?;
    ensure!(signalled(&event)?, "the pin is still masked after a reset");
    Ok(())
}
