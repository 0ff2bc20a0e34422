//! What goes over a software bus next: packets of each endpoint's first transfer, until all are empty or answer NAK.

use super::urb::Urb;
use super::{Handshake, Identity, Model, Reply};
use crate::backend::UsbInfo;
use crate::descriptor::Endpoint;
use crate::transfer::{Completion, Done, EndpointAddress, Kind, Packet, Status, TransferFlags};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A software device, and what is on its bus.
pub(super) struct State<M> {
    pub(super) model: M,
    pub(super) identity: Identity,
    /// Submitted and not ended, endpoint by endpoint.
    pub(super) queues: BTreeMap<EndpointAddress, VecDeque<Urb>>,
    pub(super) halted: BTreeSet<EndpointAddress>,
    pub(super) configuration: u8,
    pub(super) alternates: BTreeMap<u8, u8>,
    pub(super) claimed: BTreeSet<u8>,
    pub(super) gone: bool,
    /// Ended and not told yet.
    pub(super) ended: VecDeque<(Done, Completion)>,
    /// Some thread is telling; it tells what comes meanwhile, too, so that all are told in the order in which they ended.
    pub(super) telling: bool,
}

pub(super) type Ended = Vec<(Done, Completion)>;

impl<M: Model> State<M> {
    pub(super) fn endpoint(&self, info: &UsbInfo, address: EndpointAddress) -> Option<Endpoint> {
        let active = info.descriptors.configuration(self.configuration)?;
        let current = active
            .interfaces
            .iter()
            .filter(|interface| self.alternates.get(&interface.number).copied().unwrap_or(0) == interface.alternate);
        current.flat_map(|interface| &interface.endpoints).find(|endpoint| endpoint.address == address).cloned()
    }

    /// Moves packets on all endpoints until each is empty or answers NAK.
    pub(super) fn pump(&mut self, info: &UsbInfo) -> Ended {
        let mut ended = Ended::new();
        loop {
            let mut progress = false;
            let waiting: Vec<EndpointAddress> = self.queues.keys().copied().collect();
            for address in waiting {
                let Some(endpoint) = self.endpoint(info, address) else { continue };
                let Some(mut urb) = self.queues.get_mut(&address).and_then(VecDeque::pop_front) else { continue };
                let (moved, end) = self.step(&endpoint, &mut urb);
                progress |= moved || end.is_some();
                match end {
                    Some(End::As(status)) => ended.push(urb.end(status)),
                    Some(End::With(completion)) => ended.push((urb.done, completion)),
                    None => self.queues.entry(address).or_default().push_front(urb),
                }
            }
            self.queues.retain(|_, queue| !queue.is_empty());
            if !progress {
                return ended;
            }
        }
    }

    /// Moves packets of one transfer until NAK or its end. Whether anything moved, and how it ended.
    fn step(&mut self, endpoint: &Endpoint, urb: &mut Urb) -> (bool, Option<End>) {
        if let Kind::Isochronous(lengths) = &urb.transfer.kind {
            let lengths = lengths.clone();
            return (true, Some(End::With(self.isochronous(endpoint, urb, &lengths))));
        }
        let max_packet = usize::from(endpoint.max_packet).max(1);
        let before = urb.moved;
        loop {
            if self.halted.contains(&endpoint.address) {
                return (urb.moved > before, Some(End::As(Status::Stall)));
            }
            let end = if endpoint.address.is_in() {
                match self.model.send(endpoint.address, max_packet) {
                    Reply::Nak => return (urb.moved > before, None),
                    Reply::Data(packet) => urb.take(&packet, max_packet),
                    Reply::Stall => self.halt(endpoint.address),
                }
            } else {
                let left = urb.transfer.data.get(urb.moved..).unwrap_or_default();
                let packet = left.get(..max_packet.min(left.len())).unwrap_or_default();
                let length = packet.len();
                match self.model.receive(endpoint.address, packet) {
                    Handshake::Nak => return (urb.moved > before, None),
                    Handshake::Stall => self.halt(endpoint.address),
                    Handshake::Ack => {
                        urb.moved += length;
                        let full = urb.moved == urb.transfer.data.len();
                        let one_more = urb.transfer.flags.contains(TransferFlags::ZERO_PACKET) && length == max_packet;
                        (full && !one_more).then_some(Status::Completed)
                    }
                }
            };
            if let Some(status) = end {
                return (true, Some(End::As(status)));
            }
        }
    }

    fn halt(&mut self, endpoint: EndpointAddress) -> Option<Status> {
        self.halted.insert(endpoint);
        Some(Status::Stall)
    }

    /// There is no handshake: each packet goes once, whatever the model does with it.
    fn isochronous(&mut self, endpoint: &Endpoint, urb: &mut Urb, lengths: &[u32]) -> Completion {
        let mut packets = Vec::with_capacity(lengths.len());
        let mut data = std::mem::take(&mut urb.transfer.data);
        let (requested, mut start, mut sum) = (data.len(), 0usize, 0usize);
        for &length in lengths {
            let size = length as usize;
            let slot = data.get_mut(start..start.saturating_add(size)).unwrap_or_default();
            let (status, actual) = if endpoint.address.is_in() {
                match self.model.send(endpoint.address, size) {
                    Reply::Data(packet) => {
                        let fits = packet.len().min(slot.len());
                        if let (Some(to), Some(from)) = (slot.get_mut(..fits), packet.get(..fits)) {
                            to.copy_from_slice(from);
                        }
                        (if packet.len() > fits { Status::Overflow } else { Status::Completed }, fits)
                    }
                    Reply::Nak => (Status::Completed, 0),
                    Reply::Stall => (Status::Error, 0),
                }
            } else {
                let _no_handshake = self.model.receive(endpoint.address, slot);
                (Status::Completed, slot.len())
            };
            packets.push(Packet { status, length, actual: u32::try_from(actual).unwrap_or(length) });
            start = start.saturating_add(size);
            sum += actual;
        }
        Completion { status: Status::Completed, data, actual: sum, requested, packets }
    }
}

/// How a step ended a transfer.
enum End {
    As(Status),
    With(Completion),
}
