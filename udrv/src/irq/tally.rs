//! What one source has seen, and whether that is a storm.

use super::IrqStats;
use crate::clock;
use std::num::NonZeroU64;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How many deliveries in a thousand must have been unhandled for it to be a storm: as the Linux kernel does
/// (kernel/irq/spurious.c).
const STORM_UNHANDLED_PERMILLE: u64 = 999;
/// Unhandled deliveries further apart than this are no storm, however many (as above).
const STORM_GAP_NS: u64 = 100_000_000;

/// A source's account, which its lock guards. Counts are saturating.
#[derive(Default)]
pub(super) struct Tally {
    /// Signals that no longer wait: with the mark, all there were.
    taken: u64,
    delivered: u64,
    merged: u64,
    spurious: u64,
    deferred: u64,
    longest_deferral_ns: u64,
    longest_handler_ns: u64,
    /// When a section was found to hold it back.
    held_since: Option<Stamp>,
    last_unhandled: Option<Stamp>,
    /// Deliveries of the window so far, and those unhandled.
    window: u32,
    unhandled: u32,
}

/// One delivery, done.
pub(super) struct Done {
    pub(super) start: Instant,
    pub(super) end: Instant,
    pub(super) merged: u64,
    pub(super) handled: bool,
}

/// A time in half the size of an `Instant`: nanoseconds since the process made its first source, and one.
#[derive(Clone, Copy)]
struct Stamp(NonZeroU64);

impl Stamp {
    fn of(at: Instant) -> Self {
        static FIRST: OnceLock<Instant> = OnceLock::new();
        let since_first = at.saturating_duration_since(*FIRST.get_or_init(|| at));
        Self(NonZeroU64::MIN.saturating_add(nanoseconds(since_first)))
    }

    fn nanoseconds_since(self, earlier: Self) -> u64 {
        self.0.get().saturating_sub(earlier.0.get())
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Tally {
    pub(super) fn new() -> Self {
        let _first = Stamp::of(clock::now());
        Self::default()
    }

    /// With what it does not know: how many signals wait, and whether there is a storm.
    pub(super) fn stats(&self, waiting: u64, stormed: bool) -> IrqStats {
        IrqStats {
            raised: self.taken.saturating_add(waiting),
            delivered: self.delivered,
            merged: self.merged,
            spurious: self.spurious,
            deferred: self.deferred,
            longest_deferral: Duration::from_nanos(self.longest_deferral_ns),
            longest_handler: Duration::from_nanos(self.longest_handler_ns),
            stormed,
        }
    }

    /// So many signals no longer wait: how many that makes.
    pub(super) fn take(&mut self, signals: u64) -> u64 {
        self.taken = self.taken.saturating_add(signals);
        self.taken
    }

    /// It is pending while a section is open, since `since`. False if that is known.
    pub(super) fn hold(&mut self, since: Instant) -> bool {
        let is_new = self.held_since.is_none();
        if is_new {
            self.held_since = Some(Stamp::of(since));
            self.deferred += 1;
        }
        is_new
    }

    /// Accounts for one delivery. True if it made a storm, of those of a window of so many.
    pub(super) fn settle(&mut self, done: &Done, storm_window: u32) -> bool {
        let Done { start, end, merged, handled } = *done;
        self.delivered += 1;
        self.merged = self.merged.saturating_add(merged - 1);
        self.longest_handler_ns = self.longest_handler_ns.max(nanoseconds(end.saturating_duration_since(start)));
        if let Some(since) = self.held_since.take() {
            self.longest_deferral_ns = self.longest_deferral_ns.max(Stamp::of(start).nanoseconds_since(since));
        }
        if !handled {
            let now = Stamp::of(end);
            let in_a_row = self.last_unhandled.is_some_and(|last| now.nanoseconds_since(last) < STORM_GAP_NS);
            self.spurious += 1;
            self.unhandled = if in_a_row { self.unhandled + 1 } else { 1 };
            self.last_unhandled = Some(now);
        }
        self.window += 1;
        if self.window < storm_window {
            return false;
        }
        self.window = 0;
        let unhandled = std::mem::take(&mut self.unhandled);
        let storm = u64::from(unhandled) * 1000 > u64::from(storm_window) * STORM_UNHANDLED_PERMILLE;
        // What somebody handles is not the moment to give up: if it is a storm, the next window ends in one.
        storm && !handled
    }

    pub(super) fn forget_storm(&mut self) {
        (self.window, self.unhandled) = (0, 0);
    }
}
