//! Blocks to a file, and a file to blocks.

use super::{DEPTH, Place, os};
use indicatif::ProgressBar;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use udrv::dma::{Buffer, Direction, FromDevice, ToDevice};
use udrv::host::Context;
use udrv_backend::Error;
use udrv_nvme::command::Outcome;
use udrv_nvme::driver::{Controller, Data, Done, IoQueue, Namespace, QueueConfig};

/// How often a transfer is tried again that only this side ended, in all.
const RETRIES: u32 = 16;

/// A transfer between a file and a namespace: how far into it, and how long.
type Piece = (u64, usize);

/// What has still to be transferred.
struct Todo {
    /// From here on, nothing has been begun.
    next: u64,
    length: u64,
    /// Most bytes of a piece.
    most: u64,
    /// What has to be done again.
    again: Vec<Piece>,
}

impl Todo {
    fn take(&mut self) -> Option<Piece> {
        self.again.pop().or_else(|| {
            let piece = (self.next, self.most.min(self.length - self.next) as usize);
            self.next += piece.1 as u64;
            (piece.1 > 0).then_some(piece)
        })
    }
}

/// A copy that keeps several transfers under way.
pub(super) struct Copy<'a> {
    queue: IoQueue,
    controller: &'a Controller,
    context: &'a Context,
    pub(super) namespace: Namespace,
    lba: u64,
    /// What each command is transferring.
    pieces: [Piece; DEPTH as usize],
    retries: u32,
}

impl<'a> Copy<'a> {
    pub(super) fn new(
        controller: &'a mut Controller,
        context: &'a Context,
        config: QueueConfig,
        place: Place,
    ) -> Result<Self, Error> {
        let namespace = controller.namespace(place.namespace)?;
        let queue = controller.io_queue(config)?;
        let pieces = [(0, 0); DEPTH as usize];
        Ok(Self { queue, controller, context, namespace, lba: place.lba, pieces, retries: 0 })
    }

    /// `length` bytes in pieces.
    fn cut(&self, length: u64) -> Result<Todo, Error> {
        let block = self.namespace.block_size;
        let last = self.lba.checked_add(length / block).filter(|end| *end <= self.namespace.blocks);
        if !length.is_multiple_of(block) || last.is_none() {
            return Err(Error::Protocol {
                peer: self.context.device.info().address.clone(),
                found: format!("a request for {length} bytes from block {} on", self.lba),
                expected: format!("whole blocks of {block} bytes, within {}", self.namespace.blocks),
            });
        }
        Ok(Todo { next: 0, length, most: self.piece_size() as u64, again: Vec::new() })
    }

    fn piece_size(&self) -> usize {
        let block = self.namespace.block_size as usize;
        self.queue.max_transfer() / block * block
    }

    fn buffers<D: Direction>(&self) -> Result<Vec<Buffer<D>>, Error> {
        (0..DEPTH).map(|_| self.controller.pool().alloc(self.piece_size())).collect()
    }

    fn block_of(&self, (offset, _): Piece) -> u64 {
        self.lba + offset / self.namespace.block_size
    }

    fn note(&mut self, id: u16, piece: Piece) {
        if let Some(place) = self.pieces.get_mut(usize::from(id)) {
            *place = piece;
        }
    }

    pub(super) fn read(&mut self, length: u64, file: &File, path: &Path) -> Result<(), Error> {
        let mut todo = self.cut(length)?;
        let mut idle = self.buffers::<FromDevice>()?;
        let mut bytes = vec![0; self.piece_size()];
        let bar = crate::progress::bytes(length);
        loop {
            while let Some(piece) = self.next(&mut todo, !idle.is_empty()) {
                let Some(buffer) = idle.pop() else { break };
                let id = self.queue.submit_read(&self.namespace, self.block_of(piece), buffer, 0..piece.1)?;
                self.note(id, piece);
            }
            let Some(ended) = self.ended()? else { break };
            for done in ended {
                let Some((offset, length)) = self.judge(&done, &mut todo, &bar)? else {
                    idle.extend(read_buffer(done.data));
                    continue;
                };
                if let Some(buffer) = read_buffer(done.data) {
                    let bytes = bytes.get_mut(..length).unwrap_or_default();
                    buffer.read(0, bytes)?;
                    file.write_all_at(bytes, offset).map_err(|error| os("writing", path, error))?;
                    idle.push(buffer);
                }
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    pub(super) fn write(&mut self, length: u64, file: &File, path: &Path) -> Result<(), Error> {
        let mut todo = self.cut(length)?;
        let mut idle = self.buffers::<ToDevice>()?;
        let mut bytes = vec![0; self.piece_size()];
        let bar = crate::progress::bytes(length);
        loop {
            while let Some(piece) = self.next(&mut todo, !idle.is_empty()) {
                let Some(mut buffer) = idle.pop() else { break };
                let bytes = bytes.get_mut(..piece.1).unwrap_or_default();
                file.read_exact_at(bytes, piece.0).map_err(|error| os("reading", path, error))?;
                buffer.write(0, bytes)?;
                let id = self.queue.submit_write(&self.namespace, self.block_of(piece), buffer, 0..piece.1)?;
                self.note(id, piece);
            }
            let Some(ended) = self.ended()? else { break };
            for done in ended {
                self.judge(&done, &mut todo, &bar)?;
                if let Data::Written(buffer) = done.data {
                    idle.push(buffer);
                }
            }
        }
        bar.finish_and_clear();
        self.queue.flush(&self.namespace)
    }

    /// The next piece, unless the user wants no more, or there is no room for it.
    fn next(&self, todo: &mut Todo, has_buffer: bool) -> Option<Piece> {
        if self.context.should_stop() || !has_buffer || !self.queue.has_room() { None } else { todo.take() }
    }

    /// What has ended; `None` when nothing is under way.
    fn ended(&mut self) -> Result<Option<Vec<Done>>, Error> {
        let mut ended = Vec::with_capacity(DEPTH.into());
        let count = self.queue.wait(|done| ended.push(done))?;
        Ok((count > 0).then_some(ended))
    }

    /// The piece that is done; `None` if it has to be done again.
    fn judge(&mut self, done: &Done, todo: &mut Todo, bar: &ProgressBar) -> Result<Option<Piece>, Error> {
        let piece = self.pieces.get(usize::from(done.id)).copied().unwrap_or_default();
        if done.outcome.is_success() {
            bar.inc(piece.1 as u64);
            return Ok(Some(piece));
        }
        if done.outcome.is_ended_by_host() && self.retries < RETRIES {
            self.retries += 1;
            todo.again.push(piece);
            return Ok(None);
        }
        Err(self.failed(done.outcome, piece))
    }

    fn failed(&self, outcome: Outcome, piece: Piece) -> Error {
        Error::Status {
            device: self.context.device.info().address.clone(),
            command: format!("a transfer of {} bytes from block {} on", piece.1, self.block_of(piece)),
            status: outcome.code().into(),
            meaning: outcome.to_string(),
        }
    }
}

fn read_buffer(data: Data) -> Option<Buffer<FromDevice>> {
    match data {
        Data::Read(buffer) => Some(buffer),
        _ => None,
    }
}
