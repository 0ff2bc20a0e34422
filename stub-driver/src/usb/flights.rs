//! What a client of the USB/IP server has in flight, and the answers that it has not taken yet: both are bounded, whatever the
//! client does.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SendError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use udrv_usb::{Completion, Status, TransferId, usbip};

/// Most bytes of answers that wait for a client to take them. All that is in flight may end at once.
const MAX_BACKLOG: usize = 128 << 20;

/// Where answers go; never waits. Cheap to clone.
#[derive(Clone)]
pub(super) struct Answers {
    sender: Sender<Vec<u8>>,
    /// Bytes that have been sent here, and not written.
    backlog: Arc<AtomicUsize>,
}

/// Where they come out.
pub(super) struct Answered {
    receiver: Receiver<Vec<u8>>,
    backlog: Arc<AtomicUsize>,
}

impl Answers {
    pub(super) fn new() -> (Self, Answered) {
        let (sender, receiver) = channel();
        let backlog = Arc::new(AtomicUsize::new(0));
        (Self { sender, backlog: Arc::clone(&backlog) }, Answered { receiver, backlog })
    }

    /// Fails if nobody writes any more.
    pub(super) fn send(&self, answer: Vec<u8>) -> Result<(), SendError<Vec<u8>>> {
        self.backlog.fetch_add(answer.len(), Ordering::Relaxed);
        self.sender.send(answer)
    }

    /// Whether the client goes on asking without taking what it is answered.
    pub(super) fn are_not_taken(&self) -> bool {
        self.backlog.load(Ordering::Relaxed) > MAX_BACKLOG
    }
}

impl Answered {
    /// Writes answers until there can be no more, or the client takes none.
    pub(super) fn write_to(&self, stream: &mut TcpStream) {
        for answer in &self.receiver {
            if let Err(error) = stream.write_all(&answer) {
                tracing::info!(%error, "a client does not take its answers");
                // Which ends the reading side too, and so the session.
                let _ = stream.shutdown(std::net::Shutdown::Both);
                return;
            }
            self.backlog.fetch_sub(answer.len(), Ordering::Relaxed);
        }
    }
}

/// What a client has in flight.
#[derive(Default)]
pub(super) struct Flights {
    table: Mutex<Table>,
    pub(super) ended: Condvar,
}

#[derive(Default)]
pub(super) struct Table {
    pub(super) by_seqnum: HashMap<u32, Flight>,
    pub(super) bytes: usize,
}

pub(super) struct Flight {
    pub(super) id: TransferId,
    pub(super) bytes: usize,
    /// The number of the UNLINK that asked for its end.
    pub(super) unlink: Option<u32>,
}

impl Flights {
    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a transfer out and sends what `answers` makes of the UNLINK that asked for its end. Both under the lock: an
    /// UNLINK finds it in flight, or comes after its answer.
    pub(super) fn finish(&self, seqnum: u32, to: &Answers, answers: impl FnOnce(Option<u32>) -> Vec<Vec<u8>>) {
        let mut table = self.lock();
        let Some(flight) = table.by_seqnum.remove(&seqnum) else { return };
        table.bytes = table.bytes.saturating_sub(flight.bytes);
        for answer in answers(flight.unlink) {
            // A client that has gone needs no answer.
            let _ = to.send(answer);
        }
        drop(table);
        self.ended.notify_all();
    }
}

/// RET_SUBMIT; or RET_UNLINK alone if it was unlinked; or both, in this order, if it was faster: then its data is not lost.
pub(super) fn answers_to(seqnum: u32, unlink: Option<u32>, is_in: bool, completion: Completion) -> Vec<Vec<u8>> {
    let status = usbip::errno(completion.status);
    if let (Some(unlink), Status::Cancelled) = (unlink, completion.status) {
        return vec![usbip::unlinked(unlink, status)];
    }
    let data = match (is_in, completion.packets.as_slice()) {
        (false, _) => Vec::new(),
        (true, []) => completion.data.into_vec(),
        (true, packets) => packed(&completion.data, packets),
    };
    let actual = u32::try_from(completion.actual).unwrap_or(u32::MAX);
    let submitted = usbip::submitted(seqnum, status, actual, &data, &completion.packets);
    std::iter::once(submitted).chain(unlink.map(|seqnum| usbip::unlinked(seqnum, 0))).collect()
}

/// What came in each packet, without the gaps.
fn packed(data: &[u8], packets: &[udrv_usb::Packet]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut offset = 0;
    for packet in packets {
        let came = data.get(offset..offset + packet.actual as usize);
        bytes.extend(came.unwrap_or_default());
        offset += packet.length as usize;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn answers_are_not_taken_once_too_many_bytes_wait_and_until_they_are_written() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut stream = TcpStream::connect(listener.local_addr().expect("its address")).expect("connected");
        let (mut client, _) = listener.accept().expect("accepted");
        let (answers, answered) = Answers::new();
        let answer = || vec![0; MAX_BACKLOG / 4];

        (0..4).for_each(|_| answers.send(answer()).expect("somebody writes"));
        assert!(!answers.are_not_taken(), "no more than may be");
        answers.send(vec![0]).expect("somebody writes");
        assert!(answers.are_not_taken());

        let reader = std::thread::spawn(move || std::io::copy(&mut client, &mut std::io::sink()));
        let backlog = answers.clone();
        drop(answers);
        std::thread::scope(|scope| {
            scope.spawn(move || answered.write_to(&mut stream));
            while backlog.are_not_taken() {
                std::thread::yield_now();
            }
            drop(backlog);
        });
        assert_eq!(reader.join().expect("no panic").expect("read"), MAX_BACKLOG as u64 + 1);
    }
}
