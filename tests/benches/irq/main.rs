//! What the interrupt gate costs, side by side with what a driver would otherwise use. Run by `cargo xtask bench irq`.
//!
//! Every figure is the median of rounds that alternate between us and the peer, so that whatever else the machine does
//! falls on both; the ratio is what counts. Written as `target/bench/irq.json` and `irq.svg` beside it.
#![expect(unsafe_code, reason = "the peers are bare system calls, and the allocator counts")]

mod device;
mod latency;
mod report;
mod section;
mod sources;
mod stub;

use report::{Goal, Measure, Round, one};

fn main() {
    if stub::serve_if_asked() {
        return;
    }
    // `cargo bench` passes --bench; anything else is part of the name of what to measure.
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    sources::allow_many_descriptors();
    let mut rows = Vec::new();
    for measure in
        [section::measures(), latency::measures(), stub::measures(), sources::measures()].into_iter().flatten()
    {
        if wanted.as_ref().is_some_and(|part| !measure.name.contains(part)) {
            continue;
        }
        for row in measure.run() {
            println!("{row}");
            rows.push(row);
        }
    }
    report::write("irq", &rows);
}
