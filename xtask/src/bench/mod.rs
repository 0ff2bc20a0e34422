//! `cargo xtask bench NAME`: measures beside their peers, as a table, `target/bench/NAME.json` and `NAME.svg`.

mod nvme;
pub(crate) mod plot;
mod row;

use anyhow::Result;

#[derive(clap::Args)]
pub struct BenchArgs {
    /// What to measure.
    #[arg(value_enum)]
    name: Bench,
    /// Only measures whose name contains this.
    part: Option<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Bench {
    /// The interrupt gate: sections, latencies, many sources.
    Irq,
    /// What recording costs a register access.
    Trace,
    /// NVMe: transfers a second, beside the kernel's driver, in the virtual machine.
    Nvme,
    /// USB transfers, in the virtual machine: beside libusb in C and the kernel's usb-storage.
    Usb,
    /// Real time (`udrv run --rt`) against none, on a busy machine.
    Rt,
}

pub fn run(args: &BenchArgs) -> Result<()> {
    let mut cargo = match args.name {
        Bench::Irq => vec!["bench", "--locked", "-p", "udrv-tests", "--bench", "irq"],
        Bench::Trace => vec!["bench", "--locked", "-p", "udrv-tests", "--bench", "trace"],
        // A debug build: it has the account of sections, and what is measured is the host's doing.
        Bench::Rt => vec!["run", "--quiet", "--locked", "-p", "udrv-tests", "--bin", "rt-effect"],
        Bench::Nvme => return nvme::run(args.part.as_deref()),
        Bench::Usb => return crate::vm::bench_usb(args.part.as_deref().unwrap_or_default()),
    };
    if let Some(part) = &args.part {
        cargo.extend(["--", part]);
    }
    crate::succeed(crate::cargo().args(cargo))
}
