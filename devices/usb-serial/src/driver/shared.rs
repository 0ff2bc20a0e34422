//! What is in flight and what came of it: transfers are asked for, and their completions handled.

use super::Dialect;
use crate::cdc;
use crate::line::{Counters, ModemInputs};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use udrv::irq::IrqReturn;
use udrv_usb::{Buffer, Completion, CompletionQueue, Device, Error, Refused, Result, Status, Transfer};

/// How long a transfer of data is waited for before it is asked for again: nobody may be sending, or the other end may hold us up.
const QUIET: Duration = Duration::from_secs(600);

/// Packets in each of them.
const PACKETS: usize = 8;

/// Bytes that may wait to be read before no more are asked for.
pub(super) const UNREAD: usize = 64 << 10;

/// Bytes in a transfer to the device, at most. One is under way at a time: what one leaves over when its time is over comes
/// before the next.
const PIECE: usize = 16 << 10;

/// Transfers, told apart by their numbers: data from the device is 0 to [`super::IN_FLIGHT`].
const OUT: u64 = 100;
const NOTIFICATION: u64 = 101;

/// The port, as its handler has it too.
pub(super) struct Shared {
    pub(super) device: Device,
    pub(super) queue: CompletionQueue,
    pub(super) state: Mutex<State>,
    /// Called after anything has changed, without a lock.
    pub(super) wake: Box<dyn Fn() + Send + Sync>,
}

pub(super) struct State {
    pub(super) dialect: Dialect,
    pub(super) unread: VecDeque<u8>,
    /// Transfers from the device that are not asked for since too much is unread.
    pub(super) resting: Vec<u64>,
    pub(super) unsent: VecDeque<u8>,
    pub(super) sending: bool,
    pub(super) counters: Counters,
    pub(super) inputs: ModemInputs,
    /// Why nothing works any more.
    pub(super) ended: Option<Error>,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn receive(&self, tag: u64) -> std::result::Result<(), Box<Refused>> {
        let (endpoint, size) = self.lock().dialect.bulk_in();
        let transfer = Transfer::bulk(endpoint, vec![0; usize::from(size) * PACKETS]);
        self.queue.submit(&self.device, transfer, QUIET, tag).map(drop)
    }

    pub(super) fn listen(&self) -> std::result::Result<(), Box<Refused>> {
        let notifications = self.lock().dialect.notifications();
        let Some((endpoint, size)) = notifications else { return Ok(()) };
        // Whole packets, and no fewer than the longest notification that is understood.
        let packets = 16_usize.div_ceil(usize::from(size).max(1));
        let transfer = Transfer::interrupt(endpoint, vec![0; usize::from(size) * packets]);
        self.queue.submit(&self.device, transfer, QUIET, NOTIFICATION).map(drop)
    }

    /// Sends what waits to be sent, if nothing is under way.
    pub(super) fn send(&self) {
        let transfer = {
            let mut state = self.lock();
            if state.sending || state.unsent.is_empty() || state.ended.is_some() {
                return;
            }
            let length = state.unsent.len().min(PIECE);
            state.sending = true;
            Transfer::bulk(state.dialect.bulk_out(), state.unsent.drain(..length).collect::<Vec<u8>>())
        };
        if let Err(refused) = self.queue.submit(&self.device, transfer, QUIET, OUT) {
            self.end(refused.error);
        }
    }

    fn end(&self, error: Error) {
        self.lock().ended.get_or_insert(error);
    }

    pub(super) fn handle(&self) -> IrqReturn {
        let mut found = IrqReturn::None;
        while let Some((tag, completion)) = self.queue.pop() {
            found = IrqReturn::Handled;
            let done = match tag {
                OUT => self.sent(completion),
                NOTIFICATION => self.notified(completion),
                _ => self.received(tag, completion),
            };
            if let Err(error) = done {
                self.end(error);
            }
        }
        if found == IrqReturn::Handled {
            (self.wake)();
        }
        found
    }

    fn received(&self, tag: u64, completion: Completion) -> Result<()> {
        let bytes = self.bytes(completion, "receiving")?;
        {
            let mut state = self.lock();
            let State { dialect, unread, counters, inputs, .. } = &mut *state;
            let before = unread.len();
            match dialect {
                Dialect::CdcAcm(_) => unread.extend(&*bytes),
                Dialect::Ftdi(function) => {
                    let told = function.received(&bytes, counters, |data| unread.extend(data));
                    *inputs = told.unwrap_or(*inputs);
                }
            }
            counters.received += (unread.len() - before) as u64;
            if unread.len() >= UNREAD {
                state.resting.push(tag);
                return Ok(());
            }
        }
        Ok(self.receive(tag)?)
    }

    fn notified(&self, completion: Completion) -> Result<()> {
        let bytes = self.bytes(completion, "a notification")?;
        {
            let mut state = self.lock();
            let State { counters, inputs, .. } = &mut *state;
            *inputs = cdc::notified(&bytes, counters).unwrap_or(*inputs);
        }
        Ok(self.listen()?)
    }

    fn sent(&self, completion: Completion) -> Result<()> {
        {
            let mut state = self.lock();
            state.sending = false;
            state.counters.sent += completion.actual as u64;
            // Nothing of what the device has not taken is lost, and it comes before what was written later.
            let left = completion.data.get(completion.actual..).unwrap_or_default();
            for byte in left.iter().rev() {
                state.unsent.push_front(*byte);
            }
        }
        self.bytes(completion, "sending")?;
        self.send();
        Ok(())
    }

    /// What a transfer brought. One whose time was over is as good as one that ended.
    fn bytes(&self, completion: Completion, doing: &str) -> Result<Buffer> {
        match completion.status {
            Status::Completed | Status::Timeout => Ok(completion.data),
            // Not by us: no handler runs after we have cancelled.
            Status::Cancelled => {
                Err(Error::Gone { device: self.device.address().into(), why: format!("{doing} was cancelled") })
            }
            _ => completion.into_data(self.device.address(), doing, QUIET),
        }
    }
}
