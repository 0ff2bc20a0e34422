//! `cargo xtask bench NAME`: measures beside their peers, as a table, `target/bench/NAME.json` and `NAME.svg`.

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
    /// What recording costs an access, an interrupts-off section, and where it is off.
    Trace,
}

pub fn run(args: &BenchArgs) -> Result<()> {
    let target = match args.name {
        Bench::Irq => "irq",
        Bench::Trace => "trace",
    };
    let mut cargo = vec!["bench", "--locked", "-p", "udrv-tests", "--bench", target];
    if let Some(part) = &args.part {
        cargo.extend(["--", part]);
    }
    crate::succeed(crate::cargo().args(cargo))
}
