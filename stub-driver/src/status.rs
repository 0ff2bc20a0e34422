//! `stub-driver status`.

use anyhow::{Result, bail};

/// `stub-driver status`
#[derive(Debug, clap::Args)]
pub struct StatusArgs {}

/// Runs it.
///
/// # Errors
/// Not yet.
pub fn run(_args: &StatusArgs) -> Result<()> {
    bail!("status is not implemented")
}
