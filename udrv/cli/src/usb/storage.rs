//! `udrv run usb-storage`.

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use std::fs::File;
use std::io::{Read as _, Write};
use std::path::PathBuf;
use udrv_usb::Error;
use udrv_usb_storage::driver::{MAX_TRANSFER, Storage};

#[derive(Args)]
pub struct StorageArgs {
    #[command(flatten)]
    device: super::DeviceArgs,
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Show what it is and how large.
    Info,
    /// Read blocks into a file.
    Read {
        /// The first block.
        #[arg(long, default_value_t = 0)]
        lba: u64,
        /// How many; all from the first on if not given.
        #[arg(long)]
        blocks: Option<u64>,
        /// The file; `-` is standard output.
        #[arg(long)]
        output: PathBuf,
    },
    /// Write a file's content, whole blocks of it.
    Write {
        /// The first block.
        #[arg(long, default_value_t = 0)]
        lba: u64,
        /// The file.
        #[arg(long)]
        input: PathBuf,
    },
}

pub fn run(args: &StorageArgs) -> Result<()> {
    let mut storage = Storage::attach(args.device.open()?)?;
    match &args.work {
        Work::Info => info(&storage)?,
        Work::Read { lba, blocks, output } => read(&mut storage, *lba, *blocks, output)?,
        Work::Write { lba, input } => write(&mut storage, *lba, input)?,
    }
    Ok(())
}

fn info(storage: &Storage) -> Result<()> {
    let (inquiry, capacity) = (storage.inquiry(), storage.capacity());
    println!("{} {} {}", inquiry.vendor, inquiry.product, inquiry.revision);
    println!("  blocks        {} of {} bytes", capacity.blocks, capacity.block_size);
    println!("  removable     {}", if inquiry.removable { "yes" } else { "no" });
    println!("  logical units {}", storage.logical_units()?);
    Ok(())
}

fn read(storage: &mut Storage, lba: u64, blocks: Option<u64>, output: &PathBuf) -> Result<()> {
    let capacity = storage.capacity();
    let blocks = blocks.unwrap_or_else(|| capacity.blocks.saturating_sub(lba));
    let mut file: Box<dyn Write> = if output.as_os_str() == "-" {
        Box::new(std::io::stdout().lock())
    } else {
        Box::new(File::create(output).with_context(|| format!("cannot create {}", output.display()))?)
    };
    let length = blocks.saturating_mul(u64::from(capacity.block_size));
    let begin = udrv::clock::now();
    storage.read(lba, length, |bytes| {
        file.write_all(bytes).map_err(|error| Error::os(format!("writing {}", output.display()), error))
    })?;
    file.flush()?;
    let seconds = begin.elapsed().as_secs_f64();
    eprintln!("read {blocks} blocks in {seconds:.2} s ({:.1} MB/s)", length as f64 / 1e6 / seconds);
    Ok(())
}

fn write(storage: &mut Storage, lba: u64, input: &PathBuf) -> Result<()> {
    let mut file = File::open(input).with_context(|| format!("cannot open {}", input.display()))?;
    let length = file.metadata()?.len();
    let block = u64::from(storage.capacity().block_size);
    ensure!(
        length > 0 && length.is_multiple_of(block),
        "{} has {length} bytes: expected whole blocks of {block} bytes",
        input.display()
    );
    let piece = u64::try_from(MAX_TRANSFER)? / block * block;
    let (mut lba, mut left) = (lba, length);
    while left > 0 {
        let mut bytes = vec![0; usize::try_from(left.min(piece))?];
        file.read_exact(&mut bytes).with_context(|| format!("cannot read {}", input.display()))?;
        storage.write(lba, &bytes)?;
        lba += bytes.len() as u64 / block;
        left -= bytes.len() as u64;
    }
    storage.flush()?;
    eprintln!("wrote {} blocks", length / block);
    Ok(())
}
