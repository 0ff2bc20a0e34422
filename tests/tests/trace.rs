//! Recordings: what is in them, whatever becomes of the recorder, and what is shown of them.

use nix::sys::eventfd::EventFd;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use udrv::host::{Ended, Host};
use udrv::irq::{Delivery, IrqDomain, IrqReturn};
use udrv_backend::conformance::{Outcome as Check, Subject, checks};
use udrv_backend::{AnyBackend, Backend as _, Error, IrqIndex, RegionIndex, Result, Width};
use udrv_debug::trace::{Event, Identity, Options, Outcome, Recorder, Trace, What, diff, latencies, perfetto, plot};
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
    assert_eq!(trace.thread_names().of(nix::unistd::gettid().as_raw() as u32).into_bytes(), name);
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
    assert_eq!(named("raised MSI 0"), count(&trace, |what| matches!(what, What::Irq { .. })));
    assert_eq!(named("delivered MSI 0"), count(&trace, |what| matches!(what, What::HandlerBegin { .. })));
    let of = |phase: &str, place: &str, is: serde_json::Value| {
        events.iter().filter(|event| event["ph"] == phase && event[place] == is).count()
    };
    assert_eq!(of("B", "pid", 2.into()), count(&trace, |what| matches!(what, What::HandlerBegin { .. })));
    assert_eq!(of("B", "pid", 3.into()), count(&trace, |what| matches!(what, What::SectionBegin { .. })));
    assert_eq!(of("b", "cat", "mapped".into()), count(&trace, |what| matches!(what, What::Map { .. })));
    assert_eq!(of("b", "cat", "in flight".into()), count(&trace, |what| matches!(what, What::Lend { .. })));
    let ends = events.iter().filter(|event| event["ph"] == "E" && event["pid"] == 2);
    let ended = trace.events.iter().filter(|event| matches!(event.what, What::HandlerEnd { .. }));
    let ended = ended.map(|event| event.time.as_nanos() as f64 / 1000.0);
    assert!(ends.map(|event| event["ts"].as_f64().expect("a time")).eq(ended), "handlers end when they did");
    let phase = |phase: &str| events.iter().filter(|event| event["ph"] == phase).count();
    assert!(phase("B") >= 12 && phase("b") >= 4, "handlers, a section, mappings, transfers");
    assert_eq!((phase("b"), phase("B")), (phase("e"), phase("E")), "what begins ends");
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

#[test]
fn handler_runs_and_sections_are_recorded_in_pairs_around_what_is_done_in_them() {
    let file = File::new("runs");
    tour(&file.0);
    let trace = Trace::open(&file.0).expect("a trace");
    let deliveries = count(&trace, |what| matches!(what, What::HandlerBegin { .. }));
    assert!(deliveries >= 11, "{deliveries}");
    assert_eq!(count(&trace, |what| matches!(what, What::HandlerEnd { handled: true, .. })), deliveries);
    let (mut inside, mut acknowledged, mut off, mut sections) = (0, 0, 0, 0);
    for event in &trace.events {
        match event.what {
            What::HandlerBegin { .. } => {
                assert_eq!(off, 0, "a handler ran in a section");
                inside += 1;
            }
            What::HandlerEnd { .. } => inside -= 1,
            What::Write { offset: 0x64, .. } => acknowledged += i32::from(inside == 1),
            What::SectionBegin { line, .. } => {
                assert!(line > 0);
                (off, sections) = (off + 1, sections + 1);
            }
            What::SectionEnd { .. } => off -= 1,
            _ => {}
        }
    }
    assert_eq!((inside, off), (0, 0));
    assert!(acknowledged >= 11 && sections >= 1, "{acknowledged} in handlers, {sections} sections");
}

#[test]
fn sections_are_recorded_from_the_registration_on_though_the_thread_has_used_some() {
    for delivery in [Delivery::Thread, Delivery::Signal, Delivery::Poll] {
        let file = File::new("used");
        let device: AnyBackend = Arc::new(recorder(&file.0, small()));
        let domain = IrqDomain::new(delivery).expect("a domain");
        let sections = || {
            domain.off(|_| domain.off(|_| ()));
            domain.off(|_| ());
        };
        sections();
        let irq = domain.register(&device, IrqIndex::MSI, 0, |_| IrqReturn::Handled).expect("registered");
        sections();
        sections();
        drop((irq, domain, device));
        let trace = Trace::open(&file.0).expect("a trace");
        let begun = count(&trace, |what| matches!(what, What::SectionBegin { .. }));
        let ended = count(&trace, |what| matches!(what, What::SectionEnd { .. }));
        assert_eq!((begun, ended), (6, 6), "{delivery:?}");
    }
}

#[test]
fn recording_says_which_device_it_is_of() {
    let file = File::new("identity");
    drop(recorder(&file.0, small()));
    let identity = Trace::open(&file.0).expect("a trace").device.identity;
    assert_eq!(identity, Some(Identity { vendor: 0x1234, device: 0x11e8, class: 0x00_ff_00 }));
}

#[test]
fn times_are_those_of_the_clock_also_in_a_recording_that_was_not_closed() {
    let file = File::new("times");
    let device = recorder(&file.0, Options { events: 100_000, ..small() });
    let spin = |millis| {
        let deadline = udrv_backend::clock::Deadline::after(std::time::Duration::from_millis(millis));
        let begin = udrv_backend::clock::now();
        device.read(BAR0, 0, Width::Bits32).expect("read");
        while deadline.remaining().is_some() {}
        device.read(BAR0, 0, Width::Bits32).expect("read");
        begin.elapsed()
    };
    let check = |spun: std::time::Duration, what: &str| {
        let trace = Trace::open(&file.0).expect("a trace");
        let reads: Vec<_> = trace
            .events
            .iter()
            .filter(|event| matches!(event.what, What::Read { .. }))
            .map(|event| event.time)
            .collect();
        let [.., from, to] = reads[..] else { panic!("{reads:?}") };
        let taken = (to - from).as_secs_f64();
        assert!((spun.as_secs_f64() * 0.9..spun.as_secs_f64() * 1.02).contains(&taken), "{what}: {taken} of {spun:?}");
    };
    check(spin(50), "one moment known");
    (0..20_000).for_each(|_| drop(device.read(BAR0, 0, Width::Bits32)));
    check(spin(50), "several known");
    let spun = spin(50);
    drop(device);
    check(spun, "the end known");
}

#[test]
fn recorder_whose_file_another_replaces_goes_on_and_both_are_whole() {
    let file = File::new("replaced");
    let first = recorder(&file.0, Options { events: 10_000, ..small() });
    first.read(BAR0, 0, Width::Bits32).expect("read");
    let second = recorder(&file.0, Options { events: 1, ..small() });
    (0..5000).for_each(|_| drop(first.read(BAR0, 0, Width::Bits32)));
    assert_eq!(first.lost(), 0);
    drop((first, second));
    assert_eq!(Trace::open(&file.0).expect("the second's").events.len(), 0);
}

#[test]
fn recording_in_place_of_what_is_no_file_is_refused_and_leaves_it() {
    let file = File::new("no-file");
    nix::unistd::mkfifo(&file.0, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let edu: AnyBackend = Arc::new(udrv_edu::model::edu());
    let error = Recorder::new(edu, &file.0, small()).err().expect("refused").to_string();
    assert!(error.contains("it exists and is no file"), "{error}");
    let error = Trace::open(&file.0).expect_err("and is not waited for").to_string();
    assert!(error.contains("something that is no file"), "{error}");
}

#[test]
fn file_of_a_terabyte_of_nothing_is_read_in_no_time() {
    let file = File::new("sparse");
    let device = recorder(&file.0, small());
    device.read(BAR0, 0, Width::Bits32).expect("read");
    drop(device);
    let sparse = std::fs::OpenOptions::new().write(true).open(&file.0).expect("opened");
    std::os::unix::fs::FileExt::write_all_at(&sparse, &u64::MAX.to_le_bytes(), 32).expect("all events claimed");
    sparse.set_len(1 << 40).expect("long");
    let began = udrv_backend::clock::now();
    assert_eq!(Trace::open(&file.0).expect("a trace").events.len(), 2);
    assert!(began.elapsed().as_secs() < 2, "{:?}", began.elapsed());
}

#[test]
fn device_that_cannot_be_is_refused() {
    let file = File::new("impossible");
    drop(recorder(&file.0, small()));
    let mut trace = Trace::open(&file.0).expect("a trace");
    let good = trace.device.dma.clone().expect("DMA");
    for (page_size, range) in [(0, (0, 1)), (12, (0, 1)), (1 << 40, (0, 1)), (4096, (2, 1))] {
        let ranges = vec![range];
        trace.device.dma = Some(udrv_debug::trace::DmaDescription { page_size, ranges, ..good.clone() });
        trace.save(&file.0).expect("saved");
        let error = Trace::open(&file.0).expect_err("refused").to_string();
        assert!(error.contains("what a device can have"), "{error}");
    }
}

#[test]
fn text_of_a_recording_does_not_command_a_terminal() {
    let file = File::new("escape");
    let device = recorder(&file.0, small());
    let read = move || drop(device.read(BAR0, 0, Width::Bits32));
    std::thread::Builder::new().name("\x1b[2J".into()).spawn(read).expect("started").join().expect("ended");
    let trace = Trace::open(&file.0).expect("a trace");
    let thread = trace.events[0].thread;
    assert_eq!(trace.thread_names().of(thread), "\u{fffd}[2J");
}

#[test]
fn recording_that_is_saved_is_the_same_recording() {
    let (file, copy) = (File::new("saved"), File::new("saved-copy"));
    tour(&file.0);
    let mut trace = Trace::open(&file.0).expect("a trace");
    let like = trace.events[0].clone();
    let index = IrqIndex::INTX;
    for what in [
        What::Mask { index, vector: 1, masked: true },
        What::Mask { index, vector: 1, masked: false },
        What::Map { iova: 1, size: 0, outcome: Outcome::Failed(12) },
        What::Data { iova: 3, bytes: vec![1, 2, 3] },
        What::HandlerEnd { index, vector: 0, handled: false },
        What::Read { region: BAR0, offset: 8, width: Width::Bits64, value: 0, outcome: Outcome::Unfinished },
    ] {
        trace.events.push(Event { what, ..like.clone() });
    }
    trace.save(&copy.0).expect("saved");
    let mut again = Trace::open(&copy.0).expect("a trace");
    // Numbers are places in a file, and times of the clock were in between.
    again.events.iter_mut().zip(&trace.events).for_each(|(again, event)| again.number = event.number);
    assert_eq!(again, trace);
}

#[test]
fn plot_has_each_source_and_each_region_and_latencies_are_what_passed() {
    let file = File::new("plot");
    tour(&file.0);
    let mut trace = Trace::open(&file.0).expect("a trace");
    trace.device.address = "<b>&".into();
    let found = latencies(&trace);
    let deliveries = count(&trace, |what| matches!(what, What::HandlerBegin { .. }));
    let times = found.get(&(IrqIndex::MSI.0, 0)).expect("MSI 0");
    assert!((11..=deliveries).contains(&times.len()), "{times:?}");
    assert!(times.iter().all(|time| !time.is_zero() && time.as_secs() < 5), "{times:?}");
    let svg = plot(&trace);
    for text in
        ["&lt;b&gt;&amp;", ">read BAR0 (", ">write config (", ">handlers (", ">DMA in flight (", "MSI 0: raised"]
    {
        assert!(svg.contains(text), "no `{text}`");
    }
    assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
}

#[test]
fn recording_of_a_version_to_come_is_refused_by_its_number() {
    let file = File::new("version");
    drop(recorder(&file.0, small()));
    let mut bytes = std::fs::read(&file.0).expect("read");
    bytes[8] = 3;
    std::fs::write(&file.0, &bytes).expect("written");
    let error = Trace::open(&file.0).expect_err("refused").to_string();
    assert!(error.contains("version 3") && error.contains("expected version 1 or 2"), "{error}");
}
