//! Memory of the device that its driver may map.

use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use udrv_backend::{Error, Result, Width};

/// A file of `size` zero bytes for a [`Bar::Memory`](crate::Bar::Memory).
///
/// # Errors
/// [`Error::Os`] if there is no memory for it.
pub fn device_memory(size: u64) -> Result<File> {
    let fd = memfd_create(c"udrv-model", MFdFlags::MFD_CLOEXEC)
        .map_err(|errno| Error::os("creating a model's memory", errno))?;
    let file = File::from(fd);
    file.set_len(size).map_err(|error| Error::os(format!("sizing a model's memory to {size:#x} bytes"), error))?;
    Ok(file)
}

/// One access that has been checked against the BAR's size.
pub(crate) fn load(file: &File, offset: u64, width: Width) -> Result<u64> {
    let mut raw = [0; 8];
    let bytes = raw.get_mut(..width.bytes() as usize).unwrap_or_default();
    file.read_exact_at(bytes, offset).map_err(|error| Error::os("reading a model's memory", error))?;
    Ok(u64::from_le_bytes(raw))
}

/// One access that has been checked against the BAR's size.
pub(crate) fn store(file: &File, offset: u64, width: Width, value: u64) -> Result<()> {
    let raw = value.to_le_bytes();
    let bytes = raw.get(..width.bytes() as usize).unwrap_or(&raw);
    file.write_all_at(bytes, offset).map_err(|error| Error::os("writing a model's memory", error))
}
