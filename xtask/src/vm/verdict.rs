//! What came of a test, told in the words of `cargo test`.

use anyhow::{Result, bail};
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    /// Ignored, for this reason.
    Skipped(String),
    Failed(String),
}

/// One test's.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// As `vm::00-host`.
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    pub(crate) duration: Duration,
}

impl Verdict {
    /// Prints its line.
    pub(crate) fn report(&self) {
        let Self { name, outcome, duration } = self;
        let seconds = duration.as_secs_f64();
        match outcome {
            Outcome::Passed => println!("test {name} ... ok ({seconds:.1} s)"),
            Outcome::Skipped(reason) => println!("test {name} ... ignored, {reason}"),
            Outcome::Failed(why) => println!("test {name} ... FAILED ({seconds:.1} s): {why}"),
        }
    }
}

/// Reports every test as ignored.
pub(crate) fn skip_all(names: impl Iterator<Item = String>, reason: &str) -> Vec<Verdict> {
    let outcome = Outcome::Skipped(reason.to_owned());
    let skipped = names.map(|name| Verdict { name, outcome: outcome.clone(), duration: Duration::ZERO });
    skipped.inspect(Verdict::report).collect()
}

/// Prints the summary line.
pub(crate) fn summarize(verdicts: &[Verdict], filtered_out: usize, time: Duration) {
    let count = |wanted: fn(&Outcome) -> bool| verdicts.iter().filter(|verdict| wanted(&verdict.outcome)).count();
    let passed = count(|outcome| matches!(outcome, Outcome::Passed));
    let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    let ignored = count(|outcome| matches!(outcome, Outcome::Skipped(_)));
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; {filtered_out} filtered out; finished in {:.2}s\n",
        time.as_secs_f64()
    );
}

/// Whether all is well: none failed, and where everything has to run (in CI), none was skipped. The reason if all were skipped.
pub(crate) fn conclude(verdicts: &[Verdict], all_must_run: bool) -> Result<Option<String>> {
    let failed = |verdict: &&Verdict| match verdict.outcome {
        Outcome::Failed(_) => true,
        Outcome::Skipped(_) => all_must_run,
        Outcome::Passed => false,
    };
    let failed: Vec<&str> = verdicts.iter().filter(failed).map(|verdict| verdict.name.as_str()).collect();
    if !failed.is_empty() {
        bail!(
            "failed{}: {}",
            if all_must_run { " or ignored, which CI does not allow" } else { "" },
            failed.join(", ")
        );
    }
    let mut reasons = verdicts.iter().map(|verdict| match &verdict.outcome {
        Outcome::Skipped(reason) => Some(reason.clone()),
        Outcome::Passed | Outcome::Failed(_) => None,
    });
    Ok(reasons.next().flatten().filter(|_| reasons.all(|reason| reason.is_some())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(outcomes: &[Outcome]) -> Vec<Verdict> {
        let verdict =
            |outcome: &Outcome| Verdict { name: "vm::it".into(), outcome: outcome.clone(), duration: Duration::ZERO };
        outcomes.iter().map(verdict).collect()
    }

    fn skipped() -> Outcome {
        Outcome::Skipped("no QEMU".into())
    }

    #[test]
    fn conclude_one_failure_among_others_fails() {
        let verdicts = verdicts(&[Outcome::Passed, Outcome::Failed("exit 1".into()), Outcome::Passed]);
        assert!(conclude(&verdicts, false).is_err());
    }

    #[test]
    fn conclude_skipped_where_all_must_run_fails() {
        assert!(conclude(&verdicts(&[Outcome::Passed, skipped()]), true).is_err());
    }

    #[test]
    fn conclude_skipped_elsewhere_tells_the_reason_if_nothing_ran() {
        assert_eq!(
            conclude(&verdicts(&[skipped(), skipped()]), false).expect("no failure").as_deref(),
            Some("no QEMU")
        );
        assert_eq!(conclude(&verdicts(&[Outcome::Passed, skipped()]), false).expect("no failure"), None);
    }
}
