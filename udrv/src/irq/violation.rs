//! What the checks find: violations, and how long interrupts were off.

use std::fmt;
use std::panic::Location;
use std::time::Duration;

/// A line of the driver.
pub type Place = &'static Location<'static>;

/// Which rule was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rule {
    /// Something that may block, with interrupts off or in a handler.
    Sleep,
    /// A lock that a handler takes is also taken with that handler's interrupts on: the handler may wait for the thread
    /// that it interrupts.
    UnsafeInHandler,
    /// Two locks are taken in both orders.
    LockOrder,
    /// A lock is taken by the thread that has it.
    TakenTwice,
    /// A section was longer than the budget by the driver's own doing: it computed or waited so long.
    Budget,
    /// A section was longer than the budget only because the host had the processor meanwhile. Not the driver's mistake, and so a
    /// warning in the log, where the others are errors; `udrv run --rt` is what helps.
    Delayed,
}

#[cfg(any(debug_assertions, feature = "checks"))]
impl Rule {
    /// Nobody's mistake.
    pub(super) fn is_the_hosts(self) -> bool {
        self == Self::Delayed
    }
}

/// One broken rule and the two places that break it together. Each pair is reported once.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// Where it was noticed.
    pub at: Place,
    /// The other place: the section's opening, the other taking of the lock. Absent where that is a handler.
    pub other: Option<Place>,
    pub(super) text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How long a domain's interrupts were off, by the outermost sections of its threads.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct IrqsOff {
    /// How many sections took at least 2ⁿ ns and less than twice that, by n; the last has all that were longer.
    pub histogram: [u64; 32],
    /// By the line that opened them, the longest first.
    pub places: Vec<OffPlace>,
}

/// The sections that one line opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OffPlace {
    /// The line.
    pub at: Place,
    /// How many.
    pub sections: u64,
    /// The longest.
    pub longest: Duration,
    /// How many were longer than the budget.
    pub over_budget: u64,
    /// In how many the host took the processor away (`ru_nivcsw` of getrusage(2)).
    pub preempted: u64,
}

/// How long interrupts were off, in all domains of this process together; empty where the checks are off
/// ([`super::are_checked`]).
#[must_use]
pub fn irqs_off() -> IrqsOff {
    let mut all = IrqsOff::default();
    for domain in super::accounts::domains() {
        all.add(domain.off.snapshot());
    }
    all
}

impl IrqsOff {
    fn add(&mut self, other: Self) {
        for (count, more) in self.histogram.iter_mut().zip(other.histogram) {
            *count += more;
        }
        for place in other.places {
            match self.places.iter_mut().find(|known| known.at == place.at) {
                None => self.places.push(place),
                Some(known) => {
                    known.sections += place.sections;
                    known.longest = known.longest.max(place.longest);
                    known.over_budget += place.over_budget;
                    known.preempted += place.preempted;
                }
            }
        }
        self.places.sort_by_key(|place| std::cmp::Reverse(place.longest));
    }
}

impl OffPlace {
    #[cfg(any(debug_assertions, feature = "checks"))]
    pub(super) const fn new(at: Place) -> Self {
        Self { at, sections: 0, longest: Duration::ZERO, over_budget: 0, preempted: 0 }
    }
}

impl fmt::Display for IrqsOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, count) in self.histogram.iter().enumerate().filter(|(_, count)| **count > 0) {
            writeln!(f, "{count:>10} sections from {:?}", Duration::from_nanos(1 << n))?;
        }
        for OffPlace { at, sections, longest, over_budget, preempted } in &self.places {
            writeln!(
                f,
                "{longest:>10.1?} {at}: {sections} sections, {over_budget} over budget, {preempted} preempted"
            )?;
        }
        Ok(())
    }
}
