//! Rule 7 of docs/irq-semantics.md: a line is armed for all its handlers or for none, whatever fails on the way, and whoever
//! registers meanwhile.

mod irq_device;

use irq_device::{DELIVERIES, Lines, soon, until};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Interrupt, IrqDomain, IrqOptions, IrqReturn, Priority, Registration};
use udrv_backend::{Error, IrqIndex, Result};

const PATIENCE: Duration = Duration::from_secs(10);
const SHARED: IrqOptions = IrqOptions { shared: true, priority: Priority::Normal, storm_window: 100_000 };

fn refusal() -> Error {
    Error::NotSupported { what: "arming now", by: "a test".into() }
}

type Answer = Box<dyn FnMut() -> Result<()> + Send>;

/// An answer that refuses once, and then no more.
fn refusing_once() -> impl FnMut() -> Result<()> + Send {
    let mut left = 1;
    move || {
        left -= 1;
        if left >= 0 { Err(refusal()) } else { Ok(()) }
    }
}

/// Counts, and acknowledges.
fn acknowledging(device: &Arc<Lines>, runs: &Arc<AtomicU64>) -> impl FnMut(Interrupt) -> IrqReturn + Send + 'static {
    let (device, runs) = (Arc::clone(device), Arc::clone(runs));
    move |_| {
        device.assert(false);
        runs.fetch_add(1, Ordering::SeqCst);
        IrqReturn::Handled
    }
}

fn assert_delivers(device: &Lines, domain: &IrqDomain, runs: &AtomicU64) {
    let before = runs.load(Ordering::SeqCst);
    device.assert(true);
    domain.wait("the line", soon(), || runs.load(Ordering::SeqCst) > before).expect("delivered");
}

#[test]
fn line_whose_arming_fails_while_a_second_handler_registers_is_armed_by_the_second() {
    // Before the line has its trigger, and when it has it already.
    let places: [fn(&Lines, Answer); 2] = [Lines::on_arming, Lines::on_unmasking];
    for (place, delivery) in places.into_iter().flat_map(|place| DELIVERIES.map(|delivery| (place, delivery))) {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        // As a client before us may have left it.
        device.backend().mask_irq(IrqIndex::INTX, 0).expect("masked");
        let ((begin, begun), (fail, may_fail)) = (mpsc::channel(), mpsc::channel::<()>());
        let mut refuse = refusing_once();
        let answer = move || {
            let answer = refuse();
            if answer.is_err() {
                _ = begin.send(());
                _ = may_fail.recv_timeout(PATIENCE);
            }
            answer
        };
        place(&device, Box::new(answer));
        let runs = Arc::new(AtomicU64::new(0));
        let register = || {
            let (domain, backend, handler) = (domain.clone(), device.backend(), acknowledging(&device, &runs));
            std::thread::spawn(move || domain.register_with(&backend, IrqIndex::INTX, 0, SHARED, handler))
        };
        let first = register();
        begun.recv_timeout(PATIENCE).expect("the first is being armed");
        let second = register();
        // It may wait for the first, but not say that all is well.
        let pause = Deadline::after(Duration::from_millis(50));
        until("the second, or none", || second.is_finished() || pause.remaining().is_none());
        fail.send(()).expect("told");

        let first = first.join().expect("no panic");
        assert!(matches!(first, Err(Error::NotSupported { .. })), "{delivery:?}: the first");
        let _second: Registration = second.join().expect("no panic").expect("the second is armed");
        assert_delivers(&device, &domain, &runs);
    }
}

#[test]
fn registration_that_fails_halfway_leaves_its_line_disarmed_and_free() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        device.on_unmasking(refusing_once());
        let runs = Arc::new(AtomicU64::new(0));
        let handler = acknowledging(&device, &runs);
        let refused = domain.register(&device.backend(), IrqIndex::INTX, 0, handler);
        assert!(matches!(refused, Err(Error::NotSupported { .. })), "{delivery:?}");
        assert!(!device.pin_is_armed(), "{delivery:?}: it has a trigger that nobody reads");

        let handler = acknowledging(&device, &runs);
        let _irq = domain.register(&device.backend(), IrqIndex::INTX, 0, handler).expect("free again");
        assert_delivers(&device, &domain, &runs);
    }
}

#[test]
fn storm_whose_rearming_fails_stays_disarmed_until_it_succeeds() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let options = IrqOptions { storm_window: 100, ..IrqOptions::default() };
        let irq = domain.register_with(&device.backend(), IrqIndex::INTX, 0, options, |_| IrqReturn::None);
        let irq = irq.expect("registered");
        until("a storm", || {
            irq.pend();
            irq.stats().stormed
        });
        device.on_unmasking(refusing_once());

        irq.rearm().expect_err("refused");
        assert!(irq.stats().stormed && !device.pin_is_armed(), "{delivery:?}");
        let delivered = irq.stats().delivered;
        irq.rearm().expect("rearmed");
        until("one for what came meanwhile", || {
            domain.deliver();
            irq.stats().delivered > delivered
        });
        assert!(device.pin_is_armed(), "{delivery:?}");
    }
}

#[test]
fn line_that_is_being_given_back_is_waited_for() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let ((begin, begun), (end, may_end)) = (mpsc::channel(), mpsc::channel::<()>());
        let runs = Arc::new(AtomicU64::new(0));
        let handler = acknowledging(&device, &runs);
        let first = domain.register_with(&device.backend(), IrqIndex::INTX, 0, SHARED, handler).expect("registered");
        let mut once = Some(());
        device.on_disarming(move || {
            if once.take().is_some() {
                _ = begin.send(());
                _ = may_end.recv_timeout(PATIENCE);
            }
            Ok(())
        });
        let dropper = std::thread::spawn(move || drop(first));
        begun.recv_timeout(PATIENCE).expect("it is being disarmed");
        let (its_domain, backend, handler) = (domain.clone(), device.backend(), acknowledging(&device, &runs));
        let second = std::thread::spawn(move || its_domain.register_with(&backend, IrqIndex::INTX, 0, SHARED, handler));
        let pause = Deadline::after(Duration::from_millis(50));
        until("the second, or none", || second.is_finished() || pause.remaining().is_none());
        end.send(()).expect("told");

        dropper.join().expect("the drop returns");
        let _second = second.join().expect("no panic").expect("the line is free by then");
        assert_delivers(&device, &domain, &runs);
    }
}

#[test]
fn shared_line_taken_and_given_back_by_threads_at_once_is_never_refused_nor_left_unarmed() {
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let irq =
                            domain.register_with(&device.backend(), IrqIndex::INTX, 0, SHARED, |_| IrqReturn::None);
                        let irq = irq.expect("a line being given back is waited for");
                        assert!(device.pin_is_armed(), "{delivery:?}");
                        drop(irq);
                    }
                });
            }
        });
        assert!(!device.pin_is_armed(), "{delivery:?}: the last one disarms");
    }
}
