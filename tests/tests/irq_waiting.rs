//! Rule 11 of docs/irq-semantics.md: waiting, as a call and as a task, and the signals that disturb it.
#![expect(unsafe_code, reason = "signal handlers are installed by unsafe calls")]

mod irq_device;

use irq_device::{Counted, DELIVERIES, soon, until};
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, sigaction};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;
use udrv::irq::Delivery;

/// The smallest executor: one task, on this thread, parked in between. Once the task waits, `raise` is called.
fn block_on<T>(task: impl Future<Output = T>, raise: impl FnOnce()) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut task = pin!(task);
    let deadline = soon();
    let mut raise = Some(raise);
    loop {
        if let Poll::Ready(value) = task.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        if let Some(raise) = raise.take() {
            // A wake-up left over from an earlier task would end the park below.
            std::thread::park_timeout(Duration::ZERO);
            raise();
        }
        std::thread::park_timeout(deadline.remaining().expect("time is left"));
        assert!(deadline.remaining().is_some(), "the task was not woken");
    }
}

#[test]
fn task_on_a_hand_rolled_executor_is_woken_by_a_device() {
    for delivery in DELIVERIES {
        let it = Counted::new(delivery);
        for round in 1..=50 {
            let count = block_on(it.irq.next_delivery(), || it.device.fire(0)).expect("no error");
            assert_eq!((count, it.runs()), (1, round), "{delivery:?}");
        }
    }
}

#[test]
fn task_on_tokio_is_woken_by_a_device() {
    for delivery in DELIVERIES {
        let it = Counted::new(delivery);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            for _ in 0..50 {
                let mut next = pin!(it.irq.next_delivery());
                let first = std::future::poll_fn(|context| Poll::Ready(next.as_mut().poll(context))).await;
                assert!(first.is_pending(), "{delivery:?}: nothing was raised yet");
                it.device.fire(0);
                let count = tokio::time::timeout(Duration::from_secs(10), next).await;
                assert_eq!(count.expect("woken in time").expect("no error"), 1, "{delivery:?}");
            }
        });
    }
}

#[test]
fn task_is_woken_by_a_raise_from_another_thread() {
    for delivery in DELIVERIES {
        let it = Counted::new(delivery);
        let raiser = it.irq.raiser();
        let count = block_on(it.irq.next_delivery(), || {
            std::thread::spawn(move || raiser.raise());
        });
        assert_eq!(count.expect("no error"), 1, "{delivery:?}");
    }
}

#[test]
fn threads_waiting_in_one_domain_all_see_their_condition() {
    for delivery in DELIVERIES {
        let it = Counted::new(delivery);
        std::thread::scope(|scope| {
            for goal in 1..=4 {
                let it = &it;
                scope.spawn(move || it.wait_runs(goal));
            }
            for count in 1..=4 {
                it.device.fire(0);
                it.wait_runs(count);
            }
        });
    }
}

/// A task's owner, for its waker.
struct Owner;

impl Wake for Owner {
    fn wake(self: Arc<Self>) {}
}

#[test]
fn task_that_is_abandoned_or_moved_is_let_go_of() {
    for delivery in DELIVERIES {
        let it = Counted::new(delivery);
        let [first, second] = [(); 2].map(|()| Arc::new(Owner));
        let poll = |next: std::pin::Pin<&mut udrv::irq::NextDelivery<'_>>, owner: &Arc<Owner>| {
            let waker = Waker::from(Arc::clone(owner));
            assert!(next.poll(&mut Context::from_waker(&waker)).is_pending(), "{delivery:?}");
        };
        {
            let (mut next, mut other) = (pin!(it.irq.next_delivery()), pin!(it.irq.next_delivery()));
            poll(next.as_mut(), &first);
            poll(other.as_mut(), &first);
            poll(next.as_mut(), &second);
            poll(other.as_mut(), &second);
            until("the first owner, after both moved", || Arc::strong_count(&first) == 1);
        }
        until("the second owner, after both were dropped", || Arc::strong_count(&second) == 1);
        assert_eq!(it.runs(), 0, "{delivery:?}: nothing was delivered meanwhile");
    }
}

/// A waker that makes and drops another task when it goes, as an executor that ends may.
struct MakesAnother(Arc<udrv::irq::Registration>);

impl Wake for MakesAnother {
    fn wake(self: Arc<Self>) {}
}

impl Drop for MakesAnother {
    fn drop(&mut self) {
        drop(self.0.next_delivery());
    }
}

#[test]
fn waker_that_drops_tasks_when_it_is_dropped_does_not_deadlock() {
    for delivery in DELIVERIES {
        let Counted { device: _device, domain: _domain, irq, .. } = Counted::new(delivery);
        let irq = Arc::new(irq);
        let dropping = std::thread::spawn(move || {
            let mut next = pin!(irq.next_delivery());
            for _ in 0..2 {
                let waker = Waker::from(Arc::new(MakesAnother(Arc::clone(&irq))));
                assert!(next.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            }
        });
        until("both wakers", || dropping.is_finished());
        dropping.join().expect("no panic");
    }
}

extern "C" fn ignore(_signal: libc::c_int) {}

#[test]
fn wait_is_not_ended_by_signals() {
    // Without SA_RESTART: every system call the wait sleeps in is interrupted.
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("installed");
    for delivery in DELIVERIES {
        let it = Counted::new(delivery);
        let (waiter, done) = (pthread_self(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..200 {
                    let _gone = pthread_kill(waiter, Signal::SIGUSR1);
                    std::thread::yield_now();
                    if round == 150 {
                        it.device.fire(0);
                    }
                }
                while !done.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
            });
            it.wait_runs(1);
            done.store(true, Ordering::SeqCst);
        });
        assert_eq!(it.runs(), 1, "{delivery:?}");
    }
}

#[test]
fn interrupt_is_delivered_to_a_thread_that_blocks_sigio() {
    let mut sigio = SigSet::empty();
    sigio.add(Signal::SIGIO);
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&sigio), None).expect("blocked");
    let it = Counted::new(Delivery::Signal);
    std::thread::scope(|scope| {
        scope.spawn(|| it.device.fire(0));
        it.wait_runs(1);
    });
    assert_eq!(it.runs(), 1);
}

#[test]
fn socket_that_overflows_still_delivers() {
    let it = Counted::new(Delivery::Signal);
    it.domain.off(|_| {
        // Far more than any socket buffer holds: most are dropped by the sender, as a server may.
        (0..100_000).for_each(|_| it.device.fire(0));
    });
    assert!(it.runs() >= 1);
    it.domain.wait("the rest", soon(), || !it.irq.is_pending()).expect("drained");
    it.device.fire(0);
    let before = it.runs();
    it.wait_runs(before + 1);
}

#[test]
fn server_that_writes_more_than_one_look_reads_is_read_to_the_end() {
    let it = Counted::new(Delivery::Signal);
    // 140 KB; one look reads 64.
    let sent: u64 = 140 * 128;
    let ones: Vec<u8> = (0..sent).flat_map(|_| 1u64.to_ne_bytes()).collect();
    it.device.send(0, &ones);
    it.domain.wait("all of it", soon(), || it.irq.stats().raised == sent).expect("read");
}
