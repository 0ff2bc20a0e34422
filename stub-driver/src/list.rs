//! `stub-driver list`.

use anyhow::{Result, bail};

/// `stub-driver list`
#[derive(Debug, clap::Args)]
pub struct ListArgs {}

/// Runs it.
///
/// # Errors
/// Not yet.
pub fn run(_args: &ListArgs) -> Result<()> {
    bail!("list is not implemented")
}
