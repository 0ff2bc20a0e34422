//! From a device address to a backend.

use std::path::Path;
use std::sync::Arc;
use udrv_backend::{AnyBackend, Error, Result};

/// Opens `pci:BDF` (kernel VFIO, in this process), `unix:PATH` (the stub, or any vfio-user server) or `replay:FILE` (what
/// [`Recorder`](udrv_debug::trace::Recorder) has recorded).
///
/// # Errors
/// [`Error::BadAddress`] for an address of another form; what the backend says otherwise.
pub fn open(address: &str) -> Result<AnyBackend> {
    match address.split_once(':') {
        Some(("pci", bdf)) => Ok(Arc::new(udrv_vfio::VfioBackend::open(bdf.parse()?)?)),
        Some(("unix", path)) => Ok(Arc::new(crate::vfio_user::Client::connect(Path::new(path))?)),
        Some(("replay", file)) => Ok(Arc::new(udrv_debug::replay::Replay::open(Path::new(file))?)),
        _ => {
            let expected = "pci:DDDD:BB:DD.F, unix:PATH, replay:FILE, model:edu, model:nvme or model:uart16550";
            Err(Error::BadAddress { given: address.into(), expected })
        }
    }
}
