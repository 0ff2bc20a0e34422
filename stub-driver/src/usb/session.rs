//! One client of the USB/IP server: it lists, or takes a device and submits transfers to it.
//!
//! The client's commands are read on its own thread; answers are written by another, since transfers end on the USB
//! thread, which must not wait for a client that does not read. How much a client may have in flight is limited.

use super::flights::{Answers, Flight, Flights, answers_to};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use udrv_backend::{Error, Result};
use udrv_usb::descriptor::TransferType;
use udrv_usb::usbip::{self, Command, HEADER, ImportStatus, Operation, Submit};
use udrv_usb::{AnyUsb, Completion, EndpointAddress, Kind, Setup, Transfer, TransferFlags, TransferId};

/// How long a client may take to say what it wants.
const GREETING: Duration = Duration::from_secs(10);
/// How long transfers may take to end once they are cancelled.
const CANCEL: Duration = Duration::from_secs(15);
/// Most transfers in flight for one client, and most bytes of them.
const MAX_IN_FLIGHT: usize = 1024;
const MAX_BYTES: usize = 64 << 20;

const EINVAL: i32 = -22;
const ENOMEM: i32 = -12;
const ESHUTDOWN: i32 = -108;
const EPIPE: i32 = -32;

/// A device that clients may take, one at a time.
pub struct Exported {
    bus_id: String,
    backend: AnyUsb,
    state: Mutex<State>,
}

struct State {
    taken: bool,
    /// bConfigurationValue.
    configuration: u8,
    /// Alternate settings other than 0, by interface.
    alternates: BTreeMap<u8, u8>,
}

impl Exported {
    /// Takes all interfaces of a device from their drivers, for as long as it is exported.
    ///
    /// # Errors
    /// As [`udrv_usb::UsbBackend::claim`].
    pub fn new(bus_id: String, backend: AnyUsb) -> Result<Self> {
        let configuration = backend.configuration()?;
        let state = Mutex::new(State { taken: false, configuration, alternates: BTreeMap::new() });
        let exported = Self { bus_id, backend, state };
        exported.claim(configuration)?;
        Ok(exported)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interfaces(&self, configuration: u8) -> Vec<u8> {
        let found = self.backend.info().descriptors.configuration(configuration);
        found.map(|configuration| configuration.numbers()).unwrap_or_default()
    }

    fn claim(&self, configuration: u8) -> Result<()> {
        self.interfaces(configuration).into_iter().try_for_each(|interface| self.backend.claim(interface))
    }

    fn release(&self, configuration: u8) -> Result<()> {
        self.interfaces(configuration).into_iter().try_for_each(|interface| self.backend.release(interface))
    }

    /// Gives the device back to the kernel's drivers, though a client may still have it.
    pub fn close(&self) {
        let configuration = self.lock().configuration;
        if let Err(error) = self.release(configuration) {
            tracing::warn!(%error, device = self.bus_id, "giving a device back");
        }
    }

    /// The type of an endpoint in the active settings.
    fn kind(&self, endpoint: EndpointAddress) -> Option<TransferType> {
        let state = self.lock();
        let configuration = self.backend.info().descriptors.configuration(state.configuration)?;
        let active = configuration
            .interfaces
            .iter()
            .filter(|interface| state.alternates.get(&interface.number).copied().unwrap_or(0) == interface.alternate);
        let mut endpoints = active.flat_map(|interface| &interface.endpoints);
        endpoints.find(|one| one.address == endpoint).map(|one| one.transfer)
    }

    fn set_configuration(&self, value: u8) -> Result<()> {
        let current = self.lock().configuration;
        if value == current {
            // Every client begins with this; on the bus it would only reset the alternate settings and toggles.
            let changed: Vec<u8> = std::mem::take(&mut self.lock().alternates).into_keys().collect();
            return changed.into_iter().try_for_each(|interface| self.backend.set_alternate(interface, 0));
        }
        self.release(current)?;
        self.backend.set_configuration(value)?;
        let mut state = self.lock();
        state.configuration = value;
        state.alternates.clear();
        drop(state);
        self.claim(value)
    }

    fn set_alternate(&self, interface: u8, alternate: u8) -> Result<()> {
        self.backend.set_alternate(interface, alternate)?;
        self.lock().alternates.insert(interface, alternate);
        Ok(())
    }
}

/// Serves one client until it ends, or does what the protocol does not allow.
///
/// # Errors
/// What was wrong with it.
pub fn run(stream: TcpStream, exported: &[Exported]) -> Result<()> {
    let os = |error: std::io::Error| Error::os("speaking with a client", error);
    stream.set_nonblocking(false).map_err(os)?;
    stream.set_nodelay(true).map_err(os)?;
    stream.set_read_timeout(Some(GREETING)).map_err(os)?;
    stream.set_write_timeout(Some(CANCEL)).map_err(os)?;
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::KeepAlive, &true).map_err(|e| os(e.into()))?;
    let mut stream = stream;
    let mut operation = [0; usbip::OPERATION];
    stream.read_exact(&mut operation).map_err(os)?;
    match Operation::parse(&operation).map_err(|found| violation(&found))? {
        Operation::List => {
            let states: Vec<_> = exported.iter().map(|one| (one, one.lock().configuration)).collect();
            let devices: Vec<_> =
                states.iter().map(|(one, value)| (one.bus_id.as_str(), one.backend.info(), *value)).collect();
            stream.write_all(&usbip::device_list(&devices)).map_err(os)
        }
        Operation::Import => {
            let mut bus_id = [0; usbip::BUS_ID];
            stream.read_exact(&mut bus_id).map_err(os)?;
            let wanted = usbip::bus_id(&bus_id);
            let Some(device) = exported.iter().find(|one| Some(one.bus_id.as_str()) == wanted) else {
                return stream.write_all(&usbip::imported(ImportStatus::NoDevice, None)).map_err(os);
            };
            if std::mem::replace(&mut device.lock().taken, true) {
                return stream.write_all(&usbip::imported(ImportStatus::Busy, None)).map_err(os);
            }
            let outcome = import(stream, device);
            device.lock().taken = false;
            outcome
        }
    }
}

fn violation(found: &str) -> Error {
    Error::Protocol { peer: "the client".into(), found: found.into(), expected: "what usbip_protocol.rst says".into() }
}

/// The client has the device.
fn import(mut stream: TcpStream, device: &Exported) -> Result<()> {
    let os = |error: std::io::Error| Error::os("speaking with a client", error);
    let configuration = device.lock().configuration;
    let record = (device.bus_id.as_str(), device.backend.info(), configuration);
    stream.write_all(&usbip::imported(ImportStatus::Ok, Some(record))).map_err(os)?;
    // No deadline from here on: a client may have nothing to say for as long as it has the device.
    stream.set_read_timeout(None).map_err(os)?;
    let (answers, answered) = Answers::new();
    let writer = {
        let mut stream = stream.try_clone().map_err(os)?;
        let write = move || answered.write_to(&mut stream);
        std::thread::Builder::new().name("usbip answers".into()).spawn(write).map_err(os)?
    };
    let session = Session { device, flights: Arc::default(), answers };
    let outcome = session.serve(&mut stream);
    let ended = session.end();
    drop(session);
    // What the writer waits for, if the client does not read.
    let _ = stream.shutdown(std::net::Shutdown::Both);
    let _ended = writer.join();
    outcome.and(ended)
}

struct Session<'a> {
    device: &'a Exported,
    flights: Arc<Flights>,
    answers: Answers,
}

impl Session<'_> {
    fn serve(&self, stream: &mut TcpStream) -> Result<()> {
        let os = |error: std::io::Error| Error::os("reading from a client", error);
        loop {
            if self.answers.are_not_taken() {
                return Err(violation("no interest in its answers"));
            }
            let mut header = [0; HEADER];
            match stream.read_exact(&mut header) {
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                other => other.map_err(os)?,
            }
            match Command::parse(&header).map_err(|found| violation(&found))? {
                Command::Unlink { seqnum, victim } => self.unlink(seqnum, victim),
                Command::Submit(submit) => {
                    let (data, descriptors) = submit.follows();
                    let mut bytes = vec![0; if submit.is_in { submit.length as usize } else { data }];
                    if !submit.is_in {
                        stream.read_exact(&mut bytes).map_err(os)?;
                    }
                    let mut packets = vec![0; descriptors];
                    stream.read_exact(&mut packets).map_err(os)?;
                    let packets = usbip::packet_lengths(&packets, submit.length).map_err(|found| violation(&found))?;
                    self.submit(&submit, bytes, packets)?;
                }
            }
        }
    }

    fn submit(&self, submit: &Submit, data: Vec<u8>, packets: Vec<u32>) -> Result<()> {
        if submit.endpoint == 0 && self.through_the_host(submit)? {
            return Ok(());
        }
        let Some(transfer) = self.transfer(submit, data, packets) else {
            return self.answer(usbip::submitted(submit.seqnum, EPIPE, 0, &[], &[]));
        };
        let id = TransferId::next();
        let bytes = transfer.data.len();
        {
            let mut table = self.flights.lock();
            if table.by_seqnum.contains_key(&submit.seqnum) {
                return Err(violation(&format!("sequence number {} twice", submit.seqnum)));
            }
            if table.by_seqnum.len() >= MAX_IN_FLIGHT || table.bytes + bytes > MAX_BYTES {
                return self.answer(usbip::submitted(submit.seqnum, ENOMEM, 0, &[], &[]));
            }
            table.bytes += bytes;
            table.by_seqnum.insert(submit.seqnum, Flight { id, bytes, unlink: None });
        }
        let (flights, answers, seqnum) = (Arc::clone(&self.flights), self.answers.clone(), submit.seqnum);
        let is_in = submit.is_in;
        let done = move |completion: Completion| {
            flights.finish(seqnum, &answers, |unlink| answers_to(seqnum, unlink, is_in, completion));
        };
        if let Err(refused) = self.device.backend.submit(id, transfer, Box::new(done)) {
            let status = match refused.error {
                Error::Gone { .. } => ESHUTDOWN,
                Error::Unavailable { .. } => ENOMEM,
                _ => EINVAL,
            };
            tracing::debug!(error = %refused.error, "a transfer was refused");
            self.flights.finish(seqnum, &self.answers, |unlink| {
                let submitted = usbip::submitted(seqnum, status, 0, &[], &[]);
                std::iter::once(submitted).chain(unlink.map(|seqnum| usbip::unlinked(seqnum, 0))).collect()
            });
        }
        Ok(())
    }

    fn transfer(&self, submit: &Submit, data: Vec<u8>, packets: Vec<u32>) -> Option<Transfer> {
        let address = EndpointAddress(submit.endpoint | u8::from(submit.is_in) << 7);
        let transfer = if submit.endpoint == 0 {
            let (setup, _) = Setup::from_bytes(submit.setup);
            Transfer::control(setup, data)
        } else {
            match self.device.kind(address)? {
                TransferType::Bulk => Transfer::bulk(address, data),
                TransferType::Interrupt => Transfer::interrupt(address, data),
                TransferType::Isochronous => {
                    let sum: u32 = packets.iter().sum();
                    let mut data = data;
                    data.truncate(sum as usize);
                    Transfer::isochronous(address, packets, data)
                }
                TransferType::Control => return None,
            }
        };
        let mut flags = TransferFlags::empty();
        flags.set(TransferFlags::SHORT_NOT_OK, submit.flags & usbip::SHORT_NOT_OK != 0 && submit.is_in);
        flags.set(TransferFlags::ZERO_PACKET, submit.flags & usbip::ZERO_PACKET != 0 && !submit.is_in);
        let isochronous = matches!(transfer.kind, Kind::Isochronous(_));
        Some(if isochronous { transfer } else { transfer.with(flags) })
    }

    /// Requests that change what the host knows of the device, and so must be made by it. Whether this was one.
    fn through_the_host(&self, submit: &Submit) -> Result<bool> {
        let (setup, _) = Setup::from_bytes(submit.setup);
        let (value, index) = (setup.value.to_le_bytes()[0], setup.index.to_le_bytes()[0]);
        let outcome = match (setup.request_type, setup.request) {
            (0x00, 9) => self.device.set_configuration(value),
            (0x01, 11) => self.device.set_alternate(index, value),
            (0x02, 1) if setup.value == 0 => self.device.backend.clear_halt(EndpointAddress(index)),
            _ => return Ok(false),
        };
        let status = match outcome {
            Ok(()) => 0,
            Err(Error::Gone { .. }) => ESHUTDOWN,
            Err(error) => {
                tracing::info!(%error, "a client's request");
                EPIPE
            }
        };
        self.answer(usbip::submitted(submit.seqnum, status, 0, &[], &[]))?;
        Ok(true)
    }

    fn unlink(&self, seqnum: u32, victim: u32) {
        let mut table = self.flights.lock();
        let Some(flight) = table.by_seqnum.get_mut(&victim) else {
            // It has ended, and its answer is on its way.
            let _ = self.answers.send(usbip::unlinked(seqnum, 0));
            return;
        };
        flight.unlink = Some(seqnum);
        let id = flight.id;
        // It may end before this returns.
        drop(table);
        self.device.backend.cancel(id);
    }

    fn answer(&self, bytes: Vec<u8>) -> Result<()> {
        let gone = |_| Error::Gone { device: "the client".into(), why: "it does not take its answers".into() };
        self.answers.send(bytes).map_err(gone)
    }

    /// The client has gone: its transfers end, and the device is as after power-on for the next one.
    fn end(&self) -> Result<()> {
        let mut ids: Vec<TransferId> = self.flights.lock().by_seqnum.values().map(|flight| flight.id).collect();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        for id in ids {
            self.device.backend.cancel(id);
        }
        let table = self.flights.lock();
        let waited = self.flights.ended.wait_timeout_while(table, CANCEL, |table| !table.by_seqnum.is_empty());
        if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            return Err(Error::Timeout { what: "the end of a client's transfers".into(), after: CANCEL });
        }
        self.device.lock().alternates.clear();
        self.device.backend.reset()
    }
}
