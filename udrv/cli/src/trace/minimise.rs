//! `udrv trace minimise`: runs a test with ever shorter recordings.

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use indicatif::ProgressBar;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use udrv::debug::trace::{Event, Progress, Trace, minimise};

#[derive(Args)]
pub(super) struct MinimiseArgs {
    /// The recording.
    trace: PathBuf,
    /// Where the shortest is written [default: the recording's name with .min.trace].
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A test that takes longer than this many seconds is ended, and counts as one that succeeds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// The test and its arguments. A recording's name takes the place of {}, or comes last. It fails by its exit code.
    #[arg(last = true, required = true, value_name = "TEST")]
    test: Vec<OsString>,
}

pub(super) fn run(args: &MinimiseArgs) -> Result<()> {
    let whole = Trace::open(&args.trace)?;
    let output = args.output.clone().unwrap_or_else(|| args.trace.with_extension("min.trace"));
    if super::is_same(&args.trace, &output) {
        bail!("{} would be overwritten: name another with --output", output.display());
    }
    let candidate = Candidate(with_suffix(&output, ".candidate"));
    let save = |events: &[Event], path: &Path| {
        let trace = Trace { events: events.to_vec(), ..whole.clone() };
        trace.save(path).map_err(anyhow::Error::from)
    };
    let fails = |events: &[Event]| {
        save(events, &candidate.0)?;
        fails(&args.test, &candidate.0, Duration::from_secs(args.timeout))
    };
    if !fails(&whole.events)? {
        bail!("the test succeeds with the whole recording {}: there is nothing to find", args.trace.display());
    }
    let bar = ProgressBar::new_spinner();
    let tell = |Progress { tried, left }: Progress| {
        bar.set_message(format!("{left} events, {tried} tried"));
        bar.tick();
    };
    let shortest = minimise(&whole.events, fails, tell)?;
    bar.finish_and_clear();
    save(&shortest, &output)?;
    super::say(&format!("{}: {} of {} events\n", output.display(), shortest.len(), whole.events.len()));
    Ok(())
}

/// A file that is gone when this is.
struct Candidate(PathBuf);

impl Drop for Candidate {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Whether the test fails with this recording.
fn fails(test: &[OsString], recording: &Path, patience: Duration) -> Result<bool> {
    let (program, arguments) = test.split_first().context("no test was given")?;
    let is_named = arguments.iter().any(|argument| argument == "{}");
    let mut command = Command::new(program);
    command.args(arguments.iter().map(|argument| if argument == "{}" { recording.as_os_str() } else { argument }));
    if !is_named {
        command.arg(recording);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().map_err(|error| anyhow!("starting the test {}: {error}", program.display()))?;
    ends_with_failure(child, patience)
}

/// The child is waited for on a thread that leaves its number taken, so that nobody else is killed under it.
fn ends_with_failure(mut child: Child, patience: Duration) -> Result<bool> {
    let pid = Pid::from_raw(i32::try_from(child.id()).context("the test's process number")?);
    let (sender, ended) = mpsc::channel();
    let wait = move || {
        let _late = sender.send(waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).map(drop));
    };
    let waiting = std::thread::Builder::new().name("test".into()).spawn(wait).context("starting a thread")?;
    let in_time = ended.recv_timeout(patience).is_ok();
    if !in_time {
        child.kill().context("ending a test that takes too long")?;
    }
    let _panicked = waiting.join();
    let status = child.wait().context("waiting for the test")?;
    Ok(in_time && !status.success())
}
