//! Turning interrupts off and on again, with nothing pending.

use crate::{Goal, Measure, Round, one};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::time::{ClockId, clock_gettime};
use std::hint::black_box;
use std::sync::Mutex;
use std::time::Duration;
use udrv::irq::{Delivery, IrqDomain};

const PAIRS: u32 = 2_000_000;

const NO_GOAL: &[(&str, Goal)] = &[("", Goal::None)];

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

fn ours(delivery: Delivery, fenced: bool) -> Round {
    let make = if fenced { IrqDomain::without_membarrier } else { IrqDomain::new };
    let domain = make(delivery).expect("a domain");
    one(move || {
        time(PAIRS, || {
            domain.off(|_| black_box(()));
        })
    })
}

fn mutex() -> Round {
    let mutex = Mutex::new(0u32);
    one(move || {
        time(PAIRS, || {
            black_box(&*mutex.lock().expect("not poisoned"));
        })
    })
}

fn critical_section() -> Round {
    one(|| {
        time(PAIRS, || {
            critical_section::with(|_| black_box(()));
        })
    })
}

fn sigmask() -> Round {
    let mut sigio = SigSet::empty();
    sigio.add(Signal::SIGIO);
    one(move || {
        time(PAIRS / 50, || {
            let mut before = SigSet::empty();
            pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&sigio), Some(&mut before)).expect("blocked");
            pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None).expect("restored");
        })
    })
}

fn empty_loop() -> Round {
    one(|| {
        let value = 0;
        time(PAIRS, || {
            black_box(&value);
        })
    })
}

pub fn measures() -> Vec<Measure> {
    let mut all = Vec::new();
    const SAME_THREAD: &[(&str, Goal)] = &[("", Goal::Ratio(0.15))];
    const OTHER_THREAD: &[(&str, Goal)] = &[("", Goal::Ratio(0.3))];
    for (name, delivery, parts) in [
        ("section pair, signal", Delivery::Signal, SAME_THREAD),
        ("section pair, poll", Delivery::Poll, SAME_THREAD),
        ("section pair, thread", Delivery::Thread, OTHER_THREAD),
    ] {
        let peers = [
            ("std Mutex lock and unlock", mutex(), parts),
            ("critical-section (std)", critical_section(), NO_GOAL),
            ("pthread_sigmask pair", sigmask(), NO_GOAL),
            ("an empty loop", empty_loop(), NO_GOAL),
        ];
        for (peer, theirs, parts) in peers {
            all.push(Measure { name, parts, unit: "ns", peer, ours: ours(delivery, false), theirs });
        }
    }
    all.push(Measure {
        name: "section pair, thread, no membarrier",
        parts: NO_GOAL,
        unit: "ns",
        peer: "std Mutex lock and unlock",
        ours: ours(Delivery::Thread, true),
        theirs: mutex(),
    });
    all
}
