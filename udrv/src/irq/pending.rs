//! Which sources are to be delivered: a bitmap of ranks under one summary word, so that "none" is one load and the first
//! is found in two steps however many sources there are. The summary's top bits say that somebody delivers, and that somebody
//! looks on, so that a section learns all of it in one load.

use super::sync::{Ahead, AtomicU64, Mutant, Ordering, fence_after_rmw, mutant};

/// Words that the summary can speak of.
pub(super) const WORDS: usize = 62;

/// In the summary: somebody delivers.
const HELD: u64 = 1 << 63;

/// In the summary: somebody is to be told of sections.
const WATCHED: u64 = 1 << 62;

const MARKS: u64 = (1 << WORDS) - 1;

/// The words that share the summary's cache line, so that a mark moves one line between processors and not two: those of
/// the first sources of normal priority, which are all that most domains have.
const NEAR: std::ops::Range<usize> = 16..23;

#[repr(C, align(64))]
pub(super) struct Pending {
    /// Bit n: word n may have a bit set; and [`HELD`] and [`WATCHED`].
    summary: AtomicU64,
    near: [AtomicU64; NEAR.end - NEAR.start],
    /// The others, in their places among all.
    words: Box<[AtomicU64]>,
}

impl Pending {
    /// For ranks below 64 · `words`; at most [`WORDS`].
    pub(super) fn new(words: usize) -> Self {
        Self {
            summary: AtomicU64::new(0),
            near: std::array::from_fn(|_| AtomicU64::new(0)),
            words: (0..words.min(WORDS)).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn word(&self, index: u32) -> Option<&AtomicU64> {
        let index = index as usize;
        if NEAR.contains(&index) { self.near.get(index - NEAR.start) } else { self.words.get(index) }
    }

    pub(super) fn any(&self) -> bool {
        self.summary() & MARKS != 0
    }

    /// Whether something is pending or somebody delivers. At one moment: who takes a mark holds before and after.
    pub(super) fn any_or_held(&self) -> bool {
        self.summary() & !WATCHED != 0
    }

    /// Not 0 if a section has anything to mind.
    #[inline(always)]
    pub(super) fn summary(&self) -> u64 {
        self.summary.load(Ordering::Acquire)
    }

    /// From now on all sections are slow, in which somebody is told of them.
    pub(super) fn watch(&self) {
        self.summary.fetch_or(WATCHED, Ordering::AcqRel);
    }

    pub(super) fn is_watched(&self) -> bool {
        self.summary() & WATCHED != 0
    }

    /// Becomes the one who delivers. False if somebody does.
    pub(super) fn hold(&self) -> bool {
        self.summary.fetch_or(HELD, Ordering::AcqRel) & HELD == 0
    }

    pub(super) fn is_held(&self) -> bool {
        self.summary() & HELD != 0
    }

    pub(super) fn let_go(&self) {
        self.summary.fetch_and(!HELD, Ordering::AcqRel);
    }

    /// Whether anything but this rank is in.
    pub(super) fn any_besides(&self, rank: u32) -> bool {
        let (index, bit) = (rank / 64, 1 << (rank % 64));
        // As `any` by the summary: a bit that is not there yet is about to be, and nobody is to spin on that.
        let summary = self.summary() & MARKS;
        let beside = || self.word(index).is_some_and(|word| word.load(Ordering::Acquire) & !bit != 0);
        summary & !(1 << index) != 0 || (summary != 0 && beside())
    }

    /// Where [`Pending::set`] will write first.
    pub(super) fn ahead(&self, rank: u32) -> Option<Ahead> {
        self.word(rank / 64).map(Ahead::of)
    }

    /// Where [`Pending::hold`] will write.
    pub(super) fn ahead_of_hold(&self) -> Ahead {
        Ahead::of(&self.summary)
    }

    /// The word before the summary, so that whoever sees the summary finds the bit.
    pub(super) fn set(&self, rank: u32) {
        if let Some(word) = self.word(rank / 64) {
            word.fetch_or(1 << (rank % 64), Ordering::AcqRel);
            self.summary.fetch_or(1 << (rank / 64), Ordering::AcqRel);
        }
    }

    /// Those that are pending now, lowest first; none is taken out.
    pub(super) fn ranks(&self) -> impl Iterator<Item = u32> + '_ {
        let words = (0..self.words.len() as u32).filter_map(|index| Some((index, self.word(index)?)));
        words.flat_map(|(index, word)| {
            let bits = word.load(Ordering::Acquire);
            (0..64).filter(move |bit| bits & (1 << bit) != 0).map(move |bit| index * 64 + bit)
        })
    }

    /// Takes this rank out, if it is in.
    pub(super) fn clear(&self, rank: u32) {
        let (index, bit) = (rank / 64, 1 << (rank % 64));
        let Some(word) = self.word(index) else { return };
        if word.load(Ordering::Acquire) & bit == 0 {
            return;
        }
        // In the order of `take`, and for its reason.
        self.summary.fetch_and(!(1 << index), Ordering::AcqRel);
        if word.fetch_and(!bit, Ordering::AcqRel) & !bit != 0 {
            self.summary.fetch_or(1 << index, Ordering::AcqRel);
        }
        fence_after_rmw();
    }

    /// Takes the lowest rank out.
    pub(super) fn take(&self) -> Option<u32> {
        loop {
            let summary = self.summary() & MARKS;
            if summary == 0 {
                return None;
            }
            let index = summary.trailing_zeros();
            let word = self.word(index)?;
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
                fence_after_rmw();
                return Some(index * 64 + bit.trailing_zeros());
            }
        }
    }
}
