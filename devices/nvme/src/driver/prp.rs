//! Physical Region Pages: where a command's data is (4.3).

use crate::command::PAGE;
use udrv::dma::Coherent;
use udrv_backend::{Error, Result};

/// Entries of a list that is one page.
const ENTRIES: u64 = PAGE / 8;

/// Most bytes that the first entry and a list of one page reach, wherever in a page the data begins.
pub(super) const REACH: u64 = ENTRIES * PAGE;

/// The two entries for `length` bytes, contiguous on the bus from `start`; what does not fit into them goes into the list,
/// which is page `slot` of `lists`.
#[inline]
pub(super) fn describe(start: u64, length: u64, lists: &Coherent, slot: u16) -> Result<[u64; 2]> {
    let refused = |why| Err(Error::DmaRange { iova: start, size: length, why });
    if !start.is_multiple_of(4) {
        return refused("data begins at a multiple of 4 bytes");
    }
    if length == 0 || length > REACH {
        return refused("one command moves 1 byte to 2 MiB");
    }
    // From the second page on.
    let second = start - start % PAGE + PAGE;
    let end = start + length;
    let pages = end.saturating_sub(second).div_ceil(PAGE);
    match pages {
        0 => Ok([start, 0]),
        1 => Ok([start, second]),
        _ => {
            let list = u64::from(slot) * PAGE;
            for index in 0..pages {
                lists.write((list + 8 * index) as usize, second + PAGE * index)?;
            }
            Ok([start, lists.iova() + list])
        }
    }
}
