//! Turning interrupts off and on again, with nothing pending.

use crate::{Goal, Measure};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::time::{ClockId, clock_gettime};
use std::hint::black_box;
use std::sync::Mutex;
use std::time::Duration;
use udrv::irq::{Delivery, IrqDomain};

const PAIRS: u32 = 2_000_000;

/// Nanoseconds each, of this thread's processor time: what other processes take does not count.
pub fn time(count: u32, mut pair: impl FnMut()) -> f64 {
    let start = processor_time();
    for _ in 0..count {
        pair();
    }
    (processor_time() - start).as_secs_f64() * 1e9 / f64::from(count)
}

fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock").into()
}

fn ours(delivery: Delivery, fenced: bool) -> Box<dyn FnMut() -> f64> {
    let make = if fenced { IrqDomain::without_membarrier } else { IrqDomain::new };
    let domain = make(delivery).expect("a domain");
    Box::new(move || {
        time(PAIRS, || {
            domain.off(|_| black_box(()));
        })
    })
}

fn mutex() -> Box<dyn FnMut() -> f64> {
    let mutex = Mutex::new(0u32);
    Box::new(move || {
        time(PAIRS, || {
            black_box(&*mutex.lock().expect("not poisoned"));
        })
    })
}

fn critical_section() -> Box<dyn FnMut() -> f64> {
    Box::new(|| {
        time(PAIRS, || {
            critical_section::with(|_| black_box(()));
        })
    })
}

fn sigmask() -> Box<dyn FnMut() -> f64> {
    let mut sigio = SigSet::empty();
    sigio.add(Signal::SIGIO);
    Box::new(move || {
        time(PAIRS / 50, || {
            let mut before = SigSet::empty();
            pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&sigio), Some(&mut before)).expect("blocked");
            pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None).expect("restored");
        })
    })
}

fn empty_loop() -> Box<dyn FnMut() -> f64> {
    Box::new(|| {
        let value = 0;
        time(PAIRS, || {
            black_box(&value);
        })
    })
}

pub fn measures() -> Vec<Measure> {
    let mut all = Vec::new();
    for (name, delivery, goal) in [
        ("section pair, signal", Delivery::Signal, 0.15),
        ("section pair, poll", Delivery::Poll, 0.15),
        ("section pair, thread", Delivery::Thread, 0.3),
    ] {
        let peers = [
            ("std Mutex lock and unlock", mutex(), Goal::Ratio(goal)),
            ("critical-section (std)", critical_section(), Goal::None),
            ("pthread_sigmask pair", sigmask(), Goal::None),
            ("an empty loop", empty_loop(), Goal::None),
        ];
        for (peer, theirs, goal) in peers {
            all.push(Measure { name, unit: "ns", peer, goal, ours: ours(delivery, false), theirs });
        }
    }
    all.push(Measure {
        name: "section pair, thread, no membarrier",
        unit: "ns",
        peer: "std Mutex lock and unlock",
        goal: Goal::None,
        ours: ours(Delivery::Thread, true),
        theirs: mutex(),
    });
    all
}
