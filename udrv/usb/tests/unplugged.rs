//! A device pulled out in mid-transfer: whatever else happens just then, what was in flight ends as gone.

use std::sync::{Arc, Mutex, OnceLock, mpsc};
use udrv_usb::faults::{FaultPlan, Faulty};
use udrv_usb::software::{Identity, Model, Software};
use udrv_usb::{
    Completion, Done, EndpointAddress, Refused, Result, Speed, Status, Transfer, TransferId, UsbBackend, UsbInfo,
};

const IN: EndpointAddress = EndpointAddress(0x81);

struct Silent;

impl Model for Silent {
    fn identity(&self) -> Identity {
        Identity::new(Speed::Full, (1, 2), 1, &[9, 4, 0, 0, 1, 0xff, 0, 0, 0, 7, 5, 0x81, 2, 8, 0, 0], ["a", "b", "c"])
    }
}

/// A device like one of this machine's: what is cancelled ends later, on another thread.
struct Late {
    rest: Software<Silent>,
    accepted: Mutex<Vec<(TransferId, Transfer, Done)>>,
    cancelled: Mutex<Vec<(Transfer, Done)>>,
    /// Happens while a transfer is on its way to the device.
    meanwhile: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Late {
    fn new() -> Arc<Self> {
        let rest = Software::new("model:silent", Silent).unwrap();
        let (accepted, cancelled) = (Mutex::default(), Mutex::default());
        Arc::new(Self { rest, accepted, cancelled, meanwhile: OnceLock::new() })
    }

    /// Ends what was cancelled; how much that was.
    fn end_cancelled(&self) -> usize {
        let ended = std::mem::take(&mut *self.cancelled.lock().unwrap());
        let count = ended.len();
        for (transfer, done) in ended {
            let requested = transfer.data.len();
            let status = Status::Cancelled;
            done(Completion { status, data: transfer.data, actual: 0, requested, packets: Vec::new() });
        }
        count
    }
}

impl UsbBackend for Late {
    fn info(&self) -> &UsbInfo {
        self.rest.info()
    }

    fn submit(&self, id: TransferId, transfer: Transfer, done: Done) -> std::result::Result<(), Box<Refused>> {
        if let Some(meanwhile) = self.meanwhile.get() {
            meanwhile();
        }
        self.accepted.lock().unwrap().push((id, transfer, done));
        Ok(())
    }

    fn cancel(&self, id: TransferId) {
        let mut accepted = self.accepted.lock().unwrap();
        if let Some(at) = accepted.iter().position(|(its, ..)| *its == id) {
            let (_, transfer, done) = accepted.remove(at);
            self.cancelled.lock().unwrap().push((transfer, done));
        }
    }

    fn configuration(&self) -> Result<u8> {
        self.rest.configuration()
    }

    fn set_configuration(&self, value: u8) -> Result<()> {
        self.rest.set_configuration(value)
    }

    fn claim(&self, interface: u8) -> Result<()> {
        self.rest.claim(interface)
    }

    fn release(&self, interface: u8) -> Result<()> {
        self.rest.release(interface)
    }

    fn set_alternate(&self, interface: u8, alternate: u8) -> Result<()> {
        self.rest.set_alternate(interface, alternate)
    }

    fn clear_halt(&self, endpoint: EndpointAddress) -> Result<()> {
        self.rest.clear_halt(endpoint)
    }

    fn reset(&self) -> Result<()> {
        self.rest.reset()
    }
}

/// Submits a transfer; how it ends comes out.
fn submit(device: &dyn UsbBackend) -> mpsc::Receiver<Status> {
    let (sender, ended) = mpsc::channel();
    let done = move |completion: Completion| sender.send(completion.status).unwrap();
    device.submit(TransferId::next(), Transfer::bulk(IN, vec![0; 8]), Box::new(done)).unwrap();
    ended
}

#[test]
fn transfer_that_ends_after_its_device_was_dropped_is_gone() {
    let late = Late::new();
    let device = Faulty::new(late.clone(), FaultPlan::default()).unwrap();
    let ended = submit(&device);

    device.unplug();
    drop(device);

    assert_eq!(late.end_cancelled(), 1);
    assert_eq!(ended.try_recv(), Ok(Status::Gone));
}

#[test]
fn transfer_submitted_while_the_device_is_pulled_out_is_gone_and_not_waited_for() {
    let late = Late::new();
    let device = Arc::new(Faulty::new(late.clone(), FaultPlan::default()).unwrap());
    let pulled = Arc::downgrade(&device);
    let meanwhile = move || pulled.upgrade().unwrap().unplug();
    assert!(late.meanwhile.set(Box::new(meanwhile)).is_ok());

    let ended = submit(&*device);

    assert_eq!(late.end_cancelled(), 1);
    assert_eq!(ended.try_recv(), Ok(Status::Gone));
}
