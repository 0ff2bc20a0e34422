//! Several domains in one process: none holds up another, and what is called in a handler of one waits for nothing that may
//! wait for that handler.

mod irq_device;

use irq_device::{Counted, DELIVERIES, Lines, counting, until};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;
use udrv::irq::{BottomHalf, IrqDomain, IrqLock, IrqOptions, IrqReturn, Registration};
use udrv_backend::IrqIndex;

const PATIENCE: Duration = Duration::from_secs(10);

/// To be dropped by a handler.
type Doomed<T> = Arc<Mutex<Option<T>>>;

/// A source of `domain` whose handler drops something.
fn dropping<T: Send + 'static>(domain: &IrqDomain, doomed: &Doomed<T>) -> Registration {
    let doomed = Arc::clone(doomed);
    let handler = move |_| {
        let it = doomed.lock().expect("no test panics inside").take();
        drop(it);
        IrqReturn::Handled
    };
    domain.register(&Lines::new().backend(), IrqIndex::MSI, 9, handler).expect("registered")
}

/// Work that says that it has begun, waits until it may go on, and opens a section of `domain`.
fn work_with_a_section(domain: &IrqDomain) -> (mpsc::Receiver<()>, mpsc::Sender<()>, impl FnMut() + Send + 'static) {
    let ((tell, begun), (go, may_go), domain) = (mpsc::channel(), mpsc::channel(), domain.clone());
    let work = move || {
        _ = tell.send(());
        _ = may_go.recv_timeout(PATIENCE);
        domain.off(|_| {});
    };
    (begun, go, work)
}

/// While that work runs, a handler of the domain of its section drops what it belongs to: neither waits for the other.
fn assert_dropped_at_once<T: Send + 'static>(domain: &IrqDomain, doomed: &Doomed<T>, go: &mpsc::Sender<()>) {
    let dropping = dropping(domain, doomed);
    let dropper = std::thread::spawn(move || dropping.pend());
    until("the handler", || doomed.try_lock().is_ok_and(|it| it.is_none()));
    go.send(()).expect("told");
    until("both", || dropper.is_finished());
    dropper.join().expect("no panic");
}

#[test]
fn domains_do_not_hold_each_other_back() {
    for delivery in DELIVERIES {
        let (one, other) = (Counted::new(delivery), Counted::new(delivery));
        one.domain.off(|_| {
            other.irq.pend();
            assert_eq!(other.runs(), 1, "{delivery:?}");
        });
    }
}

#[test]
fn handlers_of_two_domains_that_pend_each_others_sources_wait_for_neither() {
    for delivery in DELIVERIES {
        let sides = [Counted::new(delivery), Counted::new(delivery)];
        let others = sides.each_ref().map(|side| {
            Arc::new(
                side.domain
                    .register(&side.device.backend(), IrqIndex::MSI, 2, counting(&side.runs))
                    .expect("registered"),
            )
        });
        let both_run = Arc::new(Barrier::new(2));
        let (ended, has_ended) = mpsc::channel();
        for (side, other) in sides.iter().zip(others.iter().rev()) {
            let (other, both_run, ended) = (Arc::clone(other), Arc::clone(&both_run), ended.clone());
            let handler = move |_| {
                both_run.wait();
                other.pend();
                IrqReturn::Handled
            };
            let first = side.domain.register(&side.device.backend(), IrqIndex::MSI, 1, handler).expect("registered");
            std::thread::spawn(move || {
                first.pend();
                _ = ended.send(());
            });
        }
        for _ in &sides {
            has_ended.recv_timeout(Duration::from_secs(10)).expect("neither waits for the other");
        }
        for side in &sides {
            side.wait_runs(1);
        }
    }
}

#[test]
fn bottom_half_of_another_domain_that_waits_for_the_handler_is_dropped_in_it() {
    for delivery in DELIVERIES {
        let [one, other] = [(); 2].map(|()| IrqDomain::new(delivery).expect("a domain"));
        let (begun, go, work) = work_with_a_section(&one);
        let half = Arc::new(Mutex::new(Some(other.bottom_half(work))));
        let scheduled = Arc::clone(&half);
        let schedule = move |_| {
            scheduled.lock().expect("no test panics inside").as_ref().map(BottomHalf::schedule);
            IrqReturn::Handled
        };
        let irq = other.register(&Lines::new().backend(), IrqIndex::MSI, 0, schedule).expect("registered");
        let runner = std::thread::spawn(move || irq.pend());
        begun.recv_timeout(PATIENCE).expect("it runs");
        assert_dropped_at_once(&one, &half, &go);
        runner.join().expect("no panic");
    }
}

#[test]
fn threaded_half_of_another_domain_that_waits_for_the_handler_is_dropped_in_it() {
    for delivery in DELIVERIES {
        let [one, other] = [(); 2].map(|()| IrqDomain::new(delivery).expect("a domain"));
        let (begun, go, mut work) = work_with_a_section(&one);
        let (wake, options) = (|_| IrqReturn::WakeThread, IrqOptions::default());
        let device = Lines::new().backend();
        let irq = other.register_threaded(&device, IrqIndex::MSI, 0, options, wake, move |_| work());
        let irq = irq.expect("registered");
        irq.pend();
        begun.recv_timeout(PATIENCE).expect("it runs");
        assert_dropped_at_once(&one, &Arc::new(Mutex::new(Some(irq))), &go);
    }
}

#[test]
fn threaded_half_that_is_woken_while_it_is_dropped_in_a_handler_it_waits_for_is_not_waited_for() {
    for delivery in DELIVERIES {
        let [one, other] = [(); 2].map(|()| IrqDomain::new(delivery).expect("a domain"));
        let (begun, go, mut work) = work_with_a_section(&one);
        let ((tell, is_inside), (leave, may_leave)) = (mpsc::channel(), mpsc::channel::<()>());
        let wake = move |_| {
            _ = tell.send(());
            _ = may_leave.recv_timeout(PATIENCE);
            IrqReturn::WakeThread
        };
        let (device, options) = (Lines::new().backend(), IrqOptions::default());
        let irq = other.register_threaded(&device, IrqIndex::MSI, 0, options, wake, move |_| work());
        let irq = irq.expect("registered");
        let (raiser, delivered) = (irq.raiser(), other.clone());
        let runner = std::thread::spawn(move || {
            raiser.raise();
            delivered.deliver();
        });
        is_inside.recv_timeout(PATIENCE).expect("its handler runs");
        let doomed = Arc::new(Mutex::new(Some(irq)));
        let dropping = dropping(&one, &doomed);
        let dropper = std::thread::spawn(move || dropping.pend());
        until("the handler", || doomed.try_lock().is_ok_and(|it| it.is_none()));
        leave.send(()).expect("told");
        begun.recv_timeout(PATIENCE).expect("its half runs");
        go.send(()).expect("told");
        until("both", || dropper.is_finished() && runner.is_finished());
        dropper.join().and(runner.join()).expect("no panic");
    }
}

/// Takes a lock when it is dropped.
struct LocksOnDrop(Arc<IrqLock<()>>);

impl Drop for LocksOnDrop {
    fn drop(&mut self) {
        drop(self.0.lock());
    }
}

#[test]
fn threaded_half_that_takes_a_lock_when_it_goes_is_dropped_in_a_handler() {
    for delivery in DELIVERIES {
        let domain = IrqDomain::new(delivery).expect("a domain");
        let owned = LocksOnDrop(Arc::new(IrqLock::new(&domain, ())));
        let half = move |_| {
            let _mine = &owned;
        };
        let (wake, options) = (|_| IrqReturn::WakeThread, IrqOptions::default());
        let idle = domain.register_threaded(&Lines::new().backend(), IrqIndex::MSI, 0, options, wake, half);
        let idle = Arc::new(Mutex::new(Some(idle.expect("registered"))));
        let dropping = dropping(&domain, &idle);
        let dropper = std::thread::spawn(move || dropping.pend());
        until("the handler's end", || dropper.is_finished());
        dropper.join().expect("no panic");
    }
}
