//! Rules 1 to 5 of docs/irq-semantics.md: marks, sections, order, and where handlers may run.

mod irq_device;

use irq_device::{Counted, DELIVERIES, Lines, counting, soon, until, wait_raised};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain, IrqLock, IrqOptions, IrqReturn, Priority, Registration};
use udrv_backend::{Error, IrqIndex};

#[test]
fn sources_pending_together_are_delivered_by_priority_then_place() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let order = Arc::new(Mutex::new(Vec::new()));
        let priorities = [Priority::Low, Priority::Normal, Priority::High, Priority::Normal, Priority::High];
        let irqs: Vec<_> = (0..)
            .zip(priorities)
            .map(|(vector, priority)| {
                let seen = Arc::clone(&order);
                let options = IrqOptions { priority, ..IrqOptions::default() };
                let handler = move |_| {
                    seen.lock().expect("order").push(vector);
                    IrqReturn::Handled
                };
                domain.register_with(&device.backend(), IrqIndex::MSI, vector, options, handler).expect("registered")
            })
            .collect();
        domain.off(|_| {
            for (vector, irq) in (0..).zip(&irqs) {
                device.fire(vector);
                wait_raised(&domain, irq, 1);
            }
        });
        assert_eq!(*order.lock().expect("order"), [2, 4, 1, 3, 0], "{delivery:?}");
    }
}

#[test]
fn guards_dropped_out_of_order_keep_interrupts_off_until_the_last() {
    for delivery in DELIVERIES {
        let it = Counted::new(delivery);
        let (outer, inner) = (it.domain.off_guard(), it.domain.off_guard());
        drop(outer);
        it.irq.pend();
        assert_eq!(it.runs(), 0, "{delivery:?}");
        drop(inner);
        assert_eq!(it.runs(), 1, "{delivery:?}");
    }
}

#[test]
fn handler_that_raises_itself_runs_again_after_it_returned() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let (depth, deepest, runs) =
            (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let own = Arc::new(OnceLock::<Registration>::new());
        let handler = {
            let (own, domain) = (Arc::clone(&own), domain.clone());
            let (depth, deepest, runs) = (Arc::clone(&depth), Arc::clone(&deepest), Arc::clone(&runs));
            move |_| {
                deepest.fetch_max(depth.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                if runs.fetch_add(1, Ordering::SeqCst) < 3 {
                    own.get().expect("registered").pend();
                    domain.off(|_| {});
                    domain.deliver();
                }
                depth.fetch_sub(1, Ordering::SeqCst);
                IrqReturn::Handled
            }
        };
        let irq = domain.register(&device.backend(), IrqIndex::MSI, 0, handler).expect("registered");
        assert!(own.set(irq).is_ok());
        device.fire(0);
        domain.wait("four runs", soon(), || runs.load(Ordering::SeqCst) == 4).expect("delivered");
        assert_eq!(deepest.load(Ordering::SeqCst), 1, "{delivery:?}: a handler ran inside itself");
    }
}

#[test]
fn what_a_handler_marks_at_a_sections_end_is_delivered_before_the_end_returns() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let runs = Arc::new(AtomicU64::new(0));
        let register = |vector, priority, handler: Box<dyn FnMut(udrv::irq::Interrupt) -> IrqReturn + Send>| {
            let options = IrqOptions { priority, ..IrqOptions::default() };
            domain.register_with(&device.backend(), IrqIndex::MSI, vector, options, handler).expect("registered")
        };
        // One before it in the order, and one after.
        let first = register(0, Priority::High, Box::new(counting(&runs)));
        let last = register(1, Priority::Low, Box::new(counting(&runs)));
        let raisers = [first.raiser(), last.raiser()];
        let marking = register(
            2,
            Priority::Normal,
            Box::new(move |_| {
                raisers.iter().for_each(udrv::irq::Raiser::raise);
                IrqReturn::Handled
            }),
        );
        domain.off(|_| marking.pend());
        assert_eq!(runs.load(Ordering::SeqCst), 2, "{delivery:?}");
    }
}

#[test]
fn longest_run_of_a_handler_is_accounted_for() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let took = Duration::from_millis(3);
        let mut runs = 0;
        let handler = move |_| {
            runs += 1;
            let end = Deadline::after(if runs == 2 { took } else { Duration::ZERO });
            until("its end", || end.remaining().is_none());
            IrqReturn::Handled
        };
        let irq = domain.register(&device.backend(), IrqIndex::MSI, 0, handler).expect("registered");
        for count in 1..=3 {
            irq.pend();
            until("each delivery", || irq.stats().delivered == count);
        }
        assert!(irq.stats().longest_handler >= took, "{delivery:?}: {:?}", irq.stats());
    }
}

#[test]
fn device_signal_alone_runs_no_handler_on_the_driver_thread() {
    for delivery in [Delivery::Signal, Delivery::Poll] {
        let it = Counted::new(delivery);
        it.device.fire(0);
        // The signal's arrival is certain: write(2) to the socket raised it before it returned.
        assert_eq!(it.runs(), 0, "{delivery:?}: no delivery point was passed");
        it.domain.deliver();
        assert_eq!(it.runs(), 1, "{delivery:?}");
    }
}

#[test]
fn section_end_finds_what_sigio_announced() {
    let it = Counted::new(Delivery::Signal);
    it.domain.off(|_| it.device.fire(0));
    assert_eq!(it.runs(), 1);
    assert_eq!(it.irq.stats().deferred, 1);
}

#[test]
fn lock_shared_by_threads_and_handler_loses_no_update() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let value = Arc::new(IrqLock::new(&domain, 0u64));
        let in_handler = Arc::clone(&value);
        let add = |value: &IrqLock<u64>| {
            let mut value = value.lock();
            let before = *value;
            std::hint::spin_loop();
            *value = before + 1;
        };
        let handler = move |_| {
            add(&in_handler);
            IrqReturn::Handled
        };
        let irq = domain.register(&device.backend(), IrqIndex::MSI, 0, handler).expect("registered");
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..20_000).for_each(|_| add(&value)));
            }
            for _ in 0..2_000 {
                device.fire(0);
                domain.deliver();
            }
        });
        domain.wait("the last", soon(), || irq.stats().raised == 2_000 && !irq.is_pending()).expect("delivered");
        until("the last handler's end", || !irq.is_active());
        assert_eq!(*value.lock(), 40_000 + irq.stats().delivered, "{delivery:?}");
    }
}

#[test]
fn locked_data_holds_handlers_back_until_unlocked() {
    for delivery in DELIVERIES {
        let it = Counted::new(delivery);
        let value = IrqLock::new(&it.domain, 0);
        let guard = value.lock();
        it.irq.pend();
        assert_eq!(it.runs(), 0, "{delivery:?}");
        drop(guard);
        assert_eq!(it.runs(), 1, "{delivery:?}");
    }
}

#[test]
fn section_opened_while_a_handler_runs_waits_for_its_end() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let (entered, is_inside) = mpsc::channel();
        let finished = Arc::new(AtomicU64::new(0));
        let (finish, opening) = (Arc::clone(&finished), domain.clone());
        let (about_to_open, may_finish) = mpsc::channel::<()>();
        let handler = move |_| {
            entered.send(()).expect("told");
            may_finish.recv_timeout(Duration::from_secs(10)).expect("told to finish");
            finish.store(1, Ordering::SeqCst);
            IrqReturn::Handled
        };
        let _irq = domain.register(&device.backend(), IrqIndex::MSI, 0, handler).expect("registered");
        device.fire(0);
        // Where handlers run at delivery points, on this thread.
        let (waiting, ran) = (domain.clone(), Arc::clone(&finished));
        let runner = std::thread::spawn(move || waiting.wait("it", soon(), || ran.load(Ordering::SeqCst) == 1));
        is_inside.recv_timeout(Duration::from_secs(10)).expect("the handler runs");
        about_to_open.send(()).expect("told");
        opening.off(|_| assert_eq!(finished.load(Ordering::SeqCst), 1, "{delivery:?}"));
        runner.join().expect("no panic").expect("it ran");
    }
}

#[test]
fn delivery_point_waits_for_a_handler_that_another_thread_has_begun() {
    for delivery in DELIVERIES {
        let it = Counted::new(delivery);
        let (entered, is_inside) = mpsc::channel();
        let (finish, may_finish) = mpsc::channel::<()>();
        let handler = move |_| {
            entered.send(()).expect("told");
            may_finish.recv_timeout(Duration::from_secs(10)).expect("told to finish");
            IrqReturn::Handled
        };
        let slow = it.domain.register(&it.device.backend(), IrqIndex::MSI, 1, handler).expect("registered");
        let runner = std::thread::spawn(move || slow.pend());
        is_inside.recv_timeout(Duration::from_secs(10)).expect("the handler runs");
        let (ended, has_ended) = mpsc::channel();
        let domain = it.domain.clone();
        let waiter = std::thread::spawn(move || {
            domain.deliver();
            _ = ended.send(());
        });
        let early = has_ended.recv_timeout(Duration::from_millis(100));
        finish.send(()).expect("told");
        assert!(early.is_err(), "{delivery:?}: deliver() returned while a handler ran");
        has_ended.recv_timeout(Duration::from_secs(10)).expect("it returns");
        runner.join().and(waiter.join()).expect("no panic");
    }
}

#[test]
fn unpended_source_is_not_delivered() {
    for delivery in DELIVERIES {
        let it = Counted::new(delivery);
        it.domain.off(|_| {
            it.irq.pend();
            assert!(it.irq.is_pending());
            it.irq.unpend();
        });
        assert_eq!((it.runs(), it.irq.is_pending()), (0, false), "{delivery:?}");
    }
}

#[test]
fn source_is_active_only_while_its_handler_runs() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let own = Arc::new(OnceLock::<Registration>::new());
        let (seen, active) = (Arc::clone(&own), Arc::new(AtomicU64::new(0)));
        let inside = Arc::clone(&active);
        let handler = move |_| {
            inside.store(1 + u64::from(seen.get().expect("registered").is_active()), Ordering::SeqCst);
            IrqReturn::Handled
        };
        assert!(own.set(domain.register(&device.backend(), IrqIndex::MSI, 0, handler).expect("registered")).is_ok());
        device.fire(0);
        domain.wait("delivery", soon(), || active.load(Ordering::SeqCst) != 0).expect("delivered");
        assert_eq!(active.load(Ordering::SeqCst), 2, "{delivery:?}: inside");
        until("the handler's end", || !own.get().expect("registered").is_active());
    }
}

#[test]
fn raise_from_another_thread_ends_a_wait() {
    for delivery in DELIVERIES {
        let it = Counted::new(delivery);
        let raiser = it.irq.raiser();
        std::thread::scope(|scope| {
            scope.spawn(move || (0..100).for_each(|_| raiser.raise()));
            it.wait_runs(1);
        });
        it.domain.wait("the rest", soon(), || !it.irq.is_pending()).expect("delivered");
        assert_eq!(it.irq.stats().raised, 100, "{delivery:?}");
    }
}

#[test]
fn wait_in_a_section_or_a_handler_is_an_error() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let refused =
            |domain: &IrqDomain| matches!(domain.wait("nothing", soon(), || true), Err(Error::NotSupported { .. }));
        let (tell, told) = mpsc::channel();
        let inside = domain.clone();
        let handler = move |_| {
            tell.send(refused(&inside)).expect("told");
            IrqReturn::Handled
        };
        let irq = domain.register(&device.backend(), IrqIndex::MSI, 0, handler).expect("registered");
        assert!(domain.off(|_| refused(&domain)), "{delivery:?}: in a section");
        irq.pend();
        assert!(told.recv_timeout(Duration::from_secs(10)).expect("the handler ran"), "{delivery:?}: in a handler");
    }
}

#[test]
fn wait_for_nothing_ends_at_its_deadline() {
    for delivery in DELIVERIES {
        let domain = IrqDomain::new(delivery).expect("a domain");
        let waited = domain.wait("nothing", Deadline::after(Duration::from_millis(20)), || false);
        assert!(matches!(waited, Err(Error::Timeout { .. })), "{delivery:?}: {waited:?}");
    }
}

#[test]
fn counts_in_the_trigger_are_summed_and_merged_into_one_delivery() {
    for delivery in DELIVERIES {
        let it = Counted::new(delivery);
        it.domain.off(|_| {
            it.device.send(0, &3u64.to_ne_bytes());
            it.device.send(0, &4u64.to_ne_bytes());
            wait_raised(&it.domain, &it.irq, 7);
            // The domain's thread marks it, and finds that a section is open a moment later.
            until("the section to hold it back", || it.irq.stats().deferred == 1);
        });
        let stats = it.irq.stats();
        assert_eq!((stats.raised, stats.delivered, stats.merged, stats.deferred), (7, 1, 6, 1), "{delivery:?}");
    }
}

#[test]
fn malformed_counts_from_a_server_are_one_interrupt_and_no_panic() {
    let it = Counted::new(Delivery::Signal);
    it.domain.off(|_| {
        it.device.send(0, &[0; 8]);
        it.device.send(0, &[0xff; 8]);
        it.device.send(0, &[0xff; 13]);
    });
    // As many as a mark counts.
    assert_eq!((it.runs(), it.irq.stats().raised), (1, (1 << 48) - 1));
}

#[test]
fn handler_held_up_by_a_section_shows_in_the_longest_deferral() {
    for delivery in DELIVERIES {
        let it = Counted::new(delivery);
        let held = Duration::from_millis(5);
        it.domain.off(|_| {
            it.device.fire(0);
            wait_raised(&it.domain, &it.irq, 1);
            until("some time in the section", || it.irq.stats().deferred == 1);
            let end = Deadline::after(held);
            until("its end", || end.remaining().is_none());
        });
        assert!(it.irq.stats().longest_deferral >= held, "{delivery:?}: {:?}", it.irq.stats());
    }
}

#[test]
fn many_sources_are_all_delivered() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let runs = Arc::new(AtomicU64::new(0));
        // Two descriptors a source; the usual limit of a process is 1,024.
        let vectors = 300;
        let irqs: Vec<_> = (0..vectors)
            .map(|vector| {
                domain.register(&device.backend(), IrqIndex::MSIX, vector, counting(&runs)).expect("registered")
            })
            .collect();
        (0..vectors).for_each(|vector| device.fire(vector));
        domain.wait("all of them", soon(), || runs.load(Ordering::SeqCst) == u64::from(vectors)).expect("delivered");
        assert!(irqs.iter().all(|irq| irq.stats().delivered == 1), "{delivery:?}");
    }
}

#[test]
fn more_threads_than_slots_exclude_handlers_all_the_same() {
    let makes = [IrqDomain::new, IrqDomain::without_membarrier];
    for (make, delivery) in makes.into_iter().flat_map(|make| DELIVERIES.map(|delivery| (make, delivery))) {
        let (device, domain) = (Lines::new(), make(delivery).expect("a domain"));
        // A socket that is full takes no more.
        let taken = AtomicU64::new(0);
        let inside = Arc::new(AtomicU64::new(0));
        let (seen, violations) = (Arc::clone(&inside), Arc::new(AtomicU64::new(0)));
        let count = Arc::clone(&violations);
        let handler = move |_| {
            count.fetch_add(seen.load(Ordering::Relaxed), Ordering::Relaxed);
            IrqReturn::Handled
        };
        let irq = domain.register(&device.backend(), IrqIndex::MSI, 0, handler).expect("registered");
        let all_there = std::sync::Barrier::new(80);
        std::thread::scope(|scope| {
            for _ in 0..80 {
                scope.spawn(|| {
                    domain.off(|_| {});
                    all_there.wait();
                    for _ in 0..200 {
                        domain.off(|_| {
                            inside.fetch_add(1, Ordering::Relaxed);
                            inside.fetch_sub(1, Ordering::Relaxed);
                        });
                        taken.fetch_add(device.try_fire(0).into(), Ordering::Relaxed);
                    }
                });
            }
        });
        let taken = taken.into_inner();
        domain.wait("the rest", soon(), || irq.stats().raised == taken && !irq.is_pending()).expect("delivered");
        until("the last handler's end", || irq.stats().delivered + irq.stats().merged == taken);
        assert_eq!(violations.load(Ordering::Relaxed), 0);
    }
}
