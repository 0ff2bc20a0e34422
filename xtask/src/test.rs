//! `cargo xtask test`: every check, one step after the other, and the machines beside them (`beside.rs`). A step that fails does not
//! hide the later ones.

use crate::beside::{Beside, Folder};
use crate::vm::{self, Verdict};
use crate::{cargo, clock, fuzz, succeed};
use anyhow::{Context as _, Result, anyhow, bail};
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
    /// For the xtask that runs the machines beside another one: the folder that both know.
    #[arg(long, hide = true, conflicts_with = "no_vm")]
    beside: Option<PathBuf>,
    /// Run only the steps and scenarios whose name contains this.
    #[arg(default_value = "", hide_default_value = true)]
    filter: String,
}

/// What may be run.
struct Context {
    repo: PathBuf,
    filter: String,
    /// Those for the machines, if they are built already.
    programs: Option<PathBuf>,
}

impl Context {
    fn programs(&self) -> Result<PathBuf> {
        match &self.programs {
            Some(built) => Ok(built.clone()),
            None => vm::build_programs().and_then(|()| vm::programs(&self.repo)),
        }
    }
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
        run: |_| fuzz::run_all(10),
    },
    Step {
        name: "vm",
        what: "scenarios tests/vm/NN-name.sh on the kernel's real VFIO",
        next: "cargo xtask vm -- tests/vm/NAME.sh, or look around in cargo xtask vm --shell",
        boots: true,
        run: |context| {
            let programs = context.programs()?;
            conclude(&vm::run_scenarios(&context.repo, &programs, &context.filter)?)
        },
    },
    Step {
        name: "vfio_user",
        what: "QEMU's vfio-user client shows the stub's models to a stock kernel and its own drivers",
        next: "cargo xtask test vfio_user; the guest's log is named above",
        boots: true,
        run: |context| {
            let programs = context.programs()?;
            conclude(&vm::run_vfio_user(&context.repo, &programs)?)
        },
    },
];

pub(crate) fn run(args: &TestArgs) -> Result<()> {
    let folder = args.beside.clone().map(Folder::new);
    let programs = folder.as_ref().map(Folder::programs);
    let context = Context { repo: vm::repo_root(), filter: args.filter.clone(), programs };
    let (mut steps, mut boots) = (Vec::new(), Vec::new());
    for step in &STEPS {
        let left_out = if step.boots { args.no_vm } else { folder.is_some() };
        if !left_out && concerns(step, &context)? {
            if step.boots { &mut boots } else { &mut steps }.push(step);
        }
    }
    if steps.is_empty() && boots.is_empty() {
        let names: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
        bail!("no step or scenario has `{}` in its name: steps are {}", args.filter, names.join(", "));
    }
    let begin = clock::now();
    let ended = if steps.is_empty() || boots.is_empty() {
        perform_all(steps.into_iter().chain(boots), &context)
    } else {
        perform_beside(steps, boots, &context)
    };
    if let Some(folder) = folder {
        std::fs::write(folder.overview(), &ended.overview).context("cannot write the overview")?;
    } else {
        print!("\n==== overview, {:.1} s\n{}", begin.elapsed().as_secs_f64(), ended.overview);
    }
    if ended.failed {
        bail!("not every step has passed");
    }
    Ok(())
}

fn perform_all(steps: impl IntoIterator<Item = &'static Step>, context: &Context) -> Ended {
    let mut ended = Ended::default();
    for step in steps {
        println!("\n==== {}: {}", step.name, step.what);
        let begin = clock::now();
        let outcome = (step.run)(context);
        ended.add(step, &outcome, begin.elapsed());
    }
    ended
}

/// The first here, those that boot a machine in another process.
fn perform_beside(here: Vec<&'static Step>, boots: Vec<&'static Step>, context: &Context) -> Ended {
    // A machine sees the programs of its host: what the steps install is there before it boots.
    vm::install_test_programs();
    fuzz::install_compiler();
    let beside = Beside::start(&context.repo, &context.filter);
    let mut ended = perform_all(here, context);
    match beside.and_then(Beside::finish) {
        Ok((well, overview)) => {
            ended.failed |= !well;
            ended.overview += &overview;
        }
        Err(error) => {
            for step in boots {
                ended.add(step, &Err(anyhow!("{error:#}")), Duration::ZERO);
            }
        }
    }
    ended
}

/// How steps ended.
#[derive(Default)]
struct Ended {
    /// A line for each, and what to do next.
    overview: String,
    failed: bool,
}

impl Ended {
    fn add(&mut self, step: &Step, outcome: &Result<Option<String>>, time: Duration) {
        let (word, more) = match outcome {
            Ok(None) => ("ok", String::new()),
            Ok(Some(reason)) => ("ignored", format!("           because {reason}\n")),
            Err(error) => ("FAILED", format!("           {error:#}\n           next: {}\n", step.next)),
        };
        let seconds = time.as_secs_f64();
        print!("==== {}: {word} ({seconds:.1} s)\n{more}", step.name);
        self.overview += &format!("{:<10} {word:<8} {seconds:>7.1} s\n{more}", step.name);
        self.failed |= outcome.is_err();
    }
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

fn run_cargo(args: &[&str]) -> Result<Option<String>> {
    succeed(cargo().args(args).stdin(Stdio::null())).map(|()| None)
}

fn conclude(verdicts: &[Verdict]) -> Result<Option<String>> {
    vm::conclude(verdicts, std::env::var_os("CI").is_some_and(|ci| ci == "true"))
}
