//! The checks that a kernel developer misses: each finds its mistake, with both places, and leaves the right way alone.

use crate::DELIVERY;
use crate::irq_device::{self, Counted, Lines, soon, until};
use nix::time::{ClockId, clock_gettime};
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{IrqDomain, IrqLock, IrqReturn, Lock, Place, Registration, Rule, Violation, might_sleep, violations};
use udrv_backend::IrqIndex;

fn domain() -> IrqDomain {
    IrqDomain::new(DELIVERY).expect("a domain")
}

/// Violations of a rule between two lines of this file, in either order.
fn between(rule: Rule, a: u32, b: u32) -> Vec<Violation> {
    let is_mine = |place: Place, line| place.file() == file!() && place.line() == line;
    let pair = |it: &Violation| {
        it.other
            .is_some_and(|other| (is_mine(it.at, a) && is_mine(other, b)) || (is_mine(it.at, b) && is_mine(other, a)))
    };
    violations().into_iter().filter(|it| it.rule == rule && pair(it)).collect()
}

fn mentions(violation: &Violation, lines: [u32; 2]) -> bool {
    let text = violation.to_string();
    lines.iter().all(|line| text.contains(&format!("{}:{line}:", file!())))
}

/// Pends it and waits for its handler, which may run on the domain's thread.
fn pend(irq: &Registration) {
    let before = irq.stats().delivered;
    irq.pend();
    until("its handler", || irq.stats().delivered > before);
}

/// Uses so much of a processor's time, however long that takes.
fn compute(time: Duration) {
    let used = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has one"));
    let end = used() + time;
    while used() < end {
        std::hint::spin_loop();
    }
}

/// Levels of what is logged.
struct Levels(mpsc::Sender<tracing::Level>);

impl tracing::Subscriber for Levels {
    fn enabled(&self, _metadata: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _span: &tracing::span::Id, _values: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _span: &tracing::span::Id, _follows: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        _ = self.0.send(*event.metadata().level());
    }
    fn enter(&self, _span: &tracing::span::Id) {}
    fn exit(&self, _span: &tracing::span::Id) {}
}

/// What `work` logs on this thread.
fn levels_of(work: impl FnOnce()) -> Vec<tracing::Level> {
    let (tell, told) = mpsc::channel();
    tracing::subscriber::with_default(Levels(tell), work);
    told.iter().collect()
}

/// More threads that want a processor than there are, `each` for one of them, while `work` runs.
fn on_a_busy_machine<T>(each: usize, work: impl FnOnce() -> T) -> T {
    let processors = std::thread::available_parallelism().expect("known").get();
    struct StopAtTheEnd<'a>(&'a AtomicBool);
    impl Drop for StopAtTheEnd<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (stop, running) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _stop = StopAtTheEnd(&stop);
        for _ in 0..each * processors {
            scope.spawn(|| {
                running.fetch_add(1, Ordering::Relaxed);
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        until("all of them", || running.load(Ordering::Relaxed) == each * processors);
        work()
    })
}

#[track_caller]
fn here() -> u32 {
    Location::caller().line()
}

#[test]
fn might_sleep_in_a_section_names_both_places() {
    let domain = domain();
    let (open, sleep) = (here() + 1, here() + 2);
    let section = domain.off_guard();
    might_sleep();
    drop(section);
    might_sleep();

    let found = between(Rule::Sleep, open, sleep);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(mentions(&found[0], [open, sleep]), "{}", found[0]);
    assert!(between(Rule::Sleep, open, sleep + 2).is_empty(), "after the section it is allowed");
}

#[test]
fn wait_in_a_section_fails_and_names_both_places() {
    let domain = domain();
    let (open, wait) = (here() + 1, here() + 2);
    let section = domain.off_guard();
    let error = domain.wait("nothing", soon(), || true).expect_err("it would wait for ever").to_string();
    drop(section);

    for line in [open, wait] {
        assert!(error.contains(&format!("{}:{line}:", file!())), "no line {line} in: {error}");
    }
    assert_eq!(between(Rule::Sleep, open, wait).len(), 1);
}

#[test]
fn wait_with_another_domains_interrupts_off_is_reported() {
    let (one, other) = (domain(), domain());
    let (open, wait) = (here() + 1, here() + 2);
    let section = other.off_guard();
    one.wait("nothing", soon(), || true).expect("its own interrupts are on");
    drop(section);

    assert_eq!(between(Rule::Sleep, open, wait).len(), 1);
}

#[test]
fn might_sleep_in_a_handler_is_reported_with_its_source() {
    let (device, domain) = (Lines::new(), domain());
    let handler = |_| {
        might_sleep();
        IrqReturn::Handled
    };
    let sleep = here() - 3;
    let irq = domain.register(&device.backend(), IrqIndex::MSI, 0, handler).expect("registered");
    pend(&irq);

    let found = violations().into_iter().find(|it| it.at.file() == file!() && it.at.line() == sleep);
    let text = found.expect("it is reported").to_string();
    assert!(text.contains("in a handler of MSI vector 0 of model:lines"), "{text}");
}

#[test]
fn lock_taken_with_interrupts_on_and_in_a_handler_is_reported_before_it_deadlocks() {
    let (device, domain, data) = (Lines::new(), domain(), Arc::new(Lock::new(0)));
    let inside = Arc::clone(&data);
    let handler = move |_| {
        *inside.lock() += 1;
        IrqReturn::Handled
    };
    let in_handler = here() - 3;
    let irq = domain.register(&device.backend(), IrqIndex::MSI, 0, handler).expect("registered");
    pend(&irq);
    let (off, on) = (here() + 1, here() + 2);
    domain.off(|_| *data.lock() += 1);
    *data.lock() += 1;

    let found = between(Rule::UnsafeInHandler, on, in_handler);
    assert_eq!(found.len(), 1, "{:?}", violations());
    assert!(mentions(&found[0], [on, in_handler]), "{}", found[0]);
    assert!(between(Rule::UnsafeInHandler, off, in_handler).is_empty(), "with interrupts off it is right");
}

#[test]
fn irq_lock_of_the_handlers_domain_is_right_and_of_another_is_reported() {
    let (device, domain, other) = (Lines::new(), domain(), domain());
    let (right, wrong) = (Arc::new(IrqLock::new(&domain, 0)), Arc::new(IrqLock::new(&other, 0)));
    let inside = (Arc::clone(&right), Arc::clone(&wrong));
    let handler = move |_| {
        *inside.0.lock() += 1;
        *inside.1.lock() += 1;
        IrqReturn::Handled
    };
    let in_handler = here() - 3;
    let irq = domain.register(&device.backend(), IrqIndex::MSI, 0, handler).expect("registered");
    let outside = here() + 1;
    *right.lock() += 1;
    *wrong.lock() += 1;
    pend(&irq);

    assert!(between(Rule::UnsafeInHandler, outside, in_handler - 1).is_empty());
    assert_eq!(between(Rule::UnsafeInHandler, outside + 1, in_handler).len(), 1, "{:?}", violations());
}

#[test]
fn locks_taken_in_both_orders_are_reported_once_with_both_places() {
    let (a, b) = (Lock::new(()), Lock::new(()));
    for _ in 0..3 {
        let _a = a.lock();
        drop(b.lock());
    }
    let first = here() - 2;
    assert!(violations().iter().all(|it| it.at.file() != file!() || it.at.line() != first), "one order is right");
    for _ in 0..3 {
        let _b = b.lock();
        drop(a.lock());
    }
    let second = here() - 2;

    let found = between(Rule::LockOrder, first, second);
    assert_eq!(found.len(), 1, "{:?}", violations());
    assert!(mentions(&found[0], [first, second]), "{}", found[0]);
}

#[test]
fn lock_order_through_a_third_lock_is_reported() {
    let locks = [(); 3].map(|()| Lock::new(()));
    for [held, taken] in [[0, 1], [1, 2], [2, 0]] {
        let _held = locks[held].lock();
        drop(locks[taken].lock());
    }
    let line = here() - 2;

    assert_eq!(between(Rule::LockOrder, line, line).len(), 1, "{:?}", violations());
}

#[test]
fn section_longer_than_its_budget_is_reported_and_leads_the_account() {
    let domain = domain();
    domain.set_section_budget(Duration::from_millis(1));
    let (short, long) = (here() + 1, here() + 2);
    domain.off(|_| {});
    let levels = levels_of(|| domain.off(|_| compute(Duration::from_millis(5))));

    let off = domain.irqs_off();
    assert_eq!(off.places.iter().map(|place| place.at.line()).collect::<Vec<_>>(), [long, short], "{off}");
    assert!(off.places[0].longest >= Duration::from_millis(5) && off.places[0].over_budget == 1, "{off}");
    assert_eq!(off.histogram.iter().sum::<u64>(), 2, "{off}");
    assert_eq!(between(Rule::Budget, long, long).len(), 1);
    assert_eq!(levels, [tracing::Level::ERROR], "it is the driver's doing, whoever else had the processor meanwhile");
}

#[test]
fn section_that_waits_longer_than_its_budget_is_the_drivers_mistake() {
    let domain = domain();
    domain.set_section_budget(Duration::from_millis(1));
    let line = here() + 1;
    let levels = levels_of(|| domain.off(|_| std::thread::park_timeout(Duration::from_millis(5))));

    assert_eq!(between(Rule::Budget, line, line).len(), 1, "{:?}", violations());
    assert_eq!(levels, [tracing::Level::ERROR]);
}

#[test]
fn section_that_the_host_prolongs_is_reported_as_a_warning() {
    let domain = domain();
    let budget = Duration::from_millis(10);
    domain.set_section_budget(budget);
    let line = here() + 5;
    let levels = levels_of(|| {
        on_a_busy_machine(8, || {
            let deadline = soon();
            while between(Rule::Delayed, line, line).is_empty() && deadline.remaining().is_some() {
                let _off = domain.off_guard();
                let end = Deadline::after(4 * budget);
                // Each look lets the others have the processor.
                until("the time to pass", || end.remaining().is_none());
            }
        });
    });

    let found = between(Rule::Delayed, line, line);
    assert_eq!(found.len(), 1, "{:?}", violations());
    assert!(found[0].to_string().contains("the host had the processor for "), "{}", found[0]);
    assert!(levels.contains(&tracing::Level::WARN), "{levels:?}");
}

#[test]
fn section_during_which_the_host_preempts_is_counted() {
    let domain = domain();
    let preempted = || domain.irqs_off().places.iter().map(|place| place.preempted).sum::<u64>() > 0;
    on_a_busy_machine(2, || {
        let deadline = soon();
        while !preempted() && deadline.remaining().is_some() {
            domain.off(|_| (0..1_000_000).for_each(|_| std::hint::spin_loop()));
        }
    });

    assert!(preempted(), "{}", domain.irqs_off());
}

#[test]
fn disable_in_a_section_is_reported() {
    let counted = Counted::new(DELIVERY);
    let (open, disable) = (here() + 1, here() + 2);
    let section = counted.domain.off_guard();
    counted.irq.disable().expect("nothing runs");
    drop(section);

    assert_eq!(between(Rule::Sleep, open, disable).len(), 1, "{:?}", violations());
}

/// A device's two locks, as a driver makes them: for each of its devices at the same lines.
fn locks_of_one_device() -> (Lock<()>, Lock<()>) {
    let queue = Lock::new(());
    let state = Lock::new(());
    (queue, state)
}

#[test]
fn locks_of_two_devices_taken_in_both_orders_are_reported_with_both_stacks() {
    let (one, other) = (locks_of_one_device(), locks_of_one_device());
    {
        let _queue = one.0.lock();
        drop(one.1.lock());
    }
    let first = here() - 2;
    {
        let _state = other.1.lock();
        drop(other.0.lock());
    }
    let second = here() - 2;

    let found = between(Rule::LockOrder, first, second);
    assert_eq!(found.len(), 1, "{:?}", violations());
    let text = found[0].to_string();
    // Each stack goes through this test.
    let name = "locks_of_two_devices_taken_in_both_orders_are_reported_with_both_stacks";
    assert!(text.split("second stack:").all(|half| half.contains(name)), "{text}");
}

#[test]
fn locks_of_one_class_are_told_apart_among_themselves() {
    let table: Vec<_> = (0..3).map(|_| Lock::new(())).collect();
    for [held, taken] in [[0, 1], [1, 2], [0, 2]] {
        let _held = table[held].lock();
        drop(table[taken].lock());
    }
    let ascending = here() - 2;
    assert!(between(Rule::LockOrder, ascending, ascending).is_empty(), "{:?}", violations());
    {
        let _held = table[2].lock();
        drop(table[0].lock());
    }
    let descending = here() - 2;

    assert_eq!(between(Rule::LockOrder, ascending, descending).len(), 1, "{:?}", violations());
}

#[test]
fn locks_of_one_name_are_of_one_class_wherever_they_are_made() {
    let domain = domain();
    let (a, b) = (Lock::of_class("rings of a test", ()), IrqLock::of_class(&domain, "doorbells of a test", ()));
    {
        let _a = a.lock();
        drop(b.lock());
    }
    let first = here() - 2;
    let (a, b) = (Lock::of_class("rings of a test", ()), IrqLock::of_class(&domain, "doorbells of a test", ()));
    {
        let _b = b.lock();
        drop(a.lock());
    }
    let second = here() - 2;

    assert_eq!(between(Rule::LockOrder, first, second).len(), 1, "{:?}", violations());
}

/// Takes a lock for each event, as a log that goes through a driver of ours would.
struct LockingLog(Lock<u32>);

impl tracing::Subscriber for LockingLog {
    fn enabled(&self, _metadata: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _span: &tracing::span::Id, _values: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _span: &tracing::span::Id, _follows: &tracing::span::Id) {}
    fn event(&self, _event: &tracing::Event<'_>) {
        *self.0.lock() += 1;
        might_sleep();
    }
    fn enter(&self, _span: &tracing::span::Id) {}
    fn exit(&self, _span: &tracing::span::Id) {}
}

#[test]
fn violation_told_to_a_log_that_breaks_rules_itself_does_not_deadlock() {
    let log = LockingLog(Lock::new(0));
    let logging = std::thread::spawn(move || {
        tracing::subscriber::with_default(log, || {
            let (a, b, domain) = (Lock::new(()), Lock::new(()), domain());
            for [held, taken] in [[&a, &b], [&b, &a]] {
                let _held = held.lock();
                drop(taken.lock());
            }
            let _section = domain.off_guard();
            might_sleep();
        });
    });
    until("the log", || logging.is_finished());
    logging.join().expect("no panic");
}

/// Uses everything that is checked when its thread ends.
struct AtTheEnd(Arc<(Lock<u32>, IrqLock<u32>, irq_device::Counted)>);

impl Drop for AtTheEnd {
    fn drop(&mut self) {
        let (lock, irq_lock, it) = &*self.0;
        *lock.lock() += 1;
        *irq_lock.lock() += 1;
        it.irq.pend();
        might_sleep();
    }
}

#[test]
fn thread_that_ends_with_locks_and_sections_still_to_be_used_is_no_panic() {
    thread_local! {
        static LAST: std::cell::RefCell<Option<AtTheEnd>> = const { std::cell::RefCell::new(None) };
    }
    let it = Counted::new(DELIVERY);
    let shared = Arc::new((Lock::new(0), IrqLock::new(&it.domain, 0), it));
    let mine = AtTheEnd(Arc::clone(&shared));
    let thread = std::thread::spawn(move || {
        // First made, last destroyed: after what the checks keep for this thread.
        LAST.set(Some(mine));
        shared.2.domain.off(|_| *shared.0.lock() += 1);
        pend(&shared.2.irq);
        shared
    });
    let shared = thread.join().expect("no panic");
    until("both runs", || shared.2.runs() == 2);
    assert_eq!((*shared.0.lock(), *shared.1.lock()), (2, 1));
}
