//! The end of a lease: what is done, in which order, whatever way it came.

mod support;

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use stub_driver::serve::{DeviceServer, Export, Opened};
use support::{Client, Folder, PATIENCE, Recorder, memfd};
use udrv_backend::AnyBackend;
use udrv_wire::{Command, DmaFlags, DmaMap, Request};

/// A step that is taken when this is dropped.
struct OnDrop(&'static str, mpsc::Sender<Vec<String>>, Arc<Recorder>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let mut log = self.2.taken_log();
        log.push(self.0.into());
        let _ = self.1.send(log);
    }
}

/// A backend that tells when it is dropped.
struct Opening {
    recorder: Arc<Recorder>,
    _closed: OnDrop,
}

macro_rules! forward {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        impl udrv_backend::Backend for Opening {
            $(fn $name(&self $(, $arg: $type)*) -> $result { self.recorder.$name($($arg),*) })*
        }
    };
}
use udrv_backend::{DeviceInfo, Dma, IrqIndex, IrqInfo, RegionIndex, RegionInfo, Reset, Result, Trigger, Width};
forward! {
    info() -> &DeviceInfo;
    region(region: RegionIndex) -> Result<RegionInfo>;
    irq(index: IrqIndex) -> Result<IrqInfo>;
    read(region: RegionIndex, offset: u64, width: Width) -> Result<u64>;
    write(region: RegionIndex, offset: u64, width: Width, value: u64) -> Result<()>;
    set_triggers(index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()>;
    disable_irq(index: IrqIndex) -> Result<()>;
    mask_irq(index: IrqIndex, vector: u32) -> Result<()>;
    unmask_irq(index: IrqIndex, vector: u32) -> Result<()>;
    fire_irq(index: IrqIndex, vector: u32) -> Result<()>;
    dma() -> Option<&dyn Dma>;
    resettable() -> Option<&dyn Reset>;
}

struct Served {
    server: Option<DeviceServer>,
    recorder: Arc<Recorder>,
    steps: mpsc::Receiver<Vec<String>>,
    folder: Folder,
}

/// A device that is opened and taken for each lease.
fn serve() -> Served {
    let folder = Folder::new();
    let recorder = Arc::new(Recorder::default());
    let (tell, steps) = mpsc::channel();
    let (device, tell) = (Arc::clone(&recorder), Mutex::new(tell));
    let export = Export::opened_by("recorder", "test:recorder", move || {
        let tell = tell.lock().expect("unpoisoned").clone();
        let on_drop = |step| OnDrop(step, tell.clone(), Arc::clone(&device));
        let backend: AnyBackend = Arc::new(Opening { recorder: Arc::clone(&device), _closed: on_drop("closed") });
        Ok(Opened { device: backend, held: Some(Box::new(on_drop("given back"))) })
    });
    let server = DeviceServer::start(export, &folder.join("it.sock")).expect("served");
    Served { server: Some(server), recorder, steps, folder }
}

impl Served {
    /// A client that has mapped memory.
    fn client(&self) -> Client {
        let mut client = Client::connect(&self.folder.join("it.sock"));
        let file = memfd(4096);
        let map = DmaMap { flags: DmaFlags::READ | DmaFlags::WRITE, offset: 0, iova: 0x7000, size: 4096 };
        client.request(&Request::DmaMap(map), &[file.as_fd()]).expect("mapped");
        self.recorder.taken_log();
        client
    }

    /// Everything that was done until the device was given back.
    fn end_of_lease(&self) -> Vec<String> {
        let closed = self.steps.recv_timeout(PATIENCE).expect("closed");
        let given_back = self.steps.recv_timeout(PATIENCE).expect("given back");
        [closed, given_back].concat()
    }
}

/// Interrupts, bus mastering, reset, DMA, close, give back: the order of the threat model.
const ORDER: [&str; 10] = [
    "disable INTx",
    "disable MSI-X",
    "disable ERR",
    "disable REQ",
    "read config 0x4 2",
    "write config 0x4 2 0x2",
    "reset",
    "unmap 0x7000 0x1000",
    "closed",
    "given back",
];

#[test]
fn lease_ended_by_disconnect_ends_in_order() {
    let served = serve();
    drop(served.client());
    assert_eq!(served.end_of_lease(), ORDER);
}

#[test]
fn lease_ended_by_protocol_error_ends_in_order() {
    use std::io::Write as _;
    let served = serve();
    let client = served.client();
    client.channel.stream().write_all(&[0xff; 16]).expect("sent");
    assert_eq!(served.end_of_lease(), ORDER);
}

#[test]
fn lease_ended_by_half_a_message_and_disconnect_ends_in_order() {
    use std::io::Write as _;
    let served = serve();
    let client = served.client();
    client.channel.stream().write_all(&[0; 5]).expect("sent");
    drop(client);
    assert_eq!(served.end_of_lease(), ORDER);
}

#[test]
fn lease_ended_by_the_server_ends_in_order_before_the_server_is_gone() {
    let mut served = serve();
    let client = served.client();
    served.server.take();
    assert_eq!(served.steps.try_iter().flatten().collect::<Vec<_>>(), ORDER);
    client.assert_closed();
    assert!(!served.folder.join("it.sock").exists(), "the socket is left");
}

#[test]
fn lease_whose_every_step_fails_still_takes_every_step() {
    let served = serve();
    let client = served.client();
    let all = ["disable", "read config", "write config", "reset", "unmap"];
    served.recorder.failing.lock().expect("unpoisoned").extend(all);
    drop(client);
    let steps = served.end_of_lease();
    // What cannot be read is not written.
    let expected: Vec<_> = ORDER.into_iter().filter(|step| !step.starts_with("write config")).collect();
    assert_eq!(steps, expected);
}

#[test]
fn lease_whose_reset_panics_still_takes_the_steps_after_it() {
    let served = serve();
    let client = served.client();
    *served.recorder.panicking.lock().expect("unpoisoned") = Some("reset");
    drop(client);
    assert_eq!(served.end_of_lease(), ORDER);
}

#[test]
fn device_that_cannot_describe_itself_is_closed_before_it_is_given_back() {
    let served = serve();
    served.recorder.failing.lock().expect("unpoisoned").push("region");
    let mut client = Client::over(UnixStream::connect(served.folder.join("it.sock")).expect("connected"));
    client.hello().expect_err("no lease");
    assert_eq!(served.end_of_lease(), ["closed", "given back"]);
}

#[test]
fn next_client_waits_for_the_lease_before_it_to_end() {
    let served = serve();
    for _ in 0..50 {
        drop(served.client());
        // No pause between: the lease before is being ended, or not even known to have ended.
        served.client().assert_served();
    }
}

#[test]
fn peer_that_only_connected_has_opened_nothing() {
    let served = serve();
    drop(UnixStream::connect(served.folder.join("it.sock")).expect("connected"));
    served.client().assert_served();
    let first = served.end_of_lease();
    assert_eq!(first.last().map(String::as_str), Some("given back"), "the client's own lease is the first: {first:?}");
    assert!(served.steps.recv_timeout(Duration::from_millis(100)).is_err(), "there was another lease");
}

#[test]
fn reset_by_the_client_reaches_the_device() {
    let served = serve();
    let mut client = served.client();
    client.call(Command::DEVICE_RESET, &[], &[]).expect("reset");
    assert_eq!(served.recorder.taken_log(), ["reset"]);
}

#[test]
fn reset_that_takes_long_delays_no_other_device() {
    let (slow, other) = (serve(), serve());
    let resetting = slow.recorder.resetting.lock().expect("unpoisoned");
    let mut client = slow.client();
    client.send(Command::DEVICE_RESET, &[], &[]);
    other.client().assert_served();
    drop(resetting);
    client.reply().expect("reset");
}

#[test]
fn client_that_comes_while_the_lease_before_is_ended_slowly_is_served_after_it() {
    let served = serve();
    let resetting = served.recorder.resetting.lock().expect("unpoisoned");
    drop(served.client());
    let mut next = Client::over(UnixStream::connect(served.folder.join("it.sock")).expect("connected"));
    std::thread::scope(|scope| {
        let answer = scope.spawn(move || next.hello().map(|_| next));
        // It cannot have been answered: its device is being reset.
        assert!(served.steps.recv_timeout(Duration::from_millis(200)).is_err(), "the lease ended without its reset");
        assert!(!answer.is_finished(), "there are two leases");
        drop(resetting);
        answer.join().expect("no panic").expect("a lease").assert_served();
    });
    assert_eq!(served.end_of_lease(), ORDER);
}

#[test]
fn client_that_waits_for_a_lease_while_the_server_ends_gets_none() {
    let mut served = serve();
    let resetting = served.recorder.resetting.lock().expect("unpoisoned");
    drop(served.client());
    let mut next = Client::over(UnixStream::connect(served.folder.join("it.sock")).expect("connected"));
    next.send(Command::VERSION, &[0; 4], &[]);
    assert!(served.steps.recv_timeout(Duration::from_millis(200)).is_err(), "the lease ended without its reset");
    let mut server = served.server.take().expect("running");
    server.stop();
    drop(resetting);
    drop(server);
    assert_eq!(served.steps.try_iter().flatten().collect::<Vec<_>>(), ORDER, "one lease, and no other");
}

#[test]
fn peek_reads_through_the_lease_and_only_during_one() {
    let served = serve();
    let server = served.server.as_ref().expect("running");
    let peek = || server.peek(RegionIndex::CONFIG, 4, Width::Bits16);
    assert!(matches!(peek(), Err(udrv_backend::Error::Unavailable { .. })), "without a lease");
    let client = served.client();
    assert_eq!(peek().expect("read"), 6);
    drop(client);
    served.end_of_lease();
    assert!(matches!(peek(), Err(udrv_backend::Error::Unavailable { .. })), "after the lease");
}
