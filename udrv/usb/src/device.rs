//! [`Device`]: a backend with deadlines, in three forms over one core: callback, blocking, Future.

use crate::backend::{AnyUsb, UsbInfo};
use crate::reactor::Reactor;
use crate::transfer::{Completion, Refused, Setup, Status, Transfer, TransferId};
use crate::{Buffer, Error, Result, descriptor};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// How long a transfer may take to end once it was cancelled, before the waiter gives it up.
const GRACE: Duration = Duration::from_secs(5);

/// How long a device may take to send a descriptor (USB 2.0, 9.2.6.4: 500 ms for each data packet; and then some).
const DESCRIPTOR: Duration = Duration::from_secs(5);

/// A USB device, open. Cheap to clone; clones are the same device, which is given back when the last one goes.
#[derive(Clone)]
pub struct Device {
    backend: AnyUsb,
    reactor: Reactor,
}

/// A transfer in flight that can be cancelled.
#[derive(Clone)]
pub struct Handle {
    id: TransferId,
    backend: AnyUsb,
}

impl Handle {
    /// Asks for its end; it still ends once, with [`Status::Cancelled`] unless it was faster.
    pub fn cancel(&self) {
        self.backend.cancel(self.id);
    }
}

impl Device {
    /// A device over any backend.
    ///
    /// # Errors
    /// [`Error::Os`] if the loop that keeps the deadlines cannot be started.
    pub fn new(backend: AnyUsb) -> Result<Self> {
        Ok(Self { backend, reactor: Reactor::shared()? })
    }

    /// The backend: claiming, alternate settings, clearing halts, reset.
    #[must_use]
    pub fn backend(&self) -> &AnyUsb {
        &self.backend
    }

    /// What the device says of itself.
    #[must_use]
    pub fn info(&self) -> &UsbInfo {
        self.backend.info()
    }

    /// Its address, for messages.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.backend.info().address
    }

    /// Memory for the data of large transfers that are done again and again; see [`crate::UsbBackend::buffer`].
    #[must_use]
    pub fn buffer(&self, length: usize) -> Buffer {
        self.backend.buffer(length)
    }

    /// Starts a transfer that is cancelled when `allowed` is over, then with [`Status::Timeout`]. `done` is called once,
    /// on any thread, perhaps before this returns; it must not wait.
    ///
    /// # Errors
    /// As [`crate::UsbBackend::submit`]; `done` is dropped then.
    pub fn submit_then(
        &self,
        transfer: Transfer,
        allowed: Duration,
        done: impl FnOnce(Completion) + Send + 'static,
    ) -> std::result::Result<Handle, Box<Refused>> {
        if let Err(why) = transfer.check() {
            let found = why.to_owned();
            let error = Error::Protocol { peer: "the driver".into(), found, expected: "a transfer that can be".into() };
            return Err(Box::new(Refused { transfer, error }));
        }
        let id = TransferId::next();
        let timer = self.reactor.cancel_after(allowed, Arc::downgrade(&self.backend), id);
        let timers = self.reactor.timers();
        let finish = move |mut completion: Completion| {
            let in_time = timers.forget(timer);
            if completion.status == Status::Cancelled && !in_time {
                completion.status = Status::Timeout;
            }
            done(completion);
        };
        match self.backend.submit(id, transfer, Box::new(finish)) {
            Ok(()) => Ok(Handle { id, backend: Arc::clone(&self.backend) }),
            Err(refused) => {
                let _in_time = self.reactor.forget(timer);
                Err(refused)
            }
        }
    }

    /// Starts a transfer to be waited for: [`Pending::wait`], or as a Future.
    ///
    /// # Errors
    /// As [`Device::submit_then`].
    pub fn submit(&self, transfer: Transfer, allowed: Duration) -> std::result::Result<Pending, Box<Refused>> {
        let slot = Arc::new(Slot::default());
        let filled = Arc::clone(&slot);
        let requested = transfer.data.len();
        let handle = self.submit_then(transfer, allowed, move |completion| filled.fill(completion))?;
        Ok(Pending { slot, handle, allowed, requested })
    }

    /// Starts a transfer and waits for its end.
    ///
    /// # Errors
    /// As [`Device::submit_then`]; how an accepted transfer ended is in the completion.
    pub fn transfer(&self, transfer: Transfer, allowed: Duration) -> Result<Completion> {
        Ok(self.submit(transfer, allowed)?.wait())
    }

    /// A control transfer on endpoint 0 that reads up to `length` bytes.
    ///
    /// # Errors
    /// As [`Completion::into_data`], with `doing`.
    pub fn control_in(&self, setup: Setup, length: u16, allowed: Duration, doing: &str) -> Result<Vec<u8>> {
        let setup = Setup { request_type: setup.request_type | 0x80, ..setup };
        let transfer = Transfer::control(setup, vec![0; usize::from(length)]);
        self.transfer(transfer, allowed)?.into_data(self.address(), doing, allowed).map(Buffer::into_vec)
    }

    /// A control transfer on endpoint 0 that writes `data`.
    ///
    /// # Errors
    /// As [`Completion::into_data`], with `doing`.
    pub fn control_out(&self, setup: Setup, data: &[u8], allowed: Duration, doing: &str) -> Result<()> {
        let setup = Setup { request_type: setup.request_type & 0x7f, ..setup };
        let transfer = Transfer::control(setup, data.to_vec());
        self.transfer(transfer, allowed)?.into_data(self.address(), doing, allowed).map(drop)
    }

    /// GET_DESCRIPTOR (USB 2.0, 9.4.3): up to `length` bytes of it.
    ///
    /// # Errors
    /// As [`Device::control_in`].
    pub fn descriptor(&self, kind: u8, index: u8, language: u16, length: u16) -> Result<Vec<u8>> {
        let value = u16::from_be_bytes([kind, index]);
        let setup = Setup { request_type: 0x80, request: 6, value, index: language };
        self.control_in(setup, length, DESCRIPTOR, "GET_DESCRIPTOR")
    }

    /// A string in the device's first language. `None` for index 0, which means that there is none.
    ///
    /// # Errors
    /// As [`Device::descriptor`] and [`descriptor::parse_string`].
    pub fn string(&self, index: u8) -> Result<Option<String>> {
        if index == 0 {
            return Ok(None);
        }
        let languages = self.descriptor(descriptor::kind::STRING, 0, 0, 255)?;
        let language = match languages.as_slice() {
            [_, _, low, high, ..] => u16::from_le_bytes([*low, *high]),
            _ => 0x0409, // English (United States), which nearly all have and few forget to list
        };
        descriptor::parse_string(&self.descriptor(descriptor::kind::STRING, index, language, 255)?).map(Some)
    }

    /// The capabilities of the binary device object store; none for a device older than USB 2.1.
    ///
    /// # Errors
    /// As [`Device::descriptor`] and [`descriptor::parse_bos`].
    pub fn capabilities(&self) -> Result<Vec<descriptor::Capability>> {
        if self.info().descriptors.device.usb < 0x0201 {
            return Ok(Vec::new());
        }
        let head = self.descriptor(descriptor::kind::BOS, 0, 0, 5)?;
        let total = match head.as_slice() {
            [_, _, low, high, _] => u16::from_le_bytes([*low, *high]),
            _ => 5,
        };
        descriptor::parse_bos(&self.descriptor(descriptor::kind::BOS, 0, 0, total)?)
    }
}

#[derive(Default)]
struct Slot {
    state: Mutex<(Option<Completion>, Option<Waker>)>,
    filled: Condvar,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, (Option<Completion>, Option<Waker>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self, completion: Completion) {
        let mut state = self.lock();
        state.0 = Some(completion);
        let waker = state.1.take();
        drop(state);
        self.filled.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A transfer in flight, to be waited for. Dropping it does not cancel it.
#[must_use = "what a transfer brings is in its completion"]
pub struct Pending {
    slot: Arc<Slot>,
    handle: Handle,
    allowed: Duration,
    requested: usize,
}

impl Pending {
    /// See [`Handle::cancel`].
    pub fn cancel(&self) {
        self.handle.cancel();
    }

    /// Waits for its end, on this thread. A transfer that does not even end when it is cancelled is given up after
    /// another five seconds: the completion is then [`Status::Timeout`] without the data.
    #[must_use]
    pub fn wait(self) -> Completion {
        let limit = self.allowed.saturating_add(GRACE);
        let state = self.slot.lock();
        let waited = self.slot.filled.wait_timeout_while(state, limit, |state| state.0.is_none());
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.0.take().unwrap_or(Completion {
            status: Status::Timeout,
            data: Buffer::default(),
            actual: 0,
            requested: self.requested,
            packets: Vec::new(),
        })
    }
}

impl Future for Pending {
    type Output = Completion;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Completion> {
        let mut state = self.slot.lock();
        match state.0.take() {
            Some(completion) => Poll::Ready(completion),
            None => {
                state.1 = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
