//! DEVICE_SET_IRQS: what each combination of action and data does to the device.

use super::hold::Hold;
use super::refusal::Refusal;
use std::os::fd::{AsFd as _, OwnedFd};
use udrv_backend::{Backend, Error, IrqIndex, Trigger};
use udrv_vfio::descriptor::SignalKind;
use udrv_wire::{DeviceSetIrqs, Errno, IrqAction, IrqData, pci};

/// Does it. Nothing is done unless the range fits.
pub(super) fn set(
    device: &dyn Backend,
    hold: &Hold,
    request: &DeviceSetIrqs<'_>,
    fds: &[OwnedFd],
) -> Result<(), Refusal> {
    request.check_fds(fds.len())?;
    let index = IrqIndex(request.index);
    let available = device.irq(index)?.count;
    if request.start >= available {
        let (start, count) = (request.start, request.count);
        return Err(Error::NoSuchIrq { index, start, count, available }.into());
    }
    request.check_count(available)?;
    if matches!(request.index, pci::ERR_IRQ | pci::REQ_IRQ) && request.action != IrqAction::Trigger {
        return Err(Refusal::invalid(format!("{index} can be triggered only")));
    }
    match (request.action, request.data) {
        (IrqAction::Trigger, IrqData::None) if request.count == 0 => Ok(hold.disable(device, index)?),
        (IrqAction::Trigger, IrqData::Eventfd) => assign(device, hold, request, fds),
        (_, IrqData::Eventfd) => Err(Refusal::new(Errno::ENOTSUP, "masking and unmasking by eventfd is not supported")),
        (action, data) => {
            for vector in vectors(request, data) {
                match action {
                    IrqAction::Mask => device.mask_irq(index, vector)?,
                    IrqAction::Unmask => device.unmask_irq(index, vector)?,
                    IrqAction::Trigger => device.fire_irq(index, vector)?,
                }
            }
            Ok(())
        }
    }
}

/// One descriptor a vector, or none at all, which takes away what the range had.
fn assign(device: &dyn Backend, hold: &Hold, request: &DeviceSetIrqs<'_>, fds: &[OwnedFd]) -> Result<(), Refusal> {
    // Whatever the device, software included: writing to any other file may wait for the client. To a pipe as well, while its
    // reader's own memory is not there (a page of a file system of the client's), whatever O_NONBLOCK says.
    for fd in fds {
        if SignalKind::of(fd.as_fd()).map_err(|error| Refusal::invalid(error.to_string()))? == SignalKind::Pipe {
            return Err(Refusal::invalid("a pipe, where an eventfd or a Unix socket is expected"));
        }
    }
    let triggers: Vec<Option<Trigger<'_>>> = if fds.is_empty() {
        vec![None; request.count as usize]
    } else {
        fds.iter().map(|fd| Some(fd.as_fd())).collect()
    };
    Ok(hold.set_triggers(device, (IrqIndex(request.index), request.start), &triggers)?)
}

/// The vectors that the action applies to.
fn vectors<'a>(request: &DeviceSetIrqs<'a>, data: IrqData<'a>) -> impl Iterator<Item = u32> + 'a {
    let range = request.start..request.start.saturating_add(request.count);
    range.enumerate().filter_map(move |(position, vector)| match data {
        IrqData::Bool(wanted) => wanted.get(position).is_some_and(|byte| *byte != 0).then_some(vector),
        _ => Some(vector),
    })
}
