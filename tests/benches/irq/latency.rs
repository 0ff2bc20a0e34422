//! From raising an interrupt on one thread to its handler on another.

use crate::device::Triggers;
use crate::{Goal, Measure, Round};
use nix::sys::eventfd::EventFd;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain, IrqReturn, Raiser};
use udrv_backend::IrqIndex;

const SAMPLES: usize = 4000;
const SPUN_SAMPLES: usize = 100_000;

/// How long the raiser waits for the receiver to fall asleep.
const SETTLE: Duration = Duration::from_micros(30);

/// How long the raiser waits for a spinning receiver to be done with the interrupt before.
const SETTLE_SPINNING: Duration = Duration::from_micros(2);

/// How long one round may take, whatever else the machine does: what was sampled by then counts.
const ROUND: Duration = Duration::from_secs(2);

/// Looks in a row before the raiser lets others run: the receiver may be waiting for this very processor.
const LOOKS: u32 = 10_000;

/// When the receiver saw it: nanoseconds since a common start, 0 if not yet. A cache line for itself.
#[repr(align(128))]
pub struct Seen {
    at: AtomicU64,
    stop: AtomicBool,
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Seen {
    fn new() -> Arc<Self> {
        let start = udrv_backend::clock::now();
        Self::counting_from(move || start.elapsed().as_nanos() as u64)
    }

    /// By a clock in nanoseconds.
    pub fn counting_from(clock: impl Fn() -> u64 + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { at: AtomicU64::new(0), stop: AtomicBool::new(false), clock: Box::new(clock) })
    }

    fn now(&self) -> u64 {
        (self.clock)()
    }

    pub fn see(&self) {
        self.at.store(self.now(), Ordering::Release);
    }

    pub fn clear(&self) {
        self.at.store(0, Ordering::Release);
    }

    /// When it was seen, once it was.
    pub fn wait(&self) -> u64 {
        loop {
            for _ in 0..LOOKS {
                match self.at.load(Ordering::Acquire) {
                    0 => std::hint::spin_loop(),
                    seen => return seen,
                }
            }
            std::thread::yield_now();
        }
    }

    /// As many rounds, or as there is time for; at least one.
    pub fn rounds(&self, most: usize) -> impl Iterator<Item = usize> {
        let until = udrv_backend::clock::now() + ROUND;
        (0..most).take_while(move |round| *round == 0 || udrv_backend::clock::now() < until)
    }

    /// Gives the receiver time to fall asleep.
    pub fn settle(&self) {
        spin(SETTLE);
    }

    /// Raises so many times; the latencies, in nanoseconds, sorted.
    fn sample(&self, samples: usize, settle: Duration, mut raise: impl FnMut()) -> Vec<u64> {
        let mut latencies: Vec<u64> = self
            .rounds(samples)
            .map(|_| {
                spin(settle);
                self.clear();
                let raised = self.now();
                raise();
                self.wait().saturating_sub(raised)
            })
            .collect();
        latencies.sort_unstable();
        latencies
    }
}

fn spin(time: Duration) {
    let until = udrv_backend::clock::now() + time;
    while udrv_backend::clock::now() < until {
        std::hint::spin_loop();
    }
}

/// The median and the 99th percentile.
pub fn percentiles(sorted: &[u64]) -> Vec<f64> {
    [50, 99].map(|percent| sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)] as f64).to_vec()
}

fn write_one(fd: &OwnedFd) {
    nix::unistd::write(fd, &1u64.to_ne_bytes()).expect("raised");
}

/// A domain on a thread of its own that waits for its interrupts; what raises them, and in what it can be seen.
fn with_receiver<T>(delivery: Delivery, work: impl FnOnce(&Seen, &OwnedFd, &Raiser) -> T) -> T {
    let (seen, device) = (Seen::new(), Triggers::new());
    let (tell, told) = mpsc::channel();
    std::thread::scope(|scope| {
        let (inside, lines) = (Arc::clone(&seen), Arc::clone(&device));
        scope.spawn(move || {
            let domain = IrqDomain::new(delivery).expect("a domain");
            let handled = Arc::clone(&inside);
            let handler = move |_| {
                handled.see();
                IrqReturn::Handled
            };
            let irq = domain.register(&lines.backend(), IrqIndex::MSI, 0, handler).expect("registered");
            tell.send(irq.raiser()).expect("told");
            let stopped = || inside.stop.load(Ordering::Acquire);
            domain.wait("the end", Deadline::after(Duration::from_secs(600)), stopped).expect("ended");
        });
        let raiser = told.recv().expect("registered");
        let done = work(&seen, &device.trigger(0), &raiser);
        seen.stop.store(true, Ordering::Release);
        raiser.raise();
        done
    })
}

fn ours(delivery: Delivery) -> Round {
    Box::new(move || {
        with_receiver(delivery, |seen, trigger, _| percentiles(&seen.sample(SAMPLES, SETTLE, || write_one(trigger))))
    })
}

fn ours_spinning(settle: Duration) -> Round {
    Box::new(move || {
        with_receiver(Delivery::Poll, |seen, _, raiser| {
            percentiles(&seen.sample(SPUN_SAMPLES, settle, || raiser.raise()))
        })
    })
}

/// A thread that reads an eventfd, blocking.
fn eventfd() -> Round {
    Box::new(move || {
        let (seen, fd) = (Seen::new(), EventFd::new().expect("an eventfd"));
        let raise = fd.as_fd().try_clone_to_owned().expect("a descriptor");
        let latencies = eventfd_reader(&seen, fd, &raise, || seen.sample(SAMPLES, SETTLE, || write_one(&raise)));
        percentiles(&latencies)
    })
}

/// Does `work` while a thread reads `fd`, blocking; `raise` is a duplicate of it.
pub fn eventfd_reader<T>(seen: &Seen, fd: EventFd, raise: &OwnedFd, work: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while !seen.stop.load(Ordering::Acquire) {
                fd.read().expect("read");
                seen.see();
            }
        });
        let done = work();
        seen.stop.store(true, Ordering::Release);
        write_one(raise);
        done
    })
}

/// A thread that looks at one word.
fn cache_line(settle: Duration) -> Round {
    Box::new(move || {
        let (seen, word) = (Seen::new(), Arc::new(AtomicU64::new(0)));
        std::thread::scope(|scope| {
            let (receiver, flag) = (Arc::clone(&seen), Arc::clone(&word));
            scope.spawn(move || {
                while !receiver.stop.load(Ordering::Acquire) {
                    if flag.swap(0, Ordering::AcqRel) != 0 {
                        receiver.see();
                    }
                    while flag.load(Ordering::Acquire) == 0 && !receiver.stop.load(Ordering::Acquire) {
                        std::hint::spin_loop();
                    }
                }
            });
            let latencies = seen.sample(SPUN_SAMPLES, settle, || word.store(1, Ordering::Release));
            seen.stop.store(true, Ordering::Release);
            percentiles(&latencies)
        })
    })
}

static SIGIO_SEEN: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_sigio(_signal: libc::c_int) {
    SIGIO_SEEN.fetch_add(1, Ordering::Release);
}

/// A thread that sleeps until its socket raises SIGIO, and then reads it.
fn sigio() -> Round {
    Box::new(move || {
        let seen = Seen::new();
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        let raise: OwnedFd = theirs.into();
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            let receiver = Arc::clone(&seen);
            scope.spawn(move || sleep_for_sigio(&receiver, &ours, &tell));
            told.recv().expect("ready");
            let latencies = seen.sample(SAMPLES, SETTLE, || write_one(&raise));
            seen.stop.store(true, Ordering::Release);
            write_one(&raise);
            percentiles(&latencies)
        })
    })
}

fn sleep_for_sigio(seen: &Seen, socket: &UnixStream, ready: &mpsc::Sender<()>) {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, sigaction};
    let action = SigAction::new(SigHandler::Handler(on_sigio), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler is one atomic addition.
    let previous = unsafe { sigaction(Signal::SIGIO, &action) }.expect("installed");
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGIO);
    let mut open = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), Some(&mut open)).expect("blocked");
    own(socket);
    ready.send(()).expect("told");
    let mut bytes = [0; 1024];
    while !seen.stop.load(Ordering::Acquire) {
        // Blocked in between, so that no signal is slept through.
        let _interrupted = nix::poll::ppoll(&mut [], None, Some(open));
        while nix::unistd::read(socket, &mut bytes).is_ok_and(|read| read > 0) {
            seen.see();
        }
    }
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&open), None).expect("restored");
    // SAFETY: it stood there before.
    unsafe { sigaction(Signal::SIGIO, &previous) }.expect("restored");
}

fn own(socket: &UnixStream) {
    let owner: [libc::c_int; 2] = [0, nix::unistd::gettid().as_raw()];
    const F_SETOWN_EX: libc::c_int = 15;
    // SAFETY: F_SETOWN_EX reads a struct f_owner_ex: two integers, F_OWNER_TID and the thread.
    assert_eq!(unsafe { libc::fcntl(socket.as_raw_fd(), F_SETOWN_EX, &raw const owner) }, 0);
    // SAFETY: F_SETFL takes an integer.
    assert_eq!(unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK) }, 0);
}

pub fn measures() -> Vec<Measure> {
    vec![
        Measure {
            name: "raise to handler, thread",
            parts: &[(", p50", Goal::Ratio(1.10)), (", p99", Goal::Ratio(1.10))],
            unit: "ns",
            peer: "blocking read of an eventfd",
            ours: ours(Delivery::Thread),
            theirs: eventfd(),
        },
        Measure {
            name: "raise to handler, signal",
            parts: &[(", p50", Goal::Ratio(1.15)), (", p99", Goal::None)],
            unit: "ns",
            peer: "ppoll, SIGIO, read of a socket",
            ours: ours(Delivery::Signal),
            theirs: sigio(),
        },
        Measure {
            name: "raise to handler, poll",
            parts: &[(", p50", Goal::Ratio(2.0)), (", p99", Goal::None)],
            unit: "ns",
            peer: "two threads on one cache line",
            ours: ours_spinning(SETTLE_SPINNING),
            theirs: cache_line(SETTLE_SPINNING),
        },
        // What is done after a handler is in this, too.
        Measure {
            name: "raise to handler, poll, back to back",
            parts: &[(", p50", Goal::None), (", p99", Goal::None)],
            unit: "ns",
            peer: "two threads on one cache line",
            ours: ours_spinning(Duration::ZERO),
            theirs: cache_line(Duration::ZERO),
        },
    ]
}
