//! How many transfers a second.

use clap::{Args, ValueEnum};
use std::time::Duration;
use udrv::clock::{Deadline, now};
use udrv::dma::{Buffer, Direction, FromDevice, ToDevice};
use udrv::host::Context;
use udrv_backend::{Error, Result};
use udrv_nvme::command::Outcome;
use udrv_nvme::driver::{Controller, Data, Done, Doorbells, IoQueue, Namespace, QueueConfig};

#[derive(Args)]
pub(super) struct BenchArgs {
    /// What is done. Writes destroy what is on the namespace.
    #[arg(long, value_enum, default_value = "random-read")]
    work: Kind,
    /// Bytes of a transfer: whole blocks.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(512..=2 << 20))]
    size: u32,
    /// Transfers under way at a time, of each queue pair.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1023))]
    depth: u16,
    /// Queue pairs, a thread each.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) queues: u16,
    /// For how long, seconds.
    #[arg(long, default_value_t = 2.0, conflicts_with = "count")]
    seconds: f64,
    /// This many transfers of each queue pair, instead.
    #[arg(long)]
    count: Option<u64>,
    #[arg(long, default_value_t = 1)]
    namespace: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    RandomRead,
    Read,
    Write,
}

/// When a queue has done enough.
#[derive(Clone, Copy)]
enum Until {
    Count(u64),
    Time(Deadline),
}

impl BenchArgs {
    pub(super) fn run(&self, controller: &mut Controller, context: &Context, config: QueueConfig) -> Result<()> {
        let namespace = controller.namespace(self.namespace)?;
        let size = u64::from(self.size);
        let places = namespace.bytes() / size;
        if !size.is_multiple_of(namespace.block_size) || places == 0 || size > controller.max_transfer() as u64 {
            return Err(Error::DmaRange { iova: 0, size, why: "transfers are whole blocks, of MDTS bytes at most" });
        }
        let config = QueueConfig { depth: self.depth, ..config };
        let mut loads = Vec::new();
        for index in 0..self.queues {
            let queue = controller.io_queue(config)?;
            let next = match self.work {
                // Any number but 0 to begin with.
                Kind::RandomRead => 0x9e37_79b9_7f4a_7c15 ^ u64::from(index),
                Kind::Read | Kind::Write => places / u64::from(self.queues) * u64::from(index),
            };
            loads.push(Load { queue, namespace, size: self.size as usize, kind: self.work, places, next });
        }
        let pool = controller.pool();
        let begin = now();
        let until = match self.count {
            Some(count) => Until::Count(count),
            None => Until::Time(Deadline::after(Duration::try_from_secs_f64(self.seconds).unwrap_or_default())),
        };
        let done = std::thread::scope(|scope| {
            let start = |mut load: Load| {
                scope.spawn(move || match load.kind {
                    Kind::Write => load.run::<ToDevice>(pool, context, until),
                    Kind::RandomRead | Kind::Read => load.run::<FromDevice>(pool, context, until),
                })
            };
            let threads: Vec<_> = loads.into_iter().map(start).collect();
            let panicked = |_| Error::Gone { device: "a queue's thread".into(), why: "it panicked".into() };
            let ended = threads.into_iter().map(|thread| thread.join().map_err(panicked)?);
            ended.sum::<Result<Tally>>()
        })?;
        let seconds = begin.elapsed().as_secs_f64();
        let Tally { done, doorbells: Doorbells { rung, written } } = done;
        let rate = done as f64 / seconds;
        println!(
            "{rate:.0} transfers a second, {:.1} MiB/s ({done} in {seconds:.2} s; {rung} doorbells, {written} by register)",
            rate * size as f64 / 1_048_576.0
        );
        Ok(())
    }
}

/// What one queue does.
struct Load {
    queue: IoQueue,
    namespace: Namespace,
    size: usize,
    kind: Kind,
    /// Transfers that the namespace has room for, and which is next, or a random number.
    places: u64,
    next: u64,
}

/// What queues have done.
#[derive(Default)]
struct Tally {
    done: u64,
    doorbells: Doorbells,
}

impl std::iter::Sum for Tally {
    fn sum<S: Iterator<Item = Self>>(all: S) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum.done += one.done;
            sum.doorbells.rung += one.doorbells.rung;
            sum.doorbells.written += one.doorbells.written;
            sum
        })
    }
}

/// A buffer that goes the way of its kind.
trait Way: Direction + Sized {
    fn submit(load: &mut Load, lba: u64, buffer: Buffer<Self>) -> Result<u16>;
    fn back(data: Data) -> Option<Buffer<Self>>;
}

impl Way for FromDevice {
    fn submit(load: &mut Load, lba: u64, buffer: Buffer<Self>) -> Result<u16> {
        load.queue.submit_read(&load.namespace, lba, buffer, 0..load.size)
    }
    fn back(data: Data) -> Option<Buffer<Self>> {
        if let Data::Read(buffer) = data { Some(buffer) } else { None }
    }
}

impl Way for ToDevice {
    fn submit(load: &mut Load, lba: u64, buffer: Buffer<Self>) -> Result<u16> {
        load.queue.submit_write(&load.namespace, lba, buffer, 0..load.size)
    }
    fn back(data: Data) -> Option<Buffer<Self>> {
        if let Data::Written(buffer) = data { Some(buffer) } else { None }
    }
}

impl Load {
    fn run<W: Way>(&mut self, pool: &udrv::dma::Pool, context: &Context, until: Until) -> Result<Tally> {
        let depth = usize::from(self.queue.depth());
        let buffers: Result<Vec<Buffer<W>>> = (0..depth).map(|_| pool.alloc(self.size)).collect();
        let mut idle = buffers?;
        let (mut begun, mut ended) = (0, 0);
        loop {
            let mut room = match until {
                Until::Count(count) => count - begun,
                Until::Time(deadline) => deadline.remaining().map_or(0, |_| u64::MAX),
            };
            while room > 0 && !context.should_stop() {
                let Some(buffer) = idle.pop() else { break };
                room -= 1;
                let lba = self.place() * (self.size as u64 / self.namespace.block_size);
                W::submit(self, lba, buffer)?;
                begun += 1;
            }
            let mut failed = None;
            let count = self.queue.wait(|Done { outcome, data, .. }| {
                failed = failed.or((!outcome.is_success()).then_some(outcome));
                idle.extend(W::back(data));
            })?;
            ended += count as u64;
            if let Some(outcome) = failed {
                return Err(status(outcome));
            }
            if count == 0 {
                return Ok(Tally { done: ended, doorbells: self.queue.doorbells() });
            }
        }
    }

    /// The next place: one after the other, or xorshift's (Marsaglia 2003).
    fn place(&mut self) -> u64 {
        if self.kind != Kind::RandomRead {
            self.next += 1;
            return self.next % self.places;
        }
        let mut state = self.next;
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.next = state;
        state % self.places
    }
}

fn status(outcome: Outcome) -> Error {
    Error::Status {
        device: "the controller".into(),
        command: "a transfer".into(),
        status: outcome.code().into(),
        meaning: outcome.to_string(),
    }
}
