//! The driver on the model in this process: what happens when commands do not end, and when the device misbehaves. Each test
//! tells the story of one failure. What a healthy controller does is in `tests/src/nvme.rs`.

use std::sync::Arc;
use std::time::Duration;
use udrv::debug::fault::{Fault, FaultPlan, Faulty, Span};
use udrv::dma::FromDevice;
use udrv::irq::{Delivery, IrqDomain};
use udrv::mmio::Window;
use udrv_backend::{AnyBackend, Backend as _, Error, RegionIndex, Width};
use udrv_model::ModelBackend;
use udrv_nvme::command::Outcome;
use udrv_nvme::driver::{Controller, Data, IoQueue, Namespace, QueueConfig, Wait};
use udrv_nvme::model::{Backing, Faults, Hold, NvmeModel};

/// As long as a held command is waited for before it is aborted.
const TIMEOUT: Duration = Duration::from_millis(50);

struct Rig {
    // Dropped first: it deletes itself from the controller.
    queue: IoQueue,
    controller: Controller,
    namespace: Namespace,
    faults: Arc<Faults>,
    device: AnyBackend,
}

fn rig(wait: Wait) -> Rig {
    let faults = Arc::<Faults>::default();
    let backing = Backing::memory(1 << 20, 4096).expect("memory");
    let device: AnyBackend = Arc::new(ModelBackend::new("nvme", NvmeModel::new(vec![backing], Arc::clone(&faults))));
    let mut controller = attach(&device).expect("attached");
    let namespace = controller.namespace(1).expect("namespace 1");
    let queue = controller.io_queue(QueueConfig { depth: 4, wait, timeout: TIMEOUT }).expect("a queue");
    Rig { queue, controller, namespace, faults, device }
}

fn attach(device: &AnyBackend) -> udrv_backend::Result<Controller> {
    let irqs = IrqDomain::new(Delivery::Thread)?;
    Controller::attach(device, Window::open(device, RegionIndex::BAR0)?, &irqs, 2)
}

/// Submits one read of a block.
fn submit(rig: &mut Rig) -> u16 {
    let buffer = rig.controller.pool().alloc::<FromDevice>(4096).expect("a buffer");
    rig.queue.submit_read(&rig.namespace, 0, buffer, 0..4096).expect("submitted")
}

/// Waits for all; identifiers and outcomes, in the order of their end.
fn drain(queue: &mut IoQueue) -> Vec<(u16, Outcome)> {
    let mut ended = Vec::new();
    while queue.outstanding() > 0 {
        queue
            .wait(|done| {
                assert!(matches!(done.data, Data::Read(_)), "the buffer comes back");
                ended.push((done.id, done.outcome));
            })
            .expect("an answer");
    }
    ended
}

#[test]
fn command_that_does_not_end_is_aborted_and_answered() {
    for wait in [Wait::Interrupt, Wait::Polled, Wait::Hybrid(Duration::from_micros(10))] {
        let mut rig = rig(wait);
        rig.faults.hold_next(1, Hold::UntilAbort);
        let id = submit(&mut rig);
        assert_eq!(drain(&mut rig.queue), [(id, Outcome::ABORT_REQUESTED)], "{wait:?}");
        let id = submit(&mut rig);
        assert_eq!(drain(&mut rig.queue), [(id, Outcome::SUCCESS)], "{wait:?}: the next one");
        assert_eq!(rig.controller.pool().leaks(), []);
    }
}

#[test]
fn command_that_cannot_be_aborted_ends_with_a_reset_of_the_controller() {
    let mut rig = rig(Wait::Polled);
    rig.queue.write(&rig.namespace, 0, &[7; 4096]).expect("written");
    rig.faults.hold_next(2, Hold::UntilReset);
    let held = [submit(&mut rig), submit(&mut rig)];
    assert_eq!(drain(&mut rig.queue), held.map(|id| (id, Outcome::ABORTED_BY_HOST)));
    let mut came = [0; 4096];
    rig.queue.read(&rig.namespace, 0, &mut came).expect("the queue goes on");
    assert_eq!((came, rig.controller.pool().leaks().len()), ([7; 4096], 0));
}

#[test]
fn blocking_call_is_tried_again_after_its_command_was_aborted() {
    let mut rig = rig(Wait::Interrupt);
    rig.faults.hold_next(1, Hold::UntilAbort);
    rig.queue.write(&rig.namespace, 3, &[9; 4096]).expect("the second time");
    let mut came = [0; 4096];
    rig.faults.hold_next(1, Hold::UntilReset);
    rig.queue.read(&rig.namespace, 3, &mut came).expect("the second time, after a reset");
    assert_eq!(came, [9; 4096]);
}

#[test]
fn blocking_call_is_given_up_when_every_try_is_aborted() {
    let mut rig = rig(Wait::Interrupt);
    rig.faults.hold_next(100, Hold::UntilAbort);
    let error = rig.queue.flush(&rig.namespace).expect_err("never ends").to_string();
    assert!(error.contains("Command Abort Requested (SCT 0h, SC 07h) to Flush"), "{error}");
}

#[test]
fn queue_that_is_dropped_leaves_its_place_to_the_next() {
    let Rig { queue, mut controller, namespace, .. } = rig(Wait::Interrupt);
    let config = QueueConfig { depth: 4, wait: Wait::Interrupt, timeout: Duration::from_secs(20) };
    // The controller gave two; the rig's has the first.
    for _ in 0..5 {
        let mut second = controller.io_queue(config).expect("a queue");
        assert_eq!(second.id(), 2);
        let refused = controller.io_queue(config).map(drop).expect_err("a third").to_string();
        assert!(refused.contains("all 2 I/O queue pairs"), "{refused}");
        second.read(&namespace, 0, &mut [0; 4096]).expect("it works");
        let interrupted = || Ok(second.interrupts() > 0);
        udrv::clock::Deadline::after(Duration::from_secs(20)).poll("its vector's interrupt", interrupted).expect("one");
    }
    drop(queue);
    assert_eq!(controller.io_queue(config).expect("a queue").id(), 1, "the lowest that is free");
}

#[test]
fn queue_that_a_reset_took_away_leaves_its_place_too() {
    let mut rig = rig(Wait::Polled);
    let config = QueueConfig { depth: 4, wait: Wait::Polled, timeout: TIMEOUT };
    let second = rig.controller.io_queue(config).expect("a queue");
    rig.controller.reset().expect("reset");
    drop(second);
    let mut again = rig.controller.io_queue(config).expect("its place");
    again.read(&rig.namespace, 0, &mut [0; 4096]).expect("it works");
    assert_eq!(again.id(), 2);
}

#[test]
fn controller_without_shadow_doorbells_is_told_by_its_registers() {
    for wait in [Wait::Interrupt, Wait::Polled] {
        let backing = Backing::memory(1 << 20, 4096).expect("memory");
        let model = NvmeModel::new(vec![backing], Arc::default()).without_shadow_doorbells();
        let device: AnyBackend = Arc::new(ModelBackend::new("nvme", model));
        let mut controller = attach(&device).expect("attached");
        assert!(!controller.info().has_shadow_doorbells);
        let namespace = controller.namespace(1).expect("namespace 1");
        let config = QueueConfig { depth: 4, wait, timeout: Duration::from_secs(20) };
        let mut queue = controller.io_queue(config).expect("a queue");
        // Past the end of both rings several times.
        for block in 0..64 {
            queue.write(&namespace, block % 16, &[block as u8; 4096]).expect("written");
            let mut came = [0; 4096];
            queue.read(&namespace, block % 16, &mut came).expect("read");
            assert_eq!(came, [block as u8; 4096], "{wait:?}");
        }
    }
}

#[test]
fn reset_by_one_queue_is_answered_by_the_other_in_its_own_time() {
    let mut rig = rig(Wait::Polled);
    let config = QueueConfig { depth: 4, wait: Wait::Interrupt, timeout: TIMEOUT };
    let mut other = rig.controller.io_queue(config).expect("a second queue");
    rig.faults.hold_next(2, Hold::UntilReset);
    let buffer = rig.controller.pool().alloc::<FromDevice>(4096).expect("a buffer");
    let id = other.submit_read(&rig.namespace, 1, buffer, 0..4096).expect("submitted");
    other.ring().expect("rung");
    submit(&mut rig);
    drain(&mut rig.queue);
    assert_eq!(drain(&mut other), [(id, Outcome::ABORTED_BY_HOST)]);
    other.flush(&rig.namespace).expect("the other queue was made again");
}

#[test]
fn queue_dropped_with_a_command_outstanding_gets_its_buffer_back() {
    let Rig { mut queue, controller, namespace, faults, .. } = rig(Wait::Polled);
    faults.hold_next(1, Hold::UntilReset);
    let buffer = controller.pool().alloc::<FromDevice>(4096).expect("a buffer");
    queue.submit_read(&namespace, 0, buffer, 0..4096).expect("submitted");
    queue.ring().expect("rung");
    drop(queue);
    assert_eq!(controller.pool().leaks(), []);
}

#[test]
fn full_queue_refuses_another_command_and_says_what_to_do() {
    let mut rig = rig(Wait::Polled);
    for _ in 0..4 {
        submit(&mut rig);
    }
    let buffer = rig.controller.pool().alloc::<FromDevice>(4096).expect("a buffer");
    let error = rig.queue.submit_read(&rig.namespace, 0, buffer, 0..4096).expect_err("the fifth of four");
    assert!(matches!(error, Error::Unavailable { .. }) && error.to_string().contains("wait for one first"), "{error}");
    assert_eq!(drain(&mut rig.queue).len(), 4);
}

#[test]
fn transfer_that_is_no_whole_blocks_or_not_in_its_buffer_is_refused() {
    let mut rig = rig(Wait::Polled);
    for (part, length) in [(0..512, 4096), (0..4096, 512), (2..4098, 8192), (0..0, 4096), (0..1 << 20, 1 << 20)] {
        let buffer = rig.controller.pool().alloc::<FromDevice>(length).expect("a buffer");
        let refused = rig.queue.submit_read(&rig.namespace, 0, buffer, part.clone());
        assert!(matches!(refused, Err(Error::DmaRange { .. })), "{part:?} of {length}: {refused:?}");
    }
    assert_eq!(rig.queue.outstanding(), 0);
}

/// The model with something wrong between it and the driver.
fn faulty(fault: Fault) -> (Controller, Namespace, IoQueue) {
    let backing = Backing::memory(1 << 20, 4096).expect("memory");
    let model = ModelBackend::new("nvme", NvmeModel::new(vec![backing], Arc::default()));
    let device: AnyBackend = Arc::new(Faulty::new(model, FaultPlan::one(fault)).expect("a device with a fault"));
    let mut controller = attach(&device).expect("attached");
    let namespace = controller.namespace(1).expect("namespace 1");
    let config = QueueConfig { depth: 4, wait: Wait::Interrupt, timeout: TIMEOUT };
    let queue = controller.io_queue(config).expect("a queue");
    (controller, namespace, queue)
}

/// The controller never hears of the command, so that no Abort can find it.
#[test]
fn command_whose_doorbell_is_lost_is_ended_by_a_reset_and_tried_again() {
    let lost = Fault::LostWrite { region: 0, offset: 0x1008, writes: Span::new(1, 1) };
    let (_controller, namespace, mut queue) = faulty(lost);
    queue.write(&namespace, 5, &[6; 4096]).expect("the first doorbell");
    queue.write(&namespace, 5, &[8; 4096]).expect("the second one is lost; tried again");
    let mut came = [0; 4096];
    queue.read(&namespace, 5, &mut came).expect("read");
    assert_eq!(came, [8; 4096]);
}

/// Runs a future on this thread.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut future = std::pin::pin!(future);
    let deadline = udrv::clock::Deadline::after(Duration::from_secs(20));
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park_timeout(deadline.remaining().expect("woken in time"));
    }
}

#[test]
fn completion_is_awaited_by_a_task() {
    let mut rig = rig(Wait::Interrupt);
    assert_eq!(block_on(rig.queue.completed(|_| panic!("nothing is outstanding"))).ok(), Some(0));
    for _ in 0..10 {
        let id = submit(&mut rig);
        let mut ended = Vec::new();
        let count = block_on(rig.queue.completed(|done| ended.push((done.id, done.outcome)))).expect("ended");
        assert_eq!((count, ended), (1, vec![(id, Outcome::SUCCESS)]));
    }
}

/// No interrupt comes for it: the task is woken by the queue's own timer.
#[test]
fn task_is_answered_for_a_command_that_does_not_end() {
    let mut rig = rig(Wait::Interrupt);
    rig.faults.hold_next(1, Hold::UntilAbort);
    let id = submit(&mut rig);
    let mut ended = Vec::new();
    block_on(rig.queue.completed(|done| ended.push((done.id, done.outcome)))).expect("answered");
    assert_eq!(ended, [(id, Outcome::ABORT_REQUESTED)]);
}

#[test]
fn task_cannot_wait_for_a_polled_queue() {
    let mut rig = rig(Wait::Polled);
    submit(&mut rig);
    let refused = block_on(rig.queue.completed(drop));
    assert!(matches!(refused, Err(Error::NotSupported { .. })), "{refused:?}");
    assert_eq!(drain(&mut rig.queue).len(), 1);
}

/// Nothing; an event; none of its type before its log page is read; one after a reset.
#[test]
fn the_story_of_asynchronous_events() {
    let rig = rig(Wait::Polled);
    let (controller, device) = (&rig.controller, &rig.device);
    let ring = |value| device.write(RegionIndex::BAR0, 0x1000 + 4 * 2 * 9, Width::Bits32, value).expect("a doorbell");
    assert_eq!(controller.next_event().expect("asked"), None);
    ring(0);
    // Among the completions of other admin commands.
    controller.smart().expect("health");
    let event = controller.next_event().expect("asked").expect("an event");
    assert_eq!((event.kind, event.information, event.log_page), (0, 0, 1), "Write to Invalid Doorbell Register");
    ring(0);
    assert_eq!(controller.next_event().expect("asked"), None, "its log page has not been read");
    controller.error_log().expect("the log");
    assert!(controller.next_event().expect("asked").is_some());
    controller.reset().expect("reset");
    assert_eq!(controller.next_event().expect("asked"), None);
    // The queue was not made again yet.
    device.write(RegionIndex::BAR0, 0x1008, Width::Bits32, 0xffff).expect("a doorbell");
    assert_eq!(controller.next_event().expect("asked").map(|event| event.information), Some(0));
}

#[test]
fn failed_command_is_in_the_error_log() {
    let mut rig = rig(Wait::Interrupt);
    assert_eq!(rig.controller.error_log().expect("the log"), []);
    let mut block = [0; 4096];
    rig.queue.read(&rig.namespace, 0x1234_5678, &mut block).expect_err("beyond the end");
    let log = rig.controller.error_log().expect("the log");
    let [entry] = log.as_slice() else { panic!("not one entry: {log:?}") };
    assert_eq!((entry.count, entry.queue, entry.lba, entry.namespace), (1, 1, 0x1234_5678, 1));
    assert_eq!(entry.outcome, Outcome::LBA_OUT_OF_RANGE);
}

#[test]
fn device_of_another_class_is_refused_by_name() {
    struct Nothing;
    impl udrv_model::DeviceModel for Nothing {
        fn identity(&self) -> udrv_model::Identity {
            let none = udrv_model::Bar::None;
            let bars = [udrv_model::Bar::Registers(0x4000), none, none, none, none, none];
            udrv_model::Identity { class: 0x02_00_00, bars, ..Default::default() }
        }
        fn read(&mut self, _: u32, _: u64, _: udrv_backend::Width) -> u64 {
            0
        }
        fn write(&mut self, _: u32, _: u64, _: udrv_backend::Width, _: u64, _: &mut udrv_model::Bus<'_>) {}
        fn line(&self) -> bool {
            false
        }
        fn messages(&self) -> &[u64] {
            &[]
        }
        fn reset(&mut self) {}
    }
    let device: AnyBackend = Arc::new(ModelBackend::new("network", Nothing));
    let error = attach(&device).map(drop).expect_err("no NVMe controller").to_string();
    assert!(error.contains("model:network sent class code 020000: expected 010802"), "{error}");
}

/// A controller whose CSTS.RDY never follows CC.EN, with a CAP.TO of 500 ms.
#[test]
fn controller_that_does_not_become_ready_is_given_up_by_its_own_time() {
    struct Stuck;
    impl udrv_model::DeviceModel for Stuck {
        fn identity(&self) -> udrv_model::Identity {
            let none = udrv_model::Bar::None;
            let bars = [udrv_model::Bar::Registers(0x4000), none, none, none, none, none];
            udrv_model::Identity { class: 0x01_08_02, bars, ..Default::default() }
        }
        fn read(&mut self, _: u32, offset: u64, _: udrv_backend::Width) -> u64 {
            if offset == 0 { 1 << 37 | 1 << 24 | 63 } else { 0 }
        }
        fn write(&mut self, _: u32, _: u64, _: udrv_backend::Width, _: u64, _: &mut udrv_model::Bus<'_>) {}
        fn line(&self) -> bool {
            false
        }
        fn messages(&self) -> &[u64] {
            &[]
        }
        fn reset(&mut self) {}
    }
    let device: AnyBackend = Arc::new(ModelBackend::new("stuck", Stuck));
    let error = attach(&device).map(drop).expect_err("never ready").to_string();
    assert!(error.contains("CSTS.RDY going to 1") && error.contains("500ms"), "{error}");
}

#[test]
fn registers_are_known_by_name_to_who_looks_from_outside() {
    let _rig = rig(Wait::Polled);
    let page = udrv::inspect::find(std::process::id()).expect("our own page").snapshot;
    let device = page.devices.iter().find(|device| device.address == "model:nvme").expect("our device");
    let map = device.registers.as_ref().expect("its registers");
    assert_eq!(map.driver, "nvme");
    // CSTS: offset 1Ch, RDY bit 0 (NVM Express 1.4, 3.1.6).
    let status = map.find("CSTS").expect("a register");
    assert_eq!((status.offset, status.width, status.decode(1)), (0x1c, 32, "READY".into()));
    assert!(!map.find("SQ0TDBL").expect("a register").readable);
}
