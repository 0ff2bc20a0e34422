//! `cargo xtask fuzz`: the targets of `tests/fuzz`, with libFuzzer, on the stable toolchain: coverage comes from LLVM's own pass,
//! and there is no sanitizer, since what is fuzzed has no unsafe code.

use crate::vm::{install_missing, repo_root, target_dir};
use crate::{cargo, succeed};
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The targets, as `tests/fuzz/Cargo.toml` names them.
const TARGETS: [&str; 5] = ["trace", "usb_classes", "usb_descriptors", "usbip", "vfio_user"];

/// What lets libFuzzer see which edges an input took (clang's SanitizerCoverage).
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// What libFuzzer is compiled by, and its package.
const COMPILER: (&str, &str) = ("c++", "g++");

/// Longest input, bytes: some messages with what follows them.
const MAX_INPUT: usize = 4096;

/// How much of its log is shown of a fuzzer that found something, lines.
const SHOWN: usize = 40;

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask fuzz                          every target for a minute\n  \
cargo xtask fuzz usbip --seconds 3600     one of them for an hour\n\n\
It begins with tests/fuzz/corpus/TARGET and what earlier runs found, which is kept in target/fuzz/corpus.")]
pub(crate) struct FuzzArgs {
    /// One target; all, one after the other, if not given.
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
    /// How long each may look.
    #[arg(long, default_value_t = 60, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

pub(crate) fn run(args: &FuzzArgs) -> Result<()> {
    let targets: Vec<&str> =
        TARGETS.into_iter().filter(|name| args.target.as_deref().is_none_or(|one| one == *name)).collect();
    install_missing(&[COMPILER]).context("libFuzzer needs a C++ compiler")?;
    run_targets(&targets, args.seconds)
}

/// Every target for as many seconds. Gives the reason if that cannot be done here.
pub(crate) fn run_all(seconds: u32) -> Result<Option<String>> {
    let is_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
    match install_missing(&[COMPILER]) {
        Err(error) if !is_ci => Ok(Some(format!("libFuzzer needs a C++ compiler: {error:#}"))),
        got => got.and_then(|()| run_targets(&TARGETS, seconds)).map(|()| None),
    }
}

fn run_targets(targets: &[&str], seconds: u32) -> Result<()> {
    let repo = repo_root();
    let work = target_dir(&repo)?.join("fuzz");
    let programs = build(&work)?;
    let mut failed = Vec::new();
    for &target in targets {
        println!("fuzzing {target} for {seconds} s");
        if let Err(error) = look(&repo, &work, &programs.join(target), target, seconds) {
            println!("{target}: {error:#}");
            failed.push(target);
        }
    }
    if !failed.is_empty() {
        bail!("found something in {}", failed.join(", "));
    }
    Ok(())
}

/// Builds all targets; returns their folder.
fn build(work: &Path) -> Result<PathBuf> {
    // With a target named, cargo keeps these flags from build scripts and procedural macros.
    let host = host()?;
    let mut build = cargo();
    build.args([
        "build",
        "--quiet",
        "--locked",
        "-p",
        "udrv-fuzz",
        "--bins",
        "--features",
        "libfuzzer",
        "--profile",
        "fuzz",
    ]);
    build.args(["--target", &host]).arg("--target-dir").arg(work);
    build.env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\x1f")).stdin(Stdio::null());
    succeed(&mut build).context("the fuzz targets cannot be built")?;
    Ok(work.join(host).join("fuzz"))
}

fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("cannot start rustc")?;
    let text = String::from_utf8(output.stdout).context("what rustc says of itself")?;
    text.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned).context("rustc does not name its host")
}

fn look(repo: &Path, work: &Path, program: &Path, target: &str, seconds: u32) -> Result<()> {
    let (found, findings) = (work.join("corpus").join(target), work.join("findings"));
    for folder in [&found, &findings] {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let mut fuzzer = Command::new(program);
    fuzzer.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={MAX_INPUT}"));
    // An input that takes this long hangs; what takes as much memory was not bounded.
    fuzzer.args(["-timeout=5", "-rss_limit_mb=512", "-print_final_stats=1", "-verbosity=1"]);
    fuzzer.arg(format!("-artifact_prefix={}/{target}-", findings.display()));
    // What is new goes to the first.
    fuzzer.arg(&found).arg(repo.join("tests/fuzz/corpus").join(target));
    let output = fuzzer.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", program.display()))?;
    let log = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        let figure = |name: &str| log.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("?").trim().to_owned();
        println!(
            "  {} inputs, {} a second",
            figure("stat::number_of_executed_units:"),
            figure("stat::average_exec_per_sec:")
        );
        return Ok(());
    }
    let lines: Vec<&str> = log.lines().filter(|line| !line.starts_with(['#', '\t'])).collect();
    println!("{}", lines.get(lines.len().saturating_sub(SHOWN)..).unwrap_or_default().join("\n"));
    bail!(
        "the input is in {}; again: {} INPUT; mended: put it into tests/fuzz/corpus/{target}",
        findings.display(),
        program.display()
    )
}
