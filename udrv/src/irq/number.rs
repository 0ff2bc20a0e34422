//! Small numbers for threads, so that a gate finds a thread's slot by index. The first 255 have a place as well: a byte, which
//! indexes a table of 256 without a check.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

const NONE: u32 = u32::MAX;

/// Of a thread that has no place, or no number yet.
const NOWHERE: u8 = u8::MAX;

struct Numbers {
    free: BTreeSet<u32>,
    next: u32,
}

static NUMBERS: Mutex<Numbers> = Mutex::new(Numbers { free: BTreeSet::new(), next: 0 });

/// Gives the number back when its thread ends. A thread ends with no section open (guards are not `Send`), so the next
/// owner finds its slots empty.
struct Release(u32);

impl Drop for Release {
    fn drop(&mut self) {
        NUMBER.set(NONE);
        PLACE.set(NOWHERE);
        NUMBERS.lock().unwrap_or_else(PoisonError::into_inner).free.insert(self.0);
    }
}

thread_local! {
    // Constant and without a destructor: reading it is one load.
    static NUMBER: Cell<u32> = const { Cell::new(NONE) };
    static PLACE: Cell<u8> = const { Cell::new(NOWHERE) };
    static RELEASE: Cell<Option<Release>> = const { Cell::new(None) };
}

/// This thread's place, or nobody's: one load.
#[inline(always)]
pub(super) fn place() -> u8 {
    PLACE.get()
}

/// This thread's number; no other thread that lives has it.
pub(super) fn me() -> u32 {
    let number = NUMBER.get();
    if number == NONE { assign() } else { number }
}

#[cold]
fn assign() -> u32 {
    let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
    let number = numbers.free.pop_first().unwrap_or_else(|| {
        numbers.next += 1;
        numbers.next - 1
    });
    drop(numbers);
    NUMBER.set(number);
    PLACE.set(u8::try_from(number).unwrap_or(NOWHERE));
    // Where the thread is so far gone that this is destroyed, the number is simply not used again.
    let _kept = RELEASE.try_with(|release| release.set(Some(Release(number))));
    number
}
