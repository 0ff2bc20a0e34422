//! USB transfers side by side with libusb's asynchronous interface in a minimal C program, and with the kernel's usb-storage.
//!
//! Run by `cargo xtask bench usb`: `usb disk PEER RESULT [PART]` in the virtual machine, on its USB disk, and `usb node PEER RESULT
//! [PART]` outside, on a node whose transfers do nothing.
//!
//! Every figure is the median of rounds that alternate between us and the peer. Under emulation a processor is some ten times
//! slower than outside; the ratios are what counts there.

mod controls;
mod disk;
mod node;
mod rows;

use disk::{CONTROLS, Disk};
use node::{Node, TRANSFERS};
use rows::{Goal, Measure};

const LIBUSB: &str = "libusb asynchronous, in C";
const WITHOUT: &str = "the same, without deadlines";

fn main() {
    // `cargo bench` passes --bench.
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let (Some(place), Some(peer), Some(result)) = (arguments.next(), arguments.next(), arguments.next()) else {
        eprintln!("run by `cargo xtask bench usb`");
        return;
    };
    let wanted = arguments.next().unwrap_or_default();
    if place == "node" {
        println!("{TRANSFERS} transfers a round that do nothing");
        let node = Node::new(peer);
        rows::run(on_node(&node), &wanted, &result);
    } else {
        let disk = Disk::new(peer);
        println!(
            "{} MiB a read, in commands of 1 MiB (the kernel: of at most {} KiB); {CONTROLS} control transfers a round",
            disk::BYTES >> 20,
            disk.kernel_kib()
        );
        rows::run(on_disk(&disk), &wanted, &result);
    }
}

fn on_node(node: &Node) -> Vec<Measure<'_>> {
    let row = |name, in_flight, deadlines| Measure {
        name,
        unit: "ns",
        peer: if deadlines { LIBUSB } else { WITHOUT },
        goal: Goal::More(1000.0),
        ours: Box::new(move || node.transfers(in_flight)),
        theirs: Box::new(move || node.peer_transfers(in_flight, deadlines)),
    };
    vec![
        row("empty transfer, 1 in flight", 1, true),
        row("empty transfer, 1 in flight", 1, false),
        row("empty transfer, 64 in flight", 64, true),
        row("empty transfer, 64 in flight", 64, false),
    ]
}

fn on_disk<'a>(disk: &'a Disk) -> Vec<Measure<'a>> {
    let read = |peer, goal, theirs: Box<dyn FnMut() -> f64 + 'a>| Measure {
        name: "sequential read of the image",
        unit: "MB/s",
        peer,
        goal,
        ours: Box::new(|| disk.read()),
        theirs,
    };
    let control = |name, in_flight| Measure {
        name,
        unit: "us",
        peer: LIBUSB,
        goal: Goal::More(1.0),
        ours: Box::new(move || disk.controls(in_flight)),
        theirs: Box::new(move || disk.peer_controls(in_flight, true)),
    };
    vec![
        read(LIBUSB, Goal::AtLeast(1.0), Box::new(|| disk.peer_reads(false))),
        read("the same, into mapped memory", Goal::AtLeast(1.0), Box::new(|| disk.peer_reads(true))),
        read("usb-storage, dd bs=1M iflag=direct", Goal::AtLeast(0.9), Box::new(|| disk.kernel_reads(true))),
        read("usb-storage, dd bs=1M, page cache cold", Goal::None, Box::new(|| disk.kernel_reads(false))),
        control("control transfer, 1 in flight", 1),
        control("control transfer, 64 in flight", 64),
    ]
}
