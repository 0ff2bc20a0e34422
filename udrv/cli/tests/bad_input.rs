//! Whatever the command line is given: one line on stderr that names the thing, a non-zero exit, and an end in time.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn udrv(arguments: &[&str]) -> Output {
    let started = udrv_backend::clock::now();
    let output = Command::new(env!("CARGO_BIN_EXE_udrv")).args(arguments).output().expect("udrv starts");
    assert!(started.elapsed() < Duration::from_secs(30), "{arguments:?} took {:?}", started.elapsed());
    output
}

/// The one line of an error, which must contain each of `words`.
#[track_caller]
fn assert_refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = udrv(arguments);
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.starts_with("udrv: ") && said.ends_with('\n') && said.lines().count() == 1, "not one line: {said:?}");
    for word in words {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    assert_eq!(output.stdout, b"", "an error is no output");
}

/// A path of its own for each test.
fn path(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("udrv-bad-input-{}-{name}", std::process::id()));
    let _left = std::fs::remove_file(&path);
    path
}

fn unix(path: &std::path::Path) -> String {
    format!("unix:{}", path.display())
}

#[test]
fn unknown_scheme_is_a_usage_error() {
    assert_refused(&["info", "nvme0"], 2, &["`nvme0`", "expected", "pci:"]);
    assert_refused(&["run", "edu", "--device", "isa:1"], 2, &["`isa:1`", "expected"]);
    assert_refused(&["info", ""], 2, &["expected"]);
}

#[test]
fn unknown_model_is_a_usage_error() {
    assert_refused(&["info", "model:edv"], 2, &["`model:edv`", "model:edu"]);
}

#[test]
fn processors_that_are_no_list_are_refused_with_an_example() {
    assert_refused(&["run", "--rt=x", "edu", "--device", "model:edu"], 1, &["`x`", "such as 1 or 0,2-3"]);
    assert_refused(&["run", "edu", "--device", "model:edu", "--rt=1023"], 1, &["processors [1023]", "may use"]);
}

#[test]
fn malformed_pci_address_is_a_usage_error() {
    for bad in ["pci:", "pci:0000:03:00", "pci:0000:03:20.0", "pci:zz:00.0", "pci:0000:03:00.0 "] {
        assert_refused(&["info", bad], 2, &["expected", "0000:03:00.0"]);
    }
}

#[test]
fn pci_device_that_is_not_there_is_an_error() {
    assert_refused(&["info", "pci:fffe:ff:1f.7"], 1, &["fffe:ff:1f.7"]);
}

#[test]
fn argument_that_is_unknown_is_a_usage_error_in_one_line() {
    assert_refused(&["info"], 2, &["ADDRESS", "Usage: udrv info"]);
    assert_refused(
        &["run", "edu", "--device", "model:edu", "--irq", "magic"],
        2,
        &["magic", "thread", "signal", "poll"],
    );
    assert_refused(&["frobnicate"], 2, &["frobnicate"]);
}

#[test]
fn socket_that_is_missing_is_an_error() {
    let path = path("missing");
    assert_refused(&["info", &unix(&path)], 1, &["missing", "no such socket", "stub-driver serve"]);
}

#[test]
fn file_instead_of_a_socket_is_an_error_and_left_alone() {
    let path = path("file");
    std::fs::write(&path, "contents").expect("written");
    assert_refused(&["info", &unix(&path)], 1, &["file", "expected a socket"]);
    assert_eq!(std::fs::read(&path).expect("still there"), b"contents");
    std::fs::remove_file(&path).expect("removed");
}

#[test]
fn directory_instead_of_a_socket_is_an_error() {
    assert_refused(&["info", &unix(&std::env::temp_dir())], 1, &["expected a socket", "directory"]);
}

#[test]
fn path_that_is_too_long_is_an_error() {
    assert_refused(&["info", &format!("unix:/{}", "x".repeat(300))], 1, &["unix:/xxx"]);
}

#[test]
fn socket_without_a_server_is_an_error() {
    let path = path("abandoned");
    drop(UnixListener::bind(&path).expect("a socket"));
    assert_refused(&["info", &unix(&path)], 1, &["abandoned", "no server"]);
    std::fs::remove_file(&path).expect("removed");
}

#[test]
fn socket_of_somebody_else_is_an_error() {
    // Root may open everything, so the command is run as nobody, from a place that nobody may read.
    let folder = path("for-nobody");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).expect("readable");
    let socket = folder.join("private.sock");
    let _listener = UnixListener::bind(&socket).expect("a socket");
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).expect("private");
    let mut command = if nix::unistd::geteuid().is_root() {
        let copy = folder.join("udrv");
        std::fs::copy(env!("CARGO_BIN_EXE_udrv"), &copy).expect("a copy");
        let mut command = Command::new(copy);
        use std::os::unix::process::CommandExt as _;
        command.uid(65534).gid(65534);
        command
    } else {
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o000)).expect("closed to its owner too");
        Command::new(env!("CARGO_BIN_EXE_udrv"))
    };
    let output = command.args(["info", &unix(&socket)]).output().expect("udrv starts");
    std::fs::remove_dir_all(&folder).expect("removed");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("private.sock") && said.contains("--owner"), "{said}");
}

#[test]
fn peer_that_speaks_nonsense_is_an_error() {
    let path = path("nonsense");
    let listener = UnixListener::bind(&path).expect("a socket");
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let _gone = stream.write_all(b"220 mail.example.org ESMTP ready\r\n");
        let _end = std::io::copy(&mut stream, &mut std::io::sink());
    });
    assert_refused(&["info", &unix(&path)], 1, &["nonsense", "expected"]);
    server.join().expect("the server ends");
    std::fs::remove_file(&path).expect("removed");
}

#[test]
fn peer_that_says_nothing_is_an_error_in_time() {
    let path = path("silent");
    let listener = UnixListener::bind(&path).expect("a socket");
    assert_refused(&["run", "edu", "--device", &unix(&path)], 1, &["silent", "VERSION", "within 5s"]);
    drop(listener);
    std::fs::remove_file(&path).expect("removed");
}

#[test]
fn device_that_another_driver_has_is_an_error_and_stays_with_it() {
    use stub_driver::serve::{DeviceServer, Export};
    let path = path("busy");
    let model = std::sync::Arc::new(udrv_edu::model::edu());
    let server = DeviceServer::start(Export::shared("busy", model), &path).expect("a server");
    let first = udrv::open(&unix(&path)).expect("the first driver");
    assert_refused(&["run", "edu", "--device", &unix(&path)], 1, &["busy"]);
    assert_eq!(udrv_backend::pci::Config::new(&*first).id().expect("still ours"), (0x1234, 0x11e8));
    drop(first);
    drop(server);
}

#[test]
fn help_and_good_input_succeed() {
    let help = udrv(&["--help"]);
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("udrv run edu --device model:edu"));
    let info = udrv(&["info", "model:edu"]);
    assert!(info.status.success() && String::from_utf8_lossy(&info.stdout).contains("1234:11e8"));
    let json = udrv(&["info", "model:edu", "--json"]);
    assert!(json.status.success() && String::from_utf8_lossy(&json.stdout).contains("\"address_64_bit\": true"));
}

#[test]
fn recording_that_is_missing_or_none_is_an_error() {
    let path = path("no-trace");
    let name = path.to_str().expect("text");
    assert_refused(&["trace", "show", name], 1, &["no-trace", "No such file"]);
    assert_refused(&["run", "edu", "--device", &format!("replay:{name}")], 1, &["no-trace", "No such file"]);
    std::fs::write(&path, "something else that is long enough for a header").expect("written");
    assert_refused(&["trace", "show", name], 1, &["no-trace", "expected a trace"]);
    assert_refused(&["trace", "diff", name, name], 1, &["no-trace", "expected a trace"]);
    assert_refused(&["info", &format!("replay:{name}")], 1, &["no-trace", "expected a trace"]);
    std::fs::remove_file(&path).expect("removed");
}

#[test]
fn fault_plan_that_is_none_is_an_error() {
    let path = path("plan");
    let name = path.to_str().expect("text");
    assert_refused(&["run", "edu", "--device", "model:edu", "--faults", name], 1, &["plan", "No such file"]);
    std::fs::write(&path, "[[fault]]\nkind = \"bad-day\"\n").expect("written");
    assert_refused(&["run", "edu", "--device", "model:edu", "--faults", name], 1, &["plan", "bad-day"]);
    std::fs::remove_file(&path).expect("removed");
    assert_refused(&["run", "edu", "--device", "model:edu", "--faults", "seed:x"], 1, &["seed:NUMBER"]);
}

#[test]
fn fault_plan_is_what_the_driver_meets() {
    let words = ["model:edu is gone", "fault plan"];
    let path = path("gone");
    std::fs::write(&path, "[[fault]]\nkind = \"gone\"\nat = 0\n").expect("written");
    let plan = path.to_str().expect("text");
    assert_refused(&["run", "edu", "--device", "model:edu", "--faults", plan], 1, &words);
    std::fs::remove_file(&path).expect("removed");
}

#[test]
fn recording_is_shown_filtered_and_as_json() {
    let path = path("shown");
    let name = path.to_str().expect("text");
    let recorded = udrv(&["run", "edu", "--device", "model:edu", "--samples", "2", "--record", name]);
    assert!(recorded.status.success(), "{recorded:?}");
    let lines = |arguments: &[&str]| {
        let output = udrv(&[&["trace", "show", name], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let raised = lines(&["--register", "interrupt raise"]);
    assert_eq!(raised.len(), 3, "{raised:#?}");
    assert_eq!(lines(&["--range", "0x60..0x64"]), raised);
    assert_eq!(
        lines(&["--irq"]).len(),
        3 * 8,
        "raised, handler begun, ended: 3 factorials, 2 transfers, 1 section, 2 timed"
    );
    assert_eq!(lines(&["--from", "3600"]).len(), 0);
    let acknowledged = lines(&["--register", "status", "--json"]);
    let object: serde_json::Value = serde_json::from_str(&acknowledged[2]).expect("JSON");
    assert_eq!((&object["register"], &object["width_bits"]), (&"status".into(), &32.into()), "{object}");
    assert_eq!(lines(&["--json"]).len(), lines(&[]).len());
    std::fs::remove_file(&path).expect("removed");
}

#[test]
fn run_whose_reader_has_left_ends_quietly() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_udrv"));
    let output = command.args(["run", "edu", "--device", "model:edu"]).stdout(writer).output().expect("udrv starts");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn reader_that_leaves_is_no_error_of_info() {
    // A pipe whose reading end is closed before the command writes, so that its first write fails.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut info = Command::new(env!("CARGO_BIN_EXE_udrv"));
    let info = info.args(["info", "model:edu"]).stdout(writer).stderr(Stdio::piped()).spawn().expect("started");
    let output = info.wait_with_output().expect("its end");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn error_says_what_caused_it_once() {
    let output = udrv(&["run", "usb-storage", "--device", "model:usb-storage:/nowhere", "info"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said, "udrv: cannot read the image /nowhere: No such file or directory (os error 2)\n");
    let said = String::from_utf8_lossy(&udrv(&["info", "unix:/nowhere"]).stderr).into_owned();
    assert_eq!(said.matches("No such file or directory").count(), 1, "{said}");
}
