//! A sink takes its signal at once, whatever the owner of the trigger does.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;
use udrv_signal::{MOST, Sink};

/// One whose writes wait when it is full.
fn blocking() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("an eventfd")
}

/// Signals on a thread of its own, which must be done soon.
fn signal(sink: Sink, count: u64) {
    let (done, signalled) = mpsc::channel();
    std::thread::spawn(move || {
        sink.signal(count);
        _ = done.send(());
    });
    assert_eq!(signalled.recv_timeout(Duration::from_secs(10)), Ok(()), "it waits");
}

#[test]
fn full_blocking_eventfd_is_signalled_by_the_kernel_without_waiting() {
    let event = blocking();
    event.write(u64::MAX - 1).expect("as much as a write gets in");

    signal(Sink::new(event.as_fd()).expect("a sink"), 1);

    // One more than any write could: nobody had to look for room, and so nobody can fill it between look and write.
    assert_eq!(event.read(), Ok(u64::MAX));
}

#[test]
fn more_signals_than_the_kernel_keeps_results_for_are_all_counted() {
    let event = blocking();
    let sink = Sink::new(event.as_fd()).expect("a sink");
    assert!((0..20_000).all(|_| sink.signal(1)));
    assert_eq!(event.read(), Ok(20_000));
    sink.signal(300);
    assert_eq!(event.read(), Ok(300));
    sink.signal(u64::MAX);
    assert_eq!(event.read(), Ok(MOST));
}

#[test]
fn full_socket_and_pipe_take_no_more_and_keep_nobody_waiting() {
    let (mut ours, theirs) = UnixStream::pair().expect("a socketpair");
    let sink = Sink::new(theirs.as_fd()).expect("a sink");
    assert!((0..1 << 16).any(|_| !sink.signal(1)), "it never was full");
    let mut bytes = [0; 8];
    ours.read_exact(&mut bytes).expect("the first");
    assert_eq!(u64::from_ne_bytes(bytes), 1);
    let (read, write) = std::io::pipe().expect("a pipe");
    let sink = Sink::new(write.as_fd()).expect("a sink");
    assert!((0..1 << 16).any(|_| !sink.signal(1)), "it never was full");
    // And one that is closed is nobody's error.
    drop(read);
    assert!(sink.signal(1));
}

#[test]
fn pipe_of_the_client_keeps_its_own_flags() {
    let (_read, write) = std::io::pipe().expect("a pipe");
    let _sink = Sink::new(write.as_fd()).expect("a sink");
    assert_eq!(fcntl(&write, FcntlArg::F_GETFL).expect("flags") & OFlag::O_NONBLOCK.bits(), 0);
}
