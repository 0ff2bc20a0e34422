//! Data shared between driver threads and interrupt handlers.

use super::IrqDomain;
use super::deliver::Shared;
use super::domain::SectionGuard;
use super::sync::lock;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard};

/// A lock that is taken with interrupts off: what `spin_lock_irqsave` is to the kernel.
///
/// Locking opens a section, then locks; unlocking unlocks, then closes the section, which delivers what became pending.
/// So a handler never finds the lock taken by the thread it runs on, and never waits for a thread that waits for
/// handlers: it may be used in handlers as anywhere else.
pub struct IrqLock<T> {
    shared: Arc<Shared>,
    data: Mutex<T>,
}

/// The data of an [`IrqLock`], locked, with interrupts off.
pub struct IrqLockGuard<'lock, T> {
    // The order of the fields is the order in which they are dropped: unlock, then restore.
    data: MutexGuard<'lock, T>,
    _section: SectionGuard<'lock>,
}

impl<T> IrqLock<T> {
    /// Guards `data` against the handlers of `domain`, and threads against one another.
    pub fn new(domain: &IrqDomain, data: T) -> Self {
        Self { shared: Arc::clone(domain.shared()), data: Mutex::new(data) }
    }

    /// Turns interrupts off and locks. A holder that panicked leaves the data as it was then.
    pub fn lock(&self) -> IrqLockGuard<'_, T> {
        let section = SectionGuard::open(&self.shared);
        IrqLockGuard { data: lock(&self.data), _section: section }
    }
}

impl<T> Deref for IrqLockGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T> DerefMut for IrqLockGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.data
    }
}
