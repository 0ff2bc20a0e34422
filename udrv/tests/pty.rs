//! A pseudo-terminal against a program on its near side.

use rustix::termios::{ControlModes, OptionalActions, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::pty::{LineSettings, Pty, PtyEvent};

const LONG: Duration = Duration::from_secs(20);

/// What it is after [`Pty::open`].
const RAW_9600: LineSettings = LineSettings { baud: 9600, stop_bits: 1, hardware_flow: false, software_flow: false };

/// The program on the terminal.
fn program(pty: &Pty) -> File {
    File::options().read(true).write(true).open(pty.path()).unwrap()
}

/// Waits on the descriptor, as an event loop does, for the next event.
fn wait_for_event(pty: &mut Pty) -> PtyEvent {
    let deadline = Deadline::after(LONG);
    loop {
        if let Some(event) = pty.event().unwrap() {
            return event;
        }
        let left = deadline.remaining().expect("an event in time");
        let timeout = rustix::event::Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: 0 };
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(pty.as_fd(), rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&timeout)).unwrap();
    }
}

/// What was meant for another program before does not come.
#[track_caller]
fn assert_reads_only_what_is_new(pty: &mut Pty, program: &mut File) {
    pty.write(b"new").unwrap();
    let mut read = [0; 64];
    let length = program.read(&mut read).unwrap();
    assert_eq!(&read[..length], b"new");
}

#[test]
fn open_gives_a_terminal_that_nobody_has() {
    let mut pty = Pty::open().unwrap();

    assert_eq!(pty.event().unwrap(), None);
    assert!(!pty.is_open());
    assert!(pty.path().starts_with("/dev/pts"));
}

#[test]
fn written_bytes_come_unchanged_both_ways() {
    let mut pty = Pty::open().unwrap();
    let mut program = program(&pty);
    // everything that a terminal which is not raw would change or swallow
    let bytes: Vec<u8> = (0..=255).collect();

    program.write_all(&bytes).unwrap();
    assert_eq!(wait_for_event(&mut pty), PtyEvent::Opened(RAW_9600));
    assert_eq!(wait_for_event(&mut pty), PtyEvent::Data(bytes.clone()));
    assert_eq!(pty.write(&bytes).unwrap(), 256);
    let mut read = [0; 256];
    program.read_exact(&mut read).unwrap();

    assert_eq!(read.as_slice(), bytes);
}

#[test]
fn closed_and_opened_again_is_told_and_old_bytes_are_gone() {
    let mut pty = Pty::open().unwrap();
    let first = program(&pty);
    assert!(matches!(wait_for_event(&mut pty), PtyEvent::Opened(_)));
    pty.write(b"for the first one").unwrap();

    drop(first);
    assert_eq!(wait_for_event(&mut pty), PtyEvent::Closed);
    assert_eq!(pty.write(b"for nobody").unwrap(), 10);
    let mut second = program(&pty);
    assert!(matches!(wait_for_event(&mut pty), PtyEvent::Opened(_)));
    assert_reads_only_what_is_new(&mut pty, &mut second);
}

#[test]
fn bytes_written_before_closing_come_before_the_close() {
    let mut pty = Pty::open().unwrap();
    let mut first = program(&pty);

    first.write_all(b"last words").unwrap();
    drop(first);

    // it was open and closed between two looks: what was said then is gone with who said it, or told in order
    let deadline = Deadline::after(LONG);
    let mut told = Vec::new();
    let mut second = program(&pty);
    second.write_all(b"!").unwrap();
    while told.last() != Some(&b'!') {
        assert!(deadline.remaining().is_some(), "{told:?}");
        if let PtyEvent::Data(bytes) = wait_for_event(&mut pty) {
            told.extend(bytes);
        }
    }
    assert_eq!(told, b"last words!");
}

#[test]
fn settings_of_the_program_are_told_once() {
    let mut pty = Pty::open().unwrap();
    let program = program(&pty);
    assert!(matches!(wait_for_event(&mut pty), PtyEvent::Opened(_)));

    let mut termios = tcgetattr(&program).unwrap();
    // a speed without a constant of its own
    termios.set_speed(250_000).unwrap();
    termios.control_modes |= ControlModes::CSTOPB | ControlModes::CRTSCTS;
    tcsetattr(&program, OptionalActions::Now, &termios).unwrap();

    let settings = LineSettings { baud: 250_000, stop_bits: 2, hardware_flow: true, software_flow: false };
    assert_eq!(wait_for_event(&mut pty), PtyEvent::Settings(settings));
    assert_eq!(pty.event().unwrap(), None);
    assert_eq!(pty.settings(), settings);
}

#[test]
fn reader_that_does_not_read_makes_write_short_until_it_does() {
    let mut pty = Pty::open().unwrap();
    let mut program = program(&pty);
    assert!(matches!(wait_for_event(&mut pty), PtyEvent::Opened(_)));
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();

    let first = pty.write(&bytes).unwrap();
    assert!(first < bytes.len(), "{first}");
    let reader = std::thread::spawn(move || {
        let mut read = vec![0; 1_000_000];
        program.read_exact(&mut read).unwrap();
        (program, read)
    });
    let mut written = first;
    while written < bytes.len() {
        assert_eq!(wait_for_event(&mut pty), PtyEvent::Room);
        written += pty.write(&bytes[written..]).unwrap();
    }

    let (_program, read) = reader.join().unwrap();
    assert!(read == bytes);
}

#[test]
fn who_has_just_opened_it_gets_what_comes_before_that_is_told() {
    let mut pty = Pty::open().unwrap();
    let mut program = program(&pty);
    let bytes: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();

    let written = pty.write(&bytes).unwrap();
    assert!((1..bytes.len()).contains(&written), "{written}");
    assert!(matches!(wait_for_event(&mut pty), PtyEvent::Opened(_)));
    let mut read = vec![0; written];
    program.read_exact(&mut read).unwrap();
    assert_eq!(wait_for_event(&mut pty), PtyEvent::Room);

    assert!(read == bytes[..written]);
}

/// More than there is room for, so that something would be left wherever the kernel keeps it.
#[test]
fn bytes_for_one_who_was_gone_before_that_was_told_are_not_the_next_ones() {
    let mut pty = Pty::open().unwrap();
    let first = program(&pty);
    let bytes = [b'x'; 100_000];
    assert!((1..bytes.len()).contains(&pty.write(&bytes).unwrap()));

    drop(first);
    assert_eq!(wait_for_event(&mut pty), PtyEvent::Closed, "who keeps the rest of them is told");
    assert_eq!(pty.event().unwrap(), None);
    assert!(!pty.is_open());
    let mut second = program(&pty);
    assert_eq!(wait_for_event(&mut pty), PtyEvent::Opened(RAW_9600));
    assert_eq!(pty.event().unwrap(), None, "nobody waits for room any more");
    assert_reads_only_what_is_new(&mut pty, &mut second);
}

#[test]
fn who_was_given_nothing_and_is_gone_is_not_told_of() {
    let mut pty = Pty::open().unwrap();
    drop(program(&pty));
    assert_eq!(pty.write(b"for nobody").unwrap(), 10);

    assert_eq!(pty.event().unwrap(), None);
}

#[test]
fn bytes_for_one_whom_a_write_found_gone_are_not_the_next_ones() {
    let mut pty = Pty::open().unwrap();
    let first = program(&pty);
    pty.write(b"for the first one").unwrap();
    drop(first);
    assert_eq!(pty.write(b"for nobody").unwrap(), 10);

    let mut second = program(&pty);
    assert!(matches!(wait_for_event(&mut pty), PtyEvent::Opened(_)));
    assert_reads_only_what_is_new(&mut pty, &mut second);
}

#[test]
fn link_leads_to_the_terminal_until_it_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("serial");
    std::os::unix::fs::symlink("/dev/pts/of-a-killed-driver", &link).unwrap();
    let mut pty = Pty::open().unwrap();

    pty.link(&link).unwrap();
    assert_eq!(std::fs::read_link(&link).unwrap(), pty.path());
    drop(pty);

    assert!(!link.is_symlink());
}

#[test]
fn link_over_a_file_is_refused_and_leaves_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut pty = Pty::open().unwrap();

    let error = pty.link(file.path()).unwrap_err();

    assert!(error.to_string().contains(&*file.path().to_string_lossy()), "{error}");
    assert!(file.path().exists());
}
