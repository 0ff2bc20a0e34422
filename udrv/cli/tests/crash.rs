//! `udrv inspect --core`: a real core of a driver that crashed, and of one that panicked, in a real gdb, with the bundle.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use stub_driver::serve::{DeviceServer, Export};
use udrv::clock::Deadline;
use udrv::host::{Context, Driver, Host};
use udrv::irq::Delivery;
use udrv::mmio::{Io as _, Window};
use udrv_backend::RegionIndex;
use udrv_edu::registers::IDENTIFICATION;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_REGISTER: &str = "identification             0x0000  0x010000ed\n";

#[inline(never)]
fn goes_wrong(how: &str) {
    match how {
        "panic" => panic!("the ring has no end"),
        // The first only takes the handler away that Rust's runtime has for its stacks.
        _ => loop {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGSEGV).expect("raised");
        },
    }
}

/// A driver that goes wrong.
struct Wrong {
    _registers: Window<0x100>,
}

impl Driver for Wrong {
    type Config = ();

    fn probe(context: &Context, (): ()) -> udrv::Result<Self> {
        udrv::inspect::describe(&*context.device, &udrv_edu::registers::MAP);
        let registers = Window::open(&context.device, RegionIndex::BAR0)?;
        registers.read(IDENTIFICATION)?;
        Ok(Self { _registers: registers })
    }

    fn run(&mut self, _context: &Context) -> udrv::Result<()> {
        goes_wrong(&std::env::var("UDRV_TEST_HOW").expect("set"));
        Ok(())
    }
}

/// Not a test by itself: the process of a driver that goes wrong.
#[test]
fn child_process_goes_wrong() {
    let Some(address) = std::env::var_os("UDRV_TEST_CRASH") else { return };
    let device = udrv::open(address.to_str().expect("UTF-8")).expect("connected");
    let mut host = Host::new();
    host.start::<Wrong>(device, Delivery::Thread, ()).expect("started");
    let _reports = host.join();
}

/// What a driver that goes wrong leaves: the bundle and the core.
struct Left {
    folder: tempfile::TempDir,
    bundle: PathBuf,
    core: PathBuf,
}

/// `None` where there is no gdb. Cores are made by it, since where the kernel leaves them is the machine's business.
fn leave(how: &str, stop: &[&str]) -> Option<Left> {
    let found = Command::new("gdb").arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(found || std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI has no gdb: apt-get install gdb");
    if !found {
        eprintln!("skipped: there is no gdb (apt-get install gdb)");
        return None;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let export = Export::shared("edu", Arc::new(udrv_edu::model::edu()));
    let server = DeviceServer::start(export, &folder.path().join("edu.sock")).expect("served");
    let core = folder.path().join("the core");
    let dump = format!("generate-core-file {}", core.display());
    let mut gdb = Command::new("gdb");
    gdb.args(["-q", "-nx", "-batch"]);
    for command in stop.iter().copied().chain(["run", &dump, "continue"]) {
        gdb.args(["-ex", command]);
    }
    let said = gdb
        .arg("--args")
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", "child_process_goes_wrong"])
        .env("UDRV_TEST_CRASH", format!("unix:{}", server.path().display()))
        .env("UDRV_TEST_HOW", how)
        .stdin(Stdio::null())
        .output()
        .expect("gdb starts");
    assert!(core.is_file(), "{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    let bundles = folder.path().join("bundles");
    let bundle = || Some(std::fs::read_dir(&bundles).ok()?.next()?.ok()?.path());
    let is_there = || Ok(bundle().is_some_and(|path| std::fs::read_to_string(path).is_ok_and(|it| it.ends_with('}'))));
    Deadline::after(PATIENCE).poll("a bundle", is_there).expect("in time");
    let bundle = bundle().expect("it is there");
    Some(Left { folder, bundle, core })
}

fn inspect(bundle: &Path, more: &[&str], commands: &str) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_udrv"))
        .arg("inspect")
        .arg(bundle)
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("udrv starts");
    child.stdin.take().expect("its input").write_all(commands.as_bytes()).expect("told");
    let output = child.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    said
}

fn shows_the_crash(left: &Left, why: &str) {
    let core = left.core.to_str().expect("UTF-8");
    let said = inspect(&left.bundle, &["--core", core], "");
    assert!(said.starts_with(&format!("model:edu: {why}: process ")), "{said}");
    assert!(said.contains(FIRST_REGISTER), "{said}");
    assert!(said.contains("crash::goes_wrong (") && said.contains("crash::{impl#0}::run ("), "{said}");

    let said = inspect(&left.bundle, &["--core", core, "--gdb"], "udrv regs\nudrv trace\nudrv irqs\nquit\n");
    // Before gdb, and in it.
    assert_eq!(said.matches(FIRST_REGISTER).count(), 2, "{said}");
    assert_eq!(said.matches("read  BAR0 ").count(), 2, "{said}");
    assert_eq!(said.matches("no interrupt has a handler").count(), 2, "{said}");
    assert!(said.contains("crash::goes_wrong ("), "{said}");
}

#[test]
fn core_of_a_driver_that_crashed_is_shown_with_its_registers() {
    let Some(left) = leave("crash", &[]) else { return };
    shows_the_crash(&left, "its driver ended without letting go of it");

    let nowhere = left.folder.path().join("nowhere");
    let mut command = Command::new(env!("CARGO_BIN_EXE_udrv"));
    let output = command.arg("inspect").arg(&left.bundle).arg("--core").arg(&nowhere).output().expect("udrv starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said, format!("udrv: reading {}: No such file or directory (os error 2)\n", nowhere.display()));
}

#[test]
fn core_of_a_driver_that_panicked_is_shown_with_what_it_said() {
    let Some(left) = leave("panic", &["break rust_panic"]) else { return };
    shows_the_crash(&left, "its driver panicked");
    let said = inspect(&left.bundle, &[], "");
    assert!(said.contains("the ring has no end"), "{said}");
}
