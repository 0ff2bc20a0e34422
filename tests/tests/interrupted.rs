//! EINTR everywhere: every thread of this process is hit by signals whose handler restarts no system call, without end, and each
//! way of waiting that the runtime has still ends with what it waits for, and not before.
#![expect(unsafe_code, reason = "signals to single threads, and their handler, are unsafe calls")]

mod irq_device;

use irq_device::{Counted, DELIVERIES, Lines, counting, until};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept, bind, listen, socket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::JoinHandle;
use std::time::Duration;
use stub_driver::serve::{DeviceServer, Export};
use udrv::clock::{self, Deadline};
use udrv::irq::{Delivery, IrqDomain, IrqOptions, IrqReturn, Registration};
use udrv_backend::{AnyBackend, Error, IrqIndex, RegionIndex, Width};

const PATIENCE: Duration = Duration::from_secs(20);

/// Signals that came.
static HITS: AtomicU64 = AtomicU64::new(0);

extern "C" fn hit(_signal: libc::c_int) {
    HITS.fetch_add(1, Ordering::Relaxed);
}

/// From now on all threads of the process are hit, but the one that hits them. Fails if they are not.
fn storm() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let action = SigAction::new(SigHandler::Handler(hit), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler is one atomic addition.
        unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("installed");
        std::thread::spawn(|| {
            let (process, me) = (std::process::id() as i32, nix::unistd::gettid().as_raw());
            loop {
                for thread in std::fs::read_dir("/proc/self/task").expect("the threads").flatten() {
                    let thread: i32 = thread.file_name().to_str().expect("a number").parse().expect("a number");
                    if thread != me {
                        // SAFETY: tgkill(2) takes three integers. The thread may be gone.
                        unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGUSR1) };
                    }
                }
                std::thread::yield_now();
            }
        });
    });
    let before = HITS.load(Ordering::Relaxed);
    until("the storm", || HITS.load(Ordering::Relaxed) > before + 10);
}

/// Long enough for whatever waits to be hit many times; `still` must hold at its end.
fn wait_in_vain(still: impl Fn() -> bool) {
    let (end, before) = (Deadline::after(Duration::from_millis(20)), HITS.load(Ordering::Relaxed));
    until("time, and signals", || end.remaining().is_none() && HITS.load(Ordering::Relaxed) > before + 20);
    assert!(still(), "a signal ended a wait");
}

#[test]
fn wait_ends_with_its_interrupt() {
    storm();
    for delivery in DELIVERIES {
        // With one source its descriptor is waited for by itself, with two in the event loop.
        for sources in [1, 2] {
            let it = Counted::new(delivery);
            let more: Vec<_> = (1..sources)
                .map(|vector| it.domain.register(&it.device.backend(), IrqIndex::MSI, vector, counting(&it.runs)))
                .collect::<Result<_, _>>()
                .expect("registered");
            for round in 1..=5 {
                std::thread::scope(|scope| {
                    let waiting = scope.spawn(|| it.wait_runs(round));
                    let also = scope.spawn(|| it.wait_runs(round));
                    wait_in_vain(|| !waiting.is_finished() && !also.is_finished());
                    it.device.fire(0);
                });
            }
            assert_eq!((it.runs(), more.len() as u32), (5, sources - 1), "{delivery:?}");
        }
    }
}

#[test]
fn wait_ends_at_its_deadline_and_not_before() {
    storm();
    for delivery in DELIVERIES {
        let it = Counted::new(delivery);
        let (start, allowed) = (clock::now(), Duration::from_millis(100));
        let waited = it.domain.wait("nothing", Deadline::after(allowed), || false);
        assert!(matches!(waited, Err(Error::Timeout { .. })), "{delivery:?}: {waited:?}");
        assert!(start.elapsed() >= allowed, "{delivery:?}");
    }
}

#[test]
fn task_is_woken_by_its_interrupt() {
    struct Told(mpsc::Sender<()>);
    impl Wake for Told {
        fn wake(self: Arc<Self>) {
            _ = self.0.send(());
        }
    }
    storm();
    for delivery in DELIVERIES {
        let it = Counted::new(delivery);
        let (wake, woken) = mpsc::channel();
        let waker = Waker::from(Arc::new(Told(wake)));
        let mut next = std::pin::pin!(it.irq.next_delivery());
        let mut poll = || next.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(poll().is_pending(), "{delivery:?}");
        wait_in_vain(|| true);
        assert!(poll().is_pending(), "{delivery:?}");
        it.device.fire(0);
        loop {
            woken.recv_timeout(PATIENCE).expect("woken");
            if let Poll::Ready(count) = poll() {
                break assert_eq!(count.expect("no error"), 1, "{delivery:?}");
            }
        }
    }
}

/// A line whose handler runs, on another thread, until told.
struct Running {
    domain: IrqDomain,
    irq: Registration,
    end: mpsc::Sender<()>,
    finished: Arc<AtomicU64>,
    runner: JoinHandle<()>,
}

impl Running {
    fn new(delivery: Delivery) -> Self {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let ((entered, is_inside), (end, may_end)) = (mpsc::channel(), mpsc::channel::<()>());
        let finished = Arc::new(AtomicU64::new(0));
        let finish = Arc::clone(&finished);
        let handler = move |_| {
            _ = entered.send(());
            _ = may_end.recv_timeout(PATIENCE);
            finish.fetch_add(1, Ordering::SeqCst);
            IrqReturn::Handled
        };
        let irq = domain.register(&device.backend(), IrqIndex::MSI, 0, handler).expect("registered");
        let (waiting, ran) = (domain.clone(), Arc::clone(&finished));
        device.fire(0);
        // Where handlers run at delivery points, on this thread.
        let runner = std::thread::spawn(move || {
            waiting.wait("the handler", Deadline::after(PATIENCE), || ran.load(Ordering::SeqCst) > 0).expect("it ran");
        });
        is_inside.recv_timeout(PATIENCE).expect("the handler runs");
        Self { domain, irq, end, finished, runner }
    }

    /// `what` waits for the handler's end, and no longer.
    fn hold_up(self, what: impl FnOnce(&IrqDomain, Registration) + Send + 'static) {
        let Self { domain, irq, end, finished, runner } = self;
        let ended = Arc::clone(&finished);
        let waiting = std::thread::spawn(move || {
            what(&domain, irq);
            assert_eq!(ended.load(Ordering::SeqCst), 1, "it did not wait");
        });
        wait_in_vain(|| !waiting.is_finished());
        end.send(()).expect("told");
        waiting.join().expect("it waited");
        runner.join().expect("the runner");
    }
}

#[test]
fn section_disable_and_drop_wait_for_a_running_handler() {
    storm();
    for delivery in DELIVERIES {
        Running::new(delivery).hold_up(|domain, irq| {
            domain.off(|_| {});
            // Until the end: dropping it would wait, too.
            std::mem::forget(irq);
        });
        Running::new(delivery).hold_up(|_, irq| {
            irq.disable().expect("disabled");
            std::mem::forget(irq);
        });
        Running::new(delivery).hold_up(|_, irq| drop(irq));
    }
}

#[test]
fn threaded_half_waits_for_its_interrupt_and_drop_for_the_half() {
    storm();
    for delivery in DELIVERIES {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let ((begin, begun), (end, may_end)) = (mpsc::channel(), mpsc::channel::<()>());
        let half = move |_| {
            _ = begin.send(());
            _ = may_end.recv_timeout(PATIENCE);
        };
        let wake = |_| IrqReturn::WakeThread;
        let options = IrqOptions::default();
        let irq = domain.register_threaded(&device.backend(), IrqIndex::MSI, 0, options, wake, half);
        let irq = irq.expect("registered");
        wait_in_vain(|| begun.try_recv().is_err());
        irq.pend();
        begun.recv_timeout(PATIENCE).expect("the half runs");
        let dropper = std::thread::spawn(move || drop(irq));
        wait_in_vain(|| !dropper.is_finished());
        end.send(()).expect("told");
        dropper.join().expect("the drop returns");
    }
}

#[test]
fn bottom_half_hold_up_its_drop() {
    storm();
    for delivery in DELIVERIES {
        let domain = IrqDomain::new(delivery).expect("a domain");
        let ((begin, begun), (end, may_end)) = (mpsc::channel(), mpsc::channel::<()>());
        let half = Arc::new(domain.bottom_half(move || {
            _ = begin.send(());
            _ = may_end.recv_timeout(PATIENCE);
        }));
        let scheduled = Arc::clone(&half);
        let runner = std::thread::spawn(move || scheduled.schedule());
        begun.recv_timeout(PATIENCE).expect("it runs");
        // The other owner's drop comes later, if it is not the last.
        let dropper = std::thread::spawn(move || {
            let mut half = half;
            loop {
                match Arc::try_unwrap(half) {
                    Ok(half) => return drop(half),
                    Err(shared) => half = shared,
                }
                std::thread::yield_now();
            }
        });
        wait_in_vain(|| !dropper.is_finished());
        end.send(()).expect("told");
        dropper.join().expect("the drop returns");
        runner.join().expect("the runner");
    }
}

#[test]
fn timer_expires_in_time_and_not_before() {
    storm();
    for delivery in DELIVERIES {
        let domain = IrqDomain::new(delivery).expect("a domain");
        let runs = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&runs);
        let timer =
            domain.timer(move |expired| _ = count.fetch_add(expired.merged, Ordering::SeqCst)).expect("a timer");
        let (start, after) = (clock::now(), Duration::from_millis(30));
        timer.arm(after).expect("armed");
        domain.wait("expiry", Deadline::after(PATIENCE), || runs.load(Ordering::SeqCst) == 1).expect("expired");
        assert!(start.elapsed() >= after, "{delivery:?}");
    }
}

/// A driver that waits for interrupts which nobody but itself raises.
struct Works;

impl udrv::host::Driver for Works {
    type Config = ();

    fn probe(_context: &udrv::host::Context, (): ()) -> udrv::Result<Self> {
        Ok(Self)
    }

    fn run(&mut self, context: &udrv::host::Context) -> udrv::Result<()> {
        let runs = Arc::new(AtomicU64::new(0));
        let _irq = context.irqs.register(&context.device, IrqIndex::MSI, 0, counting(&runs))?;
        for round in 1..=50 {
            context.device.read(RegionIndex::BAR0, 4, Width::Bits32)?;
            context.device.fire_irq(IrqIndex::MSI, 0)?;
            context.irqs.wait("the interrupt", Deadline::after(PATIENCE), || runs.load(Ordering::SeqCst) >= round)?;
        }
        Ok(())
    }
}

#[test]
fn driver_behind_a_stub_works_and_its_host_waits_for_its_end() {
    storm();
    let folder = std::env::temp_dir().join(format!("udrv-interrupted-{}", std::process::id()));
    std::fs::create_dir(&folder).expect("a folder");
    for delivery in DELIVERIES {
        let model: AnyBackend = Arc::new(udrv_edu::model::edu());
        let server = DeviceServer::start(Export::shared("edu", Arc::new(model)), &folder.join("edu.sock"));
        let server = server.expect("served");
        let device = udrv::open(&format!("unix:{}", server.path().display())).expect("connected");
        let mut host = udrv::host::Host::new();
        host.start::<Works>(device, delivery, ()).expect("started");
        for report in host.join() {
            let is_good = matches!(report.ended, udrv::host::Ended::Returned) && report.quiesced.is_ok();
            assert!(is_good, "{delivery:?}: {report:?}");
        }
    }
    std::fs::remove_dir_all(&folder).expect("removed");
}

#[test]
fn connecting_waits_for_room_and_no_longer_than_its_deadline() {
    storm();
    let path = std::env::temp_dir().join(format!("udrv-interrupted-{}.sock", std::process::id()));
    let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    bind(listener.as_raw_fd(), &UnixAddr::new(&path).expect("an address")).expect("bound");
    listen(&listener, Backlog::new(0).expect("a backlog")).expect("listening, with room for one");
    let _first = udrv_channel::connect(&path, PATIENCE).expect("the one");

    let (start, allowed) = (clock::now(), Duration::from_millis(100));
    let refused = udrv_channel::connect(&path, allowed).expect_err("no room");
    assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock);
    assert!(start.elapsed() >= allowed);

    let to = path.clone();
    let second = std::thread::spawn(move || udrv_channel::connect(&to, PATIENCE).map(drop));
    wait_in_vain(|| !second.is_finished());
    let taken = accept(listener.as_raw_fd()).expect("the first is taken");
    second.join().expect("no panic").expect("room for the second");
    nix::unistd::close(taken).expect("closed");
    std::fs::remove_file(&path).expect("removed");
}
