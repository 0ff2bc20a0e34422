//! Replay: a recording drives a driver as the device did, and a driver that does something else is told so.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use udrv::host::{Ended, Host};
use udrv::irq::Delivery;
use udrv_backend::{AnyBackend, Backend as _, IrqIndex, RegionIndex, Result, Width};
use udrv_debug::replay::Replay;
use udrv_debug::trace::{Event, Options, Outcome, Recorder, Trace, What};
use udrv_edu::driver::{Finding, Tour, TourConfig};

const BAR0: RegionIndex = RegionIndex::BAR0;
const STATUS: u64 = 0x20;
const LIVENESS: u64 = 0x04;
const SAMPLES: usize = 5;

/// What the driver finds on a device, but for times; or how it failed.
fn findings(device: AnyBackend, delivery: Delivery) -> std::result::Result<Vec<Finding>, String> {
    let (sender, receiver) = mpsc::channel();
    let tell = Box::new(move |finding| sender.send(finding).expect("somebody listens"));
    let mut host = Host::new();
    host.start::<Tour>(device, delivery, TourConfig { irq: None, samples: SAMPLES, tell }).expect("started");
    for report in host.join() {
        match report.ended {
            Ended::Returned => {}
            Ended::Failed(error) => return Err(error.to_string()),
            Ended::Panicked(message) => panic!("{message}"),
        }
    }
    let timed = |finding: &Finding| matches!(finding, Finding::Latency { .. } | Finding::Interrupts(_));
    Ok(receiver.into_iter().filter(|finding| !timed(finding)).collect())
}

/// The one line that makes a recording a regression test.
fn assert_replays(recording: &Path) {
    for delivery in [Delivery::Thread, Delivery::Signal] {
        let replay = Arc::new(Replay::open(recording).expect("a recording"));
        let found = findings(replay.clone(), delivery).expect("the driver finds what it found");
        assert_eq!(found.len(), 6, "{found:?}");
        assert_eq!(replay.left(), 0, "accesses that were not made");
    }
}

/// A folder that is gone with the test.
struct Recording(PathBuf);

impl Recording {
    /// Of what `act` does to a model of edu.
    fn of(name: &str, act: impl FnOnce(AnyBackend)) -> Self {
        let path = std::env::temp_dir().join(format!("udrv-replay-{}-{name}", std::process::id()));
        let options = Options { events: 10_000, dma_contents: true };
        act(Arc::new(Recorder::new(udrv_edu::model::edu(), &path, options).expect("a recorder")));
        Self(path)
    }

    fn replay(&self) -> Replay {
        Replay::open(&self.0).expect("a recording")
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

fn read(device: &(impl udrv_backend::Backend + ?Sized), offset: u64) -> Result<u64> {
    device.read(BAR0, offset, Width::Bits32)
}

fn write(device: &(impl udrv_backend::Backend + ?Sized), offset: u64, value: u64) -> Result<()> {
    device.write(BAR0, offset, Width::Bits32, value)
}

#[test]
fn tour_on_real_vfio_replays() {
    assert_replays(&Path::new(env!("CARGO_MANIFEST_DIR")).join("traces/edu-vfio.trace"));
}

#[test]
fn tour_on_the_model_replays() {
    for delivery in [Delivery::Thread, Delivery::Signal] {
        let recording = Recording::of(&format!("tour-{delivery:?}"), |device| {
            findings(device, delivery).expect("a tour");
        });
        assert_replays(&recording.0);
    }
}

#[test]
fn polls_may_be_more_or_fewer() {
    let recording = Recording::of("polls", |device| {
        (0..3).for_each(|_| drop(read(&*device, STATUS)));
        write(&*device, LIVENESS, 1).expect("written");
    });
    for polls in [1, 2, 3, 10] {
        let replay = recording.replay();
        for _ in 0..polls {
            assert_eq!(read(&replay, STATUS).expect("read"), 0);
        }
        write(&replay, LIVENESS, 1).expect("written");
        assert_eq!(replay.left(), 0);
    }
}

#[test]
fn two_threads_that_read_one_register_each_get_what_was_recorded_of_it() {
    let recording = Recording::of("threads", |_| {});
    let mut trace = Trace::open(&recording.0).expect("a trace");
    let (region, width, outcome) = (BAR0, Width::Bits32, Outcome::Done);
    let event = |number, thread, what| Event { number, time: std::time::Duration::ZERO, thread, what };
    let read_of = |value| What::Read { region, offset: STATUS, width, value, outcome };
    let write_of = |value| What::Write { region, offset: LIVENESS, width, value, outcome };
    // Each says first, by a write, which it is.
    let events = [(1, write_of(1)), (2, write_of(2)), (1, read_of(11)), (2, read_of(22))];
    trace.events = (0..).zip(events).map(|(number, (thread, what))| event(number, thread, what)).collect();
    let replay = Arc::new(Replay::new(trace, "replay:threads".into()));
    write(&*replay, LIVENESS, 1).expect("written");
    let other = Arc::clone(&replay);
    let second = std::thread::spawn(move || {
        write(&*other, LIVENESS, 2).expect("written");
        read(&*other, STATUS).expect("read")
    });
    assert_eq!(second.join().expect("ended"), 22, "it came first, and is the second");
    assert_eq!(read(&*replay, STATUS).expect("read"), 11);
}

#[test]
fn handler_on_another_thread_than_recorded_is_not_that_of_the_next_interrupt() {
    let recording = Recording::of("thread", |_| {});
    let mut trace = Trace::open(&recording.0).expect("a trace");
    let (region, width, outcome, index, vector) = (BAR0, Width::Bits32, Outcome::Done, IrqIndex::MSI, 0);
    let event = |number, thread, what| Event { number, time: std::time::Duration::ZERO, thread, what };
    let read_of = |value| What::Read { region, offset: STATUS, width, value, outcome };
    let write_of = |value| What::Write { region, offset: LIVENESS, width, value, outcome };
    let signal = What::Irq { index, vector, count: 1 };
    // Each says first, by a write, which it is; the driver's thread ran the first handler, the domain's the second.
    let events =
        [(1, write_of(1)), (2, write_of(2)), (1, read_of(11)), (1, write_of(3)), (3, signal), (2, read_of(22))];
    trace.events = (0..).zip(events).map(|(number, (thread, what))| event(number, thread, what)).collect();
    let replay = Replay::new(trace, "replay:thread".into());
    write(&replay, LIVENESS, 1).expect("written");
    std::thread::scope(|scope| {
        let domains = scope.spawn(|| {
            write(&replay, LIVENESS, 2).expect("written");
            read(&replay, STATUS).expect("read")
        });
        assert_eq!(domains.join().expect("ended"), 11, "what came after an interrupt that is still to come");
    });
    write(&replay, LIVENESS, 3).expect("written");
    assert_eq!((read(&replay, STATUS).expect("read"), replay.left()), (22, 0));
}

#[test]
fn handlers_may_run_later_than_recorded() {
    let recording = Recording::of("handlers", |_| {});
    let mut trace = Trace::open(&recording.0).expect("a trace");
    let (region, width, outcome, index, vector) = (BAR0, Width::Bits32, Outcome::Done, IrqIndex::MSI, 0);
    let write_of = |value| What::Write { region, offset: LIVENESS, width, value, outcome };
    let begin = What::HandlerBegin { index, vector };
    let run = [begin, write_of(7), What::HandlerEnd { index, vector, handled: true }];
    let events = [write_of(1)].into_iter().chain(run).chain([write_of(2)]).enumerate();
    let event = |(number, what)| Event { number: number as u64, time: std::time::Duration::ZERO, thread: 1, what };
    trace.events = events.map(event).collect();
    let replay = Replay::new(trace, "replay:handlers".into());
    for value in [1, 2, 7] {
        write(&replay, LIVENESS, value).expect("written");
    }
    assert_eq!(replay.left(), 0);
}

#[test]
fn regions_may_be_accessed_in_another_order() {
    let config = |device: &dyn udrv_backend::Backend| device.read(RegionIndex::CONFIG, 0, Width::Bits16);
    let recording = Recording::of("regions", |device| {
        config(&*device).expect("read");
        write(&*device, LIVENESS, 1).expect("written");
    });
    let replay = recording.replay();
    write(&replay, LIVENESS, 1).expect("written");
    assert_eq!(config(&replay).expect("read"), 0x1234);
}

#[test]
fn value_that_differs_diverges_with_what_was_expected_and_from_where() {
    let recording = Recording::of("value", |device| {
        read(&*device, STATUS).expect("read");
        write(&*device, LIVENESS, 0x12).expect("written");
    });
    let replay = recording.replay();
    read(&replay, STATUS).expect("read");
    let line = line!() + 1;
    let end = replay.write(BAR0, LIVENESS, Width::Bits32, 0x13).expect_err("another value").to_string();
    for word in ["32-bit write of 0x13 to BAR0 0x4", "expected 32-bit write of 0x12", "after 32-bit read of BAR0 0x20"]
    {
        assert!(end.contains(word), "no `{word}` in: {end}");
    }
    assert!(end.contains(&format!(" at {}:{line}:", file!())), "as other messages name it: {end}");
    assert!(read(&replay, STATUS).is_err(), "it goes on after a divergence");
}

#[test]
fn write_that_is_missing_too_many_or_out_of_order_diverges() {
    let recording = Recording::of("writes", |device| {
        for value in [1, 2, 3] {
            write(&*device, LIVENESS, value).expect("written");
        }
    });
    for (values, good) in [(&[1, 2, 3][..], 3), (&[1, 2, 3, 3], 3), (&[1, 3], 1), (&[2, 1], 0)] {
        let replay = recording.replay();
        let done = values.iter().take_while(|value| write(&replay, LIVENESS, **value).is_ok()).count();
        assert_eq!(done, good, "{values:?}");
    }
}

#[test]
fn access_that_failed_fails_again() {
    let recording = Recording::of("failed", |device| drop(read(&*device, 0x10_0000)));
    let error = read(&recording.replay(), 0x10_0000).expect_err("beyond its region");
    assert!(matches!(error, udrv_backend::Error::OutOfRegion { .. }), "{error}");
}

#[test]
fn tour_with_one_bit_changed_in_the_recording_diverges() {
    let recording = Recording::of("changed", |device| drop(findings(device, Delivery::Thread)));
    let mut trace = Trace::open(&recording.0).expect("a trace");
    let count = trace.events.iter_mut().find_map(|event| match &mut event.what {
        udrv_debug::trace::What::Write { offset: 0x90, value, .. } => Some(value),
        _ => None,
    });
    *count.expect("a transfer") ^= 1;
    let failed = findings(Arc::new(Replay::new(trace, "replay:changed".into())), Delivery::Thread);
    let failed = failed.expect_err("a divergence");
    assert!(failed.contains(" at devices/edu/src/driver.rs:") && failed.contains("expected"), "{failed}");
}

#[test]
fn signal_of_a_vector_that_is_not_armed_waits_for_it_and_holds_up_no_other() {
    let recording = Recording::of("unarmed", |_| {});
    let mut trace = Trace::open(&recording.0).expect("a trace");
    let event = |what| Event { number: 0, time: std::time::Duration::ZERO, thread: 1, what };
    let (index, count) = (IrqIndex::MSI, 1);
    trace.events = [0, 1].map(|vector| event(What::Irq { index, vector, count })).to_vec();
    trace.device.irqs = vec![(2, 0); 5];
    let replay = Replay::new(trace, "replay:unarmed".into());
    for vector in [1, 0] {
        let trigger = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
        replay.set_triggers(IrqIndex::MSI, vector, &[Some(trigger.as_fd())]).expect("armed");
        assert_eq!(trigger.read(), Ok(1), "vector {vector}");
    }
}

#[test]
fn long_recording_replays_in_no_time_though_a_poll_at_its_beginning_is_left_out() {
    const WRITES: u64 = 50_000;
    let recording = Recording::of("long", |_| {});
    let mut trace = Trace::open(&recording.0).expect("a trace");
    let (region, width, outcome) = (BAR0, Width::Bits32, Outcome::Done);
    let poll = What::Read { region: RegionIndex::CONFIG, offset: 0, width, value: 7, outcome };
    let writes = (0..WRITES).map(|value| What::Write { region, offset: LIVENESS, width, value, outcome });
    let all = [poll.clone(), poll].into_iter().chain(writes).enumerate();
    let event = |(number, what)| Event { number: number as u64, time: std::time::Duration::ZERO, thread: 1, what };
    trace.events = all.map(event).collect();
    let replay = Replay::new(trace, "replay:long".into());
    replay.read(RegionIndex::CONFIG, 0, width).expect("read once, of twice");
    let began = udrv_backend::clock::now();
    for value in 0..WRITES {
        write(&replay, LIVENESS, value).expect("written");
    }
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}
