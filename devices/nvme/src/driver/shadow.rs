//! Shadow doorbells (Doorbell Buffer Config, 5.7; 7.13): doorbells in memory, which the controller looks at while it is at work, and
//! beside each the value beyond which it wants the register to be written too. For an emulated controller, where that is slow.

use crate::command::PAGE;
use udrv::dma::{Coherent, Pool};
use udrv::mmio::order::dma_mb;
use udrv_backend::Result;

pub(super) struct Shadow {
    doorbells: Coherent,
    events: Coherent,
}

impl Shadow {
    pub(super) fn new(pool: &Pool) -> Result<Self> {
        Ok(Self { doorbells: pool.alloc_coherent(PAGE as usize)?, events: pool.alloc_coherent(PAGE as usize)? })
    }

    /// Bus addresses of the doorbells and of the event indices.
    pub(super) const fn addresses(&self) -> [u64; 2] {
        [self.doorbells.iova(), self.events.iova()]
    }

    /// Whether the doorbell at byte `at` is in it: those of the first queues are, as far as a page goes.
    pub(super) const fn has(&self, at: u64) -> bool {
        at + 4 <= PAGE
    }

    /// As new, for a queue that is.
    pub(super) fn clear(&self, at: u64) -> Result<()> {
        self.doorbells.write(at as usize, 0u32)?;
        self.events.write(at as usize, 0u32)
    }

    /// Moves a doorbell on; whether the register has to be written as well.
    #[inline]
    pub(super) fn update(&self, at: u64, old: u16, new: u16) -> Result<bool> {
        self.doorbells.write(at as usize, u32::from(new))?;
        // The doorbell, then the look: the controller writes the event index, then looks at the doorbell once more.
        dma_mb();
        let event: u32 = self.events.read(at as usize)?;
        Ok(passes(event as u16, old, new))
    }
}

/// Whether going from `old` to `new` passes `event`, in the arithmetic of rings.
const fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::passes;

    #[test]
    fn doorbell_is_wanted_when_the_event_index_is_passed() {
        // The controller has taken all up to 4, and then one, or three, come.
        assert!(passes(4, 4, 5) && passes(4, 4, 7));
        // It is at 4, was told of 5 and has not come to it, and another comes.
        assert!(!passes(4, 5, 6));
        // It is ahead, by what it saw in memory.
        assert!(!passes(6, 5, 6));
        // From the ring's end to its beginning it is told in any case.
        assert!(passes(15, 15, 0) && passes(15, 15, 3) && passes(0, 15, 1));
    }
}
