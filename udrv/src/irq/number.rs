//! Small numbers for threads, so that a gate finds a thread's slot by index.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

const NONE: u32 = u32::MAX;

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
        NUMBERS.lock().unwrap_or_else(PoisonError::into_inner).free.insert(self.0);
    }
}

thread_local! {
    // Constant and without a destructor: reading it is one load.
    static NUMBER: Cell<u32> = const { Cell::new(NONE) };
    static RELEASE: Cell<Option<Release>> = const { Cell::new(None) };
}

/// This thread's number, or one that is no thread's if it has none yet: one load.
#[inline(always)]
pub(super) fn me_if_known() -> u32 {
    NUMBER.get()
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
    // Where the thread is so far gone that this is destroyed, the number is simply not used again.
    let _kept = RELEASE.try_with(|release| release.set(Some(Release(number))));
    number
}
