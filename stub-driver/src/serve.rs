//! `stub-driver serve`.

use anyhow::{Result, bail};

/// `stub-driver serve`
#[derive(Debug, clap::Args)]
pub struct ServeArgs {}

/// Runs it.
///
/// # Errors
/// Not yet.
pub fn run(_args: &ServeArgs) -> Result<()> {
    bail!("serve is not implemented")
}
