//! The interrupts of the whole process, as `/proc/interrupts` has the machine's.

use super::IrqStats;
use super::deliver::Shared;
use super::sync::lock;
use std::fmt;
use std::sync::{Arc, Mutex, Weak};

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
        let heading = ["raised", "delivered", "merged", "spurious", "deferred", "longest off", "longest run"];
        heading.iter().try_for_each(|word| write!(f, "{word:>12}"))?;
        write!(f, "  source")?;
        for Account { source, stats } in &self.0 {
            let counts = [stats.raised, stats.delivered, stats.merged, stats.spurious, stats.deferred];
            writeln!(f)?;
            counts.iter().try_for_each(|count| write!(f, "{count:>12}"))?;
            let times = [stats.longest_deferral, stats.longest_handler].map(|time| format!("{time:.1?}"));
            write!(f, "{:>12}{:>12}  {source}", times[0], times[1])?;
            if stats.stormed {
                write!(f, " (masked: a storm)")?;
            }
        }
        Ok(())
    }
}
