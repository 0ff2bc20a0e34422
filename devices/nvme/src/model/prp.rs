//! A command's data, by its Physical Region Pages (4.3).

use crate::command::{Outcome, PAGE};
use udrv_model::Bus;

/// Bus addresses and lengths of `length` bytes, in order.
pub(super) fn walk([first, second]: [u64; 2], length: u64, bus: &Bus<'_>) -> Result<Vec<(u64, u64)>, Outcome> {
    if !first.is_multiple_of(4) {
        return Err(Outcome::PRP_OFFSET_INVALID);
    }
    let in_first = length.min(PAGE - first % PAGE);
    let mut parts = vec![(first, in_first)];
    let mut left = length - in_first;
    if left == 0 {
        return Ok(parts);
    }
    if left <= PAGE {
        parts.push((page(second)?, left));
        return Ok(parts);
    }
    let mut list = second;
    if !list.is_multiple_of(8) {
        return Err(Outcome::PRP_OFFSET_INVALID);
    }
    while left > 0 {
        let entry = pointer(list, bus)?;
        // The last entry of a page is where the list goes on, if it does.
        if (list + 8).is_multiple_of(PAGE) && left > PAGE {
            list = page(entry)?;
            continue;
        }
        let part = left.min(PAGE);
        parts.push((page(entry)?, part));
        left -= part;
        list = list.wrapping_add(8);
    }
    Ok(parts)
}

const fn page(entry: u64) -> Result<u64, Outcome> {
    if entry.is_multiple_of(PAGE) { Ok(entry) } else { Err(Outcome::PRP_OFFSET_INVALID) }
}

fn pointer(at: u64, bus: &Bus<'_>) -> Result<u64, Outcome> {
    let mut entry = [0; 8];
    bus.read(at, &mut entry).map_err(|_| Outcome::DATA_TRANSFER_ERROR)?;
    Ok(u64::from_le_bytes(entry))
}

/// Sends data to the driver.
pub(super) fn send(prps: [u64; 2], data: &[u8], bus: &Bus<'_>) -> Result<(), Outcome> {
    let mut rest = data;
    for (at, length) in walk(prps, data.len() as u64, bus)? {
        let (part, after) = rest.split_at_checked(length as usize).ok_or(Outcome::INTERNAL_ERROR)?;
        bus.write(at, part).map_err(|_| Outcome::DATA_TRANSFER_ERROR)?;
        rest = after;
    }
    Ok(())
}

/// Fetches data from the driver.
pub(super) fn fetch(prps: [u64; 2], length: u64, bus: &Bus<'_>) -> Result<Vec<u8>, Outcome> {
    let mut data = Vec::with_capacity(length as usize);
    for (at, length) in walk(prps, length, bus)? {
        let begin = data.len();
        data.resize(begin + length as usize, 0);
        let part = data.get_mut(begin..).unwrap_or_default();
        bus.read(at, part).map_err(|_| Outcome::DATA_TRANSFER_ERROR)?;
    }
    Ok(data)
}
