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

    /// Tries the commonest change, which need not know the word. To be read first, it would move between processors twice.
    fn changes(&self, from: u64, to: u64) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Sets the mark, for `count` signals. True if the source is to be delivered: it is enabled.
    pub(super) fn raise(&self, count: u64) -> bool {
        if self.changes(0, count.min(COUNT)) {
            return true;
        }
        let add = |word: u64| Some((word & !COUNT) | (word & COUNT).saturating_add(count).min(COUNT));
        self.update(add).is_ok_and(|before| before & !COUNT == 0)
    }

    /// Clears the mark for a delivery: how many signals it stands for; `None` if it is not set, or disabled.
    pub(super) fn take(&self) -> Option<u64> {
        if self.changes(1, 0) {
            return Some(1);
        }
        self.update(|word| (word & COUNT != 0 && word & !COUNT == 0).then_some(0)).ok()
    }

    /// Clears the mark without a delivery: how many signals it stood for.
    pub(super) fn forget(&self) -> u64 {
        self.update(|word| Some(word & !COUNT)).unwrap_or(0) & COUNT
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

    /// Signals waiting.
    pub(super) fn waiting(&self) -> u64 {
        self.word() & COUNT
    }

    /// Both at once: signals waiting in the low 48 bits, nested disables above.
    pub(super) fn word(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}
