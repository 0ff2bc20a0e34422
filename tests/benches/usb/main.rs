//! USB transfers side by side with libusb's asynchronous interface in a minimal C program, and with the kernel's usb-storage.
//! Run by `cargo xtask bench usb`, in the virtual machine, on its USB disk: `usb PEER RESULT [PART]`.
//!
//! Every figure is the median of rounds that alternate between us and the peer. Under emulation a processor is some ten times
//! slower than outside; the ratios are what counts.

mod disk;
mod rows;

use disk::{CONTROLS, Disk};
use rows::{Goal, Measure};

const LIBUSB: &str = "libusb asynchronous, in C";

fn main() {
    // `cargo bench` passes --bench.
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let (Some(peer), Some(result)) = (arguments.next(), arguments.next()) else {
        eprintln!("run by `cargo xtask bench usb`: it needs a disk, the kernel's driver of it, and root");
        return;
    };
    let wanted = arguments.next().unwrap_or_default();
    let disk = Disk::new(peer);
    let read = "sequential read of the image";
    let measures = [
        Measure {
            name: read,
            unit: "MB/s",
            peer: LIBUSB,
            goal: Goal::AtLeast(1.0),
            ours: Box::new(|| disk.read()),
            theirs: Box::new(|| disk.peer_reads()),
        },
        Measure {
            name: read,
            unit: "MB/s",
            peer: "usb-storage, dd bs=1M iflag=direct",
            goal: Goal::AtLeast(0.9),
            ours: Box::new(|| disk.read()),
            theirs: Box::new(|| disk.kernel_reads(true)),
        },
        Measure {
            name: read,
            unit: "MB/s",
            peer: "usb-storage, dd bs=1M, page cache cold",
            goal: Goal::None,
            ours: Box::new(|| disk.read()),
            theirs: Box::new(|| disk.kernel_reads(false)),
        },
        Measure {
            name: "control transfer, 1 in flight",
            unit: "us",
            peer: LIBUSB,
            goal: Goal::More(1.0),
            ours: Box::new(|| disk.controls(1)),
            theirs: Box::new(|| disk.peer_controls(1)),
        },
        Measure {
            name: "control transfer, 64 in flight",
            unit: "us",
            peer: LIBUSB,
            goal: Goal::More(1.0),
            ours: Box::new(|| disk.controls(64)),
            theirs: Box::new(|| disk.peer_controls(64)),
        },
    ];
    println!("{CONTROLS} control transfers a round, {} MiB a read", disk::BYTES >> 20);
    let mut rows = Vec::new();
    for measure in measures.into_iter().filter(|measure| measure.name.contains(&wanted)) {
        let row = measure.run();
        println!("{row}");
        rows.push(row);
    }
    rows::write(&rows, &result);
}
