//! `cargo xtask bench NAME`: measures beside their peers, as a table, `target/bench/NAME.json` and `NAME.svg`.

mod nvme;

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
    /// NVMe: transfers a second, beside the kernel's driver, in the virtual machine.
    Nvme,
    /// USB transfers, in the virtual machine: beside libusb in C and the kernel's usb-storage.
    Usb,
}

pub fn run(args: &BenchArgs) -> Result<()> {
    let target = match args.name {
        Bench::Irq => "irq",
        Bench::Nvme => return nvme::run(args.part.as_deref()),
        Bench::Usb => return crate::vm::bench_usb(args.part.as_deref().unwrap_or_default()),
    };
    let mut cargo = vec!["bench", "--locked", "-p", "udrv-tests", "--bench", target];
    if let Some(part) = &args.part {
        cargo.extend(["--", part]);
    }
    crate::succeed(crate::cargo().args(cargo))
}
