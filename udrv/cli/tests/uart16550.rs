//! `udrv run uart16550` on the model, here and behind the stub: the terminal as another program sees it.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use stub_driver::serve::{DeviceServer, Export};

/// `udrv run uart16550`, and what it says.
struct Running {
    process: Child,
    said: BufReader<ChildStdout>,
    terminal: PathBuf,
}

impl Running {
    fn start(device: &str, link: &Path) -> Self {
        Self::start_with(device, link, &[])
    }

    fn start_with(device: &str, link: &Path, options: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_udrv"))
            .args(["run", "uart16550", "--device", device, "--link"])
            .arg(link)
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .expect("udrv starts");
        let mut said = BufReader::new(process.stdout.take().expect("its output"));
        let mut line = String::new();
        said.read_line(&mut line).expect("a line");
        Self { process, said, terminal: line.trim_end().into() }
    }

    /// By SIGTERM; the rest of what it said.
    fn end(mut self) -> String {
        kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM).expect("signalled");
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).expect("UTF-8");
        assert!(self.process.wait().expect("ended").success());
        rest
    }
}

fn open(terminal: &Path) -> File {
    let flags = nix::libc::O_NOCTTY;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(terminal).expect("the terminal")
}

/// Writes all of it and reads it back, as it comes: a terminal holds only some thousand bytes.
fn echo(terminal: &File, bytes: &[u8]) {
    let mut came = vec![0; bytes.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| { terminal }.write_all(bytes).expect("written"));
        { terminal }.read_exact(&mut came).expect("read");
    });
    assert!(came == bytes, "other bytes came back");
}

fn bytes(seed: u32, count: u32) -> Vec<u8> {
    (seed..seed + count).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn terminal_opened_twice_echoes_by_the_models_plug() {
    let link = std::env::temp_dir().join(format!("udrv-cli-uart-{}", std::process::id()));
    let running = Running::start("model:uart16550", &link);
    assert!(running.terminal.starts_with("/dev/pts"), "{}", running.terminal.display());
    echo(&open(&link), &bytes(1, 100_000));
    echo(&open(&running.terminal), &bytes(2, 1000));
    let said = running.end();
    assert!(said.starts_with("received 101000, sent 101000; overruns 0, parity errors 0"), "{said}");
    assert!(!link.exists(), "the link is left");
}

#[test]
fn terminal_of_a_device_behind_the_stub_echoes() {
    let folder = std::env::temp_dir().join(format!("udrv-cli-uart-stub-{}", std::process::id()));
    std::fs::create_dir(&folder).expect("a folder");
    let model = Arc::new(udrv_uart16550::model::uart16550());
    let server = DeviceServer::start(Export::shared("uart16550", model), &folder.join("uart.sock")).expect("served");
    for seed in [1, 2] {
        let running = Running::start(&format!("unix:{}", server.path().display()), &folder.join("tty"));
        echo(&open(&folder.join("tty")), &bytes(seed, 5000));
        assert!(running.end().starts_with("received 5000, sent 5000; overruns 0"));
    }
    drop(server);
    std::fs::remove_dir_all(&folder).expect("removed");
}

/// Opened, written to and read from, and ended: what the driver says of it.
fn session(device: &str, link: &Path, options: &[&str]) -> String {
    let running = Running::start_with(device, link, options);
    // Open until the end: whether the driver still sees it closed would be chance.
    let terminal = open(link);
    echo(&terminal, b"recorded\n");
    running.end()
}

#[test]
fn session_that_is_recorded_is_shown_by_the_registers_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let (link, file) = (folder.path().join("tty"), folder.path().join("a.trace"));
    let recorded = session("model:uart16550", &link, &["--record", file.to_str().expect("UTF-8")]);
    assert!(recorded.starts_with("received 9, sent 9; overruns 0"), "{recorded}");
    let shown =
        Command::new(env!("CARGO_BIN_EXE_udrv")).args(["trace", "show"]).arg(&file).output().expect("udrv starts");
    let shown = String::from_utf8_lossy(&shown.stdout);
    for part in [
        "read  BAR0   IIR ",
        "write BAR0   IER ",
        "run   INTx vector 0",
        "irqs off, at devices/uart16550/src/driver.rs:",
    ] {
        assert!(shown.contains(part), "no `{part}` in {shown}");
    }
}

#[test]
fn recorded_session_on_the_model_replays() {
    let folder = tempfile::tempdir().expect("a folder");
    let replay = concat!("replay:", env!("CARGO_MANIFEST_DIR"), "/../../tests/traces/uart16550-model.trace");
    assert!(session(replay, &folder.path().join("tty"), &[]).starts_with("received 9, sent 9; overruns 0"));
}

#[test]
fn device_that_is_no_serial_port_is_refused_in_one_line() {
    let output = Command::new(env!("CARGO_BIN_EXE_udrv"))
        .args(["run", "uart16550", "--device", "model:edu"])
        .output()
        .expect("udrv starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("class code 00ff00: expected 070002") || error.contains("BAR0"), "{error}");
}

#[test]
fn terminal_is_linked_only_once_the_port_is_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = Command::new(env!("CARGO_BIN_EXE_udrv"))
        .args(["run", "uart16550", "--device", "model:edu", "--link"])
        .arg(folder.path().join("no-such-folder/tty"))
        .output()
        .expect("udrv starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && !error.contains("no-such-folder"),
        "linked before the device was refused: {error}"
    );
}
