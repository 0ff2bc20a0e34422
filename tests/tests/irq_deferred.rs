//! Rules 9 and 10 of docs/irq-semantics.md: bottom halves and timers.

mod irq_device;

use irq_device::{Counted, DELIVERIES, Lines, soon, until};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;
use udrv::clock::{self, Deadline};
use udrv::irq::{BottomHalf, Delivery, IrqDomain, IrqReturn};
use udrv_backend::IrqIndex;

#[test]
fn bottom_half_runs_after_all_pending_handlers() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let order = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&order);
        let half = Arc::new(domain.bottom_half(move || seen.lock().expect("order").push("half")));
        let irqs: Vec<_> = (0..2)
            .map(|vector| {
                let (seen, half) = (Arc::clone(&order), Arc::clone(&half));
                let handler = move |_| {
                    half.schedule();
                    seen.lock().expect("order").push("handler");
                    IrqReturn::Handled
                };
                domain.register(&device.backend(), IrqIndex::MSI, vector, handler).expect("registered")
            })
            .collect();
        domain.off(|_| irqs.iter().for_each(udrv::irq::Registration::pend));
        until("the bottom half", || order.lock().expect("order").len() == 3);
        assert_eq!(*order.lock().expect("order"), ["handler", "handler", "half"], "{delivery:?}");
    }
}

#[test]
fn bottom_half_runs_with_interrupts_on_and_never_inside_itself() {
    for delivery in DELIVERIES {
        let it = Counted::new(delivery);
        let own = Arc::new(OnceLock::<BottomHalf>::new());
        let (depth, deepest, runs) = (AtomicU64::new(0), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let half = {
            let (domain, raiser, handled, own) =
                (it.domain.clone(), it.irq.raiser(), Arc::clone(&it.runs), Arc::clone(&own));
            let (deepest, runs) = (Arc::clone(&deepest), Arc::clone(&runs));
            it.domain.bottom_half(move || {
                deepest.fetch_max(depth.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let before = handled.load(Ordering::SeqCst);
                // It may be the domain's own thread, which cannot wait for a device.
                raiser.raise();
                domain.deliver();
                until("a handler, inside", || handled.load(Ordering::SeqCst) > before);
                if runs.fetch_add(1, Ordering::SeqCst) == 0 {
                    own.get().expect("made").schedule();
                }
                depth.fetch_sub(1, Ordering::SeqCst);
            })
        };
        assert!(own.set(half).is_ok());
        own.get().expect("made").schedule();
        until("two runs", || runs.load(Ordering::SeqCst) == 2);
        assert_eq!(deepest.load(Ordering::SeqCst), 1, "{delivery:?}");
    }
}

#[test]
fn bottom_half_that_always_schedules_itself_lets_a_section_end() {
    for delivery in DELIVERIES {
        let domain = IrqDomain::new(delivery).expect("a domain");
        let own = Arc::new(OnceLock::<BottomHalf>::new());
        let (again, runs) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let half = {
            let (own, again, runs) = (Arc::clone(&own), Arc::clone(&again), Arc::clone(&runs));
            domain.bottom_half(move || {
                runs.fetch_add(1, Ordering::SeqCst);
                if again.load(Ordering::SeqCst) {
                    own.get().expect("made").schedule();
                }
            })
        };
        assert!(own.set(half).is_ok());
        domain.off(|_| own.get().expect("made").schedule());
        let at_end = runs.load(Ordering::SeqCst);
        assert!(at_end >= 1, "{delivery:?}: it ran at the section's end");
        domain.wait("the rest", soon(), || runs.load(Ordering::SeqCst) > at_end + 20).err();
        assert!(runs.load(Ordering::SeqCst) > at_end, "{delivery:?}: the rest was forgotten");
        again.store(false, Ordering::SeqCst);
    }
}

#[test]
fn bottom_half_scheduled_twice_in_a_section_runs_once_at_its_end() {
    for delivery in DELIVERIES {
        let domain = IrqDomain::new(delivery).expect("a domain");
        let runs = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&runs);
        let half = domain.bottom_half(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        domain.off(|_| {
            half.schedule();
            half.schedule();
            assert_eq!(runs.load(Ordering::SeqCst), 0, "{delivery:?}");
        });
        until("its run", || runs.load(Ordering::SeqCst) > 0);
        domain.deliver();
        assert_eq!(runs.load(Ordering::SeqCst), 1, "{delivery:?}");
    }
}

#[test]
fn dropped_bottom_half_waits_for_its_run() {
    for delivery in DELIVERIES {
        let domain = IrqDomain::new(delivery).expect("a domain");
        let (begin, begun) = mpsc::channel();
        let (end, may_end) = mpsc::channel::<()>();
        let finished = Arc::new(AtomicU64::new(0));
        let finish = Arc::clone(&finished);
        let half = Arc::new(domain.bottom_half(move || {
            let _told = begin.send(());
            let _end = may_end.recv_timeout(Duration::from_secs(10));
            finish.store(1, Ordering::SeqCst);
        }));
        let scheduled = Arc::clone(&half);
        let runner = std::thread::spawn(move || {
            scheduled.schedule();
            drop(scheduled);
        });
        begun.recv_timeout(Duration::from_secs(10)).expect("it runs");
        let dropper = std::thread::spawn(move || half.close_shared());
        end.send(()).expect("told");
        dropper.join().expect("the drop returns");
        assert_eq!(finished.load(Ordering::SeqCst), 1, "{delivery:?}");
        runner.join().expect("the runner");
    }
}

trait CloseShared {
    fn close_shared(self);
}

impl CloseShared for Arc<BottomHalf> {
    /// Waits to be the last owner, then drops.
    fn close_shared(mut self) {
        loop {
            match Arc::try_unwrap(self) {
                Ok(half) => return drop(half),
                Err(shared) => self = shared,
            }
            std::thread::yield_now();
        }
    }
}

#[test]
fn timer_expires_once_after_its_time() {
    for delivery in DELIVERIES {
        let domain = IrqDomain::new(delivery).expect("a domain");
        let runs = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&runs);
        let timer = domain
            .timer(move |_| {
                count.fetch_add(1, Ordering::SeqCst);
            })
            .expect("a timer");
        let start = clock::now();
        timer.arm(Duration::from_millis(5)).expect("armed");
        domain.wait("expiry", soon(), || runs.load(Ordering::SeqCst) == 1).expect("expired");
        assert!(start.elapsed() >= Duration::from_millis(5), "{delivery:?}");
    }
}

#[test]
fn timer_that_expires_in_a_section_runs_behind_it() {
    for delivery in DELIVERIES {
        let domain = IrqDomain::new(delivery).expect("a domain");
        let expiries = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&expiries);
        let timer = domain
            .timer(move |expired| {
                count.fetch_add(expired.merged, Ordering::SeqCst);
            })
            .expect("a timer");
        domain.off(|_| {
            timer.arm_every(Duration::from_millis(1)).expect("armed");
            let end = Deadline::after(Duration::from_millis(20));
            until("some expiries", || end.remaining().is_none());
            assert_eq!(expiries.load(Ordering::SeqCst), 0, "{delivery:?}: it ran inside the section");
        });
        // In thread delivery the domain's thread may not have seen it yet, and in poll delivery nobody has looked.
        if delivery == Delivery::Signal {
            assert!(expiries.load(Ordering::SeqCst) > 0, "the section's end did not find it");
        }
        domain.wait("expiries", soon(), || expiries.load(Ordering::SeqCst) >= 20).expect("delivered");
    }
}

#[test]
fn cancelled_timer_does_not_run() {
    for delivery in DELIVERIES {
        let domain = IrqDomain::new(delivery).expect("a domain");
        let runs = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&runs);
        let timer = domain
            .timer(move |_| {
                count.fetch_add(1, Ordering::SeqCst);
            })
            .expect("a timer");
        timer.arm(Duration::from_millis(10)).expect("armed");
        timer.cancel().expect("cancelled");
        let waited =
            domain.wait("nothing", Deadline::after(Duration::from_millis(40)), || runs.load(Ordering::SeqCst) > 0);
        assert!(waited.is_err(), "{delivery:?}: it ran");
    }
}
