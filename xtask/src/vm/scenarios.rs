//! The scenarios `tests/vm/NN-name.sh`: one boot for all, one result for each, told in the words of `cargo test`.

use super::kernel;
use super::machine::{Console, End, Job, target_dir};
use anyhow::{Context as _, Result, bail, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// A scenario's deadline, unless a line `# deadline: SECONDS` in it says otherwise.
const DEADLINE: u64 = 60;
/// Allowed for the boot.
const BOOT: u64 = 120;
/// Between a scenario's end by its deadline and the next one.
const GRACE: u64 = 10;
/// The exit status that means "skipped".
const SKIPPED: i32 = 77;
/// `timeout`'s exit statuses: ended by the deadline, and killed because that did not end it.
const OVERDUE: [i32; 2] = [124, 137];

pub(crate) enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

pub(crate) struct ScenarioResult {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    pub(crate) duration: Duration,
}

struct Scenario {
    name: String,
    deadline: u64,
}

/// Boots once and runs every scenario in name order, printing a line for each and a summary.
///
/// Where the virtual machine cannot run, every scenario is skipped with the reason; in CI (`CI=true`) that is an error.
pub(crate) fn run_scenarios(repo: &Path) -> Result<Vec<ScenarioResult>> {
    let begin = Instant::now();
    let scenarios = find(&repo.join("tests/vm"))?;
    println!("\n     Running {} scenarios in the virtual machine (tests/vm)", scenarios.len());
    let results = match kernel::prepare(&target_dir(repo)?.join("vm")) {
        Ok(kernel) => boot_and_run(repo, &kernel, &scenarios)?,
        Err(error) if std::env::var_os("CI").is_some_and(|ci| ci == "true") => {
            return Err(error.context("the virtual machine cannot run here, and in CI it must"));
        }
        Err(error) => skip_all(&scenarios, &format!("the virtual machine cannot run here: {error:#}")),
    };
    summarize(&results, begin.elapsed());
    Ok(results)
}

fn find(folder: &Path) -> Result<Vec<Scenario>> {
    let mut scenarios = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(name) = file.strip_suffix(".sh").filter(|name| name.starts_with(|c: char| c.is_ascii_digit())) else {
            continue;
        };
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        ensure!(plain, "{}: the name may have letters, digits and - only", path.display());
        let executable = path.metadata()?.permissions().mode() & 0o111 != 0;
        ensure!(executable, "{} is not executable, so it would not run", path.display());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let deadline = match text.lines().find_map(|line| line.strip_prefix("# deadline: ")) {
            Some(seconds) => seconds.parse().with_context(|| format!("{}: deadline {seconds:?}", path.display()))?,
            None => DEADLINE,
        };
        scenarios.push(Scenario { name: name.to_owned(), deadline });
    }
    if scenarios.is_empty() {
        bail!("no scenario NN-name.sh in {}", folder.display());
    }
    scenarios.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(scenarios)
}

fn boot_and_run(repo: &Path, kernel: &kernel::Kernel, scenarios: &[Scenario]) -> Result<Vec<ScenarioResult>> {
    let job = Job::new(repo, kernel, include_str!("scenarios.sh"))?;
    let list: String = scenarios.iter().map(|s| format!("{} {}\n", s.name, s.deadline)).collect();
    fs::write(job.dir.join("scenarios"), list)?;
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
fn report_new(job: &Job, scenarios: &[Scenario], results: &mut Vec<ScenarioResult>) -> Result<()> {
    let text = fs::read_to_string(job.dir.join("results")).unwrap_or_default();
    let complete = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    for (line, scenario) in complete.zip(scenarios).skip(results.len()) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let &[name, status, centiseconds] = fields.as_slice() else { bail!("the guest's result {line:?}") };
        ensure!(name == scenario.name, "the guest ran {name} instead of {}", scenario.name);
        let status: i32 = status.parse().with_context(|| format!("the guest's result {line:?}"))?;
        let centiseconds: u64 = centiseconds.parse().with_context(|| format!("the guest's result {line:?}"))?;
        let output = fs::read(job.dir.join(format!("{name}.out"))).unwrap_or_default();
        let output = String::from_utf8_lossy(&output);
        let result = ScenarioResult {
            name: name.to_owned(),
            outcome: judge(status, scenario.deadline, &output),
            duration: Duration::from_millis(centiseconds * 10),
        };
        report(&result);
        if let Outcome::Failed(_) = result.outcome {
            println!(
                "---- vm::{name} output ----\n{}\n---- kernel log: {} ----",
                output.trim_end(),
                job.log().display()
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
fn report_unfinished(job: &Job, end: &End, scenarios: &[Scenario], results: &mut Vec<ScenarioResult>) {
    if results.len() == scenarios.len()
        && let Some(last) = results.last_mut()
    {
        last.outcome = Outcome::Failed(format!("afterwards: {}", end.why()));
        report(last);
    }
    for scenario in scenarios.iter().skip(results.len()) {
        let outcome = Outcome::Failed(end.why());
        let result = ScenarioResult { name: scenario.name.clone(), outcome, duration: Duration::ZERO };
        report(&result);
        if let Ok(output) = fs::read_to_string(job.dir.join(format!("{}.out", scenario.name))) {
            println!("---- vm::{} output ----\n{}", scenario.name, output.trim_end());
        }
        results.push(result);
    }
    println!("{}", job.log_tail());
}

fn skip_all(scenarios: &[Scenario], reason: &str) -> Vec<ScenarioResult> {
    let skipped = scenarios.iter().map(|scenario| ScenarioResult {
        name: scenario.name.clone(),
        outcome: Outcome::Skipped(reason.to_owned()),
        duration: Duration::ZERO,
    });
    skipped.inspect(report).collect()
}

fn report(result: &ScenarioResult) {
    let seconds = result.duration.as_secs_f64();
    match &result.outcome {
        Outcome::Passed => println!("test vm::{} ... ok ({seconds:.1} s)", result.name),
        Outcome::Skipped(reason) => println!("test vm::{} ... ignored, {reason}", result.name),
        Outcome::Failed(why) => println!("test vm::{} ... FAILED ({seconds:.1} s): {why}", result.name),
    }
}

fn summarize(results: &[ScenarioResult], time: Duration) {
    let count = |wanted: fn(&Outcome) -> bool| results.iter().filter(|result| wanted(&result.outcome)).count();
    let passed = count(|outcome| matches!(outcome, Outcome::Passed));
    let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    let ignored = count(|outcome| matches!(outcome, Outcome::Skipped(_)));
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; 0 filtered out; finished in {:.2}s\n",
        time.as_secs_f64()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

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
