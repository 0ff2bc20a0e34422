//! What all examples begin with: the device named by the first argument.

use anyhow::Result;
use std::sync::Arc;
use udrv_backend::AnyBackend;

/// Opens the device that the command line names, `model:edu` if it names none.
///
/// # Errors
/// What [`udrv::open`] says.
pub fn device_from_arguments() -> Result<AnyBackend> {
    match std::env::args().nth(1).as_deref() {
        // A model is a device in this process; everything else about it is the same.
        None | Some("model:edu") => Ok(Arc::new(udrv_edu::model::edu())),
        Some("model:nvme") => Ok(Arc::new(udrv_nvme::model::nvme()?)),
        Some(address) => Ok(udrv::open(address)?),
    }
}
