//! One source's mark: how many signals wait, and how often it is disabled, in one word.
//!
//! Being one word is what makes enable and raise meet: whichever comes second sees the other, without a lock or a fence.

use super::sync::{AtomicU64, Ordering};

/// Signals waiting: the low 48 bits, saturating, since they are a statistic. Above: nested disables.
const COUNT: u64 = (1 << 48) - 1;
const DISABLE: u64 = 1 << 48;

pub(super) struct Mark(AtomicU64);

impl Mark {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    fn update(&self, change: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, change)
    }

    /// Sets the mark, for `count` signals. True if the source is to be delivered: it is enabled.
    pub(super) fn raise(&self, count: u64) -> bool {
        let add = |word: u64| Some((word & !COUNT) | (word & COUNT).saturating_add(count).min(COUNT));
        self.update(add).is_ok_and(|before| before & !COUNT == 0)
    }

    /// Clears the mark for a delivery: how many signals it stands for; `None` if it is not set, or disabled.
    pub(super) fn take(&self) -> Option<u64> {
        self.update(|word| (word & COUNT != 0 && word & !COUNT == 0).then_some(0)).ok()
    }

    /// Clears the mark without a delivery.
    pub(super) fn forget(&self) {
        let _before = self.update(|word| Some(word & !COUNT));
    }

    pub(super) fn disable(&self) {
        // 65,535 nested disables saturate; the source then stays disabled, which is the safe side.
        let _before = self.update(|word| word.checked_add(DISABLE));
    }

    /// Undoes one disable. True if that was the last one and the mark is set: it is to be delivered now.
    pub(super) fn enable(&self) -> bool {
        let enabled = self.update(|word| word.checked_sub(DISABLE));
        enabled.is_ok_and(|before| before & !COUNT == DISABLE && before & COUNT != 0)
    }

    pub(super) fn is_set(&self) -> bool {
        self.word() & COUNT != 0
    }

    /// Both at once: signals waiting in the low 48 bits, nested disables above.
    pub(super) fn word(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}
