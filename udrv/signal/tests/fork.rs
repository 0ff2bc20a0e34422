//! A sink in a child of fork(2), which has the parent's memory and descriptors, and neither its threads nor its aio context.
#![expect(
    unsafe_code,
    reason = "fork(2) is an unsafe call in a process with threads: the child may not allocate or lock"
)]

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::os::fd::AsFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use udrv_backend::clock::Deadline;
use udrv_signal::Sink;

/// Does something in a child, which ends with it.
fn in_a_child(act: impl FnOnce()) -> Pid {
    // SAFETY: the child signals, which neither allocates nor locks, and ends without running anything of the parent's.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let ended = catch_unwind(AssertUnwindSafe(act));
            // SAFETY: nothing runs after it.
            unsafe { libc::_exit(ended.is_err().into()) }
        }
    }
}

#[track_caller]
fn has_ended(child: Pid) {
    let ended = || Ok(waitpid(child, Some(WaitPidFlag::WNOHANG)).expect("a child") == WaitStatus::Exited(child, 0));
    if let Err(error) = Deadline::after(Duration::from_secs(10)).poll("the child's end", ended) {
        kill(child, Signal::SIGKILL).and_then(|()| waitpid(child, None)).expect("killed");
        panic!("{error}");
    }
}

#[test]
fn child_and_its_child_signal_a_full_eventfd_and_so_does_the_parent_afterwards() {
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("an eventfd");
    let sink = Sink::new(event.as_fd()).expect("a sink");
    let fill = || event.write(u64::MAX - 1).expect("as much as a write gets in");
    // The parent has its context from here on.
    sink.signal(1);
    assert_eq!(event.read(), Ok(1));

    fill();
    has_ended(in_a_child(|| _ = sink.signal(1)));
    // One more than any write could: the kernel did it, in the child too.
    assert_eq!(event.read(), Ok(u64::MAX));

    fill();
    let both = || {
        // The child has a context by now.
        sink.signal(0);
        has_ended(in_a_child(|| _ = sink.signal(1)));
    };
    has_ended(in_a_child(both));
    assert_eq!(event.read(), Ok(u64::MAX));

    fill();
    sink.signal(1);
    assert_eq!(event.read(), Ok(u64::MAX));
}

#[test]
fn child_forked_while_other_threads_signal_waits_for_none_of_them() {
    const CHILDREN: u64 = 40;
    let (busy, event) = ([(); 2].map(|()| EventFd::new().expect("one")), EventFd::new().expect("an eventfd"));
    let sink = Sink::new(event.as_fd()).expect("a sink");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for event in &busy {
            let sink = Sink::new(event.as_fd()).expect("a sink");
            scope.spawn({
                let stop = &stop;
                move || {
                    while !stop.load(Ordering::Relaxed) {
                        sink.signal(64);
                    }
                }
            });
        }
        let children = catch_unwind(AssertUnwindSafe(|| {
            (0..CHILDREN).for_each(|_| has_ended(in_a_child(|| _ = sink.signal(1))));
        }));
        stop.store(true, Ordering::Relaxed);
        children.expect("all of them");
    });
    assert_eq!(event.read(), Ok(CHILDREN));
}
