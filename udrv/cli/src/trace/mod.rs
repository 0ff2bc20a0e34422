//! `udrv trace`: recordings shown, compared, exported, plotted, made shorter.

mod minimise;
mod show;

use crate::drivers;
use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Subcommand};
use show::Shown;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use udrv::debug::trace::{Description, Event, Stream, Trace, diff, perfetto, plot};
use udrv_backend::register::RegisterMap;

#[derive(Args)]
pub struct TraceArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the events, registers by name and bits.
    Show(ShowArgs),
    /// Find where two runs part: in which access, whatever their times. Exit code 1 if they do.
    Diff {
        /// A recording.
        first: PathBuf,
        /// Another.
        second: PathBuf,
        #[command(flatten)]
        map: MapArgs,
    },
    /// Convert for another program.
    Export {
        /// The recording.
        trace: PathBuf,
        /// Into this file, which ui.perfetto.dev opens.
        #[arg(long, value_name = "FILE")]
        perfetto: PathBuf,
        #[command(flatten)]
        map: MapArgs,
    },
    /// Draw when what happened, and how long each interrupt took to its handler.
    Plot {
        /// The recording.
        trace: PathBuf,
        /// The SVG file [default: the recording's name with .svg].
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Find a shorter recording with which a test still fails.
    Minimise(minimise::MinimiseArgs),
}

/// Whose names registers have.
#[derive(Args)]
struct MapArgs {
    /// The driver whose register names are used [default: that of the recorded device's IDs].
    #[arg(long, value_name = "NAME", value_parser = map_named)]
    device_map: Option<&'static RegisterMap>,
}

fn map_named(name: &str) -> std::result::Result<&'static RegisterMap, String> {
    drivers::named(name).map(|driver| driver.map)
}

impl MapArgs {
    /// By the recorded device's IDs, unless told otherwise. Recordings that name none are old, and all of edu.
    fn choose(&self, device: &Description) -> Option<&'static RegisterMap> {
        self.device_map.or_else(|| match &device.identity {
            Some(identity) => drivers::of(identity).map(|driver| driver.map),
            None => Some(&udrv_edu::registers::MAP),
        })
    }
}

#[derive(Args)]
struct ShowArgs {
    /// The recording.
    trace: PathBuf,
    /// Only accesses to registers whose name contains this.
    #[arg(long, value_name = "NAME")]
    register: Option<String>,
    /// Only accesses to this region: 0 to 5 are BARs, 7 is configuration space.
    #[arg(long, value_name = "INDEX")]
    region: Option<u32>,
    /// Only accesses at these byte offsets of the region, BAR 0 unless given, such as 0x80..0xa0.
    #[arg(long, value_name = "START..END", value_parser = offsets)]
    range: Option<(u64, u64)>,
    /// Only from this many seconds on.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    from: Option<Duration>,
    /// Only until this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    to: Option<Duration>,
    /// Only interrupts and runs of their handlers.
    #[arg(long)]
    irq: bool,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    map: MapArgs,
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected seconds, such as 0.25".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn offsets(text: &str) -> std::result::Result<(u64, u64), String> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let range = text.split_once("..").and_then(|(start, end)| Some((number(start)?, number(end)?)));
    range.filter(|(start, end)| start < end).ok_or_else(|| "expected START..END, such as 0x80..0xa0".into())
}

pub fn run(args: TraceArgs) -> Result<()> {
    match args.command {
        Command::Show(args) => show::show(&args),
        Command::Diff { first, second, map } => compare(&first, &second, &map),
        Command::Export { trace, perfetto: to, map } => {
            if is_same(&trace, &to) {
                bail!("{} would be overwritten: name another with --perfetto", to.display());
            }
            let mut trace = Stream::open(&trace)?;
            let map = map.choose(trace.device());
            let mut write = |mut file: BufWriter<File>| -> Result<()> {
                perfetto(&mut trace, map, &mut file)?;
                Ok(file.flush()?)
            };
            let file = File::create(&to).map_err(|error| anyhow!("writing {}: {error}", to.display()))?;
            write(BufWriter::new(file)).with_context(|| format!("{} is not complete", to.display()))?;
            eprintln!("wrote {}", to.display());
            Ok(())
        }
        Command::Plot { trace, output } => {
            let to = output.unwrap_or_else(|| trace.with_extension("svg"));
            if is_same(&trace, &to) {
                bail!("{} would be overwritten: name another with --output", to.display());
            }
            write(&to, &plot(&Trace::open(&trace)?))
        }
        Command::Minimise(args) => minimise::run(&args),
    }
}

/// Whether both names are of one file, by whatever links.
fn is_same(one: &Path, other: &Path) -> bool {
    let [one, other] = [one, other].map(|path| path.metadata().map(|file| (file.dev(), file.ino())));
    matches!((one, other), (Ok(one), Ok(other)) if one == other)
}

fn write(to: &Path, text: &str) -> Result<()> {
    std::fs::write(to, text).map_err(|error| anyhow!("writing {}: {error}", to.display()))?;
    eprintln!("wrote {}", to.display());
    Ok(())
}

fn compare(first: &Path, second: &Path, map: &MapArgs) -> Result<()> {
    let [one, other] = [Trace::open(first)?, Trace::open(second)?];
    let Some(found) = diff(&one, &other) else {
        say("no divergence\n");
        return Ok(());
    };
    let mut text = String::new();
    let mut tell = |path: &Path, trace: &Trace, event: Option<&Event>| {
        let shown = Shown::new(trace, map.choose(&trace.device), false);
        let event = event.map_or_else(|| "had ended".to_owned(), |event| shown.text(event));
        let _ = writeln!(text, "{}: {event}", path.display());
    };
    tell(first, &one, found.first.as_ref());
    tell(second, &other, found.second.as_ref());
    say(&text);
    bail!("{} and {} part there", first.display(), second.display())
}

/// On standard output, whose reader may have gone.
fn say(text: &str) {
    let _gone = std::io::stdout().write_all(text.as_bytes());
}
