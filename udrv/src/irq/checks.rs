//! The checks that a kernel developer misses in userspace: in debug builds, and in others with the feature `checks`.
//! `UDRV_CHECKS=0` turns them off at run time. Where they are not compiled, `unchecked.rs` stands here instead.

use super::deliver::Shared;
use super::source::Source;
use super::sync::lock;
use super::violation::{IrqsOff, OffPlace, Place, Rule, Violation};
use crate::clock;
use nix::sys::resource::{UsageWho, getrusage};
use nix::time::{ClockId, clock_gettime};
use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// As many violations as are kept; each pair of places is one.
const KEPT: usize = 1000;

/// A section longer than this is a violation, unless [`super::IrqDomain::set_section_budget`] says otherwise: as long as a
/// kernel's timer tick at 100 Hz, whose loss would be noticed.
const BUDGET: Duration = Duration::from_millis(10);

static VIOLATIONS: Mutex<Vec<Violation>> = Mutex::new(Vec::new());

thread_local! {
    static SECTIONS: RefCell<Vec<Open>> = const { RefCell::new(Vec::new()) };
    static HANDLERS: RefCell<Vec<(u64, Arc<Source>)>> = const { RefCell::new(Vec::new()) };
}

/// The sections of one domain that this thread has open.
struct Open {
    domain: u64,
    depth: u32,
    /// The outermost.
    at: Place,
    since: Instant,
    had: Had,
    /// In the inspection page.
    _shown: udrv_inspect::Section,
}

/// Whether they are compiled.
pub(super) const ARE_COMPILED: bool = true;

/// Whether the checks are compiled, and not turned off by `UDRV_CHECKS=0`.
#[must_use]
pub fn are_checked() -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    *ON.get_or_init(|| std::env::var_os("UDRV_CHECKS").is_none_or(|value| value != "0"))
}

/// What was found so far, in this process. Empty where the checks are off.
#[must_use]
pub fn violations() -> Vec<Violation> {
    lock(&VIOLATIONS).clone()
}

pub(super) fn report(rule: Rule, at: Place, other: Option<Place>, text: impl FnOnce() -> String) {
    let mut known = lock(&VIOLATIONS);
    let same = |it: &Violation| it.rule == rule && it.at == at && it.other == other;
    if known.len() < KEPT && !known.iter().any(same) {
        let text = text();
        known.push(Violation { rule, at, other, text: text.clone() });
        // Whoever writes the log may take locks and open sections, and break rules.
        drop(known);
        if rule.is_the_hosts() { tracing::warn!("{text}") } else { tracing::error!("{text}") }
    }
}

/// Says that the caller may block. With interrupts of any domain off, or in a handler, that is reported with both places.
#[track_caller]
pub fn might_sleep() {
    if !are_checked() {
        return;
    }
    let here = Location::caller();
    let off_at = sections(|open| open.first().map(|open| open.at)).flatten();
    if let Some(off_at) = off_at {
        report(Rule::Sleep, here, Some(off_at), || format!("{here} may block, with interrupts off since {off_at}"));
    }
    let source = handlers(|all| all.last().map(|(_, source)| Arc::clone(source)));
    if let Some(source) = source.flatten() {
        report(Rule::Sleep, here, None, || format!("{here} may block, in a handler of {}", source.describe()));
    }
}

fn id(shared: &Shared) -> u64 {
    shared.off.id
}

/// `None` from a thread so far gone that what it had open is unknown. It may still use locks and sections; what they could be
/// checked against is gone.
fn sections<T>(look: impl FnOnce(&[Open]) -> T) -> Option<T> {
    SECTIONS.try_with(|all| look(&all.borrow())).ok()
}

/// As [`sections`].
fn handlers<T>(look: impl FnOnce(&[(u64, Arc<Source>)]) -> T) -> Option<T> {
    HANDLERS.try_with(|all| look(&all.borrow())).ok()
}

/// Where this thread turned the domain's interrupts off.
pub(super) fn off_at(shared: &Shared) -> Option<Place> {
    sections(|all| all.iter().find(|open| open.domain == id(shared)).map(|open| open.at)).flatten()
}

/// Domains whose handlers cannot interrupt this thread.
pub(super) fn off() -> impl Iterator<Item = u64> {
    (0..).map_while(|index| sections(|all| all.get(index).map(|open| open.domain)).flatten())
}

/// The domain whose handler this thread runs.
pub(super) fn in_handler_of() -> Option<u64> {
    handlers(|all| all.last().map(|(domain, _)| *domain)).flatten()
}

/// What this thread has had of the processor so far, and how often it has not.
#[derive(Clone, Copy)]
struct Had {
    processor: Duration,
    /// It let go of the processor itself, to wait.
    waited: i64,
    /// The host took it away.
    preempted: i64,
}

impl Had {
    fn by_now() -> Self {
        // Both are there for every thread. That of getrusage(2) for the processor is up to a tick old.
        let processor = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Into::into);
        let usage = getrusage(UsageWho::RUSAGE_THREAD).ok();
        let [waited, preempted] =
            usage.map_or([0; 2], |usage| [usage.voluntary_context_switches(), usage.involuntary_context_switches()]);
        Self { processor, waited, preempted }
    }

    /// How long a section was by the driver's own doing: what it computed. If it waited for something, all of it.
    fn own_part(self, before: Self, took: Duration) -> Duration {
        let waited = self.waited > before.waited;
        if waited { took } else { self.processor.saturating_sub(before.processor).min(took) }
    }
}

#[cold]
pub(super) fn opened(shared: &Shared, at: Place) {
    if !are_checked() {
        return;
    }
    let domain = id(shared);
    let _gone = SECTIONS.try_with(|all| {
        let mut all = all.borrow_mut();
        match all.iter_mut().find(|open| open.domain == domain) {
            Some(open) => open.depth += 1,
            None => {
                let _shown = shared.shown.section(at);
                all.push(Open { domain, depth: 1, at, had: Had::by_now(), since: clock::now(), _shown });
            }
        }
    });
}

/// Called with the section still open.
#[cold]
pub(super) fn closed(shared: &Shared) {
    let domain = id(shared);
    let ended = SECTIONS.try_with(|all| {
        let mut all = all.borrow_mut();
        let index = all.iter().position(|open| open.domain == domain)?;
        let open = all.get_mut(index)?;
        open.depth -= 1;
        (open.depth == 0).then(|| all.remove(index))
    });
    if let Ok(Some(Open { at, since, had: before, .. })) = ended {
        let (took, had) = (clock::now().saturating_duration_since(since), Had::by_now());
        shared.off.add(at, took, had.own_part(before, took), had.preempted > before.preempted);
    }
}

/// While it lives, this thread runs a handler.
pub(super) struct InHandler;

impl InHandler {
    pub(super) fn of(shared: &Shared, source: &Arc<Source>) -> Self {
        let _gone = HANDLERS.try_with(|all| all.borrow_mut().push((id(shared), Arc::clone(source))));
        Self
    }
}

impl Drop for InHandler {
    fn drop(&mut self) {
        let _source = HANDLERS.try_with(|all| all.borrow_mut().pop());
    }
}

/// One domain's account of its sections.
pub(super) struct OffAccount {
    /// Of the domain, unlike that of any other in the life of the process.
    id: u64,
    account: Mutex<Account>,
}

struct Account {
    budget: Duration,
    histogram: [u64; 32],
    places: HashMap<Place, OffPlace>,
}

impl Default for OffAccount {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let account = Account { budget: BUDGET, histogram: [0; 32], places: HashMap::new() };
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), account: Mutex::new(account) }
    }
}

impl OffAccount {
    pub(super) fn set_budget(&self, budget: Duration) {
        lock(&self.account).budget = budget;
    }

    /// One section, of which `own` was the driver's doing, and the rest the host's.
    fn add(&self, at: Place, took: Duration, own: Duration, preempted: bool) {
        let mut account = lock(&self.account);
        let budget = account.budget;
        let bucket = (took.as_nanos().max(1).ilog2() as usize).min(31);
        if let Some(count) = account.histogram.get_mut(bucket) {
            *count += 1;
        }
        let place = account.places.entry(at).or_insert_with(|| OffPlace::new(at));
        place.sections += 1;
        place.longest = place.longest.max(took);
        place.over_budget += u64::from(took > budget);
        place.preempted += u64::from(preempted);
        drop(account);
        if took > budget {
            let rule = if own > budget { Rule::Budget } else { Rule::Delayed };
            let text = || {
                let host = took - own;
                format!(
                    "interrupts were off for {took:.1?}, over the budget of {budget:?}, since {at}; the host had the processor for {host:.1?} of it"
                )
            };
            report(rule, at, Some(at), text);
        }
    }

    pub(super) fn snapshot(&self) -> IrqsOff {
        let account = lock(&self.account);
        let mut places: Vec<_> = account.places.values().copied().collect();
        places.sort_by_key(|place| std::cmp::Reverse(place.longest));
        IrqsOff { histogram: account.histogram, places }
    }
}
