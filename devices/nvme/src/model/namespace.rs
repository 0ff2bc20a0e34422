//! Where a namespace's blocks are.

use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use udrv_backend::{Error, Result};
use udrv_model::device_memory;

/// What a write of zeros writes at a time, bytes.
const ZEROS: &[u8] = &[0; 65_536];

/// The blocks of one namespace: a file, or memory.
pub struct Backing {
    file: File,
    /// Bytes of a block: 512 or 4096.
    pub(super) block_size: u64,
    pub(super) blocks: u64,
}

impl Backing {
    /// Zeroed memory of `bytes`, in blocks of 512 or 4096 bytes.
    ///
    /// # Errors
    /// [`Error::Os`] if there is no memory for it; as [`Backing::file`].
    pub fn memory(bytes: u64, block_size: u64) -> Result<Self> {
        Self::file(device_memory(bytes)?, block_size)
    }

    /// A file, as long as it is now, in whole blocks.
    ///
    /// # Errors
    /// [`Error::Os`] if its length cannot be asked for, or is less than a block, or blocks are of another size.
    pub fn file(file: File, block_size: u64) -> Result<Self> {
        let doing = || format!("making a namespace of blocks of {block_size} bytes");
        let length = file.metadata().map_err(|error| Error::os(doing(), error))?.len();
        if ![512, 4096].contains(&block_size) || length < block_size {
            let why = "blocks have 512 or 4096 bytes, and there is one at least";
            return Err(Error::os(doing(), std::io::Error::new(std::io::ErrorKind::InvalidInput, why)));
        }
        Ok(Self { file, block_size, blocks: length / block_size })
    }

    /// Bytes from a block on, if all of them are in it.
    pub(super) fn offset(&self, lba: u64, blocks: u64) -> Option<u64> {
        let end = lba.checked_add(blocks)?;
        (end <= self.blocks).then(|| lba * self.block_size)
    }

    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    pub(super) fn write(&self, offset: u64, from: &[u8]) -> std::io::Result<()> {
        self.file.write_all_at(from, offset)
    }

    /// Makes bytes read as zeros. Where the file can have a hole there it gets one, which takes no time however long it is.
    pub(super) fn zero(&self, offset: u64, length: u64) -> std::io::Result<()> {
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let whole = [offset, length].map(i64::try_from);
        if let [Ok(offset), Ok(length)] = whole
            && fallocate(&self.file, hole, offset, length).is_ok()
        {
            return Ok(());
        }
        let mut at = offset;
        while at < offset + length {
            let part = (offset + length - at).min(ZEROS.len() as u64);
            self.write(at, ZEROS.get(..part as usize).unwrap_or_default())?;
            at += part;
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> std::io::Result<()> {
        self.file.sync_data()
    }
}
