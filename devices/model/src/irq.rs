//! Triggers, the pin's level and mask, and the messages a device has sent.

use udrv_backend::{IrqIndex, Result, Trigger};
use udrv_signal::Sink;

/// The triggers of one device, and what its pin and its messages were last seen to be.
pub(crate) struct Lines {
    pin: Vec<Option<Sink>>,
    msi: Vec<Option<Sink>>,
    msix: Vec<Option<Sink>>,
    level: bool,
    masked: bool,
    sent: Vec<u64>,
}

fn unarmed(count: usize) -> Vec<Option<Sink>> {
    std::iter::repeat_with(|| None).take(count).collect()
}

fn is_armed(vectors: &[Option<Sink>]) -> bool {
    vectors.iter().any(Option::is_some)
}

impl Lines {
    pub(crate) fn new(pin: u32, msi: u32, msix: u32, sent: &[u64]) -> Self {
        let [pin, msi, msix] = [pin, msi, msix].map(|count| unarmed(count as usize));
        Self { pin, msi, msix, level: false, masked: false, sent: sent.to_vec() }
    }

    fn vectors(&mut self, index: IrqIndex) -> &mut [Option<Sink>] {
        match index {
            IrqIndex::INTX => &mut self.pin,
            IrqIndex::MSI => &mut self.msi,
            IrqIndex::MSIX => &mut self.msix,
            _ => &mut [],
        }
    }

    pub(crate) fn count(&self, index: IrqIndex) -> u32 {
        let vectors = match index {
            IrqIndex::INTX => &self.pin,
            IrqIndex::MSI => &self.msi,
            IrqIndex::MSIX => &self.msix,
            _ => return 0,
        };
        vectors.len() as u32
    }

    /// Which other index is armed: a function uses one at a time (PCI 3.0, 6.8).
    pub(crate) fn armed_beside(&self, index: IrqIndex) -> Option<IrqIndex> {
        let all = [(IrqIndex::INTX, &self.pin), (IrqIndex::MSI, &self.msi), (IrqIndex::MSIX, &self.msix)];
        all.into_iter().find(|(other, vectors)| *other != index && is_armed(vectors)).map(|(other, _)| other)
    }

    /// The device's output after an access: the pin's level, and how many messages each vector has sent so far; those
    /// sent while it may not are lost.
    pub(crate) fn update(&mut self, level: bool, sent: &[u64], may_send: bool) {
        self.level = level;
        self.signal_pin();
        let armed = if is_armed(&self.msix) { &mut self.msix } else { &mut self.msi };
        for (vector, (now, before)) in sent.iter().zip(&mut self.sent).enumerate() {
            let news = *now != *before;
            *before = *now;
            // A function that has been given fewer vectors than it uses folds them (PCI 3.0, 6.8.3.4).
            let slot = vector.checked_rem(armed.len()).and_then(|vector| armed.get_mut(vector));
            if let Some(Some(sink)) = slot.filter(|_| news && may_send) {
                sink.signal(1);
            }
        }
    }

    /// After a reset. The counts of messages start over; that is no message, for bus mastering is off.
    pub(crate) fn reset(&mut self) {
        self.masked = false;
    }

    fn signal_pin(&mut self) {
        if self.level
            && !self.masked
            && let Some(Some(sink)) = self.pin.first_mut()
        {
            self.masked = true;
            sink.signal(1);
        }
    }

    pub(crate) fn set(&mut self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        let sinks: Vec<_> = triggers.iter().map(|trigger| trigger.map(Sink::new).transpose()).collect::<Result<_>>()?;
        for (slot, sink) in self.vectors(index).iter_mut().skip(start as usize).zip(sinks) {
            *slot = sink;
        }
        self.forget_mask();
        Ok(())
    }

    pub(crate) fn disable(&mut self, index: IrqIndex) {
        self.vectors(index).fill_with(|| None);
        self.forget_mask();
    }

    /// A pin without a trigger has no mask.
    fn forget_mask(&mut self) {
        self.masked &= is_armed(&self.pin);
    }

    pub(crate) fn mask_pin(&mut self, masked: bool) {
        self.masked = masked;
        self.forget_mask();
        self.signal_pin();
    }

    pub(crate) fn fire(&mut self, index: IrqIndex, vector: u32) {
        if let Some(Some(sink)) = self.vectors(index).get_mut(vector as usize) {
            sink.signal(1);
        }
    }
}
