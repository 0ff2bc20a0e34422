//! `cargo xtask bench usb`: builds the benchmark and its peer in C, and runs both: outside on a node whose transfers do nothing, and
//! in the virtual machine on its disk.

use super::kernel;
use super::machine::{Console, Job, shell_quote, target_dir};
use super::repo_root;
use crate::bench::plot;
use crate::{cargo, succeed};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The boot, and six measures of seven rounds under emulation.
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
    let folder = target_dir(&repo)?.join("bench");
    std::fs::create_dir_all(&folder)?;
    let built = build()?;
    let peer = folder.join("usb-peer");
    compile_peer(&repo, &built, &peer)?;
    let mut rows = on_node(&repo, &built, &peer, &folder, part)?;
    rows.extend(on_disk(&repo, &built, &peer, part)?);
    plot::write(&folder, "usb", &rows)
}

/// The layers above the kernel, by themselves.
fn on_node(repo: &Path, built: &Built, peer: &Path, folder: &Path, part: &str) -> Result<Vec<Value>> {
    let node = folder.join("usb-node.so");
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]).arg(&node);
    cc.arg(repo.join("tests/benches/usb/node.c")).arg("-lpthread");
    succeed(&mut cc).context("the node in C cannot be built (apt-get install gcc libc6-dev)")?;
    let result = folder.join("usb-node.json");
    succeed(Command::new(&built.bench).arg("node").args([peer, &result]).arg(part).env("LD_PRELOAD", &node))?;
    read_rows(&result)
}

fn on_disk(repo: &Path, built: &Built, peer: &Path, part: &str) -> Result<Vec<Value>> {
    let kernel = kernel::prepare(&target_dir(repo)?.join("vm")).context("the virtual machine cannot run here")?;
    let [bench, peer] = [&built.bench, peer].map(|path| shell_quote(&path.to_string_lossy()));
    let script = format!(
        "stty -F /dev/ttyS1 raw\nexec </dev/null >/dev/ttyS1 2>&1\n. tests/vm/lib.sh\n. tests/vm/lib-usb.sh\nload_usb\n\
         dd if=/dev/urandom of=\"$(disk_of \"$port\")\" bs=1M count=64 oflag=direct status=none\n\
         {bench} disk {peer} \"$UDRV_VM_RUN/{RESULT}\" {}\n",
        shell_quote(part)
    );
    let job = Job::new(repo, &kernel, &script)?;
    let end = job.boot(Console::Output(LIMIT), |output| {
        let mut stdout = std::io::stdout();
        stdout.write_all(output).and_then(|()| stdout.flush()).context("cannot write the guest's output")
    })?;
    match end.status {
        Some(0) => {}
        Some(status) => bail!("the benchmark ended with {status}"),
        None => bail!("{}\n{}", end.why(), job.folder.log_tail()),
    }
    read_rows(&job.folder.file(RESULT))
}

fn read_rows(result: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(result).with_context(|| format!("reading {}", result.display()))?;
    serde_json::from_str(&text).with_context(|| format!("the rows in {}", result.display()))
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
