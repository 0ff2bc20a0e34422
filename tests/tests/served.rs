//! The runtime and the stub together: a driver on a device that another part, or another process, serves.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use stub_driver::serve::{DeviceServer, Export, Recordings};
use udrv::debug::trace::Options;
use udrv::host::{Ended, Host};
use udrv::irq::Delivery;
use udrv_backend::{AnyBackend, Backend as _, Error, IrqIndex, RegionIndex, Width};
use udrv_edu::driver::{Finding, Tour, TourConfig};

/// A folder of its own for a test's sockets, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("udrv-served-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).expect("a folder");
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("edu.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn serve(folder: &Folder) -> DeviceServer {
    let export = Export::shared("edu", Arc::new(udrv_edu::model::edu()));
    DeviceServer::start(export, &folder.socket()).expect("served")
}

fn connect(path: &Path) -> AnyBackend {
    udrv::open(&format!("unix:{}", path.display())).expect("connected")
}

/// Runs the edu driver to its end; what it found.
fn tour(device: AnyBackend, delivery: Delivery, irq: IrqIndex) -> Vec<String> {
    let found = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&found);
    let tell = Box::new(move |finding: Finding| told.lock().expect("unpoisoned").push(format!("{finding:?}")));
    let mut host = Host::new();
    host.start::<Tour>(device, delivery, TourConfig { irq: Some(irq), samples: 50, tell }).expect("started");
    for udrv::host::Report { device, ended, .. } in host.join() {
        assert!(matches!(ended, Ended::Returned), "{device}, {delivery:?}, {irq}: {ended:?}");
    }
    std::mem::take(&mut *found.lock().expect("unpoisoned"))
}

#[test]
fn edu_driver_through_the_stub_runs_in_every_delivery_and_with_every_interrupt() {
    let folder = Folder::new("tour");
    let server = serve(&folder);
    for delivery in [Delivery::Thread, Delivery::Signal] {
        for irq in [IrqIndex::MSI, IrqIndex::INTX] {
            let found = tour(connect(server.path()), delivery, irq);
            for part in ["Identified", "3628800", "Dma { bytes: 4095 }", "during: false, after: true", "Latency"] {
                assert!(found.iter().any(|line| line.contains(part)), "{delivery:?}, {irq}: no {part} in {found:?}");
            }
        }
    }
}

#[test]
fn device_seen_through_the_stub_is_the_device_served() {
    let folder = Folder::new("identity");
    let server = serve(&folder);
    let (near, far) = (udrv_edu::model::edu(), connect(server.path()));
    assert_eq!((far.info().regions, far.info().irqs), (near.info().regions, near.info().irqs));
    for region in (0..near.info().regions).map(RegionIndex) {
        assert_eq!(far.region(region).expect("info"), near.region(region).expect("info"));
    }
    for index in (0..near.info().irqs).map(IrqIndex) {
        assert_eq!(far.irq(index).expect("info"), near.irq(index).expect("info"));
    }
    assert!(far.resettable().is_none(), "edu has no reset method");
}

#[test]
fn bus_mastering_is_off_when_the_next_client_comes() {
    use udrv_backend::pci::{Command as PciCommand, Config};
    let folder = Folder::new("quiet");
    let server = serve(&folder);
    let first = connect(server.path());
    Config::new(&*first).change_command(PciCommand::BUS_MASTER, PciCommand::empty()).expect("on");
    drop(first);
    let next = connect(server.path());
    assert!(!Config::new(&*next).command().expect("read").contains(PciCommand::BUS_MASTER));
}

#[test]
fn stub_killed_under_a_client_reads_as_gone_and_a_new_stub_serves() {
    let folder = Folder::new("killed");
    let mut stub = Process::start(&folder);
    let device = connect(&folder.socket());
    stub.0.kill().expect("killed");
    stub.0.wait().expect("dead");
    for _ in 0..2 {
        let end = device.read(RegionIndex::BAR0, 0, Width::Bits32);
        assert!(matches!(end, Err(Error::Gone { .. })), "{end:?}");
    }
    let _next = Process::start(&folder);
    let device = connect(&folder.socket());
    assert_eq!(device.read(RegionIndex::BAR0, 0, Width::Bits32).expect("read"), 0x0100_00ed);
}

/// The stub as a process: this test, started again.
struct Process(Child);

impl Process {
    fn start(folder: &Folder) -> Self {
        use std::io::{BufRead as _, BufReader};
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "child_process_serves_until_killed", "--nocapture"])
            .env("UDRV_TEST_SERVE", &folder.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let started = Self(child);
        let ready = output.lines().map_while(Result::ok).any(|line| line.contains("serving"));
        assert!(ready, "it ended");
        started
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test by itself: the stub that the test above kills.
#[test]
fn child_process_serves_until_killed() {
    let Some(folder) = std::env::var_os("UDRV_TEST_SERVE") else { return };
    let export = Export::shared("edu", Arc::new(udrv_edu::model::edu()));
    let _server = DeviceServer::start(export, &PathBuf::from(folder).join("edu.sock")).expect("served");
    println!("serving");
    // Until killed, or until whoever started it is gone and closes our input.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

#[test]
fn lease_that_is_recorded_replays_what_its_client_did() {
    let folder = Folder::new("recorded");
    let options = Options { dma_contents: true, ..Options::default() };
    let recordings = Recordings::new(&folder.0.join("recordings"), options).expect("a folder");
    let export = Export::shared("edu", Arc::new(udrv_edu::model::edu())).recorded(Some(recordings));
    let server = DeviceServer::start(export, &folder.socket()).expect("served");
    for _ in 0..2 {
        tour(connect(server.path()), Delivery::Thread, IrqIndex::MSI);
    }
    drop(server);
    for number in [1, 2] {
        let path = folder.0.join(format!("recordings/edu-{number}.trace"));
        let trace = udrv::debug::trace::Trace::open(&path).expect("a recording");
        assert_eq!((trace.lost, trace.device.address.as_str()), (0, "model:edu"));
        // Configuration space is answered by message too, and the stub itself makes the device quiet at the end.
        tour(udrv::open(&format!("replay:{}", path.display())).expect("a recording"), Delivery::Thread, IrqIndex::MSI);
    }
}
