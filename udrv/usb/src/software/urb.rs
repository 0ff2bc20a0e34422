//! A transfer on a software bus, packet by packet.

use crate::transfer::{Completion, Done, Status, Transfer, TransferFlags, TransferId};

/// A transfer in the bus's hands.
pub(super) struct Urb {
    pub(super) id: TransferId,
    pub(super) transfer: Transfer,
    pub(super) done: Done,
    /// Bytes that have gone over the bus.
    pub(super) moved: usize,
}

impl Urb {
    /// Ends it with what has been moved so far.
    pub(super) fn end(self, status: Status) -> (Done, Completion) {
        let completion = Completion::of(status, self.transfer, self.moved);
        (self.done, completion)
    }

    /// Takes one packet of the device into the buffer; the status if that ends it.
    pub(super) fn take(&mut self, packet: &[u8], max_packet: usize) -> Option<Status> {
        let room = self.transfer.data.get_mut(self.moved..).unwrap_or_default();
        let fits = packet.len().min(room.len());
        let (Some(to), Some(from)) = (room.get_mut(..fits), packet.get(..fits)) else { return Some(Status::Error) };
        to.copy_from_slice(from);
        self.moved += fits;
        let full = self.moved == self.transfer.data.len();
        if packet.len() > fits || packet.len() > max_packet {
            Some(Status::Overflow)
        } else if packet.len() < max_packet && !full && self.transfer.flags.contains(TransferFlags::SHORT_NOT_OK) {
            Some(Status::Short)
        } else {
            (full || packet.len() < max_packet).then_some(Status::Completed)
        }
    }
}
