//! What the layers above the kernel cost: on descriptor 99, whose transfers end as soon as they are submitted (`node.c`).

use crate::controls;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::process::Command;
use udrv_usb::{Device, host::Host, lease};

/// Transfers in a round.
pub const TRANSFERS: u64 = 100_000;

pub struct Node {
    peer: String,
    device: Device,
}

impl Node {
    pub fn new(peer: String) -> Self {
        let folder = std::env::temp_dir().join(format!("udrv-bench-usb-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let socket = folder.join("stub");
        let listener = UnixListener::bind(&socket).expect("a socket");
        // As a stub would give it. The connection, which is the lease, is kept.
        let stub = std::thread::spawn(move || {
            let (connection, _) = listener.accept().expect("a driver");
            lease::give(&connection, "usb:0-0", node()).expect("given");
            connection
        });
        let device = Host::lease(&socket).expect("the node (node.c has to be preloaded)");
        std::mem::forget(stub.join().expect("no panic"));
        std::fs::remove_dir_all(&folder).expect("removed");
        Self { peer, device }
    }

    /// Nanoseconds of a processor that a transfer takes, `in_flight` at a time: those that other programs take do not count.
    pub fn transfers(&self, in_flight: u64) -> f64 {
        controls::seconds(&self.device, TRANSFERS, in_flight, processor_seconds) * 1e9
    }

    /// As [`Node::transfers`]; `deadlines` if each transfer has one.
    pub fn peer_transfers(&self, in_flight: u64, deadlines: bool) -> f64 {
        let work = if deadlines { "control" } else { "without" };
        let mut peer = Command::new(&self.peer);
        let output = peer.args(["node", work, &TRANSFERS.to_string(), &in_flight.to_string()]).output();
        let output = output.expect("the peer runs");
        let microseconds: f64 = String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("the peer: {}", String::from_utf8_lossy(&output.stderr)));
        microseconds * 1e3
    }
}

/// Seconds of a processor that this process has had.
fn processor_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("its own usage");
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

fn node() -> BorrowedFd<'static> {
    #![expect(unsafe_code, reason = "it is known by its number only")]
    // SAFETY: node.c has opened it before `main`, and nobody closes it.
    unsafe { BorrowedFd::borrow_raw(99) }
}
