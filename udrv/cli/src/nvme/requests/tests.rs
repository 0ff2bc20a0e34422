//! Requests on the model: several under way, in any order, also when commands do not end.

use super::Requests;
use crate::nbd::{Command, Disk as _, Ended, Job, Request};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;
use udrv::irq::{Delivery, IrqDomain};
use udrv::mmio::Window;
use udrv_backend::{AnyBackend, RegionIndex};
use udrv_model::ModelBackend;
use udrv_nvme::driver::{Controller, QueueConfig, Wait};
use udrv_nvme::model::{Backing, Faults, Hold, NvmeModel};

const TIMEOUT: Duration = Duration::from_millis(50);

struct Rig {
    // Dropped before its controller.
    requests: Requests,
    faults: Arc<Faults>,
    _controller: Controller,
}

fn rig(wait: Wait) -> Rig {
    let faults = Arc::<Faults>::default();
    let backing = Backing::memory(4 << 20, 512).expect("memory");
    let device: AnyBackend = Arc::new(ModelBackend::new("nvme", NvmeModel::new(vec![backing], Arc::clone(&faults))));
    let irqs = IrqDomain::new(Delivery::Thread).expect("a domain");
    let window = Window::open(&device, RegionIndex::BAR0).expect("registers");
    let mut controller = Controller::attach(&device, window, &irqs, 1).expect("attached");
    let namespace = controller.namespace(1).expect("namespace 1");
    let queue = controller.io_queue(QueueConfig { depth: 4, wait, timeout: TIMEOUT }).expect("a queue");
    let requests = Requests::new(queue, namespace, controller.pool().clone(), TIMEOUT);
    Rig { requests, faults, _controller: controller }
}

fn request(command: Command, cookie: u64, offset: u64, length: u32) -> Request {
    Request { command, durable: false, cookie, offset, length, payload: 0 }
}

/// Waits until so many have ended: handle, error and data of each, in the order of their end.
fn ended(requests: &mut Requests, count: usize) -> Vec<(u64, u32, Vec<u8>)> {
    let mut all = Vec::new();
    while all.len() < count {
        let take = &mut |Ended { request, error, data }: Ended| all.push((request.cookie, error, data));
        requests.wait(&|| false, take).expect("a disk");
    }
    all
}

fn write(rig: &mut Rig, offset: u64, data: Vec<u8>) {
    rig.requests.begin(Job { request: request(Command::Write, 0, offset, data.len() as u32), data });
    assert_eq!(ended(&mut rig.requests, 1)[0].1, 0);
}

#[test]
fn request_longer_than_the_queue_is_deep_moves_all_its_bytes() {
    for wait in [Wait::Interrupt, Wait::Polled] {
        let mut rig = rig(wait);
        let bytes: Vec<u8> = (0..(2u32 << 20) / 4).flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect();
        write(&mut rig, 512, bytes.clone());
        rig.requests.begin(Job { request: request(Command::Read, 9, 512, bytes.len() as u32), data: Vec::new() });
        let came = ended(&mut rig.requests, 1).remove(0);
        assert!(came == (9, 0, bytes), "{wait:?}: other bytes, or error {}", came.1);
    }
}

#[test]
fn request_that_does_not_end_keeps_no_other_waiting_and_is_tried_again() {
    for (hold, wait) in [(Hold::UntilAbort, Wait::Interrupt), (Hold::UntilReset, Wait::Polled)] {
        let mut rig = rig(wait);
        write(&mut rig, 0, [[5; 512], [6; 512]].concat());
        rig.faults.hold_next(1, hold);
        rig.requests.begin(Job { request: request(Command::Read, 1, 0, 512), data: Vec::new() });
        rig.requests.begin(Job { request: request(Command::Read, 2, 512, 512), data: Vec::new() });
        let came = ended(&mut rig.requests, 2);
        assert!(came == [(2, 0, vec![6; 512]), (1, 0, vec![5; 512])], "{wait:?}: {came:?}");
    }
}

#[test]
fn request_that_never_ends_fails_though_others_come_all_the_time() {
    let mut rig = rig(Wait::Interrupt);
    rig.faults.hold_next(1, Hold::UntilAbort);
    rig.requests.begin(Job { request: request(Command::Flush, 1, 0, 0), data: Vec::new() });
    let deadline = udrv::clock::Deadline::after(Duration::from_secs(20));
    let mut first = Vec::new();
    // Each ends at once: a timeout that began anew with each would never be over.
    while first.is_empty() && deadline.remaining().is_some() {
        rig.requests.begin(Job { request: request(Command::Read, 2, 0, 512), data: Vec::new() });
        let came = ended(&mut rig.requests, 1);
        first.extend(came.into_iter().filter(|(cookie, ..)| *cookie == 1));
    }
    assert_eq!(first, [(1, 0, Vec::new())], "aborted, and tried again");
    rig.faults.hold_next(100, Hold::UntilAbort);
    rig.requests.begin(Job { request: request(Command::Flush, 3, 0, 0), data: Vec::new() });
    while deadline.remaining().is_some() {
        let (cookie, error, _) = ended(&mut rig.requests, 1).remove(0);
        if cookie == 3 {
            assert_eq!(error, 5, "EIO after the last try");
            return;
        }
    }
    panic!("no answer");
}

#[test]
fn trim_and_zeros_that_are_to_be_durable_are_flushed_before_their_answer() {
    let mut rig = rig(Wait::Polled);
    write(&mut rig, 0, vec![7; 1024]);
    for command in [Command::Trim, Command::WriteZeroes] {
        let durable = Request { durable: true, ..request(command, 4, 0, 512) };
        rig.requests.begin(Job { request: durable, data: Vec::new() });
        let looks = Cell::new(0);
        let second_look = || looks.replace(looks.get() + 1) > 0;
        rig.requests.wait(&second_look, &mut |_| panic!("answered before it was flushed")).expect("a disk");
        // What comes after the command that it is: a flush, which the controller holds.
        rig.faults.hold_next(1, Hold::UntilAbort);
        let begin = udrv::clock::now();
        assert_eq!(ended(&mut rig.requests, 1), [(4, 0, Vec::new())]);
        assert!(begin.elapsed() >= TIMEOUT, "{command:?}: nothing was held");
    }
    rig.requests.begin(Job { request: request(Command::Read, 5, 0, 1024), data: Vec::new() });
    assert!(ended(&mut rig.requests, 1)[0].2 == [[0; 512], [7; 512]].concat());
}
