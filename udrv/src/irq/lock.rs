//! Data shared between driver threads and interrupt handlers.

use super::IrqDomain;
#[cfg(not(any(debug_assertions, feature = "checks")))]
use super::checks::{Class, Hold, LockCheck};
use super::deliver::Shared;
use super::domain::SectionGuard;
#[cfg(any(debug_assertions, feature = "checks"))]
use super::lockdep::{Class, Hold, LockCheck};
use super::sync::lock;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::sync::{Arc, Mutex, MutexGuard};

/// A lock that is taken with interrupts off: what `spin_lock_irqsave` is to the kernel.
///
/// Locking opens a section, then locks; unlocking unlocks, then closes the section, which delivers what became pending.
/// So a handler never finds the lock taken by the thread it runs on, and never waits for a thread that waits for
/// handlers: it may be used in handlers as anywhere else.
pub struct IrqLock<T> {
    shared: Arc<Shared>,
    check: LockCheck,
    data: Mutex<T>,
}

/// The data of an [`IrqLock`], locked, with interrupts off.
pub struct IrqLockGuard<'lock, T> {
    // The order of the fields is the order in which they are dropped: unlock, then restore.
    data: MutexGuard<'lock, T>,
    _hold: Option<Hold>,
    _section: SectionGuard<'lock>,
}

impl<T> IrqLock<T> {
    /// Guards `data` against the handlers of `domain`, and threads against one another. All locks that this line makes are of
    /// one class: the checks want them taken in one order with those of another.
    #[track_caller]
    pub fn new(domain: &IrqDomain, data: T) -> Self {
        Self::made(domain, Class::Made(Location::caller()), data)
    }

    /// As [`IrqLock::new`], of the class with this name, whichever line makes it.
    pub fn of_class(domain: &IrqDomain, class: &'static str, data: T) -> Self {
        Self::made(domain, Class::Named(class), data)
    }

    fn made(domain: &IrqDomain, class: Class, data: T) -> Self {
        Self { shared: Arc::clone(domain.shared()), check: LockCheck::new(class), data: Mutex::new(data) }
    }

    /// Turns interrupts off and locks. A holder that panicked leaves the data as it was then.
    #[inline]
    #[track_caller]
    pub fn lock(&self) -> IrqLockGuard<'_, T> {
        let section = SectionGuard::open(&self.shared);
        let hold = self.check.before(Location::caller());
        IrqLockGuard { data: lock(&self.data), _hold: hold, _section: section }
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

/// A lock that leaves interrupts as they are: what plain `spin_lock` is to the kernel, for data that no handler touches. If
/// one does, the checks say so; a `std::sync::Mutex` would deadlock one day, untold.
pub struct Lock<T> {
    check: LockCheck,
    data: Mutex<T>,
}

/// The data of a [`Lock`], locked.
pub struct LockGuard<'lock, T> {
    data: MutexGuard<'lock, T>,
    _hold: Option<Hold>,
}

impl<T> Lock<T> {
    /// Guards `data` of threads against one another. Of the class of its line, as [`IrqLock::new`] says.
    #[track_caller]
    pub fn new(data: T) -> Self {
        Self { check: LockCheck::new(Class::Made(Location::caller())), data: Mutex::new(data) }
    }

    /// As [`Lock::new`], of the class with this name, whichever line makes it.
    pub fn of_class(class: &'static str, data: T) -> Self {
        Self { check: LockCheck::new(Class::Named(class)), data: Mutex::new(data) }
    }

    /// Locks. A holder that panicked leaves the data as it was then.
    #[inline]
    #[track_caller]
    pub fn lock(&self) -> LockGuard<'_, T> {
        let hold = self.check.before(Location::caller());
        LockGuard { data: lock(&self.data), _hold: hold }
    }
}

impl<T> Deref for LockGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T> DerefMut for LockGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.data
    }
}
