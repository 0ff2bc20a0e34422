//! A client that stands, by a signal or in a real gdb: what the stub holds of it, what it says of that, and how it ends.

mod support;

use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, geteuid};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdout, Command as Program, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use stub_driver::serve::{ControlServer, DeviceServer, Export};
use support::{Client, Folder, PATIENCE, Recorder, words};
use udrv_backend::clock::{Deadline, now};
use udrv_backend::{AnyBackend, Backend as _, IrqIndex};
use udrv_wire::{Capabilities, Command, DeviceSetIrqs, Header, IrqAction, IrqData, Request, Version};

/// Interrupts while it stands: more than a socket has room for, one by one.
const MANY: u64 = 2000;
/// Connections that a socket of the stub has at a time, at most.
const CROWD: usize = 16;
/// Interrupts that a socket has room for.
const FEW: u64 = 50;
/// The stub's patience where a client is late on purpose.
const SHORT: Duration = Duration::from_millis(700);

/// A device served from here to another process: this test, started again.
struct Held {
    device: AnyBackend,
    child: Child,
    output: BufReader<ChildStdout>,
    folder: Folder,
    _control: ControlServer,
    _server: [DeviceServer; 1],
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Held {
    /// With a client that does what `child_process_is_a_client` has under this name.
    fn start(what: &str, device: AnyBackend, hold: bool) -> Self {
        let folder = Folder::new();
        let export = Export::shared("it", Arc::clone(&device)).held(hold);
        let server = [DeviceServer::start_with(export, &folder.join("it.sock"), SHORT).expect("served")];
        let control = ControlServer::start(folder.path(), geteuid(), &server).expect("served");
        let mut child = Program::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "child_process_is_a_client", "--nocapture"])
            .env("UDRV_TEST_SOCKET", folder.join("it.sock"))
            .env("UDRV_TEST_CLIENT", what)
            .stdout(Stdio::piped())
            // Not ours: a group with a member that stands is sent SIGHUP when its leader's parent ends.
            .process_group(0)
            .spawn()
            .expect("started");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        Self { device, child, output, folder, _control: control, _server: server }
    }

    fn edu(what: &str, hold: bool) -> Self {
        let mut held = Self::start(what, Arc::new(udrv_edu::model::edu()), hold);
        held.hears("ready");
        held
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Waits for a line that has this word, and returns the line.
    #[track_caller]
    fn hears(&mut self, word: &str) -> String {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert!(self.output.read_line(&mut line).expect("output") > 0, "it ended without `{word}`");
        }
        line
    }

    fn stop(&self) {
        kill(self.pid(), Signal::SIGSTOP).expect("stopped");
        self.is_stopped();
    }

    fn is_stopped(&self) {
        waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).expect("it stands");
    }

    fn go_on(&self) {
        kill(self.pid(), Signal::SIGCONT).expect("goes on");
    }

    /// What `status` has of the lease.
    fn lease(&self) -> serde_json::Value {
        let mut stream = UnixStream::connect(self.folder.join("control.sock")).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        writeln!(stream, "{{\"request\":\"status\"}}").expect("asked");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("answered");
        let status: serde_json::Value = serde_json::from_str(&line).expect(&line);
        status["ok"]["devices"][0]["lease"].clone()
    }

    #[track_caller]
    fn until(&self, what: &str, done: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let deadline = Deadline::after(PATIENCE);
        loop {
            let lease = self.lease();
            if done(&lease) {
                return lease;
            }
            assert!(deadline.remaining().is_some(), "{what} within {PATIENCE:?}; the lease is {lease}");
        }
    }

    fn fire(&self, times: u64) {
        for _ in 0..times {
            self.device.fire_irq(IrqIndex::MSI, 0).expect("fired");
        }
    }
}

/// Lets time pass.
fn pass(time: Duration) {
    let (_kept, never) = mpsc::channel::<()>();
    let _timeout = never.recv_timeout(time);
}

fn is_held(lease: &serde_json::Value) -> bool {
    lease["hold"].is_object()
}

fn waiting(count: u64) -> serde_json::Value {
    serde_json::json!([{ "index": 1, "vector": 0, "count": count }])
}

fn arm(client: &mut Client, index: IrqIndex, fd: std::os::fd::BorrowedFd<'_>) {
    let (action, data) = (IrqAction::Trigger, IrqData::Eventfd);
    let set = DeviceSetIrqs { action, data, index: index.0, start: 0, count: 1 };
    client.request(&Request::DeviceSetIrqs(set), &[fd]).expect("armed");
}

/// Counts interrupts that come as 8 bytes each until there are as many as are fired.
fn count(mut from: impl FnMut() -> u64, wanted: u64) {
    let (mut sum, mut messages) = (0, 0);
    while sum < wanted {
        sum += from();
        messages += 1;
    }
    println!("counted {sum} in {messages}");
}

/// Not a test by itself: the client that stands.
#[test]
fn child_process_is_a_client() {
    let Some(socket) = std::env::var_os("UDRV_TEST_SOCKET") else { return };
    let what = std::env::var("UDRV_TEST_CLIENT").expect("set");
    let stream = UnixStream::connect(&socket).expect("connected");
    let mut raw = stream.try_clone().expect("a copy");
    let mut client = Client::over(stream);
    match what.as_str() {
        "silent" => {
            println!("ready");
            raise(Signal::SIGSTOP).expect("stopped");
            client.hello().expect("a lease");
        }
        "crowd" => {
            let _others = [(); CROWD - 1].map(|()| UnixStream::connect(&socket).expect("connected"));
            println!("ready");
            raise(Signal::SIGSTOP).expect("stopped");
            client.hello().expect("a lease");
        }
        "half" => {
            client.hello().expect("a lease");
            let payload = words(&[16, 0, 0, 0]);
            let header = Header::command(1, Command::DEVICE_GET_INFO, payload.len()).encode();
            raw.write_all(&header[..9]).expect("a part");
            println!("ready");
            raise(Signal::SIGSTOP).expect("stopped");
            raw.write_all(&header[9..]).and_then(|()| raw.write_all(&payload)).expect("the rest");
            client.channel.receive().expect("a reply");
        }
        "socket" | "few" | "all" => {
            client.hello().expect("a lease");
            let (mut ours, theirs) = UnixStream::pair().expect("a socketpair");
            ours.set_read_timeout(Some(PATIENCE)).expect("a deadline");
            arm(&mut client, if what == "all" { IrqIndex::MSIX } else { IrqIndex::MSI }, theirs.as_fd());
            println!("ready");
            let read = || {
                let mut bytes = [0; 8];
                ours.read_exact(&mut bytes).expect("an interrupt");
                u64::from_ne_bytes(bytes)
            };
            count(read, if what == "few" { FEW } else { MANY });
        }
        "eventfd" => {
            client.hello().expect("a lease");
            let event = nix::sys::eventfd::EventFd::new().expect("an eventfd");
            arm(&mut client, IrqIndex::MSI, event.as_fd());
            println!("ready");
            count(|| event.read().expect("a count"), 5);
        }
        other => panic!("no client is called {other}"),
    }
    client.assert_served();
    println!("served");
}

#[test]
fn interrupts_by_signal_are_held_while_the_client_stands_and_come_as_one_when_it_goes_on() {
    let mut held = Held::edu("socket", true);
    assert!(held.lease()["hold"].is_null());
    held.stop();
    held.until("a hold", is_held);
    let stood = now();
    held.fire(MANY);
    let lease = held.lease();
    assert_eq!(lease["hold"]["waiting"], waiting(MANY), "{lease}");
    assert!(lease["hold"]["tracer_pid"].is_null(), "{lease}");
    pass(Duration::from_millis(300));
    let told = held.lease()["hold"]["held_s"].as_f64().expect("seconds");
    let least = stood.elapsed().as_secs_f64();
    assert!((0.3..least + 5.0).contains(&told), "{told} s, of at least {least}");

    held.go_on();
    assert_eq!(held.hears("counted"), format!("counted {MANY} in 1\n"));
    held.hears("served");
    held.until("no hold", |lease| !is_held(lease));
}

#[test]
fn eventfd_counts_by_itself_and_status_says_how_much() {
    let mut held = Held::edu("eventfd", true);
    held.stop();
    held.fire(5);
    let lease = held.until("a hold", is_held);
    assert_eq!(lease["hold"]["waiting"], waiting(5), "{lease}");
    // Looking took nothing away.
    assert_eq!(held.lease()["hold"]["waiting"], waiting(5));
    held.go_on();
    assert_eq!(held.hears("counted"), "counted 5 in 1\n");
    held.hears("served");
}

#[test]
fn stub_told_to_hold_nothing_writes_on() {
    let mut held = Held::edu("few", false);
    held.stop();
    held.fire(FEW);
    // A hold would have been seen by now.
    pass(Duration::from_millis(300));
    assert!(held.lease()["hold"].is_null());
    held.go_on();
    assert_eq!(held.hears("counted"), format!("counted {FEW} in {FEW}\n"));
    held.hears("served");
}

#[test]
fn client_that_stands_with_its_lease_is_not_late() {
    let mut held = Held::start("half", Arc::new(udrv_edu::model::edu()), true);
    held.hears("ready");
    held.is_stopped();
    pass(SHORT * 4);
    held.go_on();
    held.hears("served");
}

#[test]
fn client_that_stands_is_late_without_a_lease_or_where_the_stub_is_told_to_hold_nothing() {
    for (what, hold) in [("silent", true), ("silent", false), ("half", false)] {
        let mut held = Held::start(what, Arc::new(udrv_edu::model::edu()), hold);
        held.hears("ready");
        held.is_stopped();
        pass(SHORT * 4);
        held.go_on();
        assert!(!held.child.wait().expect("ended").success(), "{what}, {hold}: it was not late");
    }
}

#[test]
fn as_many_as_may_come_in_and_stand_without_a_word_keep_others_out_no_longer_than_the_patience() {
    let mut held = Held::start("crowd", Arc::new(udrv_edu::model::edu()), true);
    held.hears("ready");
    held.is_stopped();
    let version = Version { major: 0, minor: 2, capabilities: Capabilities::default() };
    let hello = Request::Version(version).encode();
    let is_served = || {
        let stream = UnixStream::connect(held.folder.join("it.sock")).expect("connected");
        let client = Client::over(stream);
        let header = Header::command(1, Command::VERSION, hello.len());
        // One that is kept out sees the end only.
        Ok(client.channel.send(&header, &hello, &[]).and_then(|()| client.channel.receive()).is_ok())
    };
    Deadline::after(PATIENCE).poll("a lease for the next", is_served).expect("served");
}

/// What the end of a lease does to the device (docs/threat-model.md), as far as it reaches a device that stays open.
const QUIET: [&str; 7] = [
    "disable INTx",
    "disable MSI-X",
    "disable ERR",
    "disable REQ",
    "read config 0x4 2",
    "write config 0x4 2 0x2",
    "reset",
];

#[track_caller]
fn is_quiet(recorder: &Recorder, log: &mut Vec<String>) {
    let done = || {
        log.extend(recorder.taken_log());
        Ok(log.iter().any(|line| line == "reset"))
    };
    Deadline::after(PATIENCE).poll("the end of the lease", done).expect("it ends");
    let from = log.iter().position(|line| line == QUIET[0]).expect("its beginning");
    assert_eq!(log[from..], QUIET);
    assert!(recorder.triggers.lock().expect("unpoisoned").iter().all(Option::is_none));
}

#[test]
fn client_killed_while_it_is_held_leaves_the_device_quiet() {
    let recorder = Arc::new(Recorder::default());
    let mut held = Held::start("all", support::erased(&recorder), true);
    held.hears("ready");
    held.stop();
    held.until("a hold", is_held);
    let mut log = recorder.taken_log();
    assert_eq!(log.last().map(String::as_str), Some("triggers MSI-X 0 +"));
    log.clear();
    held.child.kill().expect("killed");
    is_quiet(&recorder, &mut log);
    held.until("an end", serde_json::Value::is_null);
}

/// A real gdb that holds a process, until it is told to let go or is dropped.
struct Gdb(Child);

impl Drop for Gdb {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Gdb {
    /// `None` where there is no gdb, or it may not hold another process.
    fn hold(pid: Pid) -> Option<Self> {
        let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
        if !matches!(scope.trim(), "" | "0") && !geteuid().is_root() {
            eprintln!("skipped: gdb may not hold a process that it has not started (kernel.yama.ptrace_scope)");
            return None;
        }
        let gdb = Program::new("gdb")
            .args(["-q", "-nx", "-p", &pid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let found = gdb.is_ok();
        assert!(found || std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI has no gdb: apt-get install gdb");
        if !found {
            eprintln!("skipped: there is no gdb (apt-get install gdb)");
        }
        gdb.ok().map(Self)
    }

    fn let_go(mut self) {
        let commands = self.0.stdin.take().expect("its input").write_all(b"detach\nquit\n");
        commands.and_then(|()| self.0.wait()).expect("it has let go");
    }
}

#[test]
fn client_that_a_debugger_holds_is_held_and_the_debugger_is_named() {
    let mut held = Held::edu("socket", true);
    let Some(gdb) = Gdb::hold(held.pid()) else { return };
    let lease = held.until("a hold", is_held);
    assert_eq!(lease["hold"]["tracer_pid"], gdb.0.id(), "{lease}");
    held.fire(MANY);
    let lease = held.lease();
    assert_eq!(lease["hold"]["waiting"], waiting(MANY), "{lease}");
    gdb.let_go();
    assert_eq!(held.hears("counted"), format!("counted {MANY} in 1\n"));
    held.hears("served");
}

#[test]
fn client_killed_in_a_debugger_leaves_the_device_quiet() {
    let recorder = Arc::new(Recorder::default());
    let mut held = Held::start("all", support::erased(&recorder), true);
    held.hears("ready");
    let Some(_gdb) = Gdb::hold(held.pid()) else { return };
    held.until("a hold", is_held);
    let mut log = recorder.taken_log();
    log.clear();
    held.child.kill().expect("killed");
    is_quiet(&recorder, &mut log);
}
