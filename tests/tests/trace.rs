//! Recordings: what is in them, whatever becomes of the recorder, and what is shown of them.

use nix::sys::eventfd::EventFd;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use udrv::host::{Ended, Host};
use udrv::irq::Delivery;
use udrv_backend::conformance::{Outcome as Check, Subject, checks};
use udrv_backend::{AnyBackend, Backend as _, Error, IrqIndex, RegionIndex, Result, Width};
use udrv_debug::trace::{Event, Options, Outcome, Recorder, Trace, What, diff, perfetto};
use udrv_edu::driver::{Tour, TourConfig};
use udrv_edu::registers::MAP;

const BAR0: RegionIndex = RegionIndex::BAR0;

/// A file of its own for each test.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("udrv-trace-{}-{name}", std::process::id())))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

fn recorder(path: &Path, options: Options) -> Recorder<AnyBackend> {
    let edu: AnyBackend = Arc::new(udrv_edu::model::edu());
    Recorder::new(edu, path, options).expect("a recorder")
}

fn small() -> Options {
    Options { events: 1000, dma_contents: false }
}

/// The edu driver's whole tour, recorded.
fn tour(path: &Path) {
    let options = Options { events: 10_000, dma_contents: true };
    let device = Arc::new(recorder(path, options));
    let mut host = Host::new();
    let config = TourConfig { irq: None, samples: 5, tell: Box::new(|_| {}) };
    host.start::<Tour>(device, Delivery::Signal, config).expect("started");
    for report in host.join() {
        assert!(matches!(report.ended, Ended::Returned), "{report:?}");
    }
}

fn count(trace: &Trace, which: impl Fn(&What) -> bool) -> usize {
    trace.events.iter().filter(|event| which(&event.what)).count()
}

#[test]
fn device_that_is_recorded_conforms() {
    let file = File::new("conforms");
    let open = || -> Result<AnyBackend> {
        let inner: AnyBackend = Arc::new(udrv_tests::vectors::vectors()?);
        Ok(Arc::new(Recorder::new(inner, &file.0, small())?))
    };
    let subject = Subject { open: &open, knowledge: udrv_tests::vectors::KNOWLEDGE };
    let mut failed = Vec::new();
    for check in checks() {
        if let Check::Failed(why) = check.run(&subject) {
            failed.push(format!("{}: {why}", check.name));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn accesses_are_recorded_in_order_with_width_value_and_outcome() {
    let file = File::new("order");
    let device = recorder(&file.0, small());
    device.write(BAR0, 0x04, Width::Bits32, 0x1234_5678).expect("written");
    device.read(BAR0, 0x04, Width::Bits32).expect("read");
    device.read(BAR0, 0x10_0000, Width::Bits8).expect_err("beyond the region");
    drop(device);
    let trace = Trace::open(&file.0).expect("a trace");
    let what: Vec<_> = trace.events.iter().skip(1).map(|event| event.what.clone()).collect();
    let (region, offset, width, outcome) = (BAR0, 4, Width::Bits32, Outcome::Done);
    assert_eq!(
        what,
        [
            What::Write { region, offset, width, value: 0x1234_5678, outcome },
            What::Read { region, offset, width, value: !0x1234_5678_u32 as u64, outcome },
            What::Read { region, offset: 0x10_0000, width: Width::Bits8, value: 0, outcome: Outcome::Failed(22) },
        ]
    );
    assert!(trace.events.windows(2).all(|pair| pair[0].time <= pair[1].time));
    let name = std::thread::current().name().expect("a name").as_bytes()[..16].to_vec();
    assert_eq!(trace.thread_name(nix::unistd::gettid().as_raw() as u32).into_bytes(), name);
}

#[test]
fn interrupt_is_recorded_after_the_write_that_raised_it() {
    let file = File::new("irq");
    let device = recorder(&file.0, small());
    let config = udrv_backend::pci::Config::new(&device);
    config.change_command(udrv_backend::pci::Command::BUS_MASTER, udrv_backend::pci::Command::empty()).expect("on");
    let trigger = EventFd::new().expect("an eventfd");
    device.set_triggers(IrqIndex::MSI, 0, &[Some(trigger.as_fd())]).expect("armed");
    device.write(BAR0, 0x60, Width::Bits32, 1).expect("raised");
    assert_eq!(trigger.read(), Ok(1));
    drop(device);
    let trace = Trace::open(&file.0).expect("a trace");
    let place = |which: &dyn Fn(&What) -> bool| trace.events.iter().position(|event| which(&event.what));
    let raised = place(&|what| matches!(what, What::Write { offset: 0x60, .. })).expect("the write");
    let irq = place(&|what| *what == What::Irq { index: IrqIndex::MSI, vector: 0, count: 1 }).expect("the interrupt");
    assert!(raised < irq);
}

#[test]
fn full_recording_keeps_its_beginning_and_counts_the_rest() {
    let file = File::new("full");
    let device = recorder(&file.0, Options { events: 10, ..small() });
    for _ in 0..30 {
        device.read(BAR0, 0, Width::Bits32).expect("read");
    }
    assert_eq!(device.lost(), 21);
    drop(device);
    let trace = Trace::open(&file.0).expect("a trace");
    assert_eq!((trace.events.len(), trace.lost), (10, 21));
}

#[test]
fn tour_is_recorded_with_memory_and_interrupts() {
    let file = File::new("tour");
    tour(&file.0);
    let trace = Trace::open(&file.0).expect("a trace");
    assert_eq!(trace.lost, 0);
    assert!(
        count(&trace, |what| matches!(what, What::Irq { .. })) >= 11,
        "3 factorials, 2 transfers, 1 section, 5 timed"
    );
    assert_eq!(count(&trace, |what| matches!(what, What::Data { .. })), 512, "4095 bytes from the device");
}

#[test]
fn recording_of_a_killed_process_is_readable() {
    let file = File::new("killed");
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child_records_until_killed", "--nocapture"])
        .env("UDRV_TEST_RECORD", &file.0)
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut said = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("recorded 1000") {
        line.clear();
        assert_ne!(std::io::BufRead::read_line(&mut said, &mut line).expect("read"), 0, "the child has ended");
    }
    child.kill().expect("killed");
    child.wait().expect("dead");
    let trace = Trace::open(&file.0).expect("a trace");
    let written: Vec<u64> = trace
        .events
        .iter()
        .filter_map(|event| match event.what {
            What::Write { offset: 0x04, value, .. } => Some(value),
            _ => None,
        })
        .collect();
    assert!(written.len() >= 1000, "{}", written.len());
    assert!(written.iter().copied().eq(0..written.len() as u64), "out of order");
}

#[test]
fn child_records_until_killed() {
    let Some(path) = std::env::var_os("UDRV_TEST_RECORD") else { return };
    let device = recorder(Path::new(&path), Options { events: 1 << 20, dma_contents: false });
    for number in 0.. {
        device.write(BAR0, 0x04, Width::Bits32, number % (1 << 32)).expect("written");
        if number == 1000 {
            println!("\nrecorded 1000");
        }
    }
}

#[test]
fn diff_finds_one_bit_that_changed_and_nothing_between_equal_runs() {
    let (one, other) = (File::new("diff-a"), File::new("diff-b"));
    tour(&one.0);
    tour(&other.0);
    let [one, mut other] = [&one, &other].map(|file| Trace::open(&file.0).expect("a trace"));
    assert_eq!(diff(&one, &other), None);
    let changed = other.events.iter_mut().rev().find_map(|event| match &mut event.what {
        What::Write { offset: 0x60, value, .. } => {
            *value ^= 4;
            Some(event.number)
        }
        _ => None,
    });
    let found = diff(&one, &other).expect("a divergence");
    assert_eq!(found.second.as_ref().map(|event| event.number), changed);
    assert!(
        matches!(found.first, Some(Event { what: What::Write { offset: 0x60, value: 0x10, .. }, .. })),
        "{found:?}"
    );
}

#[test]
fn perfetto_document_counts_what_the_trace_has() {
    let file = File::new("perfetto");
    tour(&file.0);
    let trace = Trace::open(&file.0).expect("a trace");
    let text = perfetto(&trace, Some(&MAP)).to_string();
    let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let events = document["traceEvents"].as_array().expect("events");
    let named = |prefix: &str| {
        let is = |event: &&serde_json::Value| event["name"].as_str().is_some_and(|name| name.starts_with(prefix));
        events.iter().filter(is).count()
    };
    assert_eq!(named("write "), count(&trace, |what| matches!(what, What::Write { .. })));
    assert_eq!(named("read "), count(&trace, |what| matches!(what, What::Read { .. })));
    assert_eq!(named("MSI 0"), count(&trace, |what| matches!(what, What::Irq { .. })));
    let phase = |phase: &str| events.iter().filter(|event| event["ph"] == phase).count();
    assert_eq!(phase("b"), count(&trace, |what| matches!(what, What::Map { .. })));
    assert_eq!(phase("b"), phase("e"), "each mapping ends");
    assert!(named("write interrupt acknowledge") > 0, "registers have their names");
    assert!(events.iter().all(|event| event["ph"] == "M" || event["ts"].is_number()));
}

#[test]
fn file_that_is_no_trace_is_refused_whatever_is_in_it() {
    let file = File::new("hostile");
    let device = recorder(&file.0, small());
    device.read(BAR0, 0, Width::Bits32).expect("read");
    drop(device);
    let good = std::fs::read(&file.0).expect("read");
    let mut refused = 0;
    for at in (0..good.len()).filter(|at| good.len() - at < 200 || *at < 400) {
        for (bytes, length) in [(0xff_u8, good.len()), (0x7f, good.len()), (good[at], at)] {
            let mut bad = good.clone();
            bad[at] = bytes;
            bad.truncate(length);
            std::fs::write(&file.0, &bad).expect("written");
            match Trace::open(&file.0) {
                Ok(trace) => assert!(trace.events.len() <= 4),
                Err(error) => {
                    assert!(matches!(error, Error::Protocol { .. }), "{error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 300, "{refused}");
}
