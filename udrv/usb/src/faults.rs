//! What can go wrong, made to go wrong at a given transfer: a [`UsbBackend`] around any other.
//!
//! A plan is text, such as `0x81@3=stall,0x02@5=delay:50,any@200=unplug`: on endpoint 0x81 the third transfer is answered
//! with STALL, on 0x02 the fifth reaches the device 50 ms late, and with the 200th of all the device is pulled out.

use crate::backend::{AnyUsb, UsbBackend, UsbInfo};
use crate::reactor::{Reactor, TimerId};
use crate::transfer::{Completion, Done, EndpointAddress, Refused, Status, Transfer, TransferId};
use crate::{Buffer, Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// What happens to one transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does not reach the device; its endpoint is halted until that is cleared.
    Stall,
    /// IN: only as many bytes of what the device sends arrive.
    Short(usize),
    /// The device is said to have sent more than was asked for.
    Babble,
    /// Its answer is said to be invalid.
    Error,
    /// It reaches the device later.
    Delay(Duration),
    /// The device is pulled out: it, all in flight, and all later ones are gone.
    Unplug,
}

/// Which transfer, and what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    /// `None`: transfers of all endpoints are counted.
    endpoint: Option<EndpointAddress>,
    /// The first is 1.
    nth: u64,
    fault: Fault,
}

/// What goes wrong, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FaultPlan(Vec<Rule>);

impl FromStr for FaultPlan {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let rules = text.split(',').filter(|rule| !rule.is_empty()).map(|rule| {
            parse(rule.trim()).ok_or_else(|| Error::BadAddress {
                given: rule.into(),
                expected: "ENDPOINT@N=FAULT: ENDPOINT is 0x81 or any; FAULT stall, short:BYTES, babble, error, delay:MS, unplug",
            })
        });
        rules.collect::<Result<_>>().map(Self)
    }
}

fn parse(rule: &str) -> Option<Rule> {
    let (place, fault) = rule.split_once('=')?;
    let (endpoint, nth) = place.split_once('@')?;
    let endpoint = match endpoint {
        "any" => None,
        address => Some(EndpointAddress(u8::from_str_radix(address.strip_prefix("0x")?, 16).ok()?)),
    };
    let fault = match fault.split_once(':') {
        None if fault == "stall" => Fault::Stall,
        None if fault == "babble" => Fault::Babble,
        None if fault == "error" => Fault::Error,
        None if fault == "unplug" => Fault::Unplug,
        Some(("short", bytes)) => Fault::Short(bytes.parse().ok()?),
        Some(("delay", ms)) => Fault::Delay(Duration::from_millis(ms.parse().ok()?)),
        _ => return None,
    };
    Some(Rule { endpoint, nth: nth.parse().ok().filter(|nth| *nth > 0)?, fault })
}

/// A device with a fault plan around it.
pub struct Faulty {
    shared: Arc<Shared>,
}

struct Shared {
    inner: AnyUsb,
    plan: FaultPlan,
    reactor: Reactor,
    state: Mutex<State>,
    /// Changed under the lock. It outlives this, for transfers that end later.
    gone: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    all: u64,
    counts: BTreeMap<EndpointAddress, u64>,
    halted: BTreeSet<EndpointAddress>,
    in_flight: BTreeSet<TransferId>,
    delayed: BTreeMap<TransferId, (TimerId, Transfer, Done)>,
}

impl Faulty {
    /// # Errors
    /// [`Error::Os`] if the loop that keeps the delays cannot be started.
    pub fn new(inner: AnyUsb, plan: FaultPlan) -> Result<Self> {
        let shared = Shared { inner, plan, reactor: Reactor::shared()?, state: Mutex::default(), gone: Arc::default() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Pulls the device out now.
    pub fn unplug(&self) {
        self.shared.unplug();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unplug(&self) {
        let mut state = self.lock();
        self.gone.store(true, Ordering::Release);
        let in_flight: Vec<TransferId> = state.in_flight.iter().copied().collect();
        let delayed = std::mem::take(&mut state.delayed);
        drop(state);
        for (timer, transfer, done) in delayed.into_values() {
            let _in_time = self.reactor.forget(timer);
            done(Completion::without_data(Status::Gone, transfer));
        }
        // They come back as cancelled, and are told as gone.
        in_flight.into_iter().for_each(|id| self.inner.cancel(id));
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    fn gone(&self) -> Error {
        Error::Gone { device: self.inner.info().address.clone(), why: "the fault plan has unplugged it".into() }
    }

    /// Counts a transfer, and says what is to happen to it.
    fn meet(&self, endpoint: EndpointAddress) -> (Option<Fault>, bool, bool) {
        let mut state = self.lock();
        state.all += 1;
        let all = state.all;
        let count = state.counts.entry(endpoint).or_default();
        *count += 1;
        let count = *count;
        let hit = |rule: &&Rule| match rule.endpoint {
            None => rule.nth == all,
            Some(address) => address == endpoint && rule.nth == count,
        };
        (self.plan.0.iter().find(hit).map(|rule| rule.fault), self.is_gone(), state.halted.contains(&endpoint))
    }

    fn forward(
        self: &Arc<Self>,
        id: TransferId,
        transfer: Transfer,
        fault: Option<Fault>,
        done: Done,
    ) -> std::result::Result<(), Box<Refused>> {
        {
            let mut state = self.lock();
            if self.is_gone() {
                return Err(Box::new(Refused { transfer, error: self.gone() }));
            }
            state.in_flight.insert(id);
        }
        let (shared, gone) = (Arc::downgrade(self), Arc::clone(&self.gone));
        let is_in = transfer.is_in();
        let told = move |mut completion: Completion| {
            if let Some(shared) = shared.upgrade() {
                shared.lock().in_flight.remove(&id);
            }
            match fault {
                _ if gone.load(Ordering::Acquire) => completion.status = Status::Gone,
                Some(Fault::Short(bytes)) if is_in && completion.actual > bytes => {
                    completion.data.truncate(bytes);
                    completion.actual = bytes;
                }
                Some(Fault::Babble) => completion.status = Status::Overflow,
                Some(Fault::Error) => completion.status = Status::Error,
                _ => {}
            }
            done(completion);
        };
        let submitted = self.inner.submit(id, transfer, Box::new(told));
        if submitted.is_err() {
            self.lock().in_flight.remove(&id);
        } else if self.is_gone() {
            // Perhaps pulled out before the device had it, and so not cancelled then.
            self.inner.cancel(id);
        }
        submitted
    }

    fn delay(self: &Arc<Self>, id: TransferId, transfer: Transfer, delay: Duration, done: Done) {
        let shared: Weak<Self> = Arc::downgrade(self);
        let late = move || {
            let Some(shared) = shared.upgrade() else { return };
            let Some((_, transfer, done)) = shared.lock().delayed.remove(&id) else { return };
            let done = Arc::new(Mutex::new(Some(done)));
            let told = Arc::clone(&done);
            let tell = move |completion| {
                if let Some(done) = told.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    done(completion);
                }
            };
            // It was accepted, so that a refusal now is an end like another.
            if let Err(refused) = shared.forward(id, transfer, None, Box::new(tell))
                && let Some(done) = done.lock().unwrap_or_else(PoisonError::into_inner).take()
            {
                let gone = matches!(refused.error, Error::Gone { .. });
                let status = if gone { Status::Gone } else { Status::Error };
                done(Completion::without_data(status, refused.transfer));
            }
        };
        // The lock is held until it is in the table, where the timer looks for it.
        let mut state = self.lock();
        let timer = self.reactor.after(delay, late);
        state.delayed.insert(id, (timer, transfer, done));
    }
}

impl UsbBackend for Faulty {
    fn info(&self) -> &UsbInfo {
        self.shared.inner.info()
    }

    fn submit(&self, id: TransferId, transfer: Transfer, done: Done) -> std::result::Result<(), Box<Refused>> {
        let (fault, gone, halted) = self.shared.meet(transfer.endpoint);
        if gone {
            return Err(Box::new(Refused { transfer, error: self.shared.gone() }));
        }
        match fault {
            Some(Fault::Unplug) => {
                self.shared.unplug();
                done(Completion::without_data(Status::Gone, transfer));
            }
            Some(Fault::Stall) => {
                // Endpoint 0 is never halted: the next setup packet ends it (USB 2.0, 8.5.3.4).
                if transfer.endpoint.number() != 0 {
                    self.shared.lock().halted.insert(transfer.endpoint);
                }
                done(Completion::without_data(Status::Stall, transfer));
            }
            _ if halted => done(Completion::without_data(Status::Stall, transfer)),
            Some(Fault::Delay(delay)) => self.shared.delay(id, transfer, delay, done),
            fault => return self.shared.forward(id, transfer, fault, done),
        }
        Ok(())
    }

    fn buffer(&self, length: usize) -> Buffer {
        self.shared.inner.buffer(length)
    }

    fn cancel(&self, id: TransferId) {
        let delayed = self.shared.lock().delayed.remove(&id);
        match delayed {
            Some((timer, transfer, done)) => {
                let _in_time = self.shared.reactor.forget(timer);
                done(Completion::without_data(Status::Cancelled, transfer));
            }
            None => self.shared.inner.cancel(id),
        }
    }

    fn configuration(&self) -> Result<u8> {
        self.shared.inner.configuration()
    }

    fn set_configuration(&self, value: u8) -> Result<()> {
        self.shared.inner.set_configuration(value)
    }

    fn claim(&self, interface: u8) -> Result<()> {
        self.shared.inner.claim(interface)
    }

    fn release(&self, interface: u8) -> Result<()> {
        self.shared.inner.release(interface)
    }

    fn set_alternate(&self, interface: u8, alternate: u8) -> Result<()> {
        self.shared.inner.set_alternate(interface, alternate)
    }

    fn clear_halt(&self, endpoint: EndpointAddress) -> Result<()> {
        if self.shared.is_gone() {
            return Err(self.shared.gone());
        }
        self.shared.lock().halted.remove(&endpoint);
        self.shared.inner.clear_halt(endpoint)
    }

    fn reset(&self) -> Result<()> {
        if self.shared.is_gone() {
            return Err(self.shared.gone());
        }
        self.shared.lock().halted.clear();
        self.shared.inner.reset()
    }
}
