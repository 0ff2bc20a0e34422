//! A table by rank: a word of the pending bitmap is a page of it, so that it costs what is in it and a look is two loads.

use super::pending::WORDS;

const PAGE: usize = 64;

type Page<T> = Box<[Option<T>; PAGE]>;

pub(super) struct Ranks<T> {
    pages: [Option<Page<T>>; WORDS],
    count: usize,
}

impl<T> Default for Ranks<T> {
    fn default() -> Self {
        Self { pages: [const { None }; WORDS], count: 0 }
    }
}

impl<T> Ranks<T> {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn get(&self, rank: u32) -> Option<&T> {
        self.pages.get(rank as usize / PAGE)?.as_ref()?.get(rank as usize % PAGE)?.as_ref()
    }

    /// Puts it there, and takes out what was. A rank that is none is refused with what was to be put there.
    pub(super) fn insert(&mut self, rank: u32, value: T) -> Option<T> {
        let Some(page) = self.pages.get_mut(rank as usize / PAGE) else { return Some(value) };
        let page = page.get_or_insert_with(|| Box::new([const { None }; PAGE]));
        let Some(place) = page.get_mut(rank as usize % PAGE) else { return Some(value) };
        let before = place.replace(value);
        self.count += usize::from(before.is_none());
        before
    }

    pub(super) fn remove(&mut self, rank: u32) -> Option<T> {
        let slot = self.pages.get_mut(rank as usize / PAGE)?;
        let page = slot.as_mut()?;
        let removed = page.get_mut(rank as usize % PAGE)?.take()?;
        if page.iter().all(Option::is_none) {
            *slot = None;
        }
        self.count -= 1;
        Some(removed)
    }

    /// In order of rank.
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.pages.iter().flatten().flat_map(|page| page.iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_scattered_ranks_come_in_order_and_go_with_their_pages() {
        let mut ranks = Ranks::default();
        for rank in [3967, 0, 64, 63, 1024] {
            assert_eq!(ranks.insert(rank, rank), None);
        }
        assert_eq!(ranks.values().copied().collect::<Vec<_>>(), [0, 63, 64, 1024, 3967]);
        assert_eq!((ranks.insert(64, 7), ranks.get(64).copied(), ranks.len()), (Some(64), Some(7), 5));
        assert_eq!((ranks.remove(64), ranks.remove(64), ranks.len()), (Some(7), None, 4));
        assert!(ranks.pages[1].is_none() && ranks.pages[0].is_some());
    }

    #[test]
    fn rank_beyond_the_table_is_refused() {
        let mut ranks = Ranks::default();
        assert_eq!(ranks.insert(64 * WORDS as u32, 'x'), Some('x'));
        assert!(ranks.get(u32::MAX).is_none());
        assert_eq!((ranks.remove(u32::MAX), ranks.len()), (None, 0));
    }
}
