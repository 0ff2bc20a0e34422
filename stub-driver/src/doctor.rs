//! `stub-driver doctor`.

use anyhow::{Result, bail};

/// `stub-driver doctor`
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {}

/// Runs it.
///
/// # Errors
/// Not yet.
pub fn run(_args: &DoctorArgs) -> Result<()> {
    bail!("doctor is not implemented")
}
