//! Why a request is not done, as the client is told it and as the log says it.

use udrv_backend::Error;
use udrv_wire::{Errno, WireError};

/// The errno of an error reply, and the reason for the log.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    pub(super) why: String,
}

impl Refusal {
    pub(super) fn new(errno: Errno, why: impl Into<String>) -> Self {
        Self { errno, why: why.into() }
    }

    pub(super) fn invalid(why: impl Into<String>) -> Self {
        Self::new(Errno::EINVAL, why)
    }
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        Self::new(error.errno(), error.to_string())
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::new(Errno(u32::try_from(error.errno()).unwrap_or(Errno::EIO.0)), error.to_string())
    }
}
