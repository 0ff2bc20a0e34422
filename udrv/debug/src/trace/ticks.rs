//! The time of events: the processor's counter where the kernel itself trusts it, else the monotonic clock.
//!
//! Reading the clock through the kernel's page takes most of what an event may cost; the counter is what is below it. It
//! is read directly only if it is the kernel's own clock source or could be (the kernel takes it off that list when it finds
//! processors that disagree), and if it runs at one rate, asleep or not. What its ticks are in nanoseconds is recorded, not
//! assumed: both clocks are read together at the start, every few thousand events, and at the end.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "the counter is read by an instruction, not by a function")
)]

use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Nanoseconds of the monotonic clock. Not `udrv_backend::clock`, which may stand still: a recording's time does not.
pub(super) fn nanoseconds() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| (time.tv_sec() as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec() as u64))
}

/// What an event's time is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Nanoseconds from the start.
    Clock,
    /// The time-stamp counter.
    Counter,
}

impl Source {
    pub(super) fn of_this_machine() -> Self {
        static SOURCE: std::sync::OnceLock<Source> = std::sync::OnceLock::new();
        *SOURCE.get_or_init(|| if is_counter_trusted() { Self::Counter } else { Self::Clock })
    }
}

fn is_counter_trusted() -> bool {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let sources = read("/sys/devices/system/clocksource/clocksource0/available_clocksource");
    let processors = read("/proc/cpuinfo");
    let flags = processors.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |text: &str, wanted| text.split_whitespace().any(|word| word == wanted);
    cfg!(target_arch = "x86_64") && has(&sources, "tsc") && has(flags, "constant_tsc") && has(flags, "nonstop_tsc")
}

/// The time-stamp counter. It may be read a few instructions early or late: nothing waits for what stands before it.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn counter() -> u64 {
    // SAFETY: every processor of this architecture has the instruction, and the kernel lets programs use it unless asked not
    // to (PR_SET_TSC), which nobody here does.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// There is none that we know of.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(super) fn counter() -> u64 {
    0
}

/// As many moments as the longest recording has, and more.
const MOST_POINTS: usize = 1 << 17;

/// Ticks to time, by moments at which both were known.
#[derive(Debug, Default)]
pub(super) struct Scale {
    /// Ticks and nanoseconds from the start, both ascending.
    points: Vec<(u64, u64)>,
    /// Ticks in a second, for where there is one point only.
    rate: u64,
}

impl Scale {
    pub(super) fn new(start: u64, rate: u64) -> Self {
        Self { points: vec![(start, 0)], rate: rate.max(1) }
    }

    /// One more moment. What is not later than the last is no moment of these clocks, and left out.
    pub(super) fn add(&mut self, ticks: u64, nanoseconds: u64) {
        if self.points.len() < MOST_POINTS
            && self.points.last().is_some_and(|last| ticks > last.0 && nanoseconds > last.1)
        {
            self.points.push((ticks, nanoseconds));
        }
    }

    /// Of a time that was read as if its ticks were nanoseconds.
    pub(super) fn time(&self, ticks: Duration) -> Duration {
        Duration::from_nanos(self.nanoseconds(u64::try_from(ticks.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Between two moments by their distance; beyond the last by the rate of the last two.
    pub(super) fn nanoseconds(&self, ticks: u64) -> u64 {
        let next = self.points.partition_point(|point| point.0 <= ticks).min(self.points.len().saturating_sub(1));
        let known = |index: usize| self.points.get(index).copied();
        let Some((from, base)) = known(next.saturating_sub(1)) else { return 0 };
        let past = u128::from(ticks.saturating_sub(from));
        let (span, ticks_of_span) = match known(next) {
            Some((to, end)) if to > from => (u128::from(end - base), u128::from(to - from)),
            _ => (1_000_000_000, u128::from(self.rate)),
        };
        let passed = past.saturating_mul(span).checked_div(ticks_of_span).unwrap_or(0);
        base.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_between_and_beyond_known_moments_are_interpolated() {
        let mut scale = Scale::new(1000, 2_000_000_000);
        assert_eq!([500, 1000, 3000].map(|ticks| scale.nanoseconds(ticks)), [0, 0, 1000], "by the rate alone");
        scale.add(2000, 1000);
        scale.add(4000, 2000);
        assert_eq!([1500, 2000, 3000, 4000, 6000].map(|ticks| scale.nanoseconds(ticks)), [500, 1000, 1500, 2000, 3000]);
    }

    #[test]
    fn moments_that_cannot_be_are_left_out_and_nothing_overflows() {
        let mut scale = Scale::new(10, 0);
        for (ticks, nanoseconds) in [(5, 5), (20, 0), (u64::MAX, u64::MAX), (u64::MAX, 1)] {
            scale.add(ticks, nanoseconds);
        }
        assert_eq!(scale.nanoseconds(u64::MAX), u64::MAX);
        assert_eq!(Scale::default().nanoseconds(7), 0);
    }
}
