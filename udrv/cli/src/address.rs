//! Device addresses, the software models among them.

use anyhow::Result;
use std::sync::Arc;
use udrv_backend::{AnyBackend, Error};

/// Opens any address that the command line accepts.
pub fn open(address: &str) -> Result<AnyBackend> {
    match address.strip_prefix("model:") {
        Some("edu") => Ok(Arc::new(udrv_edu::model::edu())),
        Some("nvme") => Ok(Arc::new(udrv_nvme::model::nvme()?)),
        Some(_) => {
            Err(Error::BadAddress { given: address.into(), expected: "a model there is: model:edu, model:nvme" }.into())
        }
        None => Ok(udrv::open(address)?),
    }
}
