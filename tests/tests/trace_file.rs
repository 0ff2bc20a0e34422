//! The file of a recording: whole whatever becomes of the recorder, and refused if it is none, whatever is in it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use udrv_backend::{Backend as _, Error, IrqIndex, Moment, RegionIndex, Width};
use udrv_debug::trace::{Event, Options, Outcome, Place, Trace, What};
use udrv_tests::recording::{File, recorder, small, tour};

const BAR0: RegionIndex = RegionIndex::BAR0;

/// A process that records writes of 0, 1, 2 and so on, and says after every 64th how far it has come.
struct Recording {
    process: Child,
    said: BufReader<ChildStdout>,
    /// The last that it has said to be recorded.
    said_last: Option<u64>,
}

impl Recording {
    fn start(path: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "child_records_until_killed", "--nocapture"])
            .env("UDRV_TEST_RECORD", path)
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let said = BufReader::new(process.stdout.take().expect("a pipe"));
        Self { process, said, said_last: None }
    }

    fn listen(&mut self) {
        let mut line = String::new();
        assert_ne!(self.said.read_line(&mut line).expect("read"), 0, "the child has ended");
        let number = line.trim_end().rsplit(' ').next().and_then(|word| word.parse().ok());
        self.said_last = number.or(self.said_last);
    }

    /// By SIGKILL.
    fn kill(mut self) -> Option<u64> {
        self.process.kill().expect("killed");
        self.process.wait().expect("dead");
        self.said_last
    }
}

#[test]
fn recording_of_a_process_killed_at_any_moment_is_readable_up_to_there() {
    let mut empty = 0;
    for seed in 0..50_u64 {
        let file = File::new(&format!("killed-{seed}"));
        let mut recording = Recording::start(&file.0);
        // None at all now and then, so that it dies while the file is made.
        (0..seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 57).for_each(|_| recording.listen());
        let said = recording.kill();
        let trace = match (Trace::open(&file.0), said) {
            (Ok(trace), _) => trace,
            (Err(_), None) => {
                empty += 1;
                continue;
            }
            (Err(error), Some(last)) => panic!("seed {seed}: {last} events were recorded: {error}"),
        };
        let written = trace.events.iter().filter_map(|event| match event.what {
            What::Write { offset: 0x04, value, .. } => Some(value),
            _ => None,
        });
        let written: Vec<u64> = written.collect();
        assert!(said.is_none_or(|last| written.len() as u64 > last), "seed {seed}: {} of {said:?}", written.len());
        assert!(written.iter().copied().eq(0..written.len() as u64), "seed {seed}: out of order");
    }
    assert!(empty < 10, "{empty} that had begun nothing");
}

#[test]
fn child_records_until_killed() {
    let Some(path) = std::env::var_os("UDRV_TEST_RECORD") else { return };
    let device = recorder(Path::new(&path), Options { events: 1 << 17, dma_contents: false });
    println!();
    for number in 0..1 << 16 {
        device.write(BAR0, 0x04, Width::Bits32, number).expect("written");
        if number % 64 == 63 {
            println!("{number}");
        }
    }
}

#[test]
fn recording_cut_short_at_any_byte_is_refused_or_the_beginning_of_the_whole() {
    let file = File::new("cut");
    let device = recorder(&file.0, small());
    let file_of_it = std::panic::Location::caller();
    for number in 0..20 {
        device.write(BAR0, 0x04, Width::Bits32, number).expect("written");
        device.observer().expect("it listens").observe(Moment::SectionBegins { domain: 1, at: file_of_it });
    }
    drop(device);
    let bytes = std::fs::read(&file.0).expect("read");
    let whole = Trace::read(&bytes[..], "whole").expect("a trace");
    let mut longest = 0;
    for length in 0..bytes.len() {
        let Ok(cut) = Trace::read(&bytes[..length], "cut") else {
            assert_eq!(longest, 0, "refused after {longest} events of it were not");
            continue;
        };
        let (events, before) = (cut.events.len(), std::mem::replace(&mut longest, cut.events.len()));
        assert!(events == before || events == before + 1, "{events} events in {length} bytes, {before} in one less");
        assert!(cut.events.iter().zip(&whole.events).all(|(cut, whole)| cut.what == whole.what), "{length} bytes");
    }
    assert_eq!(longest, whole.events.len() - 1);
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
    assert_eq!(trace.names().thread(thread), "\u{fffd}[2J");
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
        What::ThreadedBegin { index, vector: 7 },
        What::ThreadedEnd { index, vector: 7 },
        What::BottomHalfBegin { domain: 1 << 40, at: Place { file: 3, line: u32::MAX } },
        What::BottomHalfEnd { domain: 1 << 40 },
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
fn recording_of_a_version_to_come_is_refused_by_its_number() {
    let file = File::new("version");
    drop(recorder(&file.0, small()));
    let mut bytes = std::fs::read(&file.0).expect("read");
    bytes[8] = 4;
    std::fs::write(&file.0, &bytes).expect("written");
    let error = Trace::open(&file.0).expect_err("refused").to_string();
    assert!(error.contains("version 4") && error.contains("expected version 1 to 3"), "{error}");
}

/// Bytes of an event in the file (docs/trace.md).
const EVENT: usize = 32;

#[test]
fn events_between_gaps_that_are_none_too_long_by_themselves_are_read() {
    let file = File::new("gaps");
    drop(recorder(&file.0, small()));
    let what = What::Write { region: BAR0, offset: 4, width: Width::Bits32, value: 0, outcome: Outcome::Done };
    let event = |number| Event { number, time: std::time::Duration::ZERO, thread: 1, what: what.clone() };
    let trace = Trace { events: (0..120_000).map(event).collect(), ..Trace::open(&file.0).expect("a trace") };
    trace.save(&file.0).expect("saved");
    let mut bytes = std::fs::read(&file.0).expect("read");
    let begin = bytes.len() - trace.events.len() * EVENT;
    for (number, event) in bytes[begin..].chunks_exact_mut(EVENT).enumerate() {
        // As a recorder leaves what it had no time to write: two gaps that are too long only together.
        if number % 60_000 != 59_999 {
            event.fill(0);
        }
    }
    let read = Trace::read(bytes.as_slice(), "gaps").expect("a trace");
    assert_eq!(read.events.iter().map(|event| event.number).collect::<Vec<_>>(), [59_999, 119_999]);
}
