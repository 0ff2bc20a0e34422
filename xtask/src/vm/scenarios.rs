//! The scenarios `tests/vm/NN-name.sh`: one result for each, told in the words of `cargo test`. One boot is for all, but those
//! that ask for other options of the kernel (a line `# kernel: OPTIONS`) have one of their own.

use super::kernel;
use super::machine::{Console, End, Job, target_dir};
use super::verdict::{Outcome, Verdict, skip_all, summarize};
use crate::clock;
use anyhow::{Context as _, Result, bail, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

/// A scenario's deadline, unless a line `# deadline: SECONDS` in it says otherwise.
const DEADLINE: u64 = 60;
/// Allowed for the boot.
const BOOT: u64 = 120;
/// How every scenario begins: what this brings has `set -eu`.
const LIBRARY: &str = r#". "$(dirname "$0")/lib.sh""#;
/// Between a scenario's end by its deadline and the next one.
const GRACE: u64 = 10;
/// The exit status that means "skipped".
const SKIPPED: i32 = 77;
/// `timeout`'s exit statuses: ended by the deadline, and killed because that did not end it.
const OVERDUE: [i32; 2] = [124, 137];

struct Scenario {
    name: String,
    deadline: u64,
    /// Added to the kernel's command line.
    kernel_options: String,
}

impl Scenario {
    fn title(&self) -> String {
        format!("vm::{}", self.name)
    }
}

/// Boots and runs every scenario whose `vm::NN-name` contains `filter`, in name order, printing a line for each and a summary.
///
/// Where the virtual machine cannot run, every scenario is skipped with the reason.
pub(crate) fn run_scenarios(repo: &Path, filter: &str) -> Result<Vec<Verdict>> {
    let begin = clock::now();
    let all = find(&repo.join("tests/vm"))?;
    let count = all.len();
    let scenarios: Vec<Scenario> = all.into_iter().filter(|scenario| scenario.title().contains(filter)).collect();
    println!("\n     Running {} scenarios in the virtual machine (tests/vm)", scenarios.len());
    let verdicts = match kernel::prepare(&target_dir(repo)?.join("vm")) {
        Ok(kernel) => {
            let mut verdicts = Vec::new();
            for boot in scenarios.chunk_by(|a, b| a.kernel_options == b.kernel_options) {
                verdicts.extend(boot_and_run(repo, &kernel, boot)?);
            }
            verdicts
        }
        Err(error) => {
            let reason = format!("the virtual machine cannot run here: {error:#}");
            skip_all(scenarios.iter().map(Scenario::title), &reason)
        }
    };
    summarize(&verdicts, count - scenarios.len(), begin.elapsed());
    Ok(verdicts)
}

/// The names of all, as `vm::NN-name`.
pub(crate) fn titles(repo: &Path) -> Result<Vec<String>> {
    Ok(find(&repo.join("tests/vm"))?.iter().map(Scenario::title).collect())
}

fn find(folder: &Path) -> Result<Vec<Scenario>> {
    let mut scenarios = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        if file.starts_with("lib") {
            continue;
        }
        let name = file.strip_suffix(".sh").filter(|name| name.starts_with(|c: char| c.is_ascii_digit()));
        let name = name.with_context(|| {
            format!("{}: neither a scenario, NN-name.sh, nor a library of theirs, lib*", path.display())
        })?;
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        ensure!(plain, "{}: the name may have letters, digits and - only", path.display());
        let executable = path.metadata()?.permissions().mode() & 0o111 != 0;
        ensure!(executable, "{} is not executable, so it would not run", path.display());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            first_command(&text) == Some(LIBRARY),
            "{}: its first command must be `{LIBRARY}`, or it would go on after an error and pass",
            path.display()
        );
        let header = |name| text.lines().find_map(|line| line.strip_prefix(name));
        let kernel_options = header("# kernel: ").unwrap_or_default().to_owned();
        let deadline = match header("# deadline: ") {
            Some(seconds) => seconds.parse().with_context(|| format!("{}: deadline {seconds:?}", path.display()))?,
            None => DEADLINE,
        };
        scenarios.push(Scenario { name: name.to_owned(), deadline, kernel_options });
    }
    if scenarios.is_empty() {
        bail!("no scenario NN-name.sh in {}", folder.display());
    }
    scenarios.sort_by(|a, b| (&a.kernel_options, &a.name).cmp(&(&b.kernel_options, &b.name)));
    Ok(scenarios)
}

fn first_command(script: &str) -> Option<&str> {
    script.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'))
}

fn boot_and_run(repo: &Path, kernel: &kernel::Kernel, scenarios: &[Scenario]) -> Result<Vec<Verdict>> {
    let options = scenarios.first().map_or("", |scenario| &scenario.kernel_options);
    let job = Job::new(repo, kernel, include_str!("scenarios.sh"))?.with_kernel_options(options);
    let list: String = scenarios.iter().map(|s| format!("{} {}\n", s.name, s.deadline)).collect();
    fs::write(job.folder.file("scenarios"), list)?;
    let limit = BOOT + scenarios.iter().map(|s| s.deadline + GRACE).sum::<u64>();
    let mut results = Vec::new();
    let end = job.boot(Console::Output(Duration::from_secs(limit)), |_| {
        // what came says that there is a new line in `results`
        report_new(&job, scenarios, &mut results)
    })?;
    report_new(&job, scenarios, &mut results)?;
    if results.len() < scenarios.len() || end.status != Some(0) {
        report_unfinished(&job, &end, scenarios, &mut results);
    }
    Ok(results)
}

/// Prints and keeps the results that the guest has written since.
fn report_new(job: &Job, scenarios: &[Scenario], results: &mut Vec<Verdict>) -> Result<()> {
    let text = fs::read_to_string(job.folder.file("results")).unwrap_or_default();
    let complete = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    for (line, scenario) in complete.zip(scenarios).skip(results.len()) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let &[name, status, centiseconds] = fields.as_slice() else { bail!("the guest's result {line:?}") };
        ensure!(name == scenario.name, "the guest ran {name} instead of {}", scenario.name);
        let status: i32 = status.parse().with_context(|| format!("the guest's result {line:?}"))?;
        let centiseconds: u64 = centiseconds.parse().with_context(|| format!("the guest's result {line:?}"))?;
        let output = fs::read(job.folder.file(&format!("{name}.out"))).unwrap_or_default();
        let output = String::from_utf8_lossy(&output);
        let result = Verdict {
            name: scenario.title(),
            outcome: judge(status, scenario.deadline, &output),
            duration: Duration::from_millis(centiseconds * 10),
        };
        result.report();
        if let Outcome::Failed(_) = result.outcome {
            println!(
                "---- vm::{name} output ----\n{}\n---- kernel log: {} ----",
                output.trim_end(),
                job.folder.log().display()
            );
        }
        results.push(result);
    }
    Ok(())
}

fn judge(status: i32, deadline: u64, output: &str) -> Outcome {
    let reason = output.lines().next().and_then(|line| line.strip_prefix("SKIP: "));
    match (status, reason) {
        (0, _) => Outcome::Passed,
        (SKIPPED, Some(reason)) => Outcome::Skipped(reason.to_owned()),
        (SKIPPED, None) => Outcome::Failed("exit 77, but the first line of output is not `SKIP: REASON`".to_owned()),
        (status, _) if OVERDUE.contains(&status) => {
            Outcome::Failed(format!("killed after its deadline of {deadline} s"))
        }
        (status, _) => Outcome::Failed(format!("exit {status}")),
    }
}

/// What the machine did not live to run has failed; if it ran all and still ended badly, the last one answers for that.
fn report_unfinished(job: &Job, end: &End, scenarios: &[Scenario], results: &mut Vec<Verdict>) {
    if results.len() == scenarios.len()
        && let Some(last) = results.last_mut()
    {
        last.outcome = Outcome::Failed(format!("afterwards: {}", end.why()));
        last.report();
    }
    for scenario in scenarios.iter().skip(results.len()) {
        let outcome = Outcome::Failed(end.why());
        let result = Verdict { name: scenario.title(), outcome, duration: Duration::ZERO };
        result.report();
        if let Ok(output) = fs::read_to_string(job.folder.file(&format!("{}.out", scenario.name))) {
            println!("---- vm::{} output ----\n{}", scenario.name, output.trim_end());
        }
        results.push(result);
    }
    println!("{}", job.folder.log_tail());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_command_skips_comments() {
        let script = format!("#!/bin/sh\n# What it shows.\n\n{LIBRARY}\nmodprobe x\n");
        assert_eq!(first_command(&script), Some(LIBRARY));
        assert_eq!(first_command("#!/bin/sh\nmodprobe x\n. ./lib.sh\n"), Some("modprobe x"));
    }

    #[test]
    fn judge_exit_77_without_a_reason_fails() {
        assert!(matches!(judge(77, 60, "some output\nSKIP: too late\n"), Outcome::Failed(_)));
    }

    #[test]
    fn judge_exit_77_with_a_reason_is_skipped() {
        assert!(matches!(judge(77, 60, "SKIP: no device\n"), Outcome::Skipped(reason) if reason == "no device"));
    }

    #[test]
    fn judge_a_reason_without_exit_77_is_not_skipped() {
        assert!(matches!(judge(0, 60, "SKIP: no device\n"), Outcome::Passed));
        assert!(matches!(judge(1, 60, "SKIP: no device\n"), Outcome::Failed(_)));
    }
}
