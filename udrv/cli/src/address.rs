//! Device addresses, the software models among them.

use anyhow::{Result, bail};
use std::sync::Arc;
use udrv_backend::AnyBackend;

/// Opens any address that the command line accepts.
pub fn open(address: &str) -> Result<AnyBackend> {
    match address.strip_prefix("model:") {
        Some("edu") => Ok(Arc::new(udrv_edu::model::edu())),
        Some(other) => bail!("no model is called `{other}`: expected model:edu"),
        None => Ok(udrv::open(address)?),
    }
}
