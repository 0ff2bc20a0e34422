//! `udrv run nvme --export nbd:SOCKET` on the model, as other people's clients see it: QEMU's and libnbd's, which
//! `cargo xtask test` installs (packages qemu-utils and libnbd-bin).

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use stub_driver::serve::{DeviceServer, Export};

/// A folder of the test's own, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("udrv-nbd-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).expect("a folder");
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An export, until it is dropped.
struct Served {
    udrv: Child,
    uri: String,
}

impl Served {
    fn new(device: &str, socket: &Path, more: &[&str]) -> Self {
        let export = format!("nbd:{}", socket.display());
        let udrv = Command::new(env!("CARGO_BIN_EXE_udrv"))
            .args(["run", "nvme", "--device", device, "--export", &export])
            .args(more)
            .stdout(Stdio::piped())
            .spawn();
        let mut udrv = udrv.expect("udrv starts");
        // It says so once clients may come.
        let mut said = String::new();
        BufReader::new(udrv.stdout.take().expect("its output")).read_line(&mut said).expect("a line");
        assert!(said.contains(&export), "{said}");
        Self { udrv, uri: format!("nbd+unix:///?socket={}", socket.display()) }
    }

    fn end(&mut self, signal: nix::sys::signal::Signal) -> std::process::ExitStatus {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.udrv.id() as i32), signal).expect("signalled");
        self.udrv.wait().expect("ended")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Nothing to kill if the test has ended it.
        let _ = self.udrv.kill();
        let _ = self.udrv.wait();
    }
}

/// Whether there are these clients; where CI runs, there must be.
fn there_are(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_missing = |program: &&&str| !std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    let missing: Vec<&str> = programs.iter().filter(is_missing).copied().collect();
    let advice = "apt-get install qemu-utils libnbd-bin, or cargo xtask test as root";
    let is_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
    assert!(missing.is_empty() || !is_ci, "CI has no {}: {advice}", missing.join(", "));
    if !missing.is_empty() {
        eprintln!("skipped: there is no {} ({advice})", missing.join(", "));
    }
    missing.is_empty()
}

/// Runs another client to its end; what it said.
fn client(words: &[&str]) -> String {
    let out = Command::new(words[0]).args(&words[1..]).output();
    let out = out.unwrap_or_else(|error| panic!("{}: {error}", words[0]));
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{words:?}: {said}");
    said
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// An image as long as a namespace of the model.
fn image(path: &Path, bytes: usize) {
    let content: Vec<u8> = (0..bytes as u32 / 4).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(path, content).expect("written");
}

#[test]
fn nbdinfo_shows_the_namespaces_size_and_what_can_be_done() {
    if !there_are(&["nbdinfo"]) {
        return;
    }
    let folder = Folder::new("info");
    let served = Served::new("model:nvme", &folder.file("disk.sock"), &[]);
    let shown = client(&["nbdinfo", &served.uri]);
    for line in [
        "export-size: 67108864",
        "can_flush: true",
        "can_fua: true",
        "can_multi_conn: true",
        "can_trim: true",
        "can_zero: true",
        "is_read_only: false",
        "block_size_minimum: 512",
    ] {
        assert!(shown.contains(line), "no `{line}` in {shown}");
    }
    assert!(client(&["nbdinfo", "--list", &served.uri]).contains("export=\"\""), "the list");
    drop(served);
    let served = Served::new("model:nvme", &folder.file("disk.sock"), &["--namespace", "2", "--read-only"]);
    let shown = client(&["nbdinfo", &served.uri]);
    assert!(shown.contains("block_size_minimum: 4096") && shown.contains("is_read_only: true"), "{shown}");
}

#[test]
fn qemu_img_converts_onto_the_namespace_and_compares() {
    if !there_are(&["qemu-img"]) {
        return;
    }
    let folder = Folder::new("qemu");
    let source = folder.file("image");
    for (namespace, bytes) in [("1", 64 << 20), ("2", 16 << 20)] {
        image(&source, bytes);
        let served = Served::new("model:nvme", &folder.file("disk.sock"), &["--namespace", namespace]);
        client(&["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", text(&source), &served.uri]);
        client(&["qemu-img", "compare", "-f", "raw", "-F", "raw", text(&source), &served.uri]);
    }
}

#[test]
fn nbdcopy_copies_both_ways_over_four_connections() {
    if !there_are(&["nbdcopy"]) {
        return;
    }
    let folder = Folder::new("copy");
    let (source, back) = (folder.file("image"), folder.file("back"));
    image(&source, 64 << 20);
    let served = Served::new("model:nvme", &folder.file("disk.sock"), &["--wait", "hybrid"]);
    client(&["nbdcopy", "--connections=4", "--flush", text(&source), &served.uri]);
    client(&["nbdcopy", "--connections=4", &served.uri, text(&back)]);
    assert!(std::fs::read(&source).expect("read") == std::fs::read(&back).expect("read"), "other bytes came back");
}

#[test]
fn long_requests_of_several_clients_at_a_time_are_all_answered() {
    if !there_are(&["qemu-img"]) {
        return;
    }
    let folder = Folder::new("several");
    let served = Served::new("model:nvme", &folder.file("disk.sock"), &["--connections", "4"]);
    // 64 MiB at a time, of each: what the server has memory for of all.
    let bench = ["qemu-img", "bench", "-f", "raw", "-c", "32", "-d", "4", "-s", "16M"];
    std::thread::scope(|scope| {
        for more in [&[][..], &["-w"], &[], &["-w", "--flush-interval=16"]] {
            let words = [&bench[..], more, &[served.uri.as_str()]].concat();
            scope.spawn(move || client(&words));
        }
    });
}

#[test]
fn what_was_flushed_is_there_after_the_driver_was_killed_and_started_again() {
    if !there_are(&["nbdcopy", "qemu-img"]) {
        return;
    }
    let folder = Folder::new("kill");
    let model = Arc::new(udrv_nvme::model::nvme().expect("a model"));
    let server = DeviceServer::start(Export::shared("nvme", model), &folder.file("nvme.sock")).expect("served");
    let device = format!("unix:{}", server.path().display());
    let (source, socket) = (folder.file("image"), folder.file("disk.sock"));
    image(&source, 64 << 20);
    let mut served = Served::new(&device, &socket, &[]);
    client(&["nbdcopy", "--flush", text(&source), &served.uri]);
    served.end(nix::sys::signal::Signal::SIGKILL);
    let mut served = Served::new(&device, &socket, &[]);
    client(&["qemu-img", "compare", "-f", "raw", "-F", "raw", text(&source), &served.uri]);
    let ended = served.end(nix::sys::signal::Signal::SIGTERM);
    assert!(ended.success() && !socket.exists(), "stopped in the orderly way: {ended}");
}

#[test]
fn export_that_cannot_be_is_refused_in_one_line() {
    let folder = Folder::new("refused");
    let taken = folder.file("file");
    std::fs::write(&taken, "").expect("written");
    let taken = format!("nbd:{}", taken.display());
    for (words, code, part) in [
        (&["--export", "tcp:10809"][..], 2, "expected nbd:SOCKET"),
        (&["--export", "nbd:"], 2, "expected nbd:SOCKET"),
        (&["--export", taken.as_str()], 1, "listening at"),
        (&["--export", "nbd:/nowhere/x.sock"], 1, "listening at /nowhere/x.sock"),
        (&["--export", taken.as_str(), "--namespace", "7"], 1, "Invalid Namespace or Format"),
        (&["--export", taken.as_str(), "identify"], 1, "one thing is to be done"),
        (&["--read-only", "identify"], 2, "--export"),
        (&[], 1, "one thing is to be done"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_udrv"));
        let out = command.args(["run", "nvme", "--device", "model:nvme"]).args(words).output().expect("udrv starts");
        let error = String::from_utf8_lossy(&out.stderr);
        assert_eq!((out.status.code(), error.lines().count()), (Some(code), 1), "{words:?}: {error}");
        assert!(error.contains(part), "{words:?}: {error}");
    }
}
