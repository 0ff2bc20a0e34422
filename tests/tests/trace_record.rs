//! What is in a recording.

use nix::sys::eventfd::EventFd;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use udrv::irq::{Delivery, IrqDomain, IrqReturn};
use udrv_backend::conformance::{Outcome as Check, Subject, checks};
use udrv_backend::{AnyBackend, Backend as _, IrqIndex, RegionIndex, Result, Width};
use udrv_debug::trace::{Identity, Options, Outcome, Recorder, Trace, What};
use udrv_tests::recording::{File, count, halves, recorder, small, tour};

const BAR0: RegionIndex = RegionIndex::BAR0;

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
    assert_eq!(trace.names().thread(nix::unistd::gettid().as_raw() as u32).into_bytes(), name);
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
            What::SectionBegin { at, .. } => {
                assert!(at.line > 0 && trace.names().place(at).starts_with("devices/edu/src/driver.rs:"), "{at:?}");
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
fn threaded_and_bottom_halves_are_recorded_as_runs_with_where_they_were_made() {
    let file = File::new("halves");
    halves(&file.0);
    let trace = Trace::open(&file.0).expect("a trace");
    let index = IrqIndex::MSI;
    let (begins, ends) = (What::ThreadedBegin { index, vector: 0 }, What::ThreadedEnd { index, vector: 0 });
    let threaded: Vec<_> = trace.events.iter().filter(|event| event.what == begins || event.what == ends).collect();
    assert!(threaded.chunks(2).all(|pair| (&pair[0].what, &pair[1].what) == (&begins, &ends)), "{threaded:?}");
    assert_eq!(threaded.len(), 6);
    let names = trace.names();
    assert!(threaded.iter().all(|event| names.thread(event.thread) == "udrv-irq-half"), "{names:?}");
    let (mut inside, mut runs) = (false, 0);
    for event in &trace.events {
        match event.what {
            What::BottomHalfBegin { at, .. } => {
                assert!(names.place(at).starts_with("tests/src/recording.rs:"), "{}", names.place(at));
                assert!(!std::mem::replace(&mut inside, true), "one inside another");
            }
            What::BottomHalfEnd { .. } => {
                assert!(std::mem::take(&mut inside), "an end without a beginning");
                runs += 1;
            }
            _ => {}
        }
    }
    assert_eq!((inside, runs), (false, 3));
}

#[test]
fn file_of_many_sections_is_named_once() {
    let file = File::new("named-once");
    tour(&file.0);
    let trace = Trace::open(&file.0).expect("a trace");
    let pieces = |which: u32| count(&trace, |what| matches!(what, What::File { file, .. } if *file == which));
    assert_eq!(pieces(1), "devices/edu/src/driver.rs".len().div_ceil(8));
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
