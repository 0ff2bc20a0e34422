//! Which trigger each vector has, and how the kernel is brought to agree.
//!
//! What the kernel asks for (drivers/vfio/pci/vfio_pci_intrs.c): vectors are enabled from 0 on, as many as the first
//! request names; with `NORESIZE` more need the whole index torn down; only one of INTx, MSI and MSI-X is enabled at a
//! time; firing or masking what is not enabled is an error. So the triggers are kept here, and an index is enabled as
//! soon as one vector has a trigger and disabled with the last.

use crate::backend::Device;
use crate::relay::{Relay, Ticket, Way};
use crate::uapi::{self, IrqAction};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use udrv_backend::{Error, IrqFlags, IrqIndex, IrqInfo, Result, Trigger};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK, vfio_irq_info,
};

/// How many vectors are enabled at first even if fewer have a trigger, so that arming more of them seldom needs the
/// index torn down. All that MSI has; a bearable waste of the host's vectors for MSI-X.
const AT_ONCE: u32 = 32;

/// Every interrupt index of one device.
pub(crate) struct Irqs {
    indices: Vec<Index>,
    /// Started with the first trigger that needs it. Dropped behind the tickets.
    relay: Option<Relay>,
}

struct Index {
    info: IrqInfo,
    /// One a vector.
    armed: Vec<Option<Line>>,
    /// How many vectors the kernel has enabled; 0 if the index is down.
    enabled: u32,
}

/// One vector's trigger, as the kernel is given it.
enum Line {
    Direct(OwnedFd),
    Relayed(Ticket),
}

impl Line {
    fn raw(&self) -> RawFd {
        match self {
            Self::Direct(fd) => fd.as_raw_fd(),
            Self::Relayed(ticket) => ticket.as_fd().as_raw_fd(),
        }
    }
}

impl Irqs {
    /// Asks the kernel for every index. One it does not know (ERR of a device that is not PCI Express) has no vector.
    pub(crate) fn query(device: Device<'_>, count: u32) -> Result<Self> {
        let index = |number| {
            let info = match uapi::irq_info(device.fd, number) {
                Ok(info) => info,
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => vfio_irq_info::default(),
                Err(error) => return Err(device.failed(&format!("asking for {}", IrqIndex(number)), error)),
            };
            let flags = IrqFlags::from_bits_truncate(info.flags);
            let info = IrqInfo { index: IrqIndex(number), count: info.count, flags };
            let armed = std::iter::repeat_with(|| None).take(info.count as usize).collect();
            Ok(Index { info, armed, enabled: 0 })
        };
        Ok(Self { indices: (0..count).map(index).collect::<Result<_>>()?, relay: None })
    }

    pub(crate) fn info(&self, index: IrqIndex) -> Result<IrqInfo> {
        let found = self.indices.get(index.0 as usize).map(|index| index.info);
        found.ok_or(Error::NoSuchIrq { index, start: 0, count: 1, available: 0 })
    }

    /// The index, if it has all of the vectors.
    fn at(&mut self, index: IrqIndex, start: u32, count: u32) -> Result<&mut Index> {
        let available = self.info(index)?.count;
        let refused = Error::NoSuchIrq { index, start, count, available };
        if start.checked_add(count).is_none_or(|end| end > available) {
            return Err(refused);
        }
        self.indices.get_mut(index.0 as usize).ok_or(refused)
    }

    /// As [`udrv_backend::Backend::set_triggers`].
    pub(crate) fn set(
        &mut self,
        device: Device<'_>,
        index: IrqIndex,
        start: u32,
        triggers: &[Option<Trigger<'_>>],
    ) -> Result<()> {
        self.at(index, start, u32::try_from(triggers.len()).unwrap_or(u32::MAX))?;
        if triggers.iter().any(Option::is_some) {
            self.check_alone(device, index)?;
        }
        let lines = triggers.iter().map(|trigger| trigger.map(|trigger| self.line(trigger)).transpose());
        let lines: Vec<Option<Line>> = lines.collect::<Result<_>>()?;
        self.at(index, start, 0)?.exchange(device, start, lines)
    }

    /// A function signals by its pin or by one kind of message, never two at once (PCI 3.0, 6.8.3.3).
    fn check_alone(&self, device: Device<'_>, index: IrqIndex) -> Result<()> {
        let signals = [IrqIndex::INTX, IrqIndex::MSI, IrqIndex::MSIX];
        let other = |at: &&Index| at.info.index != index && signals.contains(&at.info.index) && at.enabled > 0;
        match self.indices.iter().find(other).filter(|_| signals.contains(&index)) {
            None => Ok(()),
            Some(other) => Err(Error::Unavailable {
                device: device.address.into(),
                why: format!("{} is armed, and a device signals by one kind of interrupt at a time", other.info.index),
                advice: format!("disarm {} before arming {index}", other.info.index),
            }),
        }
    }

    fn line(&mut self, trigger: Trigger<'_>) -> Result<Line> {
        Ok(match Way::to(trigger)? {
            Way::Direct(fd) => Line::Direct(fd),
            Way::Relayed(target) => {
                let relay = match &mut self.relay {
                    Some(relay) => relay,
                    none => none.insert(Relay::start()?),
                };
                Line::Relayed(relay.add(target)?)
            }
        })
    }

    /// As [`udrv_backend::Backend::disable_irq`].
    pub(crate) fn disable(&mut self, device: Device<'_>, index: IrqIndex) -> Result<()> {
        self.at(index, 0, 0)?.disarm(device)
    }

    /// Disarms everything; goes on where an index fails.
    pub(crate) fn disable_all(&mut self, device: Device<'_>) -> Result<()> {
        self.indices.iter_mut().map(|index| index.disarm(device)).fold(Ok(()), Result::and)
    }

    /// After a reset, in which the kernel may have taken triggers down: arms every vector anew, unmasked.
    pub(crate) fn rearm_all(&mut self, device: Device<'_>) -> Result<()> {
        self.indices.iter_mut().map(|index| index.rearm(device)).fold(Ok(()), Result::and)
    }

    /// As [`udrv_backend::Backend::mask_irq`] and [`udrv_backend::Backend::unmask_irq`].
    pub(crate) fn mask(&mut self, device: Device<'_>, index: IrqIndex, vector: u32, masked: bool) -> Result<()> {
        let at = self.at(index, vector, 1)?;
        if !at.info.flags.contains(IrqFlags::MASKABLE) {
            return Err(Error::NotSupported { what: "masking a message-signalled vector", by: "kernel VFIO".into() });
        }
        // The mask is the trigger's: without one there is none.
        if at.enabled > 0 { at.tell_mask(device, masked) } else { Ok(()) }
    }

    /// As [`udrv_backend::Backend::fire_irq`].
    pub(crate) fn fire(&mut self, device: Device<'_>, index: IrqIndex, vector: u32) -> Result<()> {
        self.at(index, vector, 1)?.fire(device, vector)
    }
}

impl Index {
    /// Puts `lines` in the place of those from `start` on. The old ones are let go of after the kernel has.
    fn exchange(&mut self, device: Device<'_>, start: u32, mut lines: Vec<Option<Line>>) -> Result<()> {
        let count = lines.len() as u32;
        self.swap(start, &mut lines);
        let applied = self.apply(device, start, count);
        if applied.is_err() {
            // The kernel has taken down what it could not replace.
            self.swap(start, &mut lines);
            if let Err(error) = self.rearm(device).and_then(|()| self.signal_armed(device)) {
                tracing::warn!(%error, device = device.address, "the interrupts before a failed change are lost");
            }
        }
        applied
    }

    fn swap(&mut self, start: u32, lines: &mut [Option<Line>]) {
        for (slot, line) in self.armed.iter_mut().skip(start as usize).zip(lines) {
            std::mem::swap(slot, line);
        }
    }

    /// How many vectors must be enabled for those that have a trigger.
    fn needed(&self) -> u32 {
        self.armed.iter().rposition(Option::is_some).map_or(0, |last| last as u32 + 1)
    }

    fn no_resize(&self) -> bool {
        self.info.flags.contains(IrqFlags::NORESIZE)
    }

    /// Makes the kernel's triggers of a range be ours.
    fn apply(&mut self, device: Device<'_>, start: u32, count: u32) -> Result<()> {
        let needed = self.needed();
        if needed == 0 {
            return self.take_down(device);
        }
        if self.enabled == 0 {
            return self.bring_up(device, needed);
        }
        if needed > self.enabled && self.no_resize() {
            return self.grow(device, needed);
        }
        // Holes behind the last that is enabled need no telling.
        let end = (start + count).min(self.enabled.max(needed));
        if start < end {
            self.arm(device, start, end)?;
            self.enabled = self.enabled.max(end);
        }
        Ok(())
    }

    /// Enables more vectors by way of none. An edge in between would be lost, so those that were armed before are signalled once:
    /// a handler that finds nothing to do costs less than one that never runs.
    fn grow(&mut self, device: Device<'_>, needed: u32) -> Result<()> {
        let before = self.enabled;
        self.take_down(device)?;
        self.bring_up(device, needed)?;
        self.signal(device, before)
    }

    /// As in [`Index::grow`], after the old triggers are back. A level that was asserted is found by [`Index::bring_up`].
    fn signal_armed(&self, device: Device<'_>) -> Result<()> {
        let needed = self.needed();
        if needed == 0 || self.info.flags.contains(IrqFlags::AUTOMASKED) {
            return Ok(());
        }
        self.signal(device, needed)
    }

    /// Signals the first `count` vectors once; the kernel passes over those without a trigger.
    fn signal(&self, device: Device<'_>, count: u32) -> Result<()> {
        let signal = IrqAction::Bare { action: VFIO_IRQ_SET_ACTION_TRIGGER, count };
        self.tell(device, "signalling after arming anew", 0, &signal)
    }

    fn rearm(&mut self, device: Device<'_>) -> Result<()> {
        self.take_down(device)?;
        match self.needed() {
            0 => Ok(()),
            needed => self.bring_up(device, needed),
        }
    }

    /// Enables at least `needed` vectors of an index that is down.
    fn bring_up(&mut self, device: Device<'_>, needed: u32) -> Result<()> {
        let at_once = if self.no_resize() { needed.max(AT_ONCE).min(self.info.count) } else { needed };
        let vectors = match self.arm(device, 0, at_once) {
            Ok(()) => at_once,
            Err(_) if at_once > needed => {
                self.arm(device, 0, needed)?;
                needed
            }
            Err(error) => return Err(error),
        };
        self.enabled = vectors;
        // Not every interrupt controller reports a line that was asserted before it was enabled (QEMU's with interrupt
        // remapping does not). Unmasking what is masked makes the kernel look at the device, and signal. One that was
        // signalled may be signalled once more, which a handler of level interrupts must bear.
        if self.info.flags.contains(IrqFlags::AUTOMASKED) {
            self.tell_mask(device, true)?;
            self.tell_mask(device, false)?;
        }
        Ok(())
    }

    /// Tells the kernel the triggers of `start..end`.
    fn arm(&self, device: Device<'_>, start: u32, end: u32) -> Result<()> {
        let range = self.armed.iter().skip(start as usize).take((end - start) as usize);
        let fds: Vec<RawFd> = range.map(|line| line.as_ref().map_or(-1, Line::raw)).collect();
        self.tell(device, "arming", start, &IrqAction::Arm(&fds))
    }

    fn take_down(&mut self, device: Device<'_>) -> Result<()> {
        if self.enabled > 0 {
            self.tell(device, "disarming", 0, &IrqAction::DISABLE)?;
            self.enabled = 0;
        }
        Ok(())
    }

    fn disarm(&mut self, device: Device<'_>) -> Result<()> {
        self.take_down(device)?;
        self.armed.fill_with(|| None);
        Ok(())
    }

    fn tell_mask(&self, device: Device<'_>, masked: bool) -> Result<()> {
        let (doing, action) =
            if masked { ("masking", VFIO_IRQ_SET_ACTION_MASK) } else { ("unmasking", VFIO_IRQ_SET_ACTION_UNMASK) };
        self.tell(device, doing, 0, &IrqAction::Bare { action, count: 1 })
    }

    fn fire(&self, device: Device<'_>, vector: u32) -> Result<()> {
        if self.armed.get(vector as usize).is_none_or(Option::is_none) {
            return Ok(());
        }
        self.tell(device, "firing", vector, &IrqAction::Bare { action: VFIO_IRQ_SET_ACTION_TRIGGER, count: 1 })
    }

    fn tell(&self, device: Device<'_>, doing: &str, start: u32, action: &IrqAction<'_>) -> Result<()> {
        let index = self.info.index;
        match uapi::set_irqs(device.fd, index.0, start, action) {
            Ok(0) => Ok(()),
            Ok(granted) => Err(Error::Unavailable {
                device: device.address.into(),
                why: format!("the host has only {granted} free vectors for its {index}"),
                advice: "arm fewer".into(),
            }),
            Err(error) => Err(device.failed(&format!("{doing} {index} from vector {start}"), error)),
        }
    }
}
