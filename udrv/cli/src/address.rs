//! Device addresses, the software models among them.

use anyhow::Result;
use std::sync::Arc;
use udrv_backend::{AnyBackend, Error};

/// Opens any address that the command line accepts.
pub fn open(address: &str) -> Result<AnyBackend> {
    match address.strip_prefix("model:") {
        Some("edu") => Ok(Arc::new(udrv_edu::model::edu())),
        Some("nvme") => Ok(Arc::new(udrv_nvme::model::nvme()?)),
        Some("uart16550") => Ok(Arc::new(udrv_uart16550::model::uart16550())),
        Some(_) => {
            let expected = "a model there is: model:edu, model:nvme, model:uart16550";
            Err(Error::BadAddress { given: address.into(), expected }.into())
        }
        None => Ok(udrv::open(address)?),
    }
}
