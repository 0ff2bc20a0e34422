//! What many sources cost: time to find one, and memory.

use crate::device::Triggers;
use crate::section::time;
use crate::{Goal, Measure, Round, one};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use udrv::irq::{Delivery, IrqDomain, IrqReturn, Registration};
use udrv_backend::IrqIndex;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting bytes in use.
struct Counting;

// SAFETY: every call is handed on unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's demands.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above; it was allocated by `System` with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Two descriptors a source, and the usual limit is 1,024.
pub fn allow_many_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(16_384), hard).expect("raised");
}

fn with_sources(count: u32) -> (IrqDomain, Vec<Registration>) {
    let (device, domain) = (Triggers::new(), IrqDomain::new(Delivery::Poll).expect("a domain"));
    let irqs = (0..count).map(|vector| {
        domain.register(&device.backend(), IrqIndex::MSIX, vector, |_| IrqReturn::Handled).expect("registered")
    });
    let irqs = irqs.collect();
    (domain, irqs)
}

/// Nanoseconds from making the last source pending to its delivery, at a section's end.
fn find(count: u32) -> Round {
    let (domain, irqs) = with_sources(count);
    one(move || {
        const TIMES: u32 = 100_000;
        let last = irqs.last().expect("at least one").raiser();
        time(TIMES, || domain.off(|_| last.raise()))
    })
}

fn bytes_each() -> f64 {
    const COUNT: usize = 1000;
    let (device, domain) = (Triggers::new(), IrqDomain::new(Delivery::Poll).expect("a domain"));
    let backend = device.backend();
    let mut irqs = Vec::with_capacity(COUNT);
    let before = ALLOCATED.load(Ordering::Relaxed);
    for vector in 0..COUNT as u32 {
        irqs.push(domain.register(&backend, IrqIndex::MSIX, vector, |_| IrqReturn::Handled).expect("registered"));
    }
    let grown = ALLOCATED.load(Ordering::Relaxed) - before;
    grown as f64 / COUNT as f64 + size_of::<Registration>() as f64
}

pub fn measures() -> Vec<Measure> {
    vec![
        Measure {
            name: "one of 1,000 sources pending, delivered",
            parts: &[("", Goal::Ratio(1.5))],
            unit: "ns",
            peer: "one of 1 source",
            ours: find(1000),
            theirs: find(1),
        },
        Measure {
            name: "memory a source, its handle included",
            // Below 256.
            parts: &[("", Goal::Figure(255.9))],
            unit: "bytes",
            peer: "the bound",
            ours: one(bytes_each),
            theirs: one(|| 256.0),
        },
    ]
}
