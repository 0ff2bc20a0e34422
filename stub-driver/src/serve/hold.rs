//! The triggers of a lease, and holding them back while the client stands in a debugger, or by a signal.
//!
//! An eventfd holds by itself: it goes to the device as it came, and counts what nobody takes. Whatever else the client wants
//! written (sockets, pipes) the stub writes itself, from an eventfd that the device signals: while the client stands nothing is
//! written, and when it goes on it gets the count. None is lost either way, and both can be counted from here.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use udrv_backend::{Backend, IrqIndex, Result, Trigger};
use udrv_vfio::descriptor::eventfd_count;
use udrv_vfio::relay::{Relay, Ticket, Way};

/// A client that stands, for `status`.
#[derive(Debug, Serialize, Deserialize)]
pub struct HoldStatus {
    /// For how long, seconds.
    pub held_s: f64,
    /// The process that traces it, its debugger; `None` if it was stopped by a signal.
    pub tracer_pid: Option<u32>,
    /// Vectors whose interrupts wait.
    pub waiting: Vec<Waiting>,
}

/// A vector whose interrupts wait.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Interrupt index, as in VFIO.
    pub index: u32,
    /// The vector.
    pub vector: u32,
    /// How many interrupts.
    pub count: u64,
}

/// What is held of one lease, and since when.
pub(super) struct Hold {
    /// Whether anything ever is.
    on: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// CLOCK_MONOTONIC in nanoseconds since when the client stands.
    since: Option<u64>,
    triggers: BTreeMap<(u32, u32), Signalled>,
    /// Started with the first trigger that needs it. Dropped behind those.
    relay: Option<Relay>,
}

/// What the device signals for one vector.
enum Signalled {
    Direct(OwnedFd),
    Relayed(Ticket),
}

impl AsFd for Signalled {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Direct(fd) => fd.as_fd(),
            Self::Relayed(ticket) => ticket.as_fd(),
        }
    }
}

impl Signalled {
    fn waiting(&self) -> u64 {
        match self {
            Self::Direct(fd) => eventfd_count(fd.as_fd()).unwrap_or(0),
            Self::Relayed(ticket) => ticket.waiting(),
        }
    }
}

impl State {
    fn signalled(&mut self, trigger: Trigger<'_>) -> Result<Signalled> {
        let target = match Way::to(trigger)? {
            Way::Direct(fd) => return Ok(Signalled::Direct(fd)),
            Way::Relayed(target) => target,
        };
        let relay = match &mut self.relay {
            Some(relay) => relay,
            none => none.insert(Relay::start()?),
        };
        if self.since.is_some() {
            relay.hold();
        }
        relay.add(target).map(Signalled::Relayed)
    }
}

impl Hold {
    /// Of a new lease. Where it is not `on`, triggers go to the device as they come, and nothing is ever held.
    pub(super) fn new(on: bool) -> Self {
        Self { on, state: Mutex::default() }
    }

    pub(super) const fn is_on(&self) -> bool {
        self.on
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`Backend::set_triggers`], with our eventfds in the place of what we write ourselves.
    pub(super) fn set_triggers(
        &self,
        device: &dyn Backend,
        (index, start): (IrqIndex, u32),
        triggers: &[Option<Trigger<'_>>],
    ) -> Result<()> {
        if !self.on {
            return device.set_triggers(index, start, triggers);
        }
        let mut state = self.lock();
        let signalled = triggers.iter().map(|trigger| trigger.map(|trigger| state.signalled(trigger)).transpose());
        let signalled: Vec<_> = signalled.collect::<Result<_>>()?;
        let ours: Vec<_> = signalled.iter().map(|signalled| signalled.as_ref().map(AsFd::as_fd)).collect();
        device.set_triggers(index, start, &ours)?;
        // Those before are let go of after the device has.
        for (vector, signalled) in (start..).zip(signalled) {
            match signalled {
                Some(signalled) => drop(state.triggers.insert((index.0, vector), signalled)),
                None => drop(state.triggers.remove(&(index.0, vector))),
            }
        }
        Ok(())
    }

    /// [`Backend::disable_irq`].
    pub(super) fn disable(&self, device: &dyn Backend, index: IrqIndex) -> Result<()> {
        device.disable_irq(index)?;
        self.lock().triggers.retain(|(of, _), _| *of != index.0);
        Ok(())
    }

    /// At the end of the lease, once the device is quiet.
    pub(super) fn end(&self) {
        *self.lock() = State::default();
    }

    /// The client stands, since this time of CLOCK_MONOTONIC in nanoseconds.
    pub(super) fn begin(&self, since: u64) {
        let mut state = self.lock();
        state.since = Some(since);
        if let Some(relay) = &state.relay {
            relay.hold();
        }
    }

    /// The client goes on: what was held is delivered. Returns for how long it stood, if it did.
    pub(super) fn go_on(&self) -> Option<Duration> {
        let mut state = self.lock();
        let since = state.since.take()?;
        if let Some(relay) = &state.relay {
            relay.go_on();
        }
        Some(age(since))
    }

    pub(super) fn is_held(&self) -> bool {
        self.lock().since.is_some()
    }

    /// What is held, if anything is. `tracer_pid` is the client's.
    pub(super) fn status(&self, tracer_pid: impl FnOnce() -> Option<u32>) -> Option<HoldStatus> {
        let state = self.lock();
        let held_s = age(state.since?).as_secs_f64();
        let waiting = state.triggers.iter().map(|((index, vector), signalled)| Waiting {
            index: *index,
            vector: *vector,
            count: signalled.waiting(),
        });
        let waiting = waiting.filter(|waiting| waiting.count > 0).collect();
        Some(HoldStatus { held_s, tracer_pid: tracer_pid(), waiting })
    }
}

fn age(since: u64) -> Duration {
    Duration::from_nanos(udrv_inspect::monotonic().saturating_sub(since))
}
