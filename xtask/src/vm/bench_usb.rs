//! `cargo xtask bench usb`: builds the benchmark and its peer in C, and runs both in the virtual machine.

use super::kernel;
use super::machine::{Console, Job, shell_quote, target_dir};
use super::repo_root;
use crate::{cargo, succeed};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The boot, and five measures of seven rounds under emulation.
const LIMIT: Duration = Duration::from_secs(1800);

/// The result's name in the run folder.
const RESULT: &str = "usb.json";

/// What cargo has built: the benchmark, and the libusb that is linked into it, which the peer is to have too.
struct Built {
    bench: PathBuf,
    libusb_header: PathBuf,
    libusb: PathBuf,
}

pub(crate) fn run(part: &str) -> Result<()> {
    let repo = repo_root();
    let target = target_dir(&repo)?;
    let built = build()?;
    let peer = target.join("bench/usb-peer");
    std::fs::create_dir_all(target.join("bench"))?;
    compile_peer(&repo, &built, &peer)?;

    let kernel = kernel::prepare(&target.join("vm")).context("the virtual machine cannot run here")?;
    let bench = [&built.bench, &peer].map(|path| shell_quote(&path.to_string_lossy())).join(" ");
    let script = format!(
        "stty -F /dev/ttyS1 raw\nexec </dev/null >/dev/ttyS1 2>&1\n. tests/vm/lib.sh\n. tests/vm/lib-usb.sh\nload_usb\n\
         dd if=/dev/urandom of=\"$(disk_of \"$port\")\" bs=1M count=64 oflag=direct status=none\n\
         {bench} \"$UDRV_VM_RUN/{RESULT}\" {}\n",
        shell_quote(part)
    );
    let job = Job::new(&repo, &kernel, &script)?;
    let end = job.boot(Console::Output(LIMIT), |output| {
        let mut stdout = std::io::stdout();
        stdout.write_all(output).and_then(|()| stdout.flush()).context("cannot write the guest's output")
    })?;
    match end.status {
        Some(0) => {}
        Some(status) => bail!("the benchmark ended with {status}"),
        None => bail!("{}\n{}", end.why(), job.folder.log_tail()),
    }
    let result = target.join("bench").join(RESULT);
    std::fs::copy(job.folder.file(RESULT), &result).with_context(|| format!("writing {}", result.display()))?;
    println!("written: {}", result.display());
    Ok(())
}

fn build() -> Result<Built> {
    let mut bench = cargo();
    bench.args(["bench", "--no-run", "--locked", "-p", "udrv-tests", "--bench", "usb"]);
    bench.arg("--message-format=json-render-diagnostics").stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = bench.output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the benchmark cannot be built ({})", output.status);
    }
    let (mut executable, mut header, mut library) = (None, None, None);
    for line in output.stdout.split(|byte| *byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<Value>(line) else { continue };
        let text = |pointer: &str| message.pointer(pointer).and_then(Value::as_str).map(PathBuf::from);
        let is_libusb = message.get("package_id").and_then(Value::as_str).is_some_and(|id| id.contains("libusb1-sys"));
        match message.get("reason").and_then(Value::as_str) {
            Some("compiler-artifact") if text("/target/name").is_some_and(|name| name == Path::new("usb")) => {
                executable = text("/executable").or(executable);
            }
            Some("compiler-artifact") if is_libusb => {
                header = text("/manifest_path").and_then(|path| Some(path.parent()?.join("libusb/libusb"))).or(header);
            }
            Some("build-script-executed") if is_libusb => library = text("/out_dir").or(library),
            _ => {}
        }
    }
    let missing = |what: &str| format!("cargo did not say where {what} is");
    Ok(Built {
        bench: executable.with_context(|| missing("the benchmark"))?,
        libusb_header: header.with_context(|| missing("libusb.h"))?,
        libusb: library.with_context(|| missing("libusb"))?.join("libusb-vendored.a"),
    })
}

fn compile_peer(repo: &Path, built: &Built, to: &Path) -> Result<()> {
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-o"]).arg(to).arg("-I").arg(&built.libusb_header);
    cc.arg(repo.join("tests/benches/usb/peer.c")).arg(&built.libusb).arg("-lpthread");
    succeed(&mut cc).context("the peer in C cannot be built (apt-get install gcc libc6-dev)")
}
