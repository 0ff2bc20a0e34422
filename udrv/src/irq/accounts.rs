//! The interrupts of the whole process, as `/proc/interrupts` has the machine's.

use super::deliver::Shared;
use super::mark::Mark;
use super::source::Line;
use super::sync::lock;
use super::{Delivery, IrqStats};
use std::fmt;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use udrv_backend::Backend;
use udrv_inspect::layout::source;

/// A source's mark, shown in the inspection page with the rest of the source.
#[repr(C)]
pub(super) struct Shown {
    mark: Mark,
    page: udrv_inspect::Source,
}

/// Shows a domain.
pub(super) fn show(delivery: Delivery) -> udrv_inspect::Domain {
    udrv_inspect::page().records(super::checks::ARE_COMPILED, crate::mmio::MAPPED_IS_SHOWN);
    udrv_inspect::Domain::new(match delivery {
        Delivery::Thread => 0,
        Delivery::Signal => 1,
        Delivery::Poll => 2,
    })
}

impl Shown {
    pub(super) fn new(domain: &udrv_inspect::Domain, line: Option<&Line>) -> Self {
        let line = line.map(|line| (&*line.backend as &dyn Backend, line.index.0, line.vector));
        Self { mark: Mark::new(), page: udrv_inspect::Source::new(domain, line) }
    }

    /// Stored again if it has changed meanwhile, so that the last one stored is the last there was.
    #[inline]
    pub(super) fn show_mark(&self) {
        loop {
            let word = self.mark.word();
            self.page.set(source::MARK, word);
            if self.mark.word() == word {
                return;
            }
        }
    }

    /// [`Shown::show_mark`] is due, later: whoever waits for the mark is not to wait for that.
    pub(super) fn raise(&self, count: u64) -> bool {
        self.mark.raise(count)
    }

    /// As [`Shown::raise`].
    pub(super) fn take(&self) -> Option<u64> {
        self.mark.take()
    }

    pub(super) fn forget(&self) -> u64 {
        let forgotten = self.mark.forget();
        self.show_mark();
        forgotten
    }

    pub(super) fn disable(&self) {
        self.mark.disable();
        self.show_mark();
    }

    pub(super) fn enable(&self) -> bool {
        let deliver = self.mark.enable();
        self.show_mark();
        deliver
    }

    /// Signals waiting.
    pub(super) fn waiting(&self) -> u64 {
        self.mark.waiting()
    }

    /// Signals that no longer wait.
    pub(super) fn show_taken(&self, taken: u64) {
        self.page.set(source::TAKEN, taken);
    }

    /// Shows the account, which its lock guards, but for the signals.
    pub(super) fn settle(&self, stats: &IrqStats) {
        self.page.set(source::DELIVERED, stats.delivered);
        self.page.set(source::MERGED, stats.merged);
        self.page.set(source::SPURIOUS, stats.spurious);
        self.page.set(source::DEFERRED, stats.deferred);
        self.page.set(source::LONGEST_DEFERRAL, nanoseconds(stats.longest_deferral));
        self.page.set(source::LONGEST_HANDLER, nanoseconds(stats.longest_handler));
        self.page.set(source::STORMED, u64::from(stats.stormed));
    }

    /// Its handlers run on this thread, or have returned.
    pub(super) fn runs(&self, runs: bool) {
        self.page.set(source::HANDLER, if runs { udrv_inspect::thread() } else { 0 });
    }

    /// Which eventfd signals it.
    pub(super) fn signalled_by(&self, eventfd: Option<BorrowedFd<'_>>) {
        self.page.set(source::EVENTFD, eventfd.map_or(0, |fd| fd.as_raw_fd() as u64 + 1));
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Called for each delivery before the handlers, for a debugger to stop at: `udrv break-on-irq`.
#[inline(never)]
pub(super) extern "C" fn irq_is_delivered(index: u32, vector: u32, merged: u64) {
    std::hint::black_box((index, vector, merged));
}

static DOMAINS: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

/// One source's account.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Account {
    /// The source, such as `MSI vector 0 of pci:0000:00:04.0`.
    pub source: String,
    /// What it has seen.
    pub stats: IrqStats,
}

/// Accounts, as a table with a heading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accounts(pub Vec<Account>);

pub(super) fn enlist(domain: &Arc<Shared>) {
    let mut domains = lock(&DOMAINS);
    domains.retain(|known| known.strong_count() > 0);
    domains.push(Arc::downgrade(domain));
}

pub(super) fn domains() -> Vec<Arc<Shared>> {
    lock(&DOMAINS).iter().filter_map(Weak::upgrade).collect()
}

/// What every source of every domain of this process has seen, as of now: domain by domain, each in order of delivery.
#[must_use]
pub fn accounts() -> Accounts {
    let domains = domains();
    let sources = domains.iter().flat_map(|domain| lock(&domain.sources).values().cloned().collect::<Vec<_>>());
    Accounts(sources.map(|source| Account { source: source.describe(), stats: source.stats() }).collect())
}

impl fmt::Display for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for word in ["raised", "delivered", "merged", "spurious", "deferred"] {
            write!(f, "{word:>12}")?;
        }
        write!(f, "{:>14}{:>14}  source", "max deferral", "max handler")?;
        for Account { source, stats } in &self.0 {
            let counts = [stats.raised, stats.delivered, stats.merged, stats.spurious, stats.deferred];
            writeln!(f)?;
            counts.iter().try_for_each(|count| write!(f, "{count:>12}"))?;
            let times = [stats.longest_deferral, stats.longest_handler].map(|time| format!("{time:.1?}"));
            write!(f, "{:>14}{:>14}  {source}", times[0], times[1])?;
            if stats.stormed {
                write!(f, " (masked: a storm)")?;
            }
        }
        Ok(())
    }
}
