//! `udrv run nvme`.

use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use indicatif::ProgressBar;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use udrv::dma::{Buffer, Direction, FromDevice, ToDevice};
use udrv::host::{Context, Ended, Host, Report, Stop};
use udrv::irq::Delivery;
use udrv_backend::Error;
use udrv_nvme::command::Outcome;
use udrv_nvme::driver::{Controller, Data, Done, IoQueue, Namespace, QueueConfig, Task, Wait};

/// Transfers that are under way at a time.
const DEPTH: u16 = 8;
/// How often a transfer is tried again that only this side ended, in all.
const RETRIES: u32 = 16;

#[derive(Args)]
pub struct NvmeArgs {
    /// The device's address.
    #[arg(long)]
    device: String,
    /// How completions are waited for.
    #[arg(long, value_enum, default_value = "interrupt")]
    wait: WaitMode,
    #[command(subcommand)]
    work: Work,
}

#[derive(Clone, Copy, ValueEnum)]
enum WaitMode {
    /// By the queue's MSI-X vector.
    Interrupt,
    /// By looking at memory.
    Polled,
    /// By looking for 50 us, then by interrupt.
    Hybrid,
}

#[derive(Subcommand)]
enum Work {
    /// Show the controller and its namespaces.
    Identify,
    /// Show the controller's health and the errors it has logged.
    Smart,
    /// Read blocks into a file.
    Read {
        #[command(flatten)]
        place: Place,
        /// How many blocks [default: all that follow].
        #[arg(long)]
        blocks: Option<u64>,
        /// The file, which is made or overwritten.
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Write a file to blocks, and flush.
    Write {
        #[command(flatten)]
        place: Place,
        /// The file: whole blocks.
        #[arg(long, value_name = "FILE")]
        input: PathBuf,
    },
}

#[derive(Args, Clone, Copy)]
struct Place {
    /// The namespace.
    #[arg(long, default_value_t = 1)]
    namespace: u32,
    /// The first block.
    #[arg(long, default_value_t = 0)]
    lba: u64,
}

pub fn run(args: NvmeArgs, stop: &Stop) -> Result<()> {
    let device = crate::address::open(&args.device)?;
    let wait = match args.wait {
        WaitMode::Interrupt => Wait::Interrupt,
        WaitMode::Polled => Wait::Polled,
        WaitMode::Hybrid => Wait::Hybrid(Duration::from_micros(50)),
    };
    let config = QueueConfig { depth: DEPTH, wait, ..QueueConfig::default() };
    let mut host = Host::stopped_by(stop.clone());
    let job = move |controller: &mut Controller, context: &Context| perform(controller, context, config, args.work);
    host.start::<Task>(device, Delivery::Thread, Box::new(job))?;
    for Report { device, ended, quiesced } in host.join() {
        match ended {
            Ended::Returned => {}
            Ended::Failed(error) => bail!("the nvme driver of {device} failed: {error}"),
            Ended::Panicked(message) => bail!("the nvme driver of {device} panicked: {message}"),
        }
        quiesced.map_err(|error| anyhow!("{device} was not made quiet after its driver: {error}"))?;
    }
    if stop.is_requested() {
        bail!("stopped before it was done");
    }
    Ok(())
}

fn perform(controller: &mut Controller, context: &Context, config: QueueConfig, work: Work) -> Result<(), Error> {
    match work {
        Work::Identify => identify(controller),
        Work::Smart => smart(controller),
        Work::Read { place, blocks, output } => {
            let file = File::create(&output).map_err(|error| os("making", &output, error))?;
            let mut copy = Copy::new(controller, context, config, place)?;
            let left = copy.namespace.blocks.saturating_sub(place.lba);
            copy.read(blocks.unwrap_or(left).saturating_mul(copy.namespace.block_size), &file, &output)
        }
        Work::Write { place, input } => {
            let file = File::open(&input).map_err(|error| os("opening", &input, error))?;
            let length = file.metadata().map_err(|error| os("asking for the length of", &input, error))?.len();
            Copy::new(controller, context, config, place)?.write(length, &file, &input)
        }
    }
}

fn os(doing: &str, path: &Path, error: std::io::Error) -> Error {
    Error::os(format!("{doing} {}", path.display()), error)
}

fn identify(controller: &Controller) -> Result<(), Error> {
    let info = controller.info();
    println!("model      {}\nserial     {}\nfirmware   {}", info.model, info.serial, info.firmware);
    println!("version    {}.{}", info.version >> 16, info.version >> 8 & 0xff);
    println!("transfers  up to {} KiB", controller.max_transfer() >> 10);
    println!("commands   {:?}, write cache: {}", info.optional, if info.has_write_cache { "yes" } else { "no" });
    for id in controller.namespace_ids()? {
        let namespace = controller.namespace(id)?;
        let Namespace { blocks, block_size, .. } = namespace;
        println!("namespace  {id}: {blocks} blocks of {block_size} bytes, {} MiB", namespace.bytes() >> 20);
    }
    Ok(())
}

fn smart(controller: &Controller) -> Result<(), Error> {
    let smart = controller.smart()?;
    let celsius = i32::from(smart.temperature) - 273;
    println!("critical warning   {:#04x}", smart.critical_warning);
    println!("temperature        {celsius} degrees Celsius");
    println!("available spare    {} %", smart.available_spare);
    println!("percentage used    {} %", smart.percentage_used);
    println!("data units         {} read, {} written", smart.data_units_read, smart.data_units_written);
    println!("host commands      {} reads, {} writes", smart.host_reads, smart.host_writes);
    println!("power              {} cycles, {} hours", smart.power_cycles, smart.power_on_hours);
    println!("unsafe shutdowns   {}", smart.unsafe_shutdowns);
    println!("media errors       {}", smart.media_errors);
    for entry in controller.error_log()? {
        println!("error {}: {}, queue {}, block {}", entry.count, entry.outcome, entry.queue, entry.lba);
    }
    Ok(())
}

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
struct Copy<'a> {
    queue: IoQueue,
    controller: &'a Controller,
    context: &'a Context,
    namespace: Namespace,
    lba: u64,
    /// What each command is transferring.
    pieces: [Piece; DEPTH as usize],
    retries: u32,
}

impl<'a> Copy<'a> {
    fn new(
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

    fn read(&mut self, length: u64, file: &File, path: &Path) -> Result<(), Error> {
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

    fn write(&mut self, length: u64, file: &File, path: &Path) -> Result<(), Error> {
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
