//! `udrv irqs`, `regs`, `dma`, `accesses`, `poke`, `raise` on a driver that runs in another process, served by a stub.

mod driven;

use driven::{Driven, until};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use stub_driver::serve::{DeviceServer, Export};
use udrv_backend::{Backend as _, RegionIndex, Width};

#[test]
fn irqs_of_another_process_are_counted_while_it_runs() {
    let driven = Driven::start();
    let before = driven.delivered();
    until("more interrupts", || driven.delivered() > before);

    let text = driven.ask(&["irqs", &driven.address]);
    assert!(text.contains(&format!("MSI vector 0 of {} (thread; enabled", driven.address)), "{text}");
    let source = &driven.ask_json(&["irqs", &driven.address])["sources"][0];
    // The account is read while it changes: one delivery may be counted on one side only.
    let [raised, delivered, merged, pending] =
        ["raised", "delivered", "merged", "pending"].map(|name| source[name].as_u64().expect("a number"));
    assert!(raised.abs_diff(delivered + merged + pending) <= 2, "{source}");
}

#[test]
fn irqs_watched_show_signals_a_second_until_the_driver_ends() {
    let mut driven = Driven::start();
    let watch = |more: &[&str]| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_udrv"));
        child.args(["irqs", &driven.address, "--watch"]).args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
        child.spawn().expect("udrv starts")
    };
    let (mut text, mut json) = (watch(&[]), watch(&["--json"]));
    let lines =
        |child: &mut Child| BufReader::new(child.stdout.take().expect("its output")).lines().map_while(Result::ok);

    let looks: Vec<serde_json::Value> =
        lines(&mut json).take(2).map(|line| serde_json::from_str(&line).expect("an object a line")).collect();
    let raised = |look: &serde_json::Value| look["sources"][0]["raised"].as_u64().expect("a number");
    assert!(raised(&looks[0]) < raised(&looks[1]), "{looks:?}");
    json.kill().expect("killed");
    json.wait().expect("ended");

    let mut shown = lines(&mut text);
    let tables: Vec<_> = shown.by_ref().skip_while(|line| !line.contains("a second")).take(2).collect();
    let columns: Vec<_> = tables[1].split_whitespace().collect();
    let rate: u64 = columns[7].parse().expect("a number, behind five counts and two times");
    assert!(rate > 0, "{tables:?}");
    driven.child.kill().expect("killed");
    driven.child.wait().expect("ended");
    shown.for_each(drop);
    let ended = text.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(
        (ended.status.code(), said.as_str()),
        (Some(1), &*format!("udrv: process {} has ended\n", driven.child.id()))
    );
}

#[test]
fn device_is_found_by_its_address_and_an_unknown_one_is_refused() {
    let driven = Driven::start();
    let output = Command::new(env!("CARGO_BIN_EXE_udrv")).args(["irqs", &driven.address]).output().expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = Command::new(env!("CARGO_BIN_EXE_udrv")).args(["irqs", "pci:0000:77:00.0"]).output().expect("starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.lines().count() == 1, "{said}");
    assert!(said.contains("no process that you may look at drives pci:0000:77:00.0"), "{said}");
}

#[test]
fn accesses_are_the_drivers_last_ones_by_name() {
    let driven = Driven::start();
    until("a raise among the last 100 accesses", || {
        driven.ask(&["accesses", "100"]).contains("write BAR0 interrupt raise          0x00000010")
    });
    let all = driven.ask_json(&["accesses", "50"]);
    let numbers: Vec<_> = all["accesses"].as_array().expect("a list").iter().map(|it| it["number"].as_u64()).collect();
    assert_eq!(numbers.len(), 50);
    assert!(numbers.is_sorted(), "{numbers:?}");
}

#[test]
fn dma_shows_the_mappings_and_their_owner() {
    let driven = Driven::start();
    let buffers = driven.ask_json(&["dma"]);
    let told: Vec<_> = buffers["buffers"].as_array().expect("a list").iter().collect();
    assert_eq!(told.len(), 2, "{buffers}");
    for (buffer, (reads, writes)) in told.iter().zip([(true, false), (false, true)]) {
        assert_eq!(buffer["length_bytes"], 4095);
        assert_eq!(buffer["size_bytes"], 4096);
        assert_eq!((&buffer["device_reads"], &buffer["device_writes"]), (&reads.into(), &writes.into()));
        assert_eq!(buffer["owner"], "driver");
    }
}

#[test]
fn ambiguous_name_is_refused_with_those_that_are_meant() {
    let driven = Driven::start();
    let output = Command::new(env!("CARGO_BIN_EXE_udrv")).args(["regs", &driven.address, "interrupt"]).output();
    let output = output.expect("udrv starts");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "udrv: edu has several registers like `interrupt`: interrupt status (0x24), interrupt raise (0x60), \
         interrupt acknowledge (0x64); give more of the name, or the offset\n"
    );
    assert!(driven.ask(&["regs", &driven.address, "interrupt r"]).starts_with("interrupt raise "));
}

#[test]
fn registers_whose_reading_changes_the_device_are_read_only_when_forced() {
    let device = Arc::new(udrv_uart16550::model::uart16550());
    let driven = Driven::of(device.clone(), &["uart16550"], |line| line.starts_with("/dev/"));
    let all = driven.ask(&["regs", &driven.address]);
    let line = |name: &str| {
        let found = all.lines().find(|line| line.starts_with(&format!("{name} ")));
        found.unwrap_or_else(|| panic!("no {name}: {all}")).to_owned()
    };
    for name in ["RBR", "IIR", "LSR", "MSR"] {
        assert!(line(name).ends_with("not read: that would change the device (--force)"), "{all}");
    }
    assert!(line("THR").ends_with("write only") && line("FCR").ends_with("write only"), "{all}");
    assert!(line("LCR").ends_with("0x03  WORD_LENGTH_0 | WORD_LENGTH_1"), "{all}");

    let forced = driven.ask(&["regs", &driven.address, "LSR", "--force"]);
    assert!(forced.contains("0x60  TRANSMITTER_HOLDING_EMPTY | TRANSMITTER_EMPTY"), "{forced}");
    let accesses = driven.ask(&["accesses", &driven.address, "1000"]);
    assert!(accesses.contains("write BAR0 FCR "), "{accesses}");
    assert!(!accesses.contains("write BAR0 IIR "), "{accesses}");
}

#[test]
fn process_that_stands_still_is_looked_at_all_the_same() {
    let driven = Driven::start();
    let process = nix::unistd::Pid::from_raw(driven.child.id() as i32);
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGSTOP).expect("stopped");
    nix::sys::wait::waitpid(process, Some(nix::sys::wait::WaitPidFlag::WUNTRACED)).expect("it stands");
    let before = driven.delivered();
    assert_eq!(driven.delivered(), before, "it stands");
    driven.model.read(RegionIndex::BAR0, 0, Width::Bits32).expect("read");
    // The eventfd counts what nobody takes; the driver's own wait for one of its own is not disturbed by it.
    let eventfd = driven.ask_json(&["irqs"])["sources"][0]["eventfd"].as_u64().expect("a descriptor");
    let count = || {
        let info = std::fs::read_to_string(format!("/proc/{process}/fdinfo/{eventfd}")).expect("there");
        let line = info.lines().find_map(|line| line.strip_prefix("eventfd-count:").map(str::to_owned));
        u64::from_str_radix(line.expect("a count").trim(), 16).expect("hexadecimal")
    };
    let counted = count();
    driven.ask(&["raise", "0"]);
    assert_eq!(count(), counted + 1);
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGCONT).expect("goes on");
    until("the interrupt that was raised", || driven.delivered() > before);
}

#[test]
fn killed_driver_leaves_a_bundle_with_its_last_access() {
    let mut driven = Driven::start();
    driven.child.kill().expect("killed");
    driven.child.wait().expect("ended");
    let folder = driven.folder.join("bundles");
    let bundle = || Some(std::fs::read_dir(&folder).ok()?.next()?.ok()?.path());
    // Written in one go behind its creation.
    until("a bundle", || bundle().is_some_and(|path| std::fs::read_to_string(path).is_ok_and(|it| it.ends_with('}'))));
    let path = bundle().expect("it is there");
    let said = Command::new(env!("CARGO_BIN_EXE_udrv")).arg("inspect").arg(path).output().expect("udrv starts");
    let said = String::from_utf8(said.stdout).expect("text");
    let pid = driven.child.id();
    assert!(
        said.starts_with(&format!("model:edu: its driver ended without letting go of it: process {pid} of ")),
        "{said}"
    );
    assert!(said.contains("\nidentification             0x0000  0x010000ed\n"), "{said}");
    assert!(said.contains(&format!("MSI vector 0 of {} (thread; enabled", driven.address)), "{said}");
    assert!(said.contains("BAR0 interrupt "), "{said}");
}

/// A driver that panics.
struct Panics;

impl udrv::host::Driver for Panics {
    type Config = ();

    fn probe(_context: &udrv::host::Context, (): ()) -> udrv::Result<Self> {
        Ok(Self)
    }

    fn run(&mut self, _context: &udrv::host::Context) -> udrv::Result<()> {
        panic!("the ring has no end")
    }
}

/// Not a test by itself: the process of a driver that panics.
#[test]
fn child_process_is_a_driver_that_panics() {
    let Some(address) = std::env::var_os("UDRV_TEST_PANICS") else { return };
    let device = udrv::open(address.to_str().expect("UTF-8")).expect("connected");
    let mut host = udrv::host::Host::new();
    host.start::<Panics>(device, udrv::irq::Delivery::Thread, ()).expect("started");
    let reports = host.join();
    assert!(matches!(&reports[0].ended, udrv::host::Ended::Panicked(_)), "{reports:?}");
}

#[test]
fn driver_that_panicked_leaves_a_bundle_that_says_where() {
    let folder = std::env::temp_dir().join(format!("udrv-panics-{}", std::process::id()));
    std::fs::create_dir(&folder).expect("a folder");
    let export = Export::shared("edu", Arc::new(udrv_edu::model::edu()));
    let server = DeviceServer::start(export, &folder.join("edu.sock")).expect("served");
    let child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child_process_is_a_driver_that_panics"])
        .env("UDRV_TEST_PANICS", format!("unix:{}", server.path().display()))
        .output()
        .expect("started");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    drop(server);
    let bundle = std::fs::read_dir(folder.join("bundles")).expect("bundles").flatten().next().expect("one").path();
    let said = Command::new(env!("CARGO_BIN_EXE_udrv")).arg("inspect").arg(bundle).output().expect("udrv starts");
    std::fs::remove_dir_all(&folder).expect("removed");
    let said = String::from_utf8(said.stdout).expect("text");
    assert!(said.starts_with("model:edu: its driver panicked: process "), "{said}");
    assert!(said.contains("panicked at udrv/cli/tests/outside.rs:"), "{said}");
    assert!(said.contains("the ring has no end"), "{said}");
    assert!(said.contains("outside::Panics as udrv::host::Driver>::run"), "the backtrace: {said}");
}

#[test]
fn driver_that_ends_in_order_leaves_no_bundle() {
    let driven = Driven::start();
    let process = nix::unistd::Pid::from_raw(driven.child.id() as i32);
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGINT).expect("told to end");
    nix::sys::wait::waitpid(process, None).expect("ended");
    // A second driver gets the device once the first's lease has ended, bundle and all.
    let info = Command::new(env!("CARGO_BIN_EXE_udrv")).args(["info", &driven.address]).output().expect("udrv starts");
    assert!(info.status.success(), "{}", String::from_utf8_lossy(&info.stderr));
    assert!(!driven.folder.join("bundles").exists());
}

#[test]
fn driver_whose_device_was_taken_from_it_leaves_no_bundle() {
    let mut driven = Driven::start();
    drop(driven.server.take());
    assert!(!driven.folder.join("bundles").exists());
}

#[test]
fn clock_of_a_process_that_stands_without_a_debuggers_helpers_stands_still() {
    let driven = Driven::start();
    let process = nix::unistd::Pid::from_raw(driven.child.id() as i32);
    let page = udrv_inspect::find(driven.child.id()).expect("a page");
    assert_eq!(page.look().expect("a page").held_ns, 0);
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGSTOP).expect("stopped");
    nix::sys::wait::waitpid(process, Some(nix::sys::wait::WaitPidFlag::WUNTRACED)).expect("it stands");
    let stood = udrv_backend::clock::now();
    until("half a second", || page.look().is_some_and(|it| it.held_ns >= 500_000_000));
    assert!(stood.elapsed() >= Duration::from_millis(400), "the clock was set back by more than it stood");
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGCONT).expect("goes on");
}
