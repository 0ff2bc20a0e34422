//! What is made of recordings: where two part, documents for other programs, pictures.

use std::time::Duration;
use udrv_backend::register::RegisterMap;
use udrv_backend::{Backend as _, IrqIndex, RegionIndex, Width};
use udrv_debug::trace::{Event, Outcome, Stream, Trace, What, diff, latencies, perfetto, plot};
use udrv_edu::registers::MAP;
use udrv_tests::recording::{File, count, halves, recorder, small, tour};

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

/// Of accesses to configuration space and BAR 0 by one thread.
fn made_of(accesses: &[What]) -> Trace {
    let file = File::new(&format!("made-of-{:?}", std::thread::current().id()));
    drop(recorder(&file.0, small()));
    let event = |(number, what): (usize, &What)| Event {
        number: number as u64,
        time: Duration::ZERO,
        thread: 1,
        what: what.clone(),
    };
    let events = accesses.iter().enumerate().map(event).collect();
    Trace { events, ..Trace::open(&file.0).expect("a trace") }
}

const COMMAND: u64 = 4;

fn read(region: RegionIndex, value: u64) -> What {
    What::Read { region, offset: COMMAND, width: Width::Bits16, value, outcome: Outcome::Done }
}

fn write(region: RegionIndex, value: u64) -> What {
    What::Write { region, offset: COMMAND, width: Width::Bits16, value, outcome: Outcome::Done }
}

#[test]
fn diff_gives_the_earliest_of_several_divergences() {
    for order in [[RegionIndex::BAR0, RegionIndex::CONFIG], [RegionIndex::CONFIG, RegionIndex::BAR0]] {
        let run = |value| made_of(&order.map(|region| write(region, value)));
        let parted = diff(&run(1), &run(2)).expect("a divergence");
        assert_eq!(parted.first.map(|event| event.number), Some(0), "{order:?}");
    }
}

#[test]
fn diff_takes_bits_that_a_register_was_left_with_for_no_divergence_and_those_that_a_driver_changes_for_one() {
    let run = |region, found, written| made_of(&[read(region, found), write(region, written)]);
    for region in [RegionIndex::CONFIG, RegionIndex::BAR0] {
        // Memory space is on already, and INTx was left disabled: both runs turn on memory space and bus mastering.
        assert_eq!(diff(&run(region, 0, 6), &run(region, 0x402, 0x406)), None);
        for (found, written) in [(0, 4), (0x400, 0x402), (0, 0x406)] {
            let parted = diff(&run(region, 0, 6), &run(region, found, written)).expect("a divergence");
            assert_eq!(parted.second.map(|event| event.what), Some(write(region, written)), "{found:#x}");
        }
    }
}

#[test]
fn diff_compares_a_register_that_is_only_read_and_any_once_it_was_written() {
    let bar = RegionIndex::BAR0;
    assert!(diff(&made_of(&[read(bar, 0)]), &made_of(&[read(bar, 1)])).is_some(), "only read");
    let run = |found, after| made_of(&[read(bar, found), write(bar, 6), read(bar, after)]);
    let parted = diff(&run(0, 6), &run(1, 7)).expect("a divergence");
    assert_eq!(parted.second.map(|event| event.number), Some(2));
    assert!(diff(&made_of(&[write(bar, 6)]), &made_of(&[write(bar, 7)])).is_some(), "written at once");
}

#[test]
fn diff_takes_polls_for_one_if_they_are_of_one_register_in_one_width() {
    let poll = |count, width| {
        let one = What::Read { region: RegionIndex::BAR0, offset: 0, width, value: 7, outcome: Outcome::Done };
        made_of(&vec![one; count])
    };
    assert_eq!(diff(&poll(1, Width::Bits32), &poll(5, Width::Bits32)), None);
    assert!(diff(&poll(1, Width::Bits32), &poll(1, Width::Bits16)).is_some());
}

/// The recording's document for Perfetto.
fn document(file: &File, map: Option<&RegisterMap>) -> serde_json::Value {
    let mut bytes = Vec::new();
    perfetto(&mut Stream::open(&file.0).expect("a trace"), map, &mut bytes).expect("written");
    serde_json::from_slice(&bytes).expect("JSON")
}

#[test]
fn stream_has_what_the_whole_has() {
    let file = File::new("stream");
    tour(&file.0);
    let whole = Trace::open(&file.0).expect("a trace");
    let (mut stream, mut events) = (Stream::open(&file.0).expect("a trace"), Vec::new());
    for _ in 0..2 {
        events.clear();
        let keep = |event: &Event| {
            events.push(event.clone());
            Ok(())
        };
        stream.each(keep).expect("read");
        assert_eq!(events, whole.events);
    }
    assert_eq!(
        (stream.device(), Some(stream.end())),
        (&whole.device, whole.events.iter().map(|event| event.time).max())
    );
    let thread = whole.events[0].thread;
    assert_eq!(stream.names().thread(thread), whole.names().thread(thread));
    std::fs::write(&file.0, "none any more").expect("written");
    assert!(stream.each(|_| Ok(())).is_err(), "it was replaced meanwhile");
}

#[test]
fn stream_of_a_recording_that_grows_ends_where_it_did_when_it_was_opened() {
    let file = File::new("grows");
    let recorder = recorder(&file.0, small());
    let access = |_| assert!(recorder.read(RegionIndex(0), 0, Width::Bits32).is_ok());
    (0..5).for_each(access);
    let before = Trace::open(&file.0).expect("a trace").events;
    let mut stream = Stream::open(&file.0).expect("a trace");
    (0..5).for_each(access);
    let mut seen = Vec::new();
    let mut look = |stream: &mut Stream<_>| {
        seen.clear();
        stream.each(|event| {
            seen.push(event.number);
            Ok(())
        })?;
        Ok::<_, udrv_backend::Error>(seen.clone())
    };
    let numbers: Vec<_> = before.iter().map(|event| event.number).collect();
    assert_eq!(look(&mut stream).expect("read"), numbers);

    // One that another thread had begun, and which comes into the file only now.
    drop(recorder);
    let whole = std::fs::read(&file.0).expect("read");
    let first = usize::from(u16::from_le_bytes([whole[16], whole[17]]));
    let third = first + 2 * 32;
    let mut hole = whole.clone();
    hole[third + 8..third + 16].fill(0);
    std::fs::write(&file.0, &hole).expect("written");
    let mut stream = Stream::open(&file.0).expect("a trace");
    std::fs::write(&file.0, &whole).expect("written");
    assert_eq!(look(&mut stream).expect("read").len(), Trace::open(&file.0).expect("a trace").events.len());

    std::fs::write(&file.0, &whole[..third]).expect("written");
    let error = look(&mut stream).expect_err("it is shorter").to_string();
    assert!(error.contains("2 events where there were"), "{error}");

    let mut other = Trace::open(&file.0).expect("a trace");
    other.device.address = "model:other".into();
    let copy = File::new("grows-other");
    other.save(&copy.0).expect("saved");
    std::fs::copy(&copy.0, &file.0).expect("copied");
    let error = look(&mut stream).expect_err("it is another").to_string();
    assert!(error.contains("another device, model:other"), "{error}");
}

#[test]
fn perfetto_document_of_a_recording_in_which_too_much_begins_is_refused_by_what_that_is() {
    let file = File::new("too-much");
    let lend = |iova| What::Lend { iova, size: 1 };
    made_of(&(0..(1 << 17) + 1).map(lend).collect::<Vec<_>>()).save(&file.0).expect("saved");
    let mut stream = Stream::open(&file.0).expect("a trace");
    let error = perfetto(&mut stream, None, &mut std::io::sink()).expect_err("refused").to_string();
    assert!(error.contains("too-much sent more than 131072 threads, mappings or buffers in flight"), "{error}");
    // As many one after the other are none too many.
    let pair = |iova| [lend(iova), What::Return { iova, size: 1 }];
    made_of(&(0..1 << 17).flat_map(pair).collect::<Vec<_>>()).save(&file.0).expect("saved");
    perfetto(&mut Stream::open(&file.0).expect("a trace"), None, &mut std::io::sink()).expect("written");
}

#[test]
fn perfetto_document_counts_what_the_trace_has() {
    let file = File::new("perfetto");
    tour(&file.0);
    let trace = Trace::open(&file.0).expect("a trace");
    let document = document(&file, Some(&MAP));
    assert_eq!(document["otherData"]["device"], trace.device.address);
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
fn perfetto_document_of_a_recording_that_breaks_off_ends_what_has_begun_and_nothing_else() {
    let file = File::new("broken-off");
    let line = |begins| {
        let (index, vector) = (IrqIndex::MSI, 0);
        if begins { What::HandlerBegin { index, vector } } else { What::HandlerEnd { index, vector, handled: true } }
    };
    // One that had begun before the recording; one and one more that were under way at its end.
    made_of(&[line(false), line(true), line(true)]).save(&file.0).expect("saved");
    let document = document(&file, None);
    let phases = document["traceEvents"].as_array().expect("events").iter().map(|event| event["ph"].as_str());
    let phases: Vec<_> = phases.flatten().filter(|phase| ["B", "E"].contains(phase)).collect();
    assert_eq!(phases, ["B", "B", "E", "E"]);
}

#[test]
fn perfetto_document_names_what_is_written_and_what_is_read_at_one_place_apart() {
    let file = File::new("perfetto-written");
    let access = [read(RegionIndex::BAR0, 0), write(RegionIndex::BAR0, 0)].map(|what| match what {
        What::Read { region, value, outcome, .. } => {
            What::Read { region, offset: 0, width: Width::Bits8, value, outcome }
        }
        What::Write { region, value, outcome, .. } => {
            What::Write { region, offset: 0, width: Width::Bits8, value, outcome }
        }
        other => other,
    });
    made_of(&access).save(&file.0).expect("saved");
    let document = document(&file, Some(&udrv_uart16550::registers::MAP));
    let named =
        |name: &str| document["traceEvents"].as_array().expect("events").iter().any(|event| event["name"] == name);
    assert!(named("read RBR") && named("write THR"), "{document:#}");
}

#[test]
fn perfetto_document_and_plot_have_threaded_and_bottom_halves() {
    let file = File::new("perfetto-halves");
    halves(&file.0);
    let trace = Trace::open(&file.0).expect("a trace");
    let document = document(&file, None);
    let events = document["traceEvents"].as_array().expect("events");
    let of =
        |phase: &str, kind: u32| events.iter().filter(|event| event["ph"] == phase && event["pid"] == kind).count();
    assert_eq!([of("B", 4), of("E", 4), of("B", 5), of("E", 5)], [3; 4]);
    let name = |event: &&serde_json::Value| event["name"].as_str().is_some_and(|name| name.contains("recording.rs:"));
    assert_eq!(events.iter().filter(name).count(), 3, "bottom halves have where they were made");
    let svg = plot(&trace);
    assert!(svg.contains(">threaded handlers (3)") && svg.contains(">bottom halves (3)"), "{svg}");
}

#[test]
fn latency_of_signals_that_became_one_delivery_is_that_of_the_first() {
    let file = File::new("merged");
    drop(recorder(&file.0, small()));
    let (index, vector) = (IrqIndex::MSI, 0);
    let irq = What::Irq { index, vector, count: 1 };
    let whats = [irq.clone(), irq, What::HandlerBegin { index, vector }];
    let events = whats.into_iter().zip(1..).map(|(what, number)| {
        let time = Duration::from_micros(number);
        Event { number, time, thread: 1, what }
    });
    let trace = Trace { events: events.collect(), ..Trace::open(&file.0).expect("a trace") };
    assert_eq!(latencies(&trace)[&(IrqIndex::MSI.0, 0)], [Duration::from_micros(2)]);
    assert!(plot(&trace).contains(">raised MSI 0 (2)"));
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
