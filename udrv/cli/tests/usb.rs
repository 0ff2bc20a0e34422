//! `udrv run usb-serial` and `udrv run usb-audio`, on the models.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

fn udrv(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_udrv"));
    command.arg("run").args(arguments);
    command
}

fn done(arguments: &[&str]) -> String {
    let output = udrv(arguments).output().expect("udrv starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).into_owned() + &said
}

#[track_caller]
fn refused(arguments: &[&str], words: &[&str]) {
    let output = udrv(arguments).output().expect("udrv starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments:?}");
    for word in words {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A serial driver under way.
struct Serial(Child);

impl Serial {
    /// Started, and its terminal.
    fn start(arguments: &[&str]) -> (Self, String) {
        let mut command = udrv(&["usb-serial"]);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("udrv starts");
        let mut terminal = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut terminal).unwrap();
        (Self(child), terminal.trim().to_owned())
    }

    fn end(mut self, signal: Signal) -> Output {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
        let mut stderr = Vec::new();
        self.0.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
        Output { status: self.0.wait().unwrap(), stdout: Vec::new(), stderr }
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Sends bytes to a terminal that sends them back.
fn echo(terminal: &str, length: usize) {
    let mut program = File::options().read(true).write(true).open(terminal).unwrap();
    let bytes: Vec<u8> = (0..length).map(|at| ((at as u32 + 1).wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut writer = program.try_clone().unwrap();
    let sent = bytes.clone();
    let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut read = vec![0; length];
    program.read_exact(&mut read).unwrap();
    writing.join().unwrap();
    assert!(read == bytes, "the echo differs");
}

#[test]
fn serial_terminal_echoes_closed_and_opened_again_until_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("serial");
    for (model, signal) in [("model:ftdi", Signal::SIGTERM), ("model:cdc-acm", Signal::SIGINT)] {
        let (serial, terminal) = Serial::start(&["--device", model, "--link", text(&link)]);
        assert_eq!(std::fs::read_link(&link).unwrap(), Path::new(&terminal));

        echo(&terminal, 200_000);
        echo(text(&link), 1000);

        let ended = serial.end(signal);
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.success(), "{model}: {said}");
        assert!(said.contains("201000 bytes received, 201000 sent; 0 overruns"), "{model}: {said}");
        assert!(!link.is_symlink(), "{model} leaves its link");
    }
}

#[test]
fn serial_sigusr1_sends_a_break_and_the_port_works_on() {
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("break.pcapng");
    // SEND_BREAK until it is taken back (PSTN, 6.3.13); SET_DATA with 8 bits and bit 14, then without
    for (model, begin, end) in [
        ("model:cdc-acm", [0x21, 0x23, 0xff, 0xff, 0, 0, 0, 0], [0x21, 0x23, 0, 0, 0, 0, 0, 0]),
        ("model:ftdi", [0x40, 4, 0x08, 0x40, 0, 0, 0, 0], [0x40, 4, 0x08, 0x00, 0, 0, 0, 0]),
    ] {
        let (mut serial, terminal) = Serial::start(&["--device", model, "--record", text(&record)]);

        kill(Pid::from_raw(serial.0.id().cast_signed()), Signal::SIGUSR1).unwrap();
        let mut said = BufReader::new(serial.0.stderr.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("break") {
            line.clear();
            assert_ne!(said.read_line(&mut line).unwrap(), 0, "{model} ended");
        }
        echo(&terminal, 1000);

        serial.0.stderr = Some(said.into_inner());
        assert!(serial.end(Signal::SIGTERM).status.success());
        let recorded = std::fs::read(&record).unwrap();
        let at = |request: [u8; 8], from: usize| {
            recorded[from..].windows(8).position(|bytes| bytes == request).map(|at| from + at)
        };
        let began = at(begin, 0).unwrap_or_else(|| panic!("{model} has no break"));
        assert!(at(end, began).is_some(), "{model} stays in its break");
    }
}

#[test]
fn serial_device_that_goes_ends_the_driver_with_the_reason() {
    let (mut serial, terminal) = Serial::start(&["--device", "model:cdc-acm", "--faults", "0x02@1=unplug"]);

    let mut program = File::options().read(true).write(true).open(&terminal).unwrap();
    program.write_all(b"x").unwrap();

    let status = serial.0.wait().unwrap();
    let mut said = String::new();
    serial.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("gone"), "{said}");
}

#[test]
fn serial_arguments_that_cannot_be_are_refused() {
    refused(&["usb-serial", "--device", "model:cdc-acm", "--format", "9N1"], &["9N1", "8N1"]);
    refused(&["usb-serial", "--device", "model:usb-storage"], &["model:usb-storage", "CDC-ACM"]);
    refused(&["usb-serial", "--device", "model:ftdi", "--link", "/dev/null"], &["/dev/null"]);
    refused(&["usb-serial", "--device", "model:nothing"], &["nothing", "model:ftdi"]);
}

#[test]
fn audio_tone_is_played_to_its_end() {
    let said = done(&["usb-audio", "--device", "model:usb-audio", "tone", "--seconds", "0.25", "--rate", "44100"]);

    assert!(said.contains("played 11025 frames at 44100 Hz: 0 underruns, 0 packets lost"), "{said}");
}

#[test]
fn audio_captured_file_has_what_the_device_heard() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("heard.wav");

    done(&["usb-audio", "--device", "model:usb-audio", "capture", "--seconds", "0.5", text(&file)]);

    let bytes = std::fs::read(&file).unwrap();
    // RIFF, 1 channel, 48000 Hz, 16 bits; then the samples, counted up
    assert_eq!(
        (&bytes[..4], &bytes[22..28], &bytes[34..36]),
        (b"RIFF".as_slice(), [1, 0, 0x80, 0xbb, 0, 0].as_slice(), [16, 0].as_slice())
    );
    let expected: Vec<u8> = (0..24_000_u16).flat_map(u16::to_le_bytes).collect();
    assert!(bytes[44..] == expected);
}

#[test]
fn audio_captured_file_is_played() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("heard.wav");
    done(&["usb-audio", "--device", "model:usb-audio", "capture", "--seconds", "0.5", text(&file)]);

    // one channel, on a device with two
    let said = done(&["usb-audio", "--device", "model:usb-audio", "play", "--volume", "max", text(&file)]);

    assert!(said.contains("played 24000 frames at 48000 Hz: 0 underruns"), "{said}");
}

#[test]
fn audio_arguments_that_cannot_be_are_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let device = ["usb-audio", "--device", "model:usb-audio"];
    let with = |work: &[&str], words: &[&str]| refused(&[device.as_slice(), work].concat(), words);

    with(&["tone", "--rate", "8000"], &["8000", "44100, 48000"]);
    with(&["tone", "--seconds", "0"], &["hour"]);
    with(&["tone", "--volume", "loud"], &["max"]);
    with(&["play", text(file.path())], &[text(file.path()), "WAV"]);
    with(&["play", "/nonexistent.wav"], &["/nonexistent.wav"]);
    with(&["capture", "/nonexistent/heard.wav"], &["/nonexistent/heard.wav"]);
    refused(&["usb-audio", "--device", "model:ftdi", "info"], &["model:ftdi", "PCM"]);
}
