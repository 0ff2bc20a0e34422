//! Rules 6 to 8 and 12 of docs/irq-semantics.md: level lines, shared lines, threaded handlers, disabling, storms.

mod irq_device;

use irq_device::{Counted, DELIVERIES, Lines, counting, soon, until};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;
use udrv::irq::{Delivery, Interrupt, IrqDomain, IrqOptions, IrqReturn, Registration};
use udrv_backend::{Error, IrqIndex};

const SHARED: IrqOptions = IrqOptions { shared: true, priority: udrv::irq::Priority::Normal, storm_window: 100_000 };

fn setup(delivery: Delivery) -> (Arc<Lines>, IrqDomain) {
    (Lines::new(), IrqDomain::new(delivery).expect("a domain"))
}

#[test]
fn level_line_is_unmasked_only_after_all_its_handlers() {
    for delivery in DELIVERIES {
        let (device, domain) = setup(delivery);
        let masked = Arc::new(Mutex::new(Vec::new()));
        let _irqs: Vec<_> = [false, true]
            .map(|acknowledges| {
                let (line, seen) = (Arc::clone(&device), Arc::clone(&masked));
                let handler = move |_| {
                    seen.lock().expect("seen").push(line.is_masked());
                    if acknowledges {
                        line.assert(false);
                        return IrqReturn::Handled;
                    }
                    IrqReturn::None
                };
                domain.register_with(&device.backend(), IrqIndex::INTX, 0, SHARED, handler).expect("registered")
            })
            .into();
        device.assert(true);
        domain.wait("both handlers", soon(), || masked.lock().expect("seen").len() == 2).expect("delivered");
        until("the unmask", || !device.is_masked());
        assert_eq!(*masked.lock().expect("seen"), [true, true], "{delivery:?}");
    }
}

#[test]
fn line_nobody_acknowledges_is_unmasked_counted_as_spurious_and_delivered_again() {
    for delivery in DELIVERIES {
        let (device, domain) = setup(delivery);
        let (runs, line) = (Arc::new(AtomicU64::new(0)), Arc::clone(&device));
        let count = Arc::clone(&runs);
        let handler = move |_| {
            if count.fetch_add(1, Ordering::SeqCst) == 4 {
                line.assert(false);
                return IrqReturn::Handled;
            }
            IrqReturn::None
        };
        let irq = domain.register(&device.backend(), IrqIndex::INTX, 0, handler).expect("registered");
        device.assert(true);
        domain.wait("five runs", soon(), || runs.load(Ordering::SeqCst) == 5).expect("delivered");
        until("the end", || irq.stats().delivered == 5);
        assert_eq!(irq.stats().spurious, 4, "{delivery:?}");
    }
}

#[test]
fn vector_taken_exclusively_is_refused_to_a_second_handler() {
    for delivery in DELIVERIES {
        let (device, domain) = setup(delivery);
        let handler = |_| IrqReturn::Handled;
        let _irq = domain.register(&device.backend(), IrqIndex::MSI, 0, handler).expect("registered");
        let second = domain.register_with(&device.backend(), IrqIndex::MSI, 0, SHARED, handler);
        assert!(matches!(second, Err(Error::Unavailable { .. })));
    }
}

#[test]
fn shared_line_serves_those_left_when_one_goes() {
    for delivery in DELIVERIES {
        let (device, domain) = setup(delivery);
        let runs = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
        let [one, other] = [0, 1].map(|n| {
            let handler = counting(&runs[n]);
            domain.register_with(&device.backend(), IrqIndex::MSI, 0, SHARED, handler).expect("registered")
        });
        drop(one);
        other.pend();
        assert_eq!(runs.each_ref().map(|runs| runs.load(Ordering::SeqCst)), [0, 1], "{delivery:?}");
        assert!(device.is_armed(0), "{delivery:?}: the line is still in use");
        drop(other);
        assert!(!device.is_armed(0), "{delivery:?}: the last one disarms");
    }
}

#[test]
fn registration_dropped_by_its_own_handler_is_gone_afterwards() {
    for delivery in DELIVERIES {
        let (device, domain) = setup(delivery);
        let own = Arc::new(Mutex::new(None::<Registration>));
        let (mine, runs) = (Arc::clone(&own), Arc::new(AtomicU64::new(0)));
        let count = Arc::clone(&runs);
        let handler = move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            drop(mine.lock().expect("own").take());
            IrqReturn::Handled
        };
        let irq = domain.register(&device.backend(), IrqIndex::MSI, 0, handler).expect("registered");
        let raiser = irq.raiser();
        *own.lock().expect("own") = Some(irq);
        device.fire(0);
        domain.wait("one run", soon(), || runs.load(Ordering::SeqCst) == 1).expect("delivered");
        until("the drop", || own.try_lock().is_ok_and(|own| own.is_none()));
        raiser.raise();
        domain.deliver();
        assert_eq!((runs.load(Ordering::SeqCst), device.is_armed(0)), (1, false), "{delivery:?}");
        // Its place is free again.
        drop(domain.register(&device.backend(), IrqIndex::MSI, 0, |_| IrqReturn::Handled).expect("registered again"));
    }
}

/// A level line with a threaded half that waits to be told to end.
struct Threaded {
    device: Arc<Lines>,
    domain: IrqDomain,
    irq: Registration,
    begun: mpsc::Receiver<Interrupt>,
    end: mpsc::Sender<()>,
    hard_runs: Arc<AtomicU64>,
}

fn threaded(delivery: Delivery) -> Threaded {
    let (device, domain) = setup(delivery);
    let hard_runs = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&hard_runs);
    let handler = move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        IrqReturn::WakeThread
    };
    let (begin, begun) = mpsc::channel();
    let (end, may_end) = mpsc::channel();
    let line = Arc::clone(&device);
    let half = move |interrupt| {
        let _told = begin.send(interrupt);
        let _end = may_end.recv_timeout(Duration::from_secs(10));
        line.assert(false);
    };
    let options = IrqOptions::default();
    let irq =
        domain.register_threaded(&device.backend(), IrqIndex::INTX, 0, options, handler, half).expect("registered");
    Threaded { device, domain, irq, begun, end, hard_runs }
}

impl Threaded {
    fn begin(&self) {
        self.device.assert(true);
        self.domain.wait("the first half", soon(), || self.hard_runs.load(Ordering::SeqCst) == 1).expect("delivered");
        self.begun.recv_timeout(Duration::from_secs(10)).expect("the threaded half runs");
    }
}

#[test]
fn threaded_half_keeps_its_line_masked_until_it_returns() {
    for delivery in DELIVERIES {
        let it = threaded(delivery);
        it.begin();
        it.irq.pend();
        assert!(it.device.is_masked(), "{delivery:?}: unmasked too early");
        assert_eq!(it.hard_runs.load(Ordering::SeqCst), 1, "{delivery:?}: delivered while the half runs");
        assert!(it.irq.is_active() && it.irq.is_pending());
        it.end.send(()).expect("told");
        it.domain.wait("what came meanwhile", soon(), || it.hard_runs.load(Ordering::SeqCst) == 2).expect("delivered");
        it.end.send(()).expect("told");
        until("the unmask", || !it.device.is_masked() && !it.irq.is_active());
    }
}

#[test]
fn threaded_half_runs_with_interrupts_on() {
    for delivery in DELIVERIES {
        let it = threaded(delivery);
        it.begin();
        // It would wait for the half to end, if that kept the gate.
        it.domain.off(|_| {});
        it.end.send(()).expect("told");
    }
}

#[test]
fn disable_waits_for_the_threaded_half() {
    for delivery in DELIVERIES {
        let it = threaded(delivery);
        it.begin();
        std::thread::scope(|scope| {
            let disabled = scope.spawn(|| {
                it.irq.disable().expect("disabled");
                it.device.is_masked()
            });
            it.end.send(()).expect("told");
            assert!(!disabled.join().expect("it returns"), "{delivery:?}: it returned before the half did");
        });
    }
}

#[test]
fn line_is_unmasked_before_its_threaded_half_is_no_longer_active() {
    for delivery in DELIVERIES {
        let it = threaded(delivery);
        it.begin();
        let (tell, unmasking) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        it.device.on_unmasking(move || {
            _ = tell.send(());
            _ = may_go_on.recv_timeout(Duration::from_secs(10));
            Ok(())
        });
        it.end.send(()).expect("told");
        unmasking.recv_timeout(Duration::from_secs(10)).expect("it is unmasked");
        assert!(it.irq.is_active(), "{delivery:?}: who waits for the half would find the line masked");
        go_on.send(()).expect("told");
        it.irq.disable().expect("disabled");
        assert!(!it.device.is_masked(), "{delivery:?}");
    }
}

#[test]
fn dropped_registration_waits_for_the_threaded_half() {
    for delivery in DELIVERIES {
        let Threaded { device, irq, end, begun, domain, hard_runs } = threaded(delivery);
        device.assert(true);
        domain.wait("the first half", soon(), || hard_runs.load(Ordering::SeqCst) == 1).expect("delivered");
        begun.recv_timeout(Duration::from_secs(10)).expect("the threaded half runs");
        let dropper = std::thread::spawn(move || drop(irq));
        end.send(()).expect("told");
        dropper.join().expect("the drop returns");
        assert!(!device.is_masked(), "{delivery:?}: it returned before the half did");
    }
}

#[test]
fn storm_is_masked_reported_and_leaves_the_others_alone() {
    for delivery in DELIVERIES {
        let it = Counted::new(delivery);
        let options = IrqOptions { storm_window: 1000, ..IrqOptions::default() };
        let stuck = Lines::new();
        let irq = it
            .domain
            .register_with(&stuck.backend(), IrqIndex::INTX, 0, options, |_| IrqReturn::None)
            .expect("registered");
        stuck.assert(true);
        it.domain.wait("the storm's end", soon(), || irq.stats().stormed).expect("masked");
        until("its last handler", || !irq.is_active());
        let delivered = irq.stats().delivered;
        // A pause of this machine in the middle of a window begins another.
        assert_eq!((delivered % 1000, stuck.is_masked()), (0, true), "{delivery:?}");
        it.device.fire(0);
        it.wait_runs(1);
        assert_eq!(irq.stats().delivered, delivered, "{delivery:?}: still delivered");
    }
}

#[test]
fn storm_is_told_once_its_line_is_disarmed() {
    for delivery in DELIVERIES {
        let (device, domain) = setup(delivery);
        let options = IrqOptions { storm_window: 100, ..IrqOptions::default() };
        let handler = |_| IrqReturn::None;
        let irq = domain.register_with(&device.backend(), IrqIndex::MSI, 0, options, handler).expect("registered");
        let irq = Arc::new(irq);
        let (storming, (tell, told)) = (Arc::downgrade(&irq), mpsc::channel());
        // Who was told before, and rearmed it, would find it disarmed all the same.
        device.on_disarming(move || {
            _ = storming.upgrade().map(|irq| tell.send(irq.stats().stormed));
            Ok(())
        });
        until("a storm", || {
            irq.pend();
            irq.stats().stormed
        });
        assert!(!told.recv_timeout(Duration::from_secs(10)).expect("disarmed"), "{delivery:?}");
    }
}

#[test]
fn storm_of_messages_is_disarmed_and_rearmed_on_demand() {
    for delivery in DELIVERIES {
        let (device, domain) = setup(delivery);
        let good = Arc::new(AtomicU64::new(0));
        let handles = Arc::clone(&good);
        let options = IrqOptions { storm_window: 100, ..IrqOptions::default() };
        let handler = move |_| if handles.load(Ordering::SeqCst) == 0 { IrqReturn::None } else { IrqReturn::Handled };
        let irq = domain.register_with(&device.backend(), IrqIndex::MSI, 0, options, handler).expect("registered");
        // A pause of this machine in the middle of a window begins another.
        until("a storm", || {
            irq.pend();
            irq.stats().stormed
        });
        let delivered = irq.stats().delivered;
        assert!(!device.is_armed(0), "{delivery:?}");
        good.store(1, Ordering::SeqCst);
        irq.rearm().expect("rearmed");
        domain
            .wait("one for what came meanwhile", soon(), || irq.stats().delivered == delivered + 1)
            .expect("delivered");
        device.fire(0);
        domain.wait("delivery", soon(), || irq.stats().delivered == delivered + 2).expect("delivered");
        assert!(!irq.stats().stormed, "{delivery:?}");
    }
}

#[test]
fn handled_interrupts_are_no_storm() {
    for delivery in DELIVERIES {
        let (device, domain) = setup(delivery);
        let runs = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&runs);
        let options = IrqOptions { storm_window: 100, ..IrqOptions::default() };
        let handler = move |_| {
            if count.fetch_add(1, Ordering::SeqCst).is_multiple_of(50) { IrqReturn::Handled } else { IrqReturn::None }
        };
        let irq = domain.register_with(&device.backend(), IrqIndex::MSI, 0, options, handler).expect("registered");
        for count in 1..=1000 {
            irq.pend();
            until("each delivery", || irq.stats().delivered == count);
        }
        assert_eq!((irq.stats().stormed, runs.load(Ordering::SeqCst)), (false, 1000));
    }
}

#[test]
fn line_whose_handlers_all_panicked_is_not_delivered_any_more() {
    for delivery in DELIVERIES {
        let (device, domain) = setup(delivery);
        let own = Arc::new(OnceLock::<u64>::new());
        let seen = Arc::clone(&own);
        let handler = move |_| -> IrqReturn {
            let _once = seen.set(1);
            std::panic::resume_unwind(Box::new("a bug"))
        };
        let irq = domain.register(&device.backend(), IrqIndex::INTX, 0, handler).expect("registered");
        device.assert(true);
        domain.wait("the panic", soon(), || own.get().is_some()).expect("it ran");
        until("its end", || !irq.is_active());
        domain.deliver();
        assert_eq!((irq.stats().delivered, device.is_masked()), (1, true), "{delivery:?}");
    }
}
