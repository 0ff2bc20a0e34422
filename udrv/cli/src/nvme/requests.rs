//! Requests for a namespace as commands of an I/O queue: a long one is several, and all that fit are under way at a time.

use crate::nbd::{Command, Disk, Ended, Job, Request, errno};
use std::collections::VecDeque;
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::dma::{Buffer, FromDevice, Pool, ToDevice};
use udrv::mmio::{Io, Window};
use udrv_backend::{Error, Result};
use udrv_nvme::command::Outcome;
use udrv_nvme::driver::{Data, Done, IoQueue, Namespace, REGISTERS, Range};

/// Most bytes of a command: more would take memory for nothing, since several are under way.
const MOST_BYTES: usize = 128 << 10;
/// Most blocks of one Write Zeroes.
const MOST_ZEROS: u32 = 1 << 16;
/// How often a command is tried that ended only because this side ended it.
const ATTEMPTS: u32 = 3;

/// One connection's part of the controller, with what is under way in it.
pub(super) struct Requests<I: Io = Window<REGISTERS>> {
    queue: IoQueue<I>,
    namespace: Namespace,
    pool: Pool,
    /// How long a command may take.
    timeout: Duration,
    /// Most bytes of a command, whole blocks.
    chunk: usize,
    /// Buffers of that length that no command has.
    reads: Vec<Buffer<FromDevice>>,
    writes: Vec<Buffer<ToDevice>>,
    under_way: Vec<Option<UnderWay>>,
    /// By the identifier of the command that each is.
    pieces: Vec<Option<Piece>>,
    /// Those that have not found room in the queue.
    backlog: VecDeque<Piece>,
    /// Requests that have ended.
    ended: Vec<Ended>,
}

struct UnderWay {
    request: Request,
    data: Vec<u8>,
    /// Commands that have not ended.
    left: usize,
    /// Whether a flush comes when all have.
    flushes: bool,
    error: u32,
}

/// What one command does for a request.
struct Piece {
    /// Its place in [`Requests::under_way`].
    of: usize,
    kind: Kind,
    attempts: u32,
    /// By when it should have ended, once it is submitted.
    due: Option<Deadline>,
}

#[derive(Clone, Copy)]
enum Kind {
    /// `length` bytes from byte `at` of the request's data.
    Read {
        at: usize,
        length: usize,
    },
    Write {
        at: usize,
        length: usize,
    },
    Flush,
    Trim(Range),
    Zero(Range),
}

impl<I: Io> Requests<I> {
    pub(super) fn new(queue: IoQueue<I>, namespace: Namespace, pool: Pool, timeout: Duration) -> Self {
        let block = namespace.block_size as usize;
        let chunk = (queue.max_transfer().min(MOST_BYTES) / block).max(1) * block;
        let pieces = std::iter::repeat_with(|| None).take(queue.depth().into()).collect();
        let (reads, writes, under_way, ended) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let backlog = VecDeque::new();
        Self { queue, namespace, pool, timeout, chunk, reads, writes, under_way, pieces, backlog, ended }
    }

    /// The commands that a request is made of.
    fn kinds(&self, request: &Request) -> Vec<Kind> {
        let block = self.namespace.block_size;
        let (length, first) = (request.length as usize, request.offset / block);
        let chunks = (0..length).step_by(self.chunk).map(|at| (at, self.chunk.min(length - at)));
        let range = Range { lba: first, blocks: (u64::from(request.length) / block) as u32 };
        match request.command {
            Command::Read => chunks.map(|(at, length)| Kind::Read { at, length }).collect(),
            Command::Write => chunks.map(|(at, length)| Kind::Write { at, length }).collect(),
            Command::Flush => vec![Kind::Flush],
            Command::Trim if range.blocks > 0 => vec![Kind::Trim(range)],
            Command::WriteZeroes => {
                let starts = (0..range.blocks).step_by(MOST_ZEROS as usize);
                let part = |at: u32| Range { lba: first + u64::from(at), blocks: MOST_ZEROS.min(range.blocks - at) };
                starts.map(|at| Kind::Zero(part(at))).collect()
            }
            Command::Trim | Command::Disconnect | Command::Other => Vec::new(),
        }
    }

    /// Submits what there is room for.
    fn submit(&mut self) {
        while self.queue.has_room()
            && let Some(mut piece) = self.backlog.pop_front()
        {
            match self.submit_one(&piece) {
                Ok(id) => {
                    piece.due = Some(Deadline::after(self.timeout));
                    if let Some(slot) = self.pieces.get_mut(usize::from(id)) {
                        *slot = Some(piece);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a request cannot be submitted");
                    self.end(&piece, errno::EIO);
                }
            }
        }
    }

    fn submit_one(&mut self, piece: &Piece) -> Result<u16> {
        let Self { queue, namespace, pool, chunk, reads, writes, under_way, .. } = self;
        let Some(Some(UnderWay { request, data, .. })) = under_way.get(piece.of) else {
            return Err(Error::NotSupported { what: "a command", by: "no request".into() });
        };
        let lba = |at: usize| (request.offset + at as u64) / namespace.block_size;
        match piece.kind {
            Kind::Read { at, length } => {
                let buffer = reads.pop().map_or_else(|| pool.alloc(*chunk), Ok)?;
                queue.submit_read(namespace, lba(at), buffer, 0..length)
            }
            Kind::Write { at, length } => {
                let mut buffer = writes.pop().map_or_else(|| pool.alloc(*chunk), Ok)?;
                buffer.write(0, data.get(at..at + length).unwrap_or_default())?;
                if request.durable {
                    queue.submit_write_through(namespace, lba(at), buffer, 0..length)
                } else {
                    queue.submit_write(namespace, lba(at), buffer, 0..length)
                }
            }
            Kind::Flush => queue.submit_flush(namespace),
            Kind::Trim(range) => queue.submit_trim(namespace, &[range]),
            Kind::Zero(range) => queue.submit_write_zeroes(namespace, range),
        }
    }

    /// What the controller has said of a command.
    fn take(&mut self, Done { id, outcome, data }: Done) {
        let Some(mut piece) = self.pieces.get_mut(usize::from(id)).and_then(Option::take) else { return };
        let came = match data {
            Data::Read(buffer) => {
                let came = if outcome.is_success() { self.came(&piece, &buffer) } else { Ok(()) };
                self.reads.push(buffer);
                came
            }
            Data::Written(buffer) => {
                // A list of ranges is shorter, and not kept.
                if buffer.len() == self.chunk {
                    self.writes.push(buffer);
                }
                Ok(())
            }
            Data::None => Ok(()),
        };
        piece.attempts += 1;
        if outcome.is_ended_by_host() && piece.attempts < ATTEMPTS {
            self.backlog.push_front(piece);
            return;
        }
        self.end(&piece, if outcome.is_success() && came.is_ok() { 0 } else { error_of(outcome) });
    }

    /// Copies what was read to where the request wants it.
    fn came(&mut self, piece: &Piece, buffer: &Buffer<FromDevice>) -> Result<()> {
        if let (Kind::Read { at, length }, Some(Some(under_way))) = (piece.kind, self.under_way.get_mut(piece.of)) {
            buffer.read(0, under_way.data.get_mut(at..at + length).unwrap_or_default())?;
        }
        Ok(())
    }

    /// One of a request's commands has ended.
    fn end(&mut self, piece: &Piece, error: u32) {
        let Some(place) = self.under_way.get_mut(piece.of) else { return };
        let Some(request) = place else { return };
        request.left -= 1;
        request.error = if request.error == 0 { error } else { request.error };
        if request.left > 0 {
            return;
        }
        if request.flushes && request.error == 0 {
            (request.left, request.flushes) = (1, false);
            self.backlog.push_back(Piece { of: piece.of, kind: Kind::Flush, attempts: 0, due: None });
            return;
        }
        if let Some(UnderWay { request, data, error, .. }) = place.take() {
            self.ended.push(Ended { request, error, data });
        }
    }

    /// The earliest time by which a command should have ended.
    fn next_due(&self) -> Option<Deadline> {
        self.pieces.iter().flatten().filter_map(|piece| piece.due).min()
    }

    /// Waits for commands, until one has ended or `more` says so; aborts all when one has not ended in time, however many
    /// others have.
    fn wait_for_commands(&mut self, more: &dyn Fn() -> bool) -> Result<()> {
        let due = self.next_due().unwrap_or_else(|| Deadline::after(self.timeout));
        let mut done = Vec::new();
        let waited = self.queue.wait_until(due, more, |one| done.push(one));
        self.take_all(done, waited)?;
        if self.next_due().is_none_or(|due| due.remaining().is_some()) {
            return Ok(());
        }
        let mut done = Vec::new();
        let aborted = self.queue.abort_all(|one| done.push(one));
        self.take_all(done, aborted)
    }

    fn take_all(&mut self, done: Vec<Done>, waited: Result<usize>) -> Result<()> {
        done.into_iter().for_each(|one| self.take(one));
        match waited {
            // All of it has been handed over, after a reset.
            Err(error @ Error::Protocol { .. }) => tracing::warn!(%error, "the controller was reset"),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        Ok(())
    }

    /// The disk has ended: so has all that is under way.
    fn fail_all(&mut self) {
        self.backlog.clear();
        self.pieces.iter_mut().for_each(|piece| *piece = None);
        for UnderWay { request, .. } in self.under_way.iter_mut().filter_map(Option::take) {
            self.ended.push(Ended { request, error: errno::EIO, data: Vec::new() });
        }
    }
}

impl<I: Io> Disk for Requests<I> {
    fn has_room(&self) -> bool {
        self.backlog.is_empty() && self.queue.has_room()
    }

    fn begin(&mut self, Job { request, mut data }: Job) {
        if request.command == Command::Read {
            data.resize(request.length as usize, 0);
        }
        let kinds = self.kinds(&request);
        if kinds.is_empty() {
            self.ended.push(Ended { request, error: 0, data });
            return;
        }
        let flushes = request.durable && matches!(request.command, Command::Trim | Command::WriteZeroes);
        let new = Some(UnderWay { request, data, left: kinds.len(), flushes, error: 0 });
        let free = self.under_way.iter().position(Option::is_none);
        let of = free.unwrap_or(self.under_way.len());
        match self.under_way.get_mut(of) {
            Some(place) => *place = new,
            None => self.under_way.push(new),
        }
        self.backlog.extend(kinds.into_iter().map(|kind| Piece { of, kind, attempts: 0, due: None }));
        self.submit();
    }

    fn wait(&mut self, more: &dyn Fn() -> bool, ended: &mut dyn FnMut(Ended)) -> Result<()> {
        let mut waited = Ok(());
        while self.ended.is_empty() && waited.is_ok() && !more() {
            waited = self.wait_for_commands(more);
            self.submit();
        }
        if waited.is_err() {
            self.fail_all();
        }
        self.ended.drain(..).for_each(ended);
        waited
    }

    fn waker(&self) -> Box<dyn Fn() + Send + Sync> {
        match self.queue.waker() {
            Some(raiser) => Box::new(move || raiser.raise()),
            None => Box::new(|| {}),
        }
    }
}

/// What a client is told of a command that failed.
fn error_of(outcome: Outcome) -> u32 {
    tracing::warn!(%outcome, "a command failed");
    errno::EIO
}

#[cfg(test)]
mod tests;
