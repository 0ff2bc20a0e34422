//! The virtual machine with a real VFIO host in it.

use anyhow::{Result, bail};

#[derive(clap::Args)]
pub struct VmArgs {
    /// Open a shell in the virtual machine.
    #[arg(long)]
    pub shell: bool,
}

pub fn run(_args: &VmArgs) -> Result<()> {
    bail!("the virtual machine is not built yet")
}
