//! [`Software`]: a model as a [`UsbBackend`].

use super::schedule::{Ended, State};
use super::standard::{self, Answer};
use super::urb::Urb;
use super::{Model, Reply};
use crate::backend::{UsbBackend, UsbInfo};
use crate::descriptor::{Configuration, Descriptors, DeviceDescriptor};
use crate::transfer::{
    Completion, Done, EndpointAddress, Kind, Refused, Setup, Status, Transfer, TransferFlags, TransferId,
};
use crate::{Buffer, Error, Result, Speed};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A software device with its bus.
pub struct Software<M: Model> {
    info: UsbInfo,
    state: Mutex<State<M>>,
}

impl<M: Model> Software<M> {
    /// Plugs a model in. It is configured with its first configuration, as the kernel would.
    ///
    /// # Errors
    /// [`Error::Protocol`] if its descriptors are broken.
    pub fn new(address: &str, model: M) -> Result<Self> {
        let identity = model.identity();
        let device = DeviceDescriptor::parse(&identity.device)?;
        let configurations: Vec<Configuration> =
            identity.configurations.iter().map(|bytes| Configuration::parse(bytes)).collect::<Result<_>>()?;
        let configuration = configurations.first().map_or(0, |configuration| configuration.value);
        let info = UsbInfo {
            address: address.to_owned(),
            bus: 0,
            number: 1,
            ports: Vec::new(),
            speed: identity.speed.unwrap_or(Speed::High),
            descriptors: Descriptors { device, configurations },
        };
        let mut state = State {
            model,
            identity,
            queues: BTreeMap::new(),
            halted: BTreeSet::new(),
            configuration,
            alternates: BTreeMap::new(),
            claimed: BTreeSet::new(),
            gone: false,
            ended: VecDeque::new(),
            telling: false,
        };
        state.model.configured(configuration);
        Ok(Self { info, state: Mutex::new(state) })
    }

    /// Looks at the model, or lets something happen to it from outside (a key is pressed); then transfers that waited
    /// for it go on.
    pub fn with_model<T>(&self, happen: impl FnOnce(&mut M) -> T) -> T {
        let mut state = self.lock();
        let value = happen(&mut state.model);
        let ended = state.pump(&self.info);
        self.tell(state, ended);
        value
    }

    /// Pulls the device out: everything in flight ends with [`Status::Gone`].
    pub fn unplug(&self) {
        let mut state = self.lock();
        state.gone = true;
        let queues = std::mem::take(&mut state.queues);
        self.tell(state, queues.into_values().flatten().map(|urb| urb.end(Status::Gone)).collect());
    }

    /// How many transfers are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.lock().queues.values().map(VecDeque::len).sum()
    }

    fn lock(&self) -> MutexGuard<'_, State<M>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn present(&self) -> Result<MutexGuard<'_, State<M>>> {
        let state = self.lock();
        if state.gone {
            return Err(Error::Gone { device: self.info.address.clone(), why: "it was unplugged".into() });
        }
        Ok(state)
    }

    /// Outside of the lock: what is told may submit again.
    fn tell<'a>(&'a self, mut state: MutexGuard<'a, State<M>>, ended: Ended) {
        state.ended.extend(ended);
        if std::mem::replace(&mut state.telling, true) {
            return;
        }
        let _panic = AfterPanic(self);
        while let Some((done, completion)) = state.ended.pop_front() {
            drop(state);
            done(completion);
            state = self.lock();
        }
        state.telling = false;
        drop(state);
    }

    fn unavailable(&self, why: String, advice: &str) -> Error {
        Error::Unavailable { device: self.info.address.clone(), why, advice: advice.into() }
    }

    fn apply(&self, state: &mut State<M>, answer: Answer) -> Result<Reply> {
        match answer {
            Answer::Configure(value) => {
                let known = value == 0 || self.info.descriptors.configuration(value).is_some();
                if !known {
                    return Err(self.unavailable(format!("there is no configuration {value}"), "see `udrv usb list`"));
                }
                state.configuration = value;
                state.alternates.clear();
                state.halted.clear();
                state.model.configured(value);
            }
            Answer::Alternate(interface, alternate) => {
                let active = self.info.descriptors.configuration(state.configuration);
                if active.is_none_or(|active| active.interface(interface, alternate).is_none()) {
                    let why = format!("interface {interface} has no alternate setting {alternate}");
                    return Err(self.unavailable(why, "see `udrv usb list`"));
                }
                state.alternates.insert(interface, alternate);
                state.model.alternate_set(interface, alternate);
            }
            Answer::Halt(endpoint, true) => {
                state.halted.insert(EndpointAddress(endpoint));
            }
            Answer::Halt(endpoint, false) => {
                state.halted.remove(&EndpointAddress(endpoint));
                state.model.halt_cleared(EndpointAddress(endpoint));
            }
            Answer::Now(reply) => return Ok(reply),
            Answer::Model => {}
        }
        Ok(Reply::Data(Vec::new()))
    }

    fn control(&self, state: &mut State<M>, setup: &Setup, data: &[u8]) -> Reply {
        let alternate = |interface| state.alternates.get(&interface).copied().unwrap_or(0);
        let halted = |endpoint| state.halted.contains(&EndpointAddress(endpoint));
        match standard::answer(&state.identity, setup, state.configuration, alternate, halted) {
            Answer::Model => state.model.control(setup, data),
            answer => self.apply(state, answer).unwrap_or(Reply::Stall),
        }
    }

    fn run_control(&self, state: &mut State<M>, setup: Setup, urb: Urb) -> (Done, Completion) {
        let outgoing = if setup.is_in() { Buffer::default() } else { urb.transfer.data.clone() };
        let requested = urb.transfer.data.len();
        let mut completion = match self.control(state, &setup, &outgoing) {
            Reply::Data(mut data) if setup.is_in() => {
                let status =
                    if data.len() > requested && !is_descriptor(&setup) { Status::Overflow } else { Status::Completed };
                data.truncate(requested);
                Completion { status, actual: data.len(), data: data.into(), requested, packets: Vec::new() }
            }
            Reply::Data(_) => {
                Completion { status: Status::Completed, actual: requested, data: outgoing, requested, packets: vec![] }
            }
            Reply::Nak | Reply::Stall => Completion::without_data(Status::Stall, urb.transfer.clone()),
        };
        let strict = urb.transfer.flags.contains(TransferFlags::SHORT_NOT_OK) && setup.is_in();
        if strict && completion.status == Status::Completed && completion.is_short() {
            completion.status = Status::Short;
        }
        (urb.done, completion)
    }
}

/// Whether a request's length only limits what the device sends of something longer (USB 2.0, 9.4.3).
const fn is_descriptor(setup: &Setup) -> bool {
    setup.request_type & 0x60 == 0 && setup.request == 6
}

/// Lets another tell the rest if what was told has panicked.
struct AfterPanic<'a, M: Model>(&'a Software<M>);

impl<M: Model> Drop for AfterPanic<'_, M> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().telling = false;
        }
    }
}

impl<M: Model> UsbBackend for Software<M> {
    fn info(&self) -> &UsbInfo {
        &self.info
    }

    fn submit(&self, id: TransferId, transfer: Transfer, done: Done) -> std::result::Result<(), Box<Refused>> {
        let mut state = match self.present() {
            Ok(state) => state,
            Err(error) => return Err(Box::new(Refused { transfer, error })),
        };
        let ended = if let Kind::Control(setup) = transfer.kind {
            let urb = Urb { id, transfer, done, moved: 0 };
            let first = self.run_control(&mut state, setup, urb);
            let mut ended = vec![first];
            ended.extend(state.pump(&self.info));
            ended
        } else if state.endpoint(&self.info, transfer.endpoint).is_some() {
            let queue = state.queues.entry(transfer.endpoint).or_default();
            queue.push_back(Urb { id, transfer, done, moved: 0 });
            state.pump(&self.info)
        } else {
            let why = format!("there is no {} in the active settings", transfer.endpoint);
            let error = self.unavailable(why, "set the configuration or alternate setting that has it");
            return Err(Box::new(Refused { transfer, error }));
        };
        self.tell(state, ended);
        Ok(())
    }

    fn cancel(&self, id: TransferId) {
        let mut state = self.lock();
        let found = state.queues.values_mut().find_map(|queue| {
            let at = queue.iter().position(|urb| urb.id == id)?;
            queue.remove(at)
        });
        // The next one may have waited behind it.
        let mut ended: Ended = found.into_iter().map(|urb| urb.end(Status::Cancelled)).collect();
        ended.extend(state.pump(&self.info));
        self.tell(state, ended);
    }

    fn configuration(&self) -> Result<u8> {
        Ok(self.present()?.configuration)
    }

    fn set_configuration(&self, value: u8) -> Result<()> {
        let mut state = self.present()?;
        if let Some(interface) = state.claimed.first() {
            return Err(self.unavailable(format!("interface {interface} is claimed"), "release it first"));
        }
        self.apply(&mut state, Answer::Configure(value)).map(drop)
    }

    fn claim(&self, interface: u8) -> Result<()> {
        let mut state = self.present()?;
        let active = self.info.descriptors.configuration(state.configuration);
        if active.is_none_or(|active| active.interface(interface, 0).is_none()) {
            return Err(self.unavailable(format!("there is no interface {interface}"), "see `udrv usb list`"));
        }
        if !state.claimed.insert(interface) {
            return Err(self.unavailable(format!("interface {interface} is claimed"), "release it first"));
        }
        Ok(())
    }

    fn release(&self, interface: u8) -> Result<()> {
        let mut state = self.present()?;
        state.claimed.remove(&interface);
        let endpoints: Vec<EndpointAddress> = self
            .info
            .descriptors
            .configuration(state.configuration)
            .into_iter()
            .flat_map(|active| &active.interfaces)
            .filter(|one| one.number == interface)
            .flat_map(|one| one.endpoints.iter().map(|endpoint| endpoint.address))
            .collect();
        let dropped: Vec<Urb> = endpoints.iter().filter_map(|address| state.queues.remove(address)).flatten().collect();
        self.tell(state, dropped.into_iter().map(|urb| urb.end(Status::Cancelled)).collect());
        Ok(())
    }

    fn set_alternate(&self, interface: u8, alternate: u8) -> Result<()> {
        let mut state = self.present()?;
        self.apply(&mut state, Answer::Alternate(interface, alternate)).map(drop)
    }

    fn clear_halt(&self, endpoint: EndpointAddress) -> Result<()> {
        let mut state = self.present()?;
        self.apply(&mut state, Answer::Halt(endpoint.0, false))?;
        let ended = state.pump(&self.info);
        self.tell(state, ended);
        Ok(())
    }

    fn reset(&self) -> Result<()> {
        let mut state = self.present()?;
        state.halted.clear();
        state.alternates.clear();
        state.model.reset();
        let configuration = state.configuration;
        state.model.configured(configuration);
        let dropped: Vec<Urb> = std::mem::take(&mut state.queues).into_values().flatten().collect();
        self.tell(state, dropped.into_iter().map(|urb| urb.end(Status::Cancelled)).collect());
        Ok(())
    }
}

impl<M: Model> Drop for Software<M> {
    fn drop(&mut self) {
        let mut state = self.lock();
        let queues = std::mem::take(&mut state.queues);
        self.tell(state, queues.into_values().flatten().map(|urb| urb.end(Status::Cancelled)).collect());
    }
}
