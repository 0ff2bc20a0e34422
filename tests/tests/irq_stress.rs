//! Sections that open and close at random on two threads, interrupts from two others, in each delivery: nothing is lost,
//! and no handler runs inside a section.
//!
//! `UDRV_STRESS=N` raises N interrupts a delivery instead of the few that a test run has time for.

mod irq_device;

use irq_device::{DELIVERIES, Lines, until};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain, IrqReturn};
use udrv_backend::IrqIndex;

/// Marsaglia's xorshift: the same sequence in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn interrupts() -> u64 {
    std::env::var("UDRV_STRESS").ok().map_or(60_000, |count| count.parse().expect("UDRV_STRESS is a number"))
}

/// Sections of random length and depth, with `inside` counting those open.
fn sections(domain: &IrqDomain, random: &mut Random, inside: &AtomicU64) {
    let shape = random.next();
    domain.off(|_| {
        inside.fetch_add(1, Ordering::Relaxed);
        if shape & 1 == 0 {
            domain.off(|_| {});
        }
        (0..shape >> 58).for_each(|_| std::hint::spin_loop());
        inside.fetch_sub(1, Ordering::Relaxed);
    });
}

fn stress(delivery: Delivery, make: fn(Delivery) -> udrv::Result<IrqDomain>) {
    let (device, domain) = (Lines::new(), make(delivery).expect("a domain"));
    let [inside, violations] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
    let irqs = [0, 1].map(|vector| {
        let (inside, violations) = (Arc::clone(&inside), Arc::clone(&violations));
        let handler = move |_| {
            violations.fetch_add(inside.load(Ordering::Relaxed), Ordering::Relaxed);
            IrqReturn::Handled
        };
        domain.register(&device.backend(), IrqIndex::MSI, vector, handler).expect("registered")
    });
    let count = interrupts();
    let done = AtomicBool::new(false);
    // One source is raised by the runtime's own call, which drops nothing; the other through its descriptor. A socket that
    // is full drops, as a server may, so there only the end is known: the last one is delivered.
    let raiser = irqs[0].raiser();
    std::thread::scope(|scope| {
        let raising = scope.spawn(|| {
            // More, where the first ones were so quick that they were all delivered as one.
            let patience = Deadline::after(Duration::from_secs(60));
            let enough = |n| n >= count && (irqs[0].stats().delivered > 1 || patience.remaining().is_none());
            (0..).take_while(|&n| !enough(n)).fold(0, |_, n| {
                raiser.raise();
                if n % 16 == 0 {
                    device.fire(1);
                }
                n + 1
            })
        });
        scope.spawn(|| {
            let mut random = Random(0x9e37_79b9_7f4a_7c15);
            while !done.load(Ordering::Relaxed) {
                sections(&domain, &mut random, &inside);
            }
        });
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        while !raising.is_finished() {
            sections(&domain, &mut random, &inside);
        }
        let count = raising.join().expect("raised");
        let all = || irqs.iter().all(|irq| !irq.is_pending()) && irqs[0].stats().raised == count;
        let ended = domain.wait("the last interrupt", Deadline::after(Duration::from_secs(60)), all);
        done.store(true, Ordering::Relaxed);
        ended.expect("nothing is lost");
    });
    for irq in &irqs {
        until("the accounts to close", || {
            domain.deliver();
            let stats = irq.stats();
            stats.raised == stats.delivered + stats.merged
        });
    }
    assert_eq!(violations.load(Ordering::Relaxed), 0, "{delivery:?}: handlers ran inside sections");
    assert!(irqs[0].stats().delivered > 1, "{delivery:?}: {:?}", irqs[0].stats());
}

#[test]
fn stress_with_membarrier_loses_nothing_and_keeps_handlers_out() {
    DELIVERIES.into_iter().for_each(|delivery| stress(delivery, IrqDomain::new));
}

#[test]
fn stress_with_fences_loses_nothing_and_keeps_handlers_out() {
    DELIVERIES.into_iter().for_each(|delivery| stress(delivery, IrqDomain::without_membarrier));
}
