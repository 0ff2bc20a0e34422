//! Which sources are to be delivered: a bitmap of ranks under one summary word, so that "none" is one load and the first
//! is found in two steps however many sources there are.

use super::sync::{AtomicU64, Mutant, Ordering, fence, mutant};

pub(super) struct Pending {
    /// Bit n: words[n] may have a bit set.
    summary: AtomicU64,
    words: Box<[AtomicU64]>,
}

impl Pending {
    /// For ranks below 64 · `words`; at most 64 words.
    pub(super) fn new(words: usize) -> Self {
        Self { summary: AtomicU64::new(0), words: (0..words.min(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    #[inline(always)]
    pub(super) fn any(&self) -> bool {
        self.summary.load(Ordering::Acquire) != 0
    }

    /// Whether anything but this rank is in.
    pub(super) fn any_besides(&self, rank: u32) -> bool {
        let (index, bit) = (rank / 64, 1 << (rank % 64));
        // As `any` by the summary: a bit that is not there yet is about to be, and nobody is to spin on that.
        let summary = self.summary.load(Ordering::Acquire);
        let beside = || self.words.get(index as usize).is_some_and(|word| word.load(Ordering::Acquire) & !bit != 0);
        summary & !(1 << index) != 0 || (summary != 0 && beside())
    }

    /// The word before the summary, so that whoever sees the summary finds the bit.
    pub(super) fn set(&self, rank: u32) {
        if let Some(word) = self.words.get(rank as usize / 64) {
            word.fetch_or(1 << (rank % 64), Ordering::AcqRel);
            self.summary.fetch_or(1 << (rank / 64), Ordering::AcqRel);
        }
    }

    /// Those that are pending now, lowest first; none is taken out.
    pub(super) fn ranks(&self) -> impl Iterator<Item = u32> + '_ {
        (0..).zip(&*self.words).flat_map(|(index, word)| {
            let bits = word.load(Ordering::Acquire);
            (0..64).filter(move |bit| bits & (1 << bit) != 0).map(move |bit| index * 64 + bit)
        })
    }

    /// Takes this rank out, if it is in.
    pub(super) fn clear(&self, rank: u32) {
        let (index, bit) = (rank / 64, 1 << (rank % 64));
        let Some(word) = self.words.get(index as usize) else { return };
        if word.load(Ordering::Acquire) & bit == 0 {
            return;
        }
        // In the order of `take`, and for its reason.
        self.summary.fetch_and(!(1 << index), Ordering::AcqRel);
        if word.fetch_and(!bit, Ordering::AcqRel) & !bit != 0 {
            self.summary.fetch_or(1 << index, Ordering::AcqRel);
        }
        fence(Ordering::SeqCst);
    }

    /// Takes the lowest rank out.
    pub(super) fn take(&self) -> Option<u32> {
        loop {
            let summary = self.summary.load(Ordering::Acquire);
            if summary == 0 {
                return None;
            }
            let index = summary.trailing_zeros();
            let word = self.words.get(index as usize)?;
            // The summary is cleared before its word is looked at: a bit set after that look sets the summary again.
            if !mutant(Mutant::ClearAfterCheck) {
                self.summary.fetch_and(!(1 << index), Ordering::AcqRel);
            }
            let bits = word.load(Ordering::Acquire);
            let bit = bits & bits.wrapping_neg();
            let left = word.fetch_and(!bit, Ordering::AcqRel) & !bit;
            if mutant(Mutant::ClearAfterCheck) {
                self.summary.fetch_and(!(1 << index), Ordering::AcqRel);
            }
            if left != 0 {
                self.summary.fetch_or(1 << index, Ordering::AcqRel);
            }
            if bit != 0 {
                // Who signals after this sees the mark taken; who signalled before is part of what is delivered.
                fence(Ordering::SeqCst);
                return Some(index * 64 + bit.trailing_zeros());
            }
        }
    }
}
