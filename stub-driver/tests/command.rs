//! `stub-driver serve` and `status` as processes: sockets, signals, other users, the control socket.

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use support::{Client, Folder, PATIENCE};

/// The stub as a process, killed at the end if it is still there.
struct Stub(Child);

impl Drop for Stub {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stub-driver"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn serve_command(folder: &Path) -> Command {
    let mut command = command(&["serve", "model:edu", "--socket-dir"]);
    command.arg(folder);
    command
}

/// Starts it and waits for `ready`. Returns what it said before.
fn start(mut command: Command) -> (Stub, Vec<String>) {
    let mut child = command.stdout(Stdio::piped()).spawn().expect("started");
    let output = child.stdout.take().expect("its output");
    let stub = Stub(child);
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let lines: Vec<_> =
            BufReader::new(output).lines().map_while(Result::ok).take_while(|line| line != "ready").collect();
        let _ = tell.send(lines);
    });
    let lines = told.recv_timeout(PATIENCE).expect("ready");
    (stub, lines)
}

fn serve(folder: &Folder) -> Stub {
    start(serve_command(folder.path())).0
}

/// Runs it to its end, which must come: one line of error, exit code not zero.
fn fails(mut command: Command) -> String {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("started");
    let mut errors = child.stderr.take().expect("its errors");
    let mut process = Stub(child);
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let _ = errors.read_to_string(&mut text);
        let _ = tell.send(text);
    });
    let text = told.recv_timeout(PATIENCE).expect("it goes on, and should have failed");
    assert!(!process.0.wait().expect("ended").success(), "it succeeded: {text}");
    let errors: Vec<_> = text.lines().filter(|line| line.starts_with("stub-driver: ")).collect();
    assert_eq!(errors.len(), 1, "{text}");
    errors[0].into()
}

fn signal(stub: &Stub, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(stub.0.id() as i32), signal).expect("signalled");
}

fn ask(folder: &Folder, request: &str) -> serde_json::Value {
    let mut stream = UnixStream::connect(folder.join("control.sock")).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    writeln!(stream, "{request}").expect("asked");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("answered");
    serde_json::from_str(&line).expect(&line)
}

#[test]
fn stub_says_what_it_serves_and_makes_sockets_for_its_owner_alone() {
    let folder = Folder::new();
    let (_stub, lines) = start(serve_command(folder.path()));
    assert_eq!(lines.len(), 1);
    for part in
        ["edu.sock", "model:edu", "BAR0 0x100000 bytes", "MSI x1", "no reset method: state survives between drivers"]
    {
        assert!(lines[0].contains(part), "{part}: {}", lines[0]);
    }
    for socket in ["edu.sock", "control.sock"] {
        let file = std::fs::metadata(folder.join(socket)).expect(socket);
        assert_eq!(file.permissions().mode() & 0o777, 0o600, "{socket}");
        assert_eq!(file.uid(), nix::unistd::geteuid().as_raw(), "{socket}");
    }
}

#[test]
fn terminated_stub_ends_the_lease_removes_its_sockets_and_succeeds() {
    for how in [nix::sys::signal::Signal::SIGTERM, nix::sys::signal::Signal::SIGINT] {
        let folder = Folder::new();
        let mut stub = serve(&folder);
        let client = Client::connect(&folder.join("edu.sock"));
        signal(&stub, how);
        client.assert_closed();
        let status = stub.0.wait().expect("ended");
        assert_eq!(status.code(), Some(0), "{how}");
        assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0, "sockets are left");
    }
}

#[test]
fn killed_stub_leaves_sockets_that_the_next_replaces_and_its_client_is_told() {
    let folder = Folder::new();
    let mut stub = serve(&folder);
    let client = Client::connect(&folder.join("edu.sock"));
    stub.0.kill().expect("killed");
    stub.0.wait().expect("dead");
    client.assert_closed();
    assert!(folder.join("edu.sock").exists(), "nothing is left, so this tests nothing");
    let _next = serve(&folder);
    Client::connect(&folder.join("edu.sock")).assert_served();
}

#[test]
fn killed_client_leaves_the_device_to_the_next() {
    let folder = Folder::new();
    let _stub = serve(&folder);
    for _ in 0..5 {
        // Another process that has the lease: this test, started again.
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "child_process_holds_a_lease_until_killed", "--nocapture"])
            .env("UDRV_TEST_HOLD", folder.join("edu.sock"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut output = BufReader::new(child.stdout.take().expect("its output"));
        let mut line = String::new();
        while !line.contains("holding") {
            line.clear();
            assert!(output.read_line(&mut line).expect("output") > 0, "it ended");
        }
        child.kill().expect("killed");
        child.wait().expect("dead");
        Client::connect(&folder.join("edu.sock")).assert_served();
    }
}

/// Not a test by itself: the client that [`killed_client_leaves_the_device_to_the_next`] kills.
#[test]
fn child_process_holds_a_lease_until_killed() {
    let Some(socket) = std::env::var_os("UDRV_TEST_HOLD") else { return };
    let client = Client::connect(Path::new(&socket));
    println!("holding");
    // Ends when the stub does, at the latest.
    let _ = client.channel.wait();
}

#[test]
fn second_stub_on_the_same_sockets_is_an_error_and_the_first_goes_on() {
    let folder = Folder::new();
    let _first = serve(&folder);
    let error = fails(serve_command(folder.path()));
    assert!(error.contains("another stub serves") && error.contains("edu.sock"), "{error}");
    Client::connect(&folder.join("edu.sock")).assert_served();
}

#[test]
fn file_in_the_way_is_an_error_and_stays() {
    let folder = Folder::new();
    std::fs::write(folder.join("edu.sock"), "precious").expect("written");
    let error = fails(serve_command(folder.path()));
    assert!(error.contains("edu.sock exists and is no socket"), "{error}");
    assert_eq!(std::fs::read(folder.join("edu.sock")).expect("still there"), b"precious");
}

#[test]
fn link_in_the_way_is_an_error_and_stays() {
    let folder = Folder::new();
    std::os::unix::fs::symlink("/nowhere", folder.join("edu.sock")).expect("linked");
    let error = fails(serve_command(folder.path()));
    assert!(error.contains("edu.sock exists and is no socket"), "{error}");
}

#[test]
fn control_socket_in_use_is_an_error_and_nothing_is_left() {
    let folder = Folder::new();
    let _other = UnixListener::bind(folder.join("control.sock")).expect("listening");
    let error = fails(serve_command(folder.path()));
    assert!(error.contains("another stub serves") && error.contains("control.sock"), "{error}");
    assert!(!folder.join("edu.sock").exists(), "a socket is left");
}

#[test]
fn socket_path_too_long_is_an_error() {
    let folder = Folder::new();
    let long = folder.join(&"x".repeat(100));
    let error = fails(serve_command(&long));
    assert!(error.contains("107") && error.contains("--socket-dir"), "{error}");
}

#[test]
fn missing_folder_is_made_and_a_missing_parent_is_an_error() {
    let folder = Folder::new();
    let (_stub, _) = start(serve_command(&folder.join("new")));
    assert_eq!(std::fs::metadata(folder.join("new")).expect("made").permissions().mode() & 0o777, 0o755);
    let error = fails(serve_command(&folder.join("no/such")));
    assert!(error.contains("no/such") && error.contains("--socket-dir"), "{error}");
}

#[test]
fn unknown_owner_is_an_error() {
    let folder = Folder::new();
    let mut command = serve_command(folder.path());
    command.args(["--owner", "nobody-by-this-name"]);
    let error = fails(command);
    assert!(error.contains("no user `nobody-by-this-name`"), "{error}");
    assert!(!folder.join("edu.sock").exists());
}

#[test]
fn device_that_is_none_is_an_error_that_says_what_would_be() {
    for (device, expected) in [("pci:0000:03:00", "0000:03:00"), ("model:mouse", "model:edu"), ("edu", "model:edu")] {
        let output = command(&["serve", device]).output().expect("ran");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(expected), "{device}: {text}");
    }
}

#[test]
fn device_named_twice_is_an_error() {
    let folder = Folder::new();
    let mut command = serve_command(folder.path());
    command.arg("model:edu");
    let error = fails(command);
    assert!(error.contains("model:edu is to be served twice"), "{error}");
}

#[test]
fn configuration_file_is_served() {
    let folder = Folder::new();
    let text = format!("socket_dir = {:?}\n[[device]]\naddress = \"model:edu\"\nmmap = true\n", folder.path());
    std::fs::write(folder.join("stub.toml"), text).expect("written");
    let mut serve = command(&["serve", "--config"]);
    serve.arg(folder.join("stub.toml"));
    let (_stub, _) = start(serve);
    Client::connect(&folder.join("edu.sock")).assert_served();
    assert_eq!(ask(&folder, r#"{"request":"status"}"#)["ok"]["devices"][0]["mmap"], true);
}

#[test]
fn configuration_file_with_an_unknown_key_is_an_error_with_its_line() {
    let folder = Folder::new();
    std::fs::write(folder.join("stub.toml"), "\n\nsocket_folder = 1\n").expect("written");
    let mut serve = command(&["serve", "--config"]);
    serve.arg(folder.join("stub.toml"));
    let error = fails(serve);
    assert!(error.contains("stub.toml:3") && error.contains("socket_folder"), "{error}");
}

#[test]
fn service_manager_is_told_when_sockets_are_there() {
    let folder = Folder::new();
    let manager = UnixDatagram::bind(folder.join("notify")).expect("bound");
    manager.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    let mut command = serve_command(folder.path());
    command.env("NOTIFY_SOCKET", folder.join("notify"));
    let (_stub, _) = start(command);
    let mut message = [0; 64];
    let length = manager.recv(&mut message).expect("told");
    assert_eq!(&message[..length], b"READY=1");
}

#[test]
fn status_shows_the_lease_and_what_it_did() {
    let folder = Folder::new();
    let _stub = serve(&folder);
    let mut client = Client::connect(&folder.join("edu.sock"));
    client.assert_served();
    let output = command(&["status", "--json", "--socket-dir"]).arg(folder.path()).output().expect("ran");
    assert!(output.status.success(), "{output:?}");
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let device = &status["devices"][0];
    assert_eq!((&device["name"], &device["address"]), (&"edu".into(), &"model:edu".into()));
    assert_eq!(device["lease"]["pid"], std::process::id());
    assert_eq!(device["lease"]["messages"], 1);
    let plain = command(&["status", "--socket-dir"]).arg(folder.path()).output().expect("ran");
    let plain = String::from_utf8(plain.stdout).expect("text");
    assert!(plain.contains(&format!("process {}", std::process::id())), "{plain}");
}

#[test]
fn status_without_a_stub_is_an_error_that_says_how_to_start_one() {
    let folder = Folder::new();
    let mut status = command(&["status", "--socket-dir"]);
    status.arg(folder.path());
    let error = fails(status);
    assert!(error.contains("no stub runs at") && error.contains("stub-driver serve"), "{error}");
}

#[test]
fn peek_reads_a_register_while_the_client_stands_still() {
    let folder = Folder::new();
    let _stub = serve(&folder);
    let _client = Client::connect(&folder.join("edu.sock"));
    let peek = r#"{"request":"peek","device":"edu","region":0,"offset":0,"width":32}"#;
    assert_eq!(ask(&folder, peek)["ok"], 0x0100_00ed);
    let beyond = r#"{"request":"peek","device":"edu","region":0,"offset":1048576,"width":32}"#;
    assert!(ask(&folder, beyond)["error"].as_str().expect("an error").contains("BAR0"));
    let odd = r#"{"request":"peek","device":"edu","region":0,"offset":0,"width":24}"#;
    assert!(ask(&folder, odd)["error"].as_str().expect("an error").contains("24"));
}

#[test]
fn revoke_ends_the_lease_and_the_next_client_is_served() {
    let folder = Folder::new();
    let _stub = serve(&folder);
    let revoke = r#"{"request":"revoke","device":"edu"}"#;
    assert_eq!(ask(&folder, revoke)["ok"], false, "there was no lease");
    let client = Client::connect(&folder.join("edu.sock"));
    assert_eq!(ask(&folder, revoke)["ok"], true);
    client.assert_closed();
    Client::connect(&folder.join("edu.sock")).assert_served();
}

#[test]
fn nonsense_on_the_control_socket_is_answered_or_dropped_and_the_stub_goes_on() {
    let folder = Folder::new();
    let _stub = serve(&folder);
    for line in ["", "{}", "[1]", r#"{"request":"shutdown"}"#, r#"{"request":"revoke"}"#, "\u{0}\u{1}"] {
        assert!(ask(&folder, line)["error"].is_string(), "{line:?}");
    }
    assert!(
        ask(&folder, r#"{"request":"revoke","device":"nvme"}"#)["error"].as_str().expect("an error").contains("edu")
    );
    let mut endless = UnixStream::connect(folder.join("control.sock")).expect("connected");
    // Well before a line's own deadline.
    endless.set_read_timeout(Some(Duration::from_secs(3))).expect("a deadline");
    let _ = endless.write_all(&[b'x'; 10_000]);
    let end = endless.read(&mut [0]);
    assert!(matches!(&end, Ok(0)) || end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    assert!(ask(&folder, r#"{"request":"list"}"#)["ok"].is_object());
}

/// A user with no rights, by convention.
const NOBODY: u32 = 65534;

#[test]
fn other_user_is_refused_even_where_the_file_lets_them_in() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let folder = Folder::new();
    let _stub = serve(&folder);
    let socket = folder.join("edu.sock");
    for path in [folder.path(), &socket, &folder.join("control.sock")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).expect("opened wide");
    }
    for name in ["edu.sock", "control.sock"] {
        let (status, text) = connect_as_nobody(&folder.join(name));
        assert!(status && text.contains("seen: closed"), "{name}: {text}");
    }
    Client::connect(&socket).assert_served();
}

#[test]
fn owner_is_served_though_the_stub_is_of_another_user() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can serve another user");
        return;
    }
    let folder = Folder::new();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("opened");
    let mut command = serve_command(folder.path());
    command.args(["--owner", &NOBODY.to_string()]);
    let (_stub, _) = start(command);
    let file = std::fs::metadata(folder.join("edu.sock")).expect("the socket");
    assert_eq!((file.uid(), file.permissions().mode() & 0o777), (NOBODY, 0o600));
    let (status, text) = connect_as_nobody(&folder.join("edu.sock"));
    assert!(status && text.contains("seen: served"), "{text}");
}

/// What another user sees at a socket: this test, started again as that user.
fn connect_as_nobody(socket: &Path) -> (bool, String) {
    use std::os::unix::process::CommandExt as _;
    // A copy, for that user may not enter the folder of this one.
    let folder = Folder::new();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("opened");
    let program = folder.join("client");
    std::fs::copy(std::env::current_exe().expect("this test"), &program).expect("copied");
    let mut child = Command::new(&program);
    child.args(["--exact", "child_process_says_what_it_sees", "--nocapture"]).env("UDRV_TEST_SEE", socket);
    child.current_dir("/").uid(NOBODY).gid(NOBODY);
    let patience = udrv_backend::clock::Deadline::after(std::time::Duration::from_secs(10));
    let output = loop {
        match child.output() {
            // A child of another test, between its fork and its exec, has the copy open for writing, as this process had.
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy && patience.remaining().is_some() => {
                std::thread::yield_now();
            }
            outcome => break outcome.expect("ran"),
        }
    };
    (
        output.status.success(),
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
    )
}

/// Not a test by itself: the other user of the tests above.
#[test]
fn child_process_says_what_it_sees() {
    let Some(socket) = std::env::var_os("UDRV_TEST_SEE") else { return };
    let client = Client::over(UnixStream::connect(&socket).expect("connected"));
    let hello = udrv_wire::Header::command(0, udrv_wire::Command::VERSION, 4);
    // The server may have closed the connection before or after this.
    let sent = client.channel.send(&hello, &[0; 4], &[]);
    match sent.and_then(|()| client.channel.receive()) {
        Ok(message) if message.header.error.is_none() => println!("seen: served"),
        Ok(message) => println!("seen: refused with {:?}", message.header.error),
        Err(udrv_channel::ChannelError::Closed) => println!("seen: closed"),
        Err(error) => println!("seen: {error}"),
    }
}

#[test]
fn misused_command_is_one_line_with_its_usage() {
    for (arguments, said) in [
        (&["bind"][..], "<BDF>. Usage: stub-driver bind"),
        (&["release", "--bogus"], "'--bogus' found. Usage: stub-driver release"),
        (&["frobnicate"], "'frobnicate'. Usage: stub-driver"),
        (&["bind", "03:00"], "expected a PCI address such as"),
    ] {
        let output = command(arguments).output().expect("run");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
}
