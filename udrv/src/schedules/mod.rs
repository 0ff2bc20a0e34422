//! Deterministic schedules: what a driver does when an interrupt comes at its worst.
//!
//! A test gives a device, the interrupts it may raise, and a driver with what must hold when it is done. Every placement of
//! one interrupt before one register access is tried, and then every pair. A schedule that fails is shrunk to the smallest
//! that still does, and printed with the line that replays it, for a shell:
//!
//! ```text
//! cause 0x10 was lost under the schedule 0@4: interrupt 0 before access 4 (shrunk from 0@4,1@7, after 12 runs). To replay it:
//! UDRV_SCHEDULE=0@4 cargo test -p my-driver -- --exact survives_an_interrupt_anywhere
//! ```
//!
//! A test is one call. Here the driver counts the edu device's interrupts; whatever comes once it is up must have been counted:
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicUsize, Ordering};
//! use udrv::backend::{AnyBackend, IrqIndex, RegionIndex, Width};
//! use udrv::irq::IrqReturn;
//! use udrv::schedules::Schedules;
//!
//! let explored = Schedules::on(|| Arc::new(udrv_edu::model::edu()) as AnyBackend)
//!     .fire(IrqIndex::MSI, 0)
//!     .check(|run| {
//!         let count = Arc::new(AtomicUsize::new(0));
//!         let counting = Arc::clone(&count);
//!         let _irq = run.irqs.register(&run.device, IrqIndex::MSI, 0, move |interrupt| {
//!             counting.fetch_add(interrupt.merged as usize, Ordering::SeqCst);
//!             IrqReturn::Handled
//!         })?;
//!         // The driver's work: two accesses, before each of which an interrupt may come.
//!         let liveness = run.device.read(RegionIndex::BAR0, 4, Width::Bits32)?;
//!         run.device.write(RegionIndex::BAR0, 4, Width::Bits32, !liveness & 0xffff_ffff)?;
//!         // What must hold, whatever came when.
//!         assert_eq!(count.load(Ordering::SeqCst), run.raised().len());
//!         Ok::<(), udrv::Error>(())
//!     });
//! // None, one before either access, and the pairs of them.
//! assert_eq!((explored.accesses, explored.runs), (2, 6));
//! ```
//!
//! On the device itself instead of its model, in the same words: `Schedules::on(move || Arc::clone(&device))`, where `device` was
//! opened before, and [`Schedules::arriving_within`], since a real interrupt takes its time.

mod device;
mod schedule;

pub use device::{Raise, Scheduled};
pub use schedule::{Placement, Schedule};

use crate::irq::{Delivery, IrqDomain};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use udrv_backend::{AnyBackend, Backend, IrqIndex, Result};

/// The environment variable that replays one schedule instead of trying all.
pub const REPLAY: &str = "UDRV_SCHEDULE";

/// What is tried.
pub struct Schedules {
    device: Box<dyn Fn() -> AnyBackend>,
    raises: Vec<Raise>,
    depth: usize,
    random: Option<(u64, usize, u64)>,
    arrival: Duration,
}

/// One run of the driver, under one schedule.
pub struct Run {
    /// The device. Interrupts come at its accesses.
    pub device: AnyBackend,
    /// Where the driver takes them. Handlers run at placed accesses, on another thread, and at the driver's own delivery
    /// points as in [`Delivery::Poll`].
    pub irqs: IrqDomain,
    scheduled: Arc<Scheduled>,
}

impl Run {
    /// How many accesses were made so far.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.scheduled.accesses()
    }

    /// What was raised so far.
    #[must_use]
    pub fn raised(&self) -> Vec<Placement> {
        self.scheduled.raised()
    }
}

/// All schedules passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explored {
    /// How many schedules were run.
    pub runs: u64,
    /// Accesses of the driver when nothing is raised.
    pub accesses: u64,
}

/// A schedule that fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The smallest found: fewest interrupts, then earliest accesses.
    pub schedule: Schedule,
    /// The one that failed first.
    pub found: Schedule,
    /// What the driver said under [`Failure::schedule`].
    pub error: String,
    /// How many schedules were run, shrinking included. None if the variable that names one does not.
    pub runs: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { schedule, found, error, runs } = self;
        if *runs == 0 {
            return f.write_str(error);
        }
        write!(f, "{error} under the schedule {schedule}")?;
        for (index, Placement { irq, access }) in schedule.placements().iter().enumerate() {
            let before = if index == 0 { ":" } else { "," };
            write!(f, "{before} interrupt {irq} before access {access}")?;
        }
        match (schedule == found, *runs) {
            (true, 1) => {}
            (true, _) => write!(f, " (after {runs} runs)")?,
            (false, _) => write!(f, " (shrunk from {found}, after {runs} runs)")?,
        }
        write!(f, ". To replay it:\n{REPLAY}={schedule} {}", this_command())
    }
}

impl std::error::Error for Failure {}

/// What runs this test, or this program, again.
fn this_command() -> String {
    let thread = std::thread::current();
    // libtest names a test's thread by the test; the variable is cargo's.
    match (std::env::var("CARGO_PKG_NAME"), thread.name().filter(|name| *name != "main")) {
        (Ok(package), Some(test)) => format!("cargo test -p {package} -- --exact {test}"),
        _ => std::env::args().map(quoted).collect::<Vec<_>>().join(" "),
    }
}

/// As a shell takes it for one word.
fn quoted(word: String) -> String {
    let is_plain = |it: char| it.is_ascii_alphanumeric() || "-_./:,=@+".contains(it);
    if !word.is_empty() && word.chars().all(is_plain) { word } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// What one run came to.
struct Outcome {
    accesses: u64,
    error: Option<String>,
}

impl Schedules {
    /// Tries placements in pairs, on a device that `device` makes anew for each run. It may be the same device again and
    /// again (`move || Arc::clone(&device)`), if the driver brings it up from whatever state the run before left it in.
    pub fn on(device: impl Fn() -> AnyBackend + 'static) -> Self {
        Self { device: Box::new(device), raises: Vec::new(), depth: 2, random: None, arrival: Duration::ZERO }
    }

    /// One more interrupt that can be placed: what raises it, on the device itself.
    #[must_use]
    pub fn raise(mut self, raise: impl Fn(&dyn Backend) -> Result<()> + Send + Sync + 'static) -> Self {
        self.raises.push(Arc::new(raise));
        self
    }

    /// As [`Schedules::raise`], by the device's own means of firing a vector ([`Backend::fire_irq`]).
    #[must_use]
    pub fn fire(self, index: IrqIndex, vector: u32) -> Self {
        self.raise(move |device| device.fire_irq(index, vector))
    }

    /// Waits up to so long until a raised interrupt has come in: for real devices, whose interrupts arrive some time after the
    /// access that raises them. An interrupt that is masked, or that the driver does not take yet, costs all of that.
    #[must_use]
    pub fn arriving_within(mut self, arrival: Duration) -> Self {
        self.arrival = arrival;
        self
    }

    /// Up to how many interrupts are placed in one run: 1 is every access, 2 all pairs of accesses.
    #[must_use]
    pub fn depth(mut self, depth: usize) -> Self {
        self.depth = depth;
        self
    }

    /// Besides, `runs` schedules of `length` interrupts at random, the same for the same `seed`.
    #[must_use]
    pub fn random(mut self, runs: u64, length: usize, seed: u64) -> Self {
        self.random = Some((runs, length, seed));
        self
    }

    /// As [`Schedules::explore`], for tests.
    ///
    /// # Panics
    /// With the line that replays it, if a schedule fails.
    #[track_caller]
    pub fn check<E: fmt::Display>(&self, driver: impl FnMut(&Run) -> std::result::Result<(), E>) -> Explored {
        self.explore(driver).unwrap_or_else(|failure| panic!("{failure}"))
    }

    /// Runs `driver` under every schedule. It fails by an error or a panic; what it leaves open is its own to close.
    ///
    /// If [`REPLAY`] is set, only the schedule that it names is run.
    ///
    /// # Errors
    /// The first schedule that fails, shrunk.
    pub fn explore<E: fmt::Display>(
        &self,
        mut driver: impl FnMut(&Run) -> std::result::Result<(), E>,
    ) -> std::result::Result<Explored, Failure> {
        let mut search =
            Search { schedules: self, driver: |run: &Run| driver(run).map_err(|e| e.to_string()), runs: 0 };
        match std::env::var(REPLAY) {
            Ok(line) => match line.parse() {
                Ok(schedule) => search.replay(&schedule),
                Err(error) => {
                    let none = Schedule::default();
                    Err(Failure { schedule: none.clone(), found: none, error: format!("{error}"), runs: 0 })
                }
            },
            Err(_) => search.all(),
        }
    }

    /// Runs `driver` under one schedule.
    ///
    /// # Errors
    /// What the driver said, not shrunk.
    pub fn replay<E: fmt::Display>(
        &self,
        schedule: &Schedule,
        mut driver: impl FnMut(&Run) -> std::result::Result<(), E>,
    ) -> std::result::Result<Explored, Failure> {
        Search { schedules: self, driver: |run: &Run| driver(run).map_err(|e| e.to_string()), runs: 0 }.replay(schedule)
    }
}

struct Search<'a, D> {
    schedules: &'a Schedules,
    driver: D,
    runs: u64,
}

impl<D: FnMut(&Run) -> std::result::Result<(), String>> Search<'_, D> {
    fn run(&mut self, schedule: &Schedule) -> Outcome {
        self.runs += 1;
        let irqs = match IrqDomain::new(Delivery::Poll) {
            Ok(irqs) => irqs,
            Err(error) => return Outcome { accesses: 0, error: Some(error.to_string()) },
        };
        let raises = self.schedules.raises.clone();
        let scheduled = Scheduled::new((self.schedules.device)(), &irqs, raises, schedule.clone());
        let scheduled = Arc::new(scheduled.arriving_within(self.schedules.arrival));
        let run = Run { device: Arc::clone(&scheduled) as AnyBackend, irqs, scheduled };
        let driver = &mut self.driver;
        let error = match catch_unwind(AssertUnwindSafe(|| driver(&run))) {
            Ok(result) => result.err(),
            Err(payload) => Some(format!("panicked: {}", crate::host::message(&*payload))),
        };
        Outcome { accesses: run.accesses(), error }
    }

    fn replay(&mut self, schedule: &Schedule) -> std::result::Result<Explored, Failure> {
        let Outcome { accesses, error } = self.run(schedule);
        match error {
            None => Ok(Explored { runs: self.runs, accesses }),
            Some(error) => Err(Failure { schedule: schedule.clone(), found: schedule.clone(), error, runs: self.runs }),
        }
    }

    fn all(&mut self) -> std::result::Result<Explored, Failure> {
        let none = Schedule::default();
        let Explored { accesses, .. } = self.replay(&none)?;
        self.extend(&none, accesses, self.schedules.depth)?;
        self.at_random(accesses)?;
        Ok(Explored { runs: self.runs, accesses })
    }

    /// Every schedule that is `prefix` and up to `depth` more placements behind it.
    fn extend(&mut self, prefix: &Schedule, accesses: u64, depth: usize) -> std::result::Result<(), Failure> {
        if depth == 0 {
            return Ok(());
        }
        let first = prefix.placements().last().map_or(0, |last| last.access);
        // Short ones first: what fails first is then nearly the smallest.
        let mut next = Vec::new();
        for access in first..accesses {
            for irq in 0..self.schedules.raises.len() {
                let schedule = prefix.with(Placement { irq, access });
                let outcome = self.try_one(&schedule)?;
                next.push((schedule, outcome.accesses));
            }
        }
        next.iter().try_for_each(|(schedule, accesses)| self.extend(schedule, *accesses, depth - 1))
    }

    fn at_random(&mut self, accesses: u64) -> std::result::Result<(), Failure> {
        let Some((runs, length, seed)) = self.schedules.random else { return Ok(()) };
        let irqs = self.schedules.raises.len() as u64;
        if accesses == 0 || irqs == 0 {
            return Ok(());
        }
        // Marsaglia's xorshift.
        let mut state = seed.max(1);
        let mut below = |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % bound
        };
        for _ in 0..runs {
            let placement = |_| Placement { irq: below(irqs) as usize, access: below(accesses) };
            let schedule = Schedule::new((0..length).map(placement).collect());
            self.try_one(&schedule)?;
        }
        Ok(())
    }

    fn try_one(&mut self, schedule: &Schedule) -> std::result::Result<Outcome, Failure> {
        let outcome = self.run(schedule);
        match outcome.error {
            None => Ok(outcome),
            Some(error) => Err(self.shrink(schedule, error)),
        }
    }

    /// Leaves out what can be left out, then moves what is left to the front.
    fn shrink(&mut self, found: &Schedule, error: String) -> Failure {
        let mut smallest = (found.clone(), error);
        let mut index = 0;
        while index < smallest.0.placements().len() {
            let shorter = smallest.0.without(index);
            match self.run(&shorter).error {
                Some(error) => (smallest, index) = ((shorter, error), 0),
                None => index += 1,
            }
        }
        for index in 0..smallest.0.placements().len() {
            let Some(&Placement { irq, access }) = smallest.0.placements().get(index) else { break };
            let rest = smallest.0.without(index);
            let not_before = index.checked_sub(1).and_then(|before| rest.placements().get(before));
            for earlier in not_before.map_or(0, |before| before.access)..access {
                let moved = rest.with(Placement { irq, access: earlier });
                if let Some(error) = self.run(&moved).error {
                    smallest = (moved, error);
                    break;
                }
            }
        }
        Failure { schedule: smallest.0, found: found.clone(), error: smallest.1, runs: self.runs }
    }
}
