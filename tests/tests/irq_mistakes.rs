//! What a driver does wrong, or at an odd moment, in its handlers and halves: an error or what it meant, never a deadlock and
//! never a domain that is of no use to the others.

mod irq_device;

use irq_device::{Counted, DELIVERIES, Lines, counting, soon, until};
use std::panic::panic_any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{BottomHalf, Delivery, IrqDomain, IrqOptions, IrqReturn, Priority, Registration};
use udrv_backend::{Error, IrqIndex};

const PATIENCE: Duration = Duration::from_secs(10);

/// Panics when it is dropped, as a handler's own data may.
struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

/// Another thread can open a section, and another source is delivered.
fn assert_of_use(domain: &IrqDomain, device: &Arc<Lines>) {
    let runs = Arc::new(AtomicU64::new(0));
    let other = domain.register(&device.backend(), IrqIndex::MSI, 7, counting(&runs)).expect("registered");
    let elsewhere = domain.clone();
    let section = std::thread::spawn(move || elsewhere.off(|_| {}));
    until("a section of another thread", || section.is_finished());
    device.fire(7);
    domain.wait("another source", soon(), || runs.load(Ordering::SeqCst) > 0).expect("delivered");
    drop(other);
}

#[test]
fn handler_that_panics_once_more_when_dropped_leaves_the_domain_of_use() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let bomb = PanicsOnDrop;
        let handler = move |_| {
            let _mine = &bomb;
            panic!("run")
        };
        let irq = domain.register(&device.backend(), IrqIndex::MSI, 0, handler).expect("registered");
        irq.pend();
        assert_of_use(&domain, &device);
    }
}

#[test]
fn handler_that_panics_with_what_panics_when_dropped_leaves_the_domain_of_use() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let irq =
            domain.register(&device.backend(), IrqIndex::MSI, 0, |_| panic_any(PanicsOnDrop)).expect("registered");
        irq.pend();
        assert_of_use(&domain, &device);
    }
}

#[test]
fn bottom_half_that_panics_once_more_when_dropped_leaves_the_others_of_use() {
    for delivery in DELIVERIES {
        let domain = IrqDomain::new(delivery).expect("a domain");
        let bomb = PanicsOnDrop;
        let bad = domain.bottom_half(move || {
            let _mine = &bomb;
            panic!("run")
        });
        bad.schedule();
        let runs = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&runs);
        let good = domain.bottom_half(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        good.schedule();
        // The domain's thread may be the one that runs it.
        until("the other", || runs.load(Ordering::SeqCst) == 1);
    }
}

#[test]
fn threaded_half_that_panics_is_not_called_again_and_its_line_is_silenced() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let runs = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&runs);
        let half = move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            panic!("run")
        };
        let wake = |_| IrqReturn::WakeThread;
        let options = IrqOptions::default();
        let irq =
            domain.register_threaded(&device.backend(), IrqIndex::MSI, 0, options, wake, half).expect("registered");
        irq.pend();
        until("its end", || runs.load(Ordering::SeqCst) == 1 && !irq.is_active());
        irq.pend();
        until("its end", || !irq.is_active());
        assert_eq!(runs.load(Ordering::SeqCst), 1, "{delivery:?}: it was called again");
        assert!(!device.is_armed(0), "{delivery:?}: nobody is left to handle it");
        assert_of_use(&domain, &device);
    }
}

#[test]
fn bottom_half_dropped_in_a_handler_while_it_runs_does_not_deadlock() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let (begin, begun) = mpsc::channel();
        let (go, told) = mpsc::channel::<()>();
        let work = {
            let domain = domain.clone();
            move || {
                _ = begin.send(());
                _ = told.recv_timeout(PATIENCE);
                domain.off(|_| {});
            }
        };
        let half = Arc::new(Mutex::new(Some(domain.bottom_half(work))));
        let register = |vector, use_it: fn(&mut Option<BottomHalf>)| {
            let half = Arc::clone(&half);
            let handler = move |_| {
                use_it(&mut half.lock().expect("no test panics inside"));
                IrqReturn::Handled
            };
            domain.register(&device.backend(), IrqIndex::MSI, vector, handler).expect("registered")
        };
        let scheduling = register(0, |half| half.as_ref().expect("not dropped yet").schedule());
        let dropping = register(1, |half| drop(half.take()));
        let runner = std::thread::spawn(move || scheduling.pend());
        begun.recv_timeout(PATIENCE).expect("it runs");
        let dropper = std::thread::spawn(move || dropping.pend());
        until("the handler", || half.try_lock().is_ok_and(|half| half.is_none()) || dropper.is_finished());
        go.send(()).expect("told");
        until("both", || runner.is_finished() && dropper.is_finished());
    }
}

/// Registrations that their own handlers use. Never dropped: the handlers own them.
type Own = Arc<OnceLock<Registration>>;

#[test]
fn disable_of_another_handler_of_the_line_in_a_threaded_half_is_an_error() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let other = Own::default();
        let (tell, told) = mpsc::channel();
        let half = {
            let other = Arc::clone(&other);
            move |_| {
                let outcome = other.get().expect("registered").disable();
                _ = tell.send(matches!(outcome, Err(Error::NotSupported { .. })));
            }
        };
        let options = IrqOptions { shared: true, ..IrqOptions::default() };
        let backend = device.backend();
        let wake = |_| IrqReturn::WakeThread;
        let one = domain.register_threaded(&backend, IrqIndex::MSI, 0, options, wake, half).expect("registered");
        let second = domain.register_with(&backend, IrqIndex::MSI, 0, options, |_| IrqReturn::None);
        assert!(other.set(second.expect("registered")).is_ok());
        one.pend();
        // Not dropped if it hangs: dropping would wait for it.
        let one = std::mem::ManuallyDrop::new(one);
        assert_eq!(told.recv_timeout(PATIENCE), Ok(true), "{delivery:?}");
        drop(std::mem::ManuallyDrop::into_inner(one));
    }
}

#[test]
fn disable_in_a_handler_while_a_threaded_half_waits_for_its_end_is_an_error() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let (begin, begun) = mpsc::channel();
        let (go, may_go) = mpsc::channel::<()>();
        let half = {
            let domain = domain.clone();
            move |_| {
                _ = begin.send(());
                _ = may_go.recv_timeout(PATIENCE);
                domain.off(|_| {});
            }
        };
        let options = IrqOptions::default();
        let wake = |_| IrqReturn::WakeThread;
        let threaded = domain.register_threaded(&device.backend(), IrqIndex::MSI, 0, options, wake, half);
        let threaded = Own::new(OnceLock::from(threaded.expect("registered")));
        let (tell, told) = mpsc::channel();
        let disabling = {
            let threaded = Arc::clone(&threaded);
            move |_| {
                let outcome = threaded.get().expect("registered").disable();
                _ = tell.send(matches!(outcome, Err(Error::NotSupported { .. })));
                IrqReturn::Handled
            }
        };
        let disabling = domain.register(&device.backend(), IrqIndex::MSI, 1, disabling).expect("registered");
        threaded.get().expect("registered").pend();
        begun.recv_timeout(PATIENCE).expect("the half runs");
        let pending = std::thread::spawn(move || disabling.pend());
        let outcome = told.recv_timeout(PATIENCE);
        go.send(()).expect("told");
        assert_eq!(outcome, Ok(true), "{delivery:?}");
        until("the handler's end", || pending.is_finished());
    }
}

#[test]
fn handler_that_registers_its_successor_leaves_that_one_armed() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let slot = Arc::new(Mutex::new(None));
        let runs = Arc::new(AtomicU64::new(0));
        let first = {
            let (slot, runs, domain, backend) =
                (Arc::clone(&slot), Arc::clone(&runs), domain.clone(), device.backend());
            move |_| {
                let mut slot = slot.lock().expect("no test panics inside");
                drop(slot.take());
                *slot = Some(domain.register(&backend, IrqIndex::MSI, 0, counting(&runs)).expect("registered"));
                IrqReturn::Handled
            }
        };
        let first = domain.register(&device.backend(), IrqIndex::MSI, 0, first).expect("registered");
        let raiser = first.raiser();
        *slot.lock().expect("no test panics inside") = Some(first);
        raiser.raise();
        // The lock is held until the handler is done but for its last line, and a section waits for that.
        until("the first handler", || {
            domain.deliver();
            slot.try_lock().is_ok_and(|slot| slot.as_ref().is_some_and(|irq: &Registration| irq.stats().raised == 0))
        });
        domain.off(|_| {});
        assert!(device.is_armed(0), "{delivery:?}: its successor was disarmed");
        device.fire(0);
        domain.wait("its successor", soon(), || runs.load(Ordering::SeqCst) == 1).expect("delivered");
    }
}

#[test]
fn wait_in_a_bottom_half_on_the_domains_own_thread_is_an_error_at_once() {
    let it = Counted::new(Delivery::Thread);
    let (tell, told) = mpsc::channel();
    let half = {
        let domain = it.domain.clone();
        it.domain.bottom_half(move || {
            let outcome = domain.wait("what nobody can deliver", Deadline::after(PATIENCE), || false);
            _ = tell.send(outcome.expect_err("it cannot be").to_string());
        })
    };
    let schedule = move |_| {
        half.schedule();
        IrqReturn::Handled
    };
    let irq = it.domain.register(&it.device.backend(), IrqIndex::MSI, 1, schedule).expect("registered");
    it.device.fire(1);
    let error = told.recv_timeout(PATIENCE / 2).expect("told before the deadline");
    assert!(error.contains("the domain's own thread"), "{error}");
    drop(irq);
}

#[test]
fn window_of_a_storm_that_ends_with_a_wake_still_wakes_the_threaded_half() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let (mut left, runs) = (1_999, Arc::new(AtomicU64::new(0)));
        let handler = move |_| {
            left -= 1;
            if left >= 0 { IrqReturn::None } else { IrqReturn::WakeThread }
        };
        let count = Arc::clone(&runs);
        let half = move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        };
        let options = IrqOptions { storm_window: 2_000, ..IrqOptions::default() };
        let irq = domain.register_threaded(&device.backend(), IrqIndex::MSI, 0, options, handler, half);
        let irq = irq.expect("registered");
        for count in 1..=2_000 {
            irq.pend();
            until("each delivery", || irq.stats().delivered == count);
        }
        until("the half", || runs.load(Ordering::SeqCst) == 1);
    }
}

#[test]
fn backend_that_panics_in_unmasking_keeps_nobody_waiting() {
    for (delivery, is_threaded) in DELIVERIES.iter().flat_map(|it| [(*it, false), (*it, true)]) {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let (backend, index, options) = (device.backend(), IrqIndex::INTX, IrqOptions::default());
        let irq = if is_threaded {
            domain.register_threaded(&backend, index, 0, options, |_| IrqReturn::WakeThread, |_| {})
        } else {
            domain.register(&backend, index, 0, |_| IrqReturn::Handled)
        };
        let irq = irq.expect("registered");
        device.on_unmasking(|| panic!("unmasking"));
        let ended = std::thread::spawn(move || {
            irq.pend();
            until("the delivery", || irq.stats().delivered == 1);
            irq.disable().expect("disabled");
        });
        until("its end", || ended.is_finished());
        ended.join().expect("no panic of its own");
        assert_of_use(&domain, &device);
    }
}

#[test]
fn registration_beside_the_drop_of_the_last_that_panicked_is_refused_or_delivered_to() {
    for delivery in DELIVERIES {
        for _ in 0..200 {
            let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
            let dead = panicked(&domain, &device, IrqIndex::MSI);
            let (runs, begun) = (Arc::new(AtomicU64::new(0)), mpsc::channel());
            std::thread::scope(|scope| {
                let trying = scope.spawn(|| {
                    begun.0.send(()).expect("told");
                    let mut anew = None;
                    until("the line", || {
                        let count = counting(&runs);
                        anew = domain.register_with(&device.backend(), IrqIndex::MSI, 0, SHARED, count).ok();
                        anew.is_some()
                    });
                    anew
                });
                begun.1.recv_timeout(PATIENCE).expect("it tries");
                drop(dead);
                let _anew = trying.join().expect("no panic of its own");
                device.fire(0);
                domain.wait("its own", soon(), || runs.load(Ordering::SeqCst) > 0).expect("delivered");
            });
        }
    }
}

const SHARED: IrqOptions = IrqOptions { shared: true, priority: Priority::Normal, storm_window: 100_000 };

/// Two handlers of one line that have panicked, one of them in its threaded half.
fn panicked(domain: &IrqDomain, device: &Arc<Lines>, index: IrqIndex) -> [Registration; 2] {
    let wake = |_| IrqReturn::WakeThread;
    let backend = device.backend();
    let threaded = domain.register_threaded(&backend, index, 0, SHARED, wake, |_| panic!("run"));
    let both = [
        threaded.expect("registered"),
        domain.register_with(&backend, index, 0, SHARED, |_| panic!("run")).expect("registered"),
    ];
    both[0].pend();
    until("their end", || both[0].stats().delivered == 1 && !both[0].is_active());
    both
}

#[test]
fn registering_on_a_shared_line_whose_handlers_have_all_panicked_is_an_error_until_they_are_dropped() {
    for (delivery, index) in DELIVERIES.iter().flat_map(|it| [(*it, IrqIndex::MSI), (*it, IrqIndex::INTX)]) {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let dead = panicked(&domain, &device, index);
        let runs = Arc::new(AtomicU64::new(0));
        for _ in 0..2 {
            let another = domain.register_with(&device.backend(), index, 0, SHARED, counting(&runs));
            let error = another.err().expect("refused");
            assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
            let told =
                format!("{index} vector 0 of model:lines have panicked, and it is disabled; drop their registrations");
            assert!(error.to_string().contains(&told), "{delivery:?}: {error}");
        }
        let [first, second] = dead;
        drop(first);
        assert!(domain.register_with(&device.backend(), index, 0, SHARED, counting(&runs)).is_err());
        drop(second);
        let (lines, mut count) = (Arc::clone(&device), counting(&runs));
        let handler = move |interrupt| {
            lines.assert(false);
            count(interrupt)
        };
        let anew = domain.register_with(&device.backend(), index, 0, SHARED, handler).expect("registered");
        if index == IrqIndex::INTX {
            device.assert(true);
        } else {
            device.fire(0);
        }
        domain.wait("its own", soon(), || runs.load(Ordering::SeqCst) > 0).expect("delivered");
        drop(anew);
    }
}

#[test]
fn handler_registered_while_the_last_of_its_line_panics_is_delivered_to() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let (begin, begun) = mpsc::channel();
        let (go, may_go) = mpsc::channel::<()>();
        let handler = move |_| {
            _ = begin.send(());
            _ = may_go.recv_timeout(PATIENCE);
            panic!("run")
        };
        let bad = domain.register_with(&device.backend(), IrqIndex::MSI, 0, SHARED, handler).expect("registered");
        let runner = std::thread::spawn(move || {
            bad.pend();
            bad
        });
        begun.recv_timeout(PATIENCE).expect("it runs");
        let runs = Arc::new(AtomicU64::new(0));
        let good = domain.register_with(&device.backend(), IrqIndex::MSI, 0, SHARED, counting(&runs));
        go.send(()).expect("told");
        let (good, bad) = (good.expect("registered"), runner.join().expect("no panic of its own"));
        until("the panic", || bad.stats().delivered == 1 && !bad.is_active());
        assert!(device.is_armed(0), "{delivery:?}: the one that is left is deaf");
        device.fire(0);
        domain.wait("the one that is left", soon(), || runs.load(Ordering::SeqCst) > 0).expect("delivered");
        drop((good, bad));
    }
}

#[test]
fn line_taken_anew_while_its_last_user_is_silenced_stays_armed() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let (tell_silencing, silencing) = mpsc::channel();
        let (tell_taken, taken) = mpsc::channel::<()>();
        let mut is_first = true;
        device.on_disarming(move || {
            if std::mem::take(&mut is_first) {
                _ = tell_silencing.send(());
                // It comes only if nobody keeps the others out meanwhile.
                _ = taken.recv_timeout(Duration::from_millis(300));
            }
            Ok(())
        });
        let wake = |_| IrqReturn::WakeThread;
        let options = IrqOptions::default();
        let bad = domain.register_threaded(&device.backend(), IrqIndex::MSI, 0, options, wake, |_| panic!("run"));
        let bad = bad.expect("registered");
        bad.pend();
        silencing.recv_timeout(PATIENCE).expect("its line is silenced");
        assert!(bad.is_active(), "{delivery:?}: who waits for its half would find the line armed");
        // Another handler may not wait for the half, which is at that.
        let mut bad = Some(bad);
        let dropper = domain.register(&device.backend(), IrqIndex::MSI, 1, move |_| {
            drop(bad.take());
            IrqReturn::Handled
        });
        let dropper = dropper.expect("registered");
        let dropping = std::thread::spawn(move || dropper.pend());
        let mut anew = None;
        until("the line", || {
            anew = domain.register(&device.backend(), IrqIndex::MSI, 0, |_| IrqReturn::Handled).ok();
            anew.is_some()
        });
        _ = tell_taken.send(());
        dropping.join().expect("no panic of its own");
        assert!(device.is_armed(0), "{delivery:?}: it was silenced for one that is gone");
        drop(anew);
    }
}
