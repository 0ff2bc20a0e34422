//! The domain as its users see it: sections, waiting, and what hands out sources.

use super::bottom_half::BottomHalf;
use super::deliver::{Shared, Spun};
use super::gate::Slot;
use super::number::{me, place};
use super::registration::Registration;
use super::service::Service;
use super::source::Interrupt;
use super::sync::Barrier;
use super::timer::Timer;
use super::{Delivery, IrqOptions, IrqReturn, IrqsOff, checks};
use crate::clock::Deadline;
use std::marker::PhantomData;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;
use udrv_backend::{AnyBackend, IrqIndex, Result};

/// A set of interrupt sources and the sections that hold them back. Cheap to clone; clones are the same domain.
#[derive(Clone)]
pub struct IrqDomain {
    shared: Arc<Shared>,
    /// Ends the domain's threads when the last clone goes.
    service: Arc<Service>,
}

impl IrqDomain {
    /// A domain without sources. In [`Delivery::Signal`] the calling thread becomes its driver's thread.
    ///
    /// # Errors
    /// [`udrv_backend::Error::Os`] if the thread, the event loop or the signal handler cannot be set up.
    pub fn new(delivery: Delivery) -> Result<Self> {
        Self::with_barrier(delivery, Barrier::of_this_kernel())
    }

    /// As [`IrqDomain::new`], without membarrier(2): as on kernels that lack it. Sections then cost a full fence.
    ///
    /// # Errors
    /// As [`IrqDomain::new`].
    pub fn without_membarrier(delivery: Delivery) -> Result<Self> {
        Self::with_barrier(delivery, Barrier::Fence)
    }

    fn with_barrier(delivery: Delivery, barrier: Barrier) -> Result<Self> {
        let shared = Arc::new(Shared::new(delivery, barrier)?);
        super::accounts::enlist(&shared);
        let service = Arc::new(Service::new(&shared)?);
        Ok(Self { shared, service })
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Whether this thread is in a handler of the domain.
    pub(crate) fn is_delivering_here(&self) -> bool {
        self.shared.gate.is_holder(me())
    }

    /// How many signals all sources have seen together.
    pub(crate) fn raised(&self) -> u64 {
        let sources: Vec<_> = super::sync::lock(&self.shared.sources).values().cloned().collect();
        sources.iter().map(|source| source.stats().raised).fold(0, u64::saturating_add)
    }

    pub(super) fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Which delivery was chosen.
    #[must_use]
    pub fn delivery(&self) -> Delivery {
        self.shared.delivery
    }

    /// Takes one vector of a device. The handler runs with all others of the domain held off.
    ///
    /// # Errors
    /// [`udrv_backend::Error::NoSuchIrq`] if the device has no such vector; [`udrv_backend::Error::Unavailable`] if it is
    /// taken in this domain; [`udrv_backend::Error::Os`].
    pub fn register(
        &self,
        backend: &AnyBackend,
        index: IrqIndex,
        vector: u32,
        handler: impl FnMut(Interrupt) -> IrqReturn + Send + 'static,
    ) -> Result<Registration> {
        self.register_with(backend, index, vector, IrqOptions::default(), handler)
    }

    /// As [`IrqDomain::register`], with a priority, on a shared line, or with another idea of a storm.
    ///
    /// # Errors
    /// As [`IrqDomain::register`]; a line is shared only if all its registrations say so, and taken as long as those whose
    /// handlers have all panicked are.
    pub fn register_with(
        &self,
        backend: &AnyBackend,
        index: IrqIndex,
        vector: u32,
        options: IrqOptions,
        handler: impl FnMut(Interrupt) -> IrqReturn + Send + 'static,
    ) -> Result<Registration> {
        Registration::new(self, backend, (index, vector), options, Box::new(handler))
    }

    /// Takes one vector with a handler in two halves. When `handler` returns [`IrqReturn::WakeThread`], `threaded` runs on
    /// a thread of its own, with interrupts on; until it has returned, the line is neither delivered nor unmasked
    /// (the kernel's `IRQF_ONESHOT`).
    ///
    /// # Errors
    /// As [`IrqDomain::register_with`].
    pub fn register_threaded(
        &self,
        backend: &AnyBackend,
        index: IrqIndex,
        vector: u32,
        options: IrqOptions,
        handler: impl FnMut(Interrupt) -> IrqReturn + Send + 'static,
        threaded: impl FnMut(Interrupt) + Send + 'static,
    ) -> Result<Registration> {
        Registration::threaded(self, backend, (index, vector), options, handler, Box::new(threaded))
    }

    /// A timer whose handler is held off by sections as an interrupt's is. It does not run until armed.
    ///
    /// # Errors
    /// [`udrv_backend::Error::Os`] if the kernel has no timer for us.
    pub fn timer(&self, handler: impl FnMut(Interrupt) + Send + 'static) -> Result<Timer> {
        Timer::new(self, handler)
    }

    /// Work for after the handlers; see [`BottomHalf`].
    #[track_caller]
    pub fn bottom_half(&self, work: impl FnMut() + Send + 'static) -> BottomHalf {
        BottomHalf::new(&self.shared, Location::caller(), work)
    }

    /// Runs `section` with this domain's interrupts off. What became pending is delivered before this returns, if it is
    /// the outermost section. A panic inside restores the state.
    #[inline]
    #[track_caller]
    pub fn off<T>(&self, section: impl FnOnce(&Section<'_>) -> T) -> T {
        let guard = self.off_guard();
        section(&guard.section)
    }

    /// As [`IrqDomain::off`], as a guard. Waits for a handler that is running on another thread.
    ///
    /// A guard that is forgotten leaves interrupts off for ever.
    #[must_use = "interrupts are off only as long as the guard lives"]
    #[inline]
    #[track_caller]
    pub fn off_guard(&self) -> SectionGuard<'_> {
        SectionGuard::open(&self.shared)
    }

    /// How long its interrupts were off, and by which lines; empty where the checks are off.
    #[must_use]
    pub fn irqs_off(&self) -> IrqsOff {
        self.shared.off.snapshot()
    }

    /// How long a section may be until it is reported ([`super::violations`]); 10 ms unless set. Only where the checks are on.
    pub fn set_section_budget(&self, budget: Duration) {
        self.shared.off.set_budget(budget);
    }

    /// Delivers what is pending now, on this thread, unless a section is open; waits for another thread that delivers it already,
    /// but not in a handler. Returns how many handlers ran here.
    pub fn deliver(&self) -> u64 {
        self.shared.deliver_out().handlers
    }

    /// Waits until `done` holds, delivering interrupts meanwhile (in thread delivery, on the domain's thread; else here).
    /// `done` is tried after every delivery, and should not depend on anything else: nothing else wakes it.
    ///
    /// # Errors
    /// [`udrv_backend::Error::Timeout`] naming `what` when `deadline` passes first;
    /// [`udrv_backend::Error::NotSupported`] with a section open or in a handler, where nothing could be delivered.
    #[track_caller]
    pub fn wait(&self, what: &str, deadline: Deadline, mut done: impl FnMut() -> bool) -> Result<()> {
        checks::might_sleep();
        self.shared.check_may_wait()?;
        let mut spun = Spun::default();
        loop {
            let seen = self.shared.gate.progress();
            let held_back = self.delivery() != Delivery::Thread && self.shared.deliver_in_wait(&mut spun).held_back;
            if done() {
                return Ok(());
            }
            let Some(left) = deadline.remaining() else { return Err(deadline.missed(what)) };
            spun.found = self.shared.idle(seen, held_back, spun.looks(), Some(left))?;
        }
    }
}

/// Proof that interrupts of a domain are off. Neither Send nor Sync: it speaks of the thread that opened it.
pub struct Section<'domain> {
    domain: PhantomData<&'domain IrqDomain>,
    not_send: PhantomData<*const ()>,
}

/// An open section; closes when dropped.
pub struct SectionGuard<'domain> {
    section: Section<'domain>,
    shared: &'domain Arc<Shared>,
    /// If it ends quickly.
    quick: Option<&'domain Slot>,
}

impl<'domain> SectionGuard<'domain> {
    #[inline(always)]
    #[track_caller]
    pub(super) fn open(shared: &'domain Arc<Shared>) -> Self {
        let slot = shared.gate.slot(place());
        let is_quick = shared.gate.enter_quickly(slot);
        let quick = if is_quick { Some(slot) } else { shared.open_slowly(Location::caller()) };
        checks::opened(shared, Location::caller());
        Self { section: Section { domain: PhantomData, not_send: PhantomData }, shared, quick }
    }
}

impl<'domain> std::ops::Deref for SectionGuard<'domain> {
    type Target = Section<'domain>;
    fn deref(&self) -> &Section<'domain> {
        &self.section
    }
}

impl Drop for SectionGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        checks::closed(self.shared);
        match self.quick {
            None => self.shared.close_slowly(),
            Some(slot) => {
                if self.shared.gate.leave_quickly(slot) {
                    self.shared.after_section();
                }
            }
        }
    }
}
