//! The rules of docs/irq-semantics.md, each in every delivery, on the edu model in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain, IrqLockGuard, IrqReturn, Registration, Section, SectionGuard};
use udrv_backend::{AnyBackend, Error, IrqIndex};

const DELIVERIES: [Delivery; 3] = [Delivery::Thread, Delivery::Signal, Delivery::Poll];

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

struct Counted {
    device: AnyBackend,
    domain: IrqDomain,
    irq: Registration,
    runs: Arc<AtomicU64>,
}

/// A device whose MSI counts its deliveries.
fn counted(delivery: Delivery) -> Counted {
    let device: AnyBackend = Arc::new(udrv_edu::model::edu());
    let domain = IrqDomain::new(delivery).expect("a domain");
    let runs = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&runs);
    let handler = move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        IrqReturn::Handled
    };
    let irq = domain.register(&device, IrqIndex::MSI, 0, handler).expect("a registration");
    Counted { device, domain, irq, runs }
}

impl Counted {
    fn fire(&self) {
        self.device.fire_irq(IrqIndex::MSI, 0).expect("fire");
    }
    fn runs(&self) -> u64 {
        self.runs.load(Ordering::SeqCst)
    }
    fn wait_raised(&self, count: u64) {
        // Raised is counted when the mark is set, so it can be waited for without a delivery.
        let reached = || {
            self.domain.deliver();
            Ok(self.irq.stats().raised >= count)
        };
        soon().poll("the mark", reached).expect("marked");
    }
}

#[test]
fn signal_without_section_is_delivered() {
    for delivery in DELIVERIES {
        let it = counted(delivery);
        it.fire();
        it.domain.wait("delivery", soon(), || it.runs() == 1).expect("delivered");
    }
}

#[test]
fn signals_in_section_are_delivered_once_at_its_end() {
    for delivery in DELIVERIES {
        let it = counted(delivery);
        it.domain.off(|_| {
            it.domain.off(|_| {
                for _ in 0..5 {
                    it.fire();
                }
                it.wait_raised(5);
            });
            assert_eq!(it.runs(), 0, "{delivery:?}: inner section's end must deliver nothing");
        });
        assert_eq!(it.runs(), 1, "{delivery:?}: merged into one, before the section's end returned");
        assert_eq!(it.irq.stats().raised, 5);
    }
}

#[test]
fn section_that_panics_is_closed() {
    for delivery in DELIVERIES {
        let it = counted(delivery);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            it.domain.off(|_| -> () { std::panic::resume_unwind(Box::new("inside")) });
        }));
        assert!(panicked.is_err());
        it.fire();
        it.domain.wait("delivery", soon(), || it.runs() == 1).expect("delivered after the panic");
    }
}

#[test]
fn inner_section_that_panics_leaves_interrupts_off_as_they_were_before_it() {
    for delivery in DELIVERIES {
        let it = counted(delivery);
        it.domain.off(|_| {
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                it.domain.off(|_| -> () { std::panic::resume_unwind(Box::new("inside")) });
            }));
            assert!(panicked.is_err());
            it.irq.pend();
            assert_eq!(it.runs(), 0, "{delivery:?}: the outer section is open");
        });
        assert_eq!(it.runs(), 1, "{delivery:?}");
    }
}

/// Compiles only for what is not `$marker`: otherwise there would be two of `Ambiguous`.
macro_rules! assert_not {
    ($type:ty, $marker:ident) => {{
        trait Ambiguous<A> {
            fn is_not() {}
        }
        impl<T: ?Sized> Ambiguous<()> for T {}
        impl<T: ?Sized + $marker> Ambiguous<u8> for T {}
        <$type as Ambiguous<_>>::is_not();
    }};
}

#[test]
fn token_of_a_section_stays_on_its_thread() {
    assert_not!(Section<'_>, Send);
    assert_not!(Section<'_>, Sync);
    assert_not!(SectionGuard<'_>, Send);
    assert_not!(SectionGuard<'_>, Sync);
    assert_not!(IrqLockGuard<'_, ()>, Send);
}

#[test]
fn register_access_runs_no_handler_on_the_thread_that_makes_it() {
    use udrv_backend::{RegionIndex, Width};
    for delivery in DELIVERIES {
        let device: AnyBackend = Arc::new(udrv_edu::model::edu());
        let domain = IrqDomain::new(delivery).expect("a domain");
        let me = std::thread::current().id();
        let (here, elsewhere) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counts = (Arc::clone(&here), Arc::clone(&elsewhere));
        let handler = move |_| {
            let count = if std::thread::current().id() == me { &counts.0 } else { &counts.1 };
            count.fetch_add(1, Ordering::SeqCst);
            IrqReturn::Handled
        };
        let _irq = domain.register(&device, IrqIndex::MSI, 0, handler).expect("a registration");
        udrv::pci::Config::new(&*device)
            .change_command(udrv::pci::Command::BUS_MASTER, udrv::pci::Command::empty())
            .expect("messages may be sent");
        for _ in 0..100 {
            // Raises, and acknowledges: the interrupt comes within the access.
            for offset in [0x60, 0x64] {
                device.write(RegionIndex::BAR0, offset, Width::Bits32, 1).expect("written");
                device.read(RegionIndex::BAR0, 4, Width::Bits32).expect("read");
            }
        }
        assert_eq!(here.load(Ordering::SeqCst), 0, "{delivery:?}");
        let ran = || here.load(Ordering::SeqCst) + elsewhere.load(Ordering::SeqCst) > 0;
        domain.wait("delivery, at a delivery point", soon(), ran).expect("delivered");
        assert_eq!(here.load(Ordering::SeqCst) > 0, delivery != Delivery::Thread, "{delivery:?}");
    }
}

#[test]
fn section_on_another_thread_holds_handlers_back() {
    for delivery in DELIVERIES {
        let it = counted(delivery);
        let (opened, is_open) = mpsc::channel();
        let (close, may_close) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let domain = it.domain.clone();
            let other = scope.spawn(move || {
                domain.off(|_| {
                    opened.send(()).expect("opened");
                    may_close.recv_timeout(Duration::from_secs(10)).expect("told to close");
                });
            });
            is_open.recv_timeout(Duration::from_secs(10)).expect("the section opens");
            it.fire();
            it.wait_raised(1);
            assert_eq!(it.runs(), 0);
            close.send(()).expect("close");
            other.join().expect("the other thread");
        });
        assert_eq!(it.runs(), 1);
    }
}

#[test]
fn disabled_source_keeps_its_signal_until_the_last_enable() {
    for delivery in DELIVERIES {
        let it = counted(delivery);
        it.irq.disable().expect("disable");
        it.irq.disable_nosync();
        it.fire();
        it.wait_raised(1);
        it.irq.enable();
        assert_eq!((it.runs(), it.irq.is_pending()), (0, true), "{delivery:?}");
        it.irq.enable();
        it.domain.wait("delivery", soon(), || it.runs() == 1).expect("delivered");
    }
}

#[test]
fn source_disabled_without_waiting_by_its_own_handler_is_not_delivered_until_enabled() {
    for delivery in DELIVERIES {
        let device: AnyBackend = Arc::new(udrv_edu::model::edu());
        let domain = IrqDomain::new(delivery).expect("a domain");
        let own = Arc::new(std::sync::OnceLock::<Registration>::new());
        let runs = Arc::new(AtomicU64::new(0));
        let (mine, count) = (Arc::clone(&own), Arc::clone(&runs));
        let handler = move |_| {
            if let Some(irq) = mine.get() {
                irq.disable_nosync();
            }
            count.fetch_add(1, Ordering::SeqCst);
            IrqReturn::Handled
        };
        assert!(own.set(domain.register(&device, IrqIndex::MSI, 0, handler).expect("a registration")).is_ok());
        let irq = own.get().expect("registered");
        let is_done = |count| irq.stats().delivered == count && !irq.is_active();
        device.fire_irq(IrqIndex::MSI, 0).expect("fire");
        domain.wait("the first", soon(), || is_done(1)).expect("delivered");
        device.fire_irq(IrqIndex::MSI, 0).expect("fire");
        let marked = || {
            domain.deliver();
            Ok(irq.is_pending())
        };
        soon().poll("the mark", marked).expect("marked");
        assert_eq!(runs.load(Ordering::SeqCst), 1, "{delivery:?}: it is disabled");
        irq.enable();
        domain.wait("the second", soon(), || is_done(2)).expect("delivered");
    }
}

#[test]
fn dropped_registration_waits_for_its_handler() {
    for delivery in DELIVERIES {
        let device: AnyBackend = Arc::new(udrv_edu::model::edu());
        let domain = IrqDomain::new(delivery).expect("a domain");
        let (entered, is_inside) = mpsc::channel();
        let (leave, may_leave) = mpsc::channel::<()>();
        let finished = Arc::new(AtomicU64::new(0));
        let finish = Arc::clone(&finished);
        let handler = move |_| {
            let _seen = entered.send(());
            let _told = may_leave.recv_timeout(Duration::from_secs(10));
            finish.store(1, Ordering::SeqCst);
            IrqReturn::Handled
        };
        let irq = domain.register(&device, IrqIndex::MSI, 0, handler).expect("a registration");
        device.fire_irq(IrqIndex::MSI, 0).expect("fire");
        // Where handlers run at delivery points, on this thread.
        let (waiting, ran) = (domain.clone(), Arc::clone(&finished));
        let runner = std::thread::spawn(move || waiting.wait("it", soon(), || ran.load(Ordering::SeqCst) == 1));
        is_inside.recv_timeout(Duration::from_secs(10)).expect("the handler runs");
        let dropper = std::thread::spawn(move || drop(irq));
        // Nothing to wait for but time itself: it must not end.
        let pause = Deadline::after(Duration::from_millis(20));
        soon().poll("a while", || Ok(dropper.is_finished() || pause.remaining().is_none())).expect("a while");
        assert!(!dropper.is_finished(), "{delivery:?}: the drop returned while the handler runs");
        leave.send(()).expect("leave");
        dropper.join().expect("the drop returns");
        assert_eq!(finished.load(Ordering::SeqCst), 1, "{delivery:?}: the drop returned before the handler");
        runner.join().expect("no panic").expect("it ran");
    }
}

#[test]
fn disable_from_its_own_handler_is_an_error() {
    for delivery in DELIVERIES {
        let device: AnyBackend = Arc::new(udrv_edu::model::edu());
        let domain = IrqDomain::new(delivery).expect("a domain");
        let (tell, told) = mpsc::channel();
        let own = Arc::new(std::sync::OnceLock::<Registration>::new());
        let seen = Arc::clone(&own);
        let handler = move |_| {
            let refused = matches!(seen.get().map(Registration::disable), Some(Err(Error::NotSupported { .. })));
            let _told = tell.send(refused);
            IrqReturn::Handled
        };
        let irq = domain.register(&device, IrqIndex::MSI, 0, handler).expect("a registration");
        assert!(own.set(irq).is_ok());
        device.fire_irq(IrqIndex::MSI, 0).expect("fire");
        let ran = || own.get().is_some_and(|irq| irq.stats().delivered == 1);
        domain.wait("the handler", soon(), ran).expect("it ends");
        assert!(told.recv_timeout(Duration::from_secs(10)).expect("the handler ends"), "disable must refuse");
    }
}

#[test]
fn panicking_handler_is_retired_and_its_neighbour_goes_on() {
    for delivery in DELIVERIES {
        let it = counted(delivery);
        let other: AnyBackend = Arc::new(udrv_edu::model::edu());
        let bad = it
            .domain
            .register(&other, IrqIndex::MSI, 0, |_| std::panic::resume_unwind(Box::new("a bug")))
            .expect("a registration");
        other.fire_irq(IrqIndex::MSI, 0).expect("fire");
        it.domain.wait("the panic", soon(), || bad.stats().delivered == 1).expect("it ran once");
        other.fire_irq(IrqIndex::MSI, 0).expect("fire again");
        it.fire();
        it.domain.wait("delivery", soon(), || it.runs() == 1).expect("the neighbour is served");
        assert_eq!(bad.stats().delivered, 1);
    }
}

#[test]
fn level_line_still_asserted_after_its_handler_is_delivered_again() {
    use udrv_backend::{RegionIndex, Width};
    for delivery in DELIVERIES {
        let device: AnyBackend = Arc::new(udrv_edu::model::edu());
        let domain = IrqDomain::new(delivery).expect("a domain");
        let runs = Arc::new(AtomicU64::new(0));
        let (count, line) = (Arc::clone(&runs), Arc::clone(&device));
        let handler = move |_| {
            // Only the second run acknowledges: the first leaves the line asserted.
            if count.fetch_add(1, Ordering::SeqCst) == 1 {
                line.write(RegionIndex::BAR0, 0x64, Width::Bits32, 1).expect("acknowledge");
            }
            IrqReturn::Handled
        };
        let _irq = domain.register(&device, IrqIndex::INTX, 0, handler).expect("a registration");
        device.write(RegionIndex::BAR0, 0x60, Width::Bits32, 1).expect("raise");
        domain.wait("two deliveries", soon(), || runs.load(Ordering::SeqCst) == 2).expect("delivered again");
        domain.deliver();
        assert_eq!(runs.load(Ordering::SeqCst), 2, "{delivery:?}: quiet once acknowledged");
    }
}
