//! Sections that open and close at random on two threads, interrupts from a third, in each delivery: nothing is lost, and no
//! handler runs inside a section.
//!
//! `UDRV_STRESS=N` raises N interrupts a delivery instead of the few that a test run has time for: `cargo xtask stress`.

mod irq_device;

use irq_device::{DELIVERIES, Lines, until};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use udrv::clock::{self, Deadline};
use udrv::irq::{Delivery, IrqDomain, IrqReturn, Registration};
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

/// Opens and closes sections of random length and depth until `done`, with `inside` counting those open. How many.
fn sections(domain: &IrqDomain, seed: u64, inside: &AtomicU64, done: impl Fn() -> bool) -> u64 {
    let mut random = Random(seed);
    (0..)
        .take_while(|_| !done())
        .map(|_: u64| {
            let shape = random.next();
            domain.off(|_| {
                inside.fetch_add(1, Ordering::Relaxed);
                if shape & 1 == 0 {
                    domain.off(|_| {});
                }
                (0..shape >> 58).for_each(|_| std::hint::spin_loop());
                inside.fetch_sub(1, Ordering::Relaxed);
            });
            // As long without: otherwise handlers would be kept out of all but a few moments.
            (0..(shape >> 52) & 0x3f).for_each(|_| std::hint::spin_loop());
        })
        .count() as u64
}

/// Raises by two ways: the runtime's own call, and, each sixteenth time, through the source's descriptor. How many by each; a
/// descriptor that is full takes none, as a server finds it.
fn raise(device: &Lines, irqs: &[Registration; 2], count: u64) -> [u64; 2] {
    let raiser = irqs[0].raiser();
    let patience = Deadline::after(Duration::from_secs(60));
    // More, where the first ones were so quick that they were all delivered as one.
    let enough = |n| n >= count && (irqs[0].stats().delivered > 1 || patience.remaining().is_none());
    (0..).take_while(|&n| !enough(n)).fold([0, 0], |[called, fired], n| {
        raiser.raise();
        [called + 1, fired + u64::from(n % 16 == 0 && device.try_fire(1))]
    })
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
    let (done, start) = (AtomicBool::new(false), clock::now());
    let (raised, opened) = std::thread::scope(|scope| {
        let raising = scope.spawn(|| raise(&device, &irqs, interrupts()));
        let other = scope.spawn(|| sections(&domain, 0x9e37_79b9_7f4a_7c15, &inside, || done.load(Ordering::Relaxed)));
        let opened = sections(&domain, 0x2545_f491_4f6c_dd1d, &inside, || raising.is_finished());
        let raised = raising.join().expect("raised");
        let all = || (0..2).all(|n| !irqs[n].is_pending() && irqs[n].stats().raised == raised[n]);
        let ended = domain.wait("the last interrupt", Deadline::after(Duration::from_secs(60)), all);
        done.store(true, Ordering::Relaxed);
        ended.expect("nothing is lost");
        (raised, opened + other.join().expect("sections"))
    });
    let took = start.elapsed();
    for irq in &irqs {
        until("the accounts to close", || {
            domain.deliver();
            let stats = irq.stats();
            stats.raised == stats.delivered + stats.merged
        });
    }
    assert_eq!(violations.load(Ordering::Relaxed), 0, "{delivery:?}: handlers ran inside sections");
    assert!(irqs[0].stats().delivered > 1, "{delivery:?}: {:?}", irqs[0].stats());
    let total = raised[0] + raised[1];
    println!(
        "{delivery:?}: {total} interrupts ({} through descriptors) in {took:.1?}, {:.1} million a second; {opened} sections; \
         none lost, none in a section; delivered {} + merged {}",
        raised[1],
        total as f64 / took.as_secs_f64() / 1e6,
        irqs[0].stats().delivered + irqs[1].stats().delivered,
        irqs[0].stats().merged + irqs[1].stats().merged,
    );
}

#[test]
fn stress_with_membarrier_loses_nothing_and_keeps_handlers_out() {
    DELIVERIES.into_iter().for_each(|delivery| stress(delivery, IrqDomain::new));
}

#[test]
fn stress_with_fences_loses_nothing_and_keeps_handlers_out() {
    DELIVERIES.into_iter().for_each(|delivery| stress(delivery, IrqDomain::without_membarrier));
}
