//! The keyboard driver: interrupt transfers, whose completions are interrupts of the driver's domain.

use crate::protocol::{INTERFACE_CLASS, KeyEvent, REPORT_LENGTH, Report, SET_IDLE, SET_PROTOCOL};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use udrv::irq::{IrqDomain, IrqReturn, Registration};
use udrv_usb::descriptor::TransferType;
use udrv_usb::{CompletionQueue, Device, EndpointAddress, Error, LINE, Refused, Result, Setup, Status, Transfer};

/// How long the device may take to answer a request.
const CONTROL: Duration = Duration::from_secs(5);

/// How long a report is waited for before it is asked for again: nobody may be typing.
const QUIET: Duration = Duration::from_secs(600);

/// Reports asked for at a time, so that none is missed while one is being looked at.
const IN_FLIGHT: u64 = 4;

/// A keyboard, brought up. Dropping it gives its interface back.
pub struct Keyboard {
    // Before the device is given back: the handler submits to it.
    registration: Option<Registration>,
    device: Device,
    interface: u8,
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: EndpointAddress,
    queue: CompletionQueue,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    down: Report,
    /// Why no report is asked for any more.
    ended: Option<Error>,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, device: &Device, tag: u64) -> std::result::Result<(), Box<Refused>> {
        let transfer = Transfer::interrupt(self.endpoint, vec![0; REPORT_LENGTH]);
        self.queue.submit(device, transfer, QUIET, tag).map(drop)
    }
}

impl Keyboard {
    /// Takes a device's boot keyboard and calls `tell` for each key, as a handler of `irqs`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it is none, or another program has it; [`Error::Protocol`], [`Error::Timeout`],
    /// [`Error::Gone`].
    pub fn attach(device: Device, irqs: &IrqDomain, mut tell: impl FnMut(KeyEvent) + Send + 'static) -> Result<Self> {
        let (interface, endpoint) = find(&device)?;
        device.backend().claim(interface)?;
        let shared = Arc::new(Shared { endpoint, queue: CompletionQueue::new(&device), state: Mutex::default() });
        let mut keyboard = Self { registration: None, device, interface, shared };
        keyboard.request(SET_PROTOCOL, "SET_PROTOCOL")?;
        // Reports only when something changes. A keyboard need not know this (HID, 7.2.4 with G.6).
        if let Err(error @ (Error::Gone { .. } | Error::Timeout { .. })) = keyboard.request(SET_IDLE, "SET_IDLE") {
            return Err(error);
        }
        let handler = {
            let (shared, device) = (Arc::clone(&keyboard.shared), keyboard.device.clone());
            move |_| {
                let mut found = IrqReturn::None;
                while let Some((tag, completion)) = shared.queue.pop() {
                    found = IrqReturn::Handled;
                    let report = if completion.status == Status::Completed {
                        Report::from_bytes(&completion.data)
                    } else {
                        None
                    };
                    let again = match completion.status {
                        Status::Completed | Status::Timeout => shared.ask(&device, tag).map_err(Error::from),
                        _ => completion.into_data(device.address(), "a report", QUIET).map(drop),
                    };
                    if let Err(error) = again {
                        shared.lock().ended.get_or_insert(error);
                    }
                    if let Some(report) = report {
                        let events = report.since(&shared.lock().down);
                        shared.lock().down = report;
                        events.into_iter().for_each(&mut tell);
                    }
                }
                found
            }
        };
        keyboard.registration = Some(irqs.register(&keyboard.shared.queue.line(), LINE, 0, handler)?);
        for tag in 0..IN_FLIGHT {
            keyboard.shared.ask(&keyboard.device, tag)?;
        }
        Ok(keyboard)
    }

    /// Whether it asks for no report any more, such as since the keyboard is gone.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.shared.lock().ended.is_some()
    }

    /// Why it has ended, once.
    #[must_use]
    pub fn take_error(&self) -> Option<Error> {
        self.shared.lock().ended.take()
    }

    fn request(&self, (request_type, request): (u8, u8), doing: &str) -> Result<()> {
        let setup = Setup { request_type, request, value: 0, index: u16::from(self.interface) };
        self.device.control_out(setup, &[], CONTROL, doing)
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        // No handler runs after this, so nothing is asked for again.
        drop(self.registration.take());
        // What is in flight is ended by the release.
        let _gone = self.device.backend().release(self.interface);
    }
}

fn find(device: &Device) -> Result<(u8, EndpointAddress)> {
    let active = device.backend().configuration()?;
    let configuration = device.info().descriptors.configuration(active);
    let mut interfaces = configuration.into_iter().flat_map(|configuration| &configuration.interfaces);
    let found = interfaces.find_map(|interface| {
        let keyboard = interface.class == INTERFACE_CLASS;
        let endpoint = interface.endpoint(TransferType::Interrupt, true).filter(|_| keyboard)?;
        Some((interface.number, endpoint.address))
    });
    found.ok_or_else(|| Error::Unavailable {
        device: device.address().into(),
        why: "it has no boot keyboard interface (03:01:01)".into(),
        advice: "`udrv usb list` shows what it has".into(),
    })
}
