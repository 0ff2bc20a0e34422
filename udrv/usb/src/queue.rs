//! Completions as interrupts.
//!
//! A [`CompletionQueue`] is to a USB driver what a completion queue in memory is to a PCI driver: transfers end up in it
//! in the order in which they ended, and its line interrupts. The line is a [`Backend`] with one vector and nothing else,
//! so that it is registered with an interrupt domain like a PCI device's vector, and a section with interrupts off holds
//! completions back in the same way.

use crate::device::{Device, Handle};
use crate::transfer::{Completion, Refused, Transfer};
use crate::{Error, Result};
use nix::sys::socket::{MsgFlags, send};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use udrv_backend::{
    AnyBackend, Backend, DeviceInfo, Dma, IrqFlags, IrqIndex, IrqInfo, RegionIndex, RegionInfo, Trigger, Width,
};

/// The index of a line's only vector, which is vector 0. It is an edge, like a message.
pub const LINE: IrqIndex = IrqIndex::MSI;

/// An interrupt line that software raises.
pub(crate) struct Line {
    info: DeviceInfo,
    state: Mutex<LineState>,
}

#[derive(Default)]
struct LineState {
    trigger: Option<OwnedFd>,
    /// Raised when nobody listened; told to whoever listens next.
    raised: bool,
}

impl Line {
    pub(crate) fn new(address: String) -> Arc<Self> {
        let info = DeviceInfo { address, regions: 0, irqs: LINE.0 + 1 };
        Arc::new(Self { info, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, LineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn raise(&self) {
        let mut state = self.lock();
        match &state.trigger {
            Some(trigger) => signal(trigger),
            None => state.raised = true,
        }
    }

    fn check(&self, index: IrqIndex, start: u32, count: usize) -> Result<()> {
        let available = u32::from(index == LINE);
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        if start.checked_add(count).is_some_and(|end| end <= available) {
            return Ok(());
        }
        Err(Error::NoSuchIrq { index, start, count, available })
    }
}

/// Never waits: a descriptor that is full has a signal waiting already.
fn signal(trigger: &OwnedFd) {
    let one = 1u64.to_ne_bytes();
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    if send(trigger.as_raw_fd(), &one, flags) == Err(nix::errno::Errno::ENOTSOCK) {
        // An eventfd, which takes 2^64 - 2 signals before a write would wait.
        let _ = nix::unistd::write(trigger, &one);
    }
}

impl Backend for Line {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn region(&self, region: RegionIndex) -> Result<RegionInfo> {
        Err(Error::NoSuchRegion { region, count: 0 })
    }

    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        if index.0 >= self.info.irqs {
            return Err(Error::NoSuchIrq { index, start: 0, count: 1, available: 0 });
        }
        let (count, flags) = if index == LINE { (1, IrqFlags::EVENTFD) } else { (0, IrqFlags::empty()) };
        Ok(IrqInfo { index, count, flags })
    }

    fn read(&self, region: RegionIndex, _offset: u64, _width: Width) -> Result<u64> {
        Err(Error::NoSuchRegion { region, count: 0 })
    }

    fn write(&self, region: RegionIndex, _offset: u64, _width: Width, _value: u64) -> Result<()> {
        Err(Error::NoSuchRegion { region, count: 0 })
    }

    fn set_triggers(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        self.check(index, start, triggers.len())?;
        let Some(trigger) = triggers.first() else { return Ok(()) };
        let keeping = |error| Error::os("keeping an interrupt's descriptor", error);
        let trigger = trigger.map(|fd| fd.try_clone_to_owned().map_err(keeping)).transpose()?;
        let mut state = self.lock();
        state.trigger = trigger;
        if let (Some(trigger), true) = (&state.trigger, state.raised) {
            signal(trigger);
            state.raised = false;
        }
        Ok(())
    }

    fn disable_irq(&self, index: IrqIndex) -> Result<()> {
        self.irq(index)?;
        self.lock().trigger = None;
        Ok(())
    }

    fn mask_irq(&self, _index: IrqIndex, _vector: u32) -> Result<()> {
        Err(Error::NotSupported { what: "masking", by: self.info.address.clone() })
    }

    fn unmask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.mask_irq(index, vector)
    }

    fn fire_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.check(index, vector, 1)?;
        self.raise();
        Ok(())
    }

    fn dma(&self) -> Option<&dyn Dma> {
        None
    }
}

/// Ended transfers, each with the number it was given. Cheap to clone; clones are the same queue.
#[derive(Clone)]
pub struct CompletionQueue {
    entries: Arc<Mutex<VecDeque<(u64, Completion)>>>,
    line: Arc<Line>,
}

impl CompletionQueue {
    /// An empty queue; `device` names it in messages.
    #[must_use]
    pub fn new(device: &Device) -> Self {
        Self { entries: Arc::default(), line: Line::new(format!("completions of {}", device.address())) }
    }

    /// What to register with an interrupt domain, with [`LINE`] and vector 0. One interrupt may stand for several
    /// completions: the handler pops until there is none.
    #[must_use]
    pub fn line(&self) -> AnyBackend {
        Arc::clone(&self.line) as AnyBackend
    }

    /// Starts a transfer that ends in this queue, with `tag`.
    ///
    /// # Errors
    /// As [`Device::submit_then`].
    pub fn submit(
        &self,
        device: &Device,
        transfer: Transfer,
        allowed: Duration,
        tag: u64,
    ) -> std::result::Result<Handle, Box<Refused>> {
        let queue = self.clone();
        device.submit_then(transfer, allowed, move |completion| {
            queue.lock().push_back((tag, completion));
            queue.line.raise();
        })
    }

    /// The one that ended first of those not popped yet.
    #[must_use]
    pub fn pop(&self) -> Option<(u64, Completion)> {
        self.lock().pop_front()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, Completion)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
