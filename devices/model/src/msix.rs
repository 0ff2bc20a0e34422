//! The MSI-X table and pending bits (PCI Local Bus Specification 3.0, 6.8.2).
//!
//! They hold what is written and do nothing: vectors are armed by their triggers, and a client that emulates MSI-X for a
//! guest (QEMU) keeps the table itself.

use udrv_backend::Width;

/// Bytes of a table entry.
const ENTRY: usize = 16;
/// An entry after a reset: masked by bit 0 of its last word.
const MASKED: [u8; ENTRY] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];

/// MSI-X vectors, and where their table and pending bits are in a BAR of registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msix {
    /// How many, 1 to 2048.
    pub vectors: u16,
    /// The BAR.
    pub bar: u8,
    /// Byte offset of the table in it, a multiple of 8: 16 bytes a vector.
    pub table: u32,
    /// Byte offset of the pending bits in it, a multiple of 8: 8 bytes for 64 vectors.
    pub pending: u32,
}

pub(crate) struct Structures {
    place: Option<Msix>,
    table: Vec<u8>,
}

/// What an access is to.
enum Part {
    /// The table, from this byte on.
    Table(usize),
    /// The pending bits, none of which is ever set: a masked vector is the business of whoever arms the triggers.
    Pending,
}

impl Structures {
    pub(crate) fn new(place: Option<Msix>) -> Self {
        Self { place, table: MASKED.repeat(place.map_or(0, |msix| usize::from(msix.vectors))) }
    }

    fn part(&self, bar: u32, offset: u64) -> Option<Part> {
        let msix = self.place.filter(|msix| u32::from(msix.bar) == bar)?;
        let within = |start: u32, length: usize| {
            let at = usize::try_from(offset.checked_sub(u64::from(start))?).ok()?;
            (at < length).then_some(at)
        };
        let pending_bytes = 8 * usize::from(msix.vectors.div_ceil(64));
        within(msix.table, self.table.len())
            .map(Part::Table)
            .or_else(|| within(msix.pending, pending_bytes).map(|_| Part::Pending))
    }

    /// A read that is aligned; `None` if it is not of the structures.
    pub(crate) fn read(&self, bar: u32, offset: u64, width: Width) -> Option<u64> {
        let mut raw = [0; 8];
        let length = width.bytes() as usize;
        if let Part::Table(at) = self.part(bar, offset)? {
            raw.get_mut(..length)?.copy_from_slice(self.table.get(at..at + length)?);
        }
        Some(u64::from_le_bytes(raw))
    }

    /// A write that is aligned; `None` if it is not of the structures.
    pub(crate) fn write(&mut self, bar: u32, offset: u64, width: Width, value: u64) -> Option<()> {
        let length = width.bytes() as usize;
        if let Part::Table(at) = self.part(bar, offset)? {
            self.table.get_mut(at..at + length)?.copy_from_slice(value.to_le_bytes().get(..length)?);
        }
        Some(())
    }
}
