//! `cargo xtask test`: every check, one step after the other. A step that fails does not hide the later ones.

use crate::vm::{self, Verdict};
use crate::{cargo, clock, succeed};
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask test                 everything, as CI does\n  \
cargo xtask test --no-vm         without the virtual machines: no QEMU, no root\n  \
cargo xtask test clippy          one step\n  cargo xtask test vm::00          one scenario\n  \
cargo xtask test vfio_user       QEMU's vfio-user client against the stub\n  \
cargo test -p udrv NAME          one of cargo's own tests\n\n\
With CI=true, what cannot run here is an error; otherwise it is reported as ignored, with the reason.")]
pub(crate) struct TestArgs {
    /// Leave out the steps that boot a virtual machine.
    #[arg(long)]
    no_vm: bool,
    /// Run only the steps and scenarios whose name contains this.
    #[arg(default_value = "", hide_default_value = true)]
    filter: String,
}

/// What may be run.
struct Context {
    repo: PathBuf,
    filter: String,
}

struct Step {
    name: &'static str,
    what: &'static str,
    /// What to do when it has failed.
    next: &'static str,
    boots: bool,
    /// Gives the reason if nothing of it could run here.
    run: fn(&Context) -> Result<Option<String>>,
}

const STEPS: [Step; 8] = [
    Step {
        name: "fmt",
        what: "the format of the code",
        next: "cargo fmt --all (if it is missing: rustup component add rustfmt)",
        boots: false,
        run: |_| run_cargo(&["fmt", "--all", "--", "--check"]),
    },
    Step {
        name: "clippy",
        what: "lints, warnings denied",
        next: "cargo clippy --workspace --all-targets (if it is missing: rustup component add clippy)",
        boots: false,
        run: |_| run_cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
    },
    Step {
        name: "test",
        what: "unit, integration and documentation tests, the layering of crates among them",
        next: "cargo test -p PACKAGE NAME, as told above for each that failed",
        boots: false,
        run: |_| {
            vm::install_test_programs();
            run_cargo(&["test", "--workspace", "--locked", "--no-fail-fast"])
        },
    },
    Step {
        name: "doc",
        what: "documentation, warnings denied",
        next: "RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps",
        boots: false,
        run: |_| {
            let mut doc = cargo();
            doc.args(["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings");
            succeed(doc.stdin(Stdio::null())).map(|()| None)
        },
    },
    Step {
        name: "demo",
        what: "the README's first command",
        next: "cargo xtask demo",
        boots: false,
        run: |_| crate::demo::run().map(|()| None),
    },
    Step {
        name: "fuzz",
        what: "ten seconds of libFuzzer for each decoder of what strangers send",
        next: "cargo xtask fuzz TARGET; what it has found is named above",
        boots: false,
        run: |_| crate::fuzz::run_all(10),
    },
    Step {
        name: "vm",
        what: "scenarios tests/vm/NN-name.sh on the kernel's real VFIO",
        next: "cargo xtask vm -- tests/vm/NAME.sh, or look around in cargo xtask vm --shell",
        boots: true,
        run: |context| {
            vm::build_binaries()?;
            conclude(&vm::run_scenarios(&context.repo, &context.filter)?)
        },
    },
    Step {
        name: "vfio_user",
        what: "QEMU's vfio-user client shows the stub's models to a stock kernel and its own drivers",
        next: "cargo xtask test vfio_user; the guest's log is named above",
        boots: true,
        run: |context| {
            vm::build_binaries()?;
            conclude(&vm::run_vfio_user(&context.repo)?)
        },
    },
];

/// How one step ended, and after what time.
struct Ended {
    step: &'static Step,
    outcome: Result<Option<String>>,
    time: Duration,
}

pub(crate) fn run(args: &TestArgs) -> Result<()> {
    let context = Context { repo: vm::repo_root(), filter: args.filter.clone() };
    let mut steps = Vec::new();
    for step in &STEPS {
        if !(args.no_vm && step.boots) && concerns(step, &context)? {
            steps.push(step);
        }
    }
    if steps.is_empty() {
        let names: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
        bail!("no step or scenario has `{}` in its name: steps are {}", args.filter, names.join(", "));
    }
    let begin = clock::now();
    let ended: Vec<Ended> = steps.into_iter().map(|step| perform(step, &context)).collect();
    let failed = overview(&ended, begin.elapsed());
    if failed > 0 {
        bail!("{failed} of {} steps failed", ended.len());
    }
    Ok(())
}

/// Whether the filter names the step or something in it.
fn concerns(step: &Step, context: &Context) -> Result<bool> {
    let filter = context.filter.as_str();
    let within = match step.name {
        "vm" => vm::titles(&context.repo)?.iter().any(|title| title.contains(filter)),
        "vfio_user" => vm::vfio_user_tests().any(|title| title.contains(filter)),
        _ => false,
    };
    Ok(step.name.contains(filter) || within)
}

fn perform(step: &'static Step, context: &Context) -> Ended {
    println!("\n==== {}: {}", step.name, step.what);
    let begin = clock::now();
    let outcome = (step.run)(context);
    let time = begin.elapsed();
    let word = match &outcome {
        Ok(None) => "ok".to_owned(),
        Ok(Some(reason)) => format!("ignored: {reason}"),
        Err(error) => format!("FAILED: {error:#}"),
    };
    println!("==== {}: {word} ({:.1} s)", step.name, time.as_secs_f64());
    Ended { step, outcome, time }
}

/// Prints how each step ended and what to do next; returns how many failed.
fn overview(ended: &[Ended], time: Duration) -> usize {
    println!("\n==== overview, {:.1} s", time.as_secs_f64());
    for Ended { step, outcome, time } in ended {
        let word = match outcome {
            Ok(None) => "ok",
            Ok(Some(_)) => "ignored",
            Err(_) => "FAILED",
        };
        println!("{:<10} {word:<8} {:>7.1} s", step.name, time.as_secs_f64());
        match outcome {
            Ok(None) => {}
            Ok(Some(reason)) => println!("           because {reason}"),
            Err(error) => println!("           {error:#}\n           next: {}", step.next),
        }
    }
    ended.iter().filter(|ended| ended.outcome.is_err()).count()
}

fn run_cargo(args: &[&str]) -> Result<Option<String>> {
    succeed(cargo().args(args).stdin(Stdio::null())).map(|()| None)
}

fn conclude(verdicts: &[Verdict]) -> Result<Option<String>> {
    vm::conclude(verdicts, std::env::var_os("CI").is_some_and(|ci| ci == "true"))
}
