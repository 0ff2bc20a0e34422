//! The checks of locks and sections allocate nothing once they know a place: handlers may be checked as well.
#![cfg(debug_assertions)]
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use udrv::irq::{Delivery, IrqDomain, IrqLock, Lock};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn locks_taken_again_where_they_were_taken_before_allocate_nothing() {
    let domain = IrqDomain::new(Delivery::Poll).expect("a domain");
    let (outer, inner) = (IrqLock::new(&domain, 0), Lock::new(0));
    let take = || {
        let mut outer = outer.lock();
        *outer += 1;
        *inner.lock() += 1;
    };
    take();
    let before = ALLOCATIONS.get();
    (0..100).for_each(|_| take());
    assert_eq!(ALLOCATIONS.get() - before, 0);
}
