//! What `--rt` comes to on a busy machine: `cargo xtask bench rt`.
//!
//! The same work with and without it, by turns, each time in a process of its own: a timer of the domain expires every
//! millisecond, and the driver opens a section of 50 microseconds after each, while twice as many threads as there are
//! processors compute. Measured are the time from the expiry to its handler, and how long interrupts were off. A table, and
//! `target/bench/rt.json`.

use anyhow::{Context as _, Result, bail, ensure};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use udrv::clock::{self, Deadline};
use udrv::irq::{Delivery, IrqDomain};
use udrv::rt::{self, Processors};

const ROUNDS: usize = 5;
const SAMPLES: usize = 400;
const PERIOD: Duration = Duration::from_millis(1);
const SECTION: Duration = Duration::from_micros(50);

/// What is measured, in its order in a child's output, and the ratio to reach where real time is to help.
const MEASURES: [(&str, &str, Option<f64>); 5] = [
    ("expiry to handler, p50", "us", None),
    ("expiry to handler, p99", "us", Some(0.5)),
    ("expiry to handler, longest", "us", Some(1.0)),
    ("interrupts off, longest", "us", None),
    ("sections the host took the processor from", "of 400", Some(1.0)),
];

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        None => compare(),
        Some("plain") => measure(false),
        Some("rt") => measure(true),
        Some(other) => bail!("`{other}`: expected nothing, plain or rt"),
    }
}

/// Prints its figures on one line, and the irqsoff histogram on those that follow.
fn measure(real_time: bool) -> Result<()> {
    ensure!(udrv::irq::are_checked(), "this build does not look at sections: UDRV_CHECKS=0, or a release build");
    let processors = std::thread::available_parallelism()?.get();
    // Before it is real time, so that these are not.
    for _ in 0..2 * processors {
        std::thread::spawn(|| {
            loop {
                std::hint::spin_loop();
            }
        });
    }
    if real_time {
        rt::enter(&Processors::default())?;
    }
    let domain = IrqDomain::new(Delivery::Thread)?;
    let begin = clock::now();
    let now = move || begin.elapsed().as_nanos() as u64;
    let (due, late) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let timer = {
        let (due, late) = (Arc::clone(&due), Arc::clone(&late));
        domain.timer(move |_| late.store(now().saturating_sub(due.load(Ordering::SeqCst)).max(1), Ordering::SeqCst))?
    };
    let mut latencies = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        late.store(0, Ordering::SeqCst);
        due.store(now() + PERIOD.as_nanos() as u64, Ordering::SeqCst);
        timer.arm(PERIOD)?;
        domain.wait("the timer", Deadline::after(Duration::from_secs(10)), || late.load(Ordering::SeqCst) != 0)?;
        latencies.push(late.load(Ordering::SeqCst));
        domain.off(|_| {
            let end = now() + SECTION.as_nanos() as u64;
            while now() < end {
                std::hint::spin_loop();
            }
        });
    }
    latencies.sort_unstable();
    let at = |percent: usize| latencies.get((SAMPLES - 1) * percent / 100).map_or(0.0, |ns| *ns as f64 / 1e3);
    let off = domain.irqs_off();
    let longest = off.places.first().map_or(0.0, |place| place.longest.as_secs_f64() * 1e6);
    let preempted: u64 = off.places.iter().map(|place| place.preempted).sum();
    println!("{} {} {} {longest} {preempted}", at(50), at(99), at(100));
    println!("{off}");
    Ok(())
}

fn run_child(kind: &str) -> Result<([f64; MEASURES.len()], String)> {
    let output = Command::new(std::env::current_exe()?).arg(kind).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{kind}: {}", String::from_utf8_lossy(&output.stderr).trim());
    let (figures, histogram) = said.split_once('\n').context("no output")?;
    let figures: Result<Vec<f64>, _> = figures.split(' ').map(str::parse).collect();
    let figures = figures?.try_into().ok().context("not as many figures as measures")?;
    Ok((figures, histogram.to_owned()))
}

fn compare() -> Result<()> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let mut histograms = [String::new(), String::new()];
    for _ in 0..ROUNDS {
        for (kind, rounds, last) in [("plain", &mut without, 0), ("rt", &mut with, 1)] {
            let (figures, histogram) = run_child(kind)?;
            rounds.push(figures);
            histograms[last] = histogram;
        }
    }
    let column = |rounds: &[[f64; MEASURES.len()]], index: usize| {
        let mut column: Vec<f64> = rounds.iter().map(|figures| figures[index]).collect();
        column.sort_by(f64::total_cmp);
        column
    };
    let mut rows = Vec::new();
    for (index, (measure, unit, goal)) in MEASURES.into_iter().enumerate() {
        let (ours, theirs) = (column(&with, index), column(&without, index));
        let (median, peer) = (ours[ROUNDS / 2], theirs[ROUNDS / 2]);
        let ratio = if peer > 0.0 { median / peer } else { 1.0 };
        println!("{measure:<44} --rt {median:>10.1} {unit:<7} without {peer:>10.1}  ratio {ratio:.3}");
        rows.push(serde_json::json!({
            "measure": measure, "ours": median, "unit": unit, "peer": "without --rt", "theirs": peer, "ratio": ratio,
            "bound": "max", "goal": goal, "ours_min": ours[0], "ours_max": ours[ROUNDS - 1],
        }));
    }
    println!("\nirqsoff without --rt, last round\n{}\nwith --rt\n{}", histograms[0], histograms[1]);
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")), PathBuf::from);
    let folder = target.join("bench");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("rt.json"), serde_json::to_string_pretty(&rows)?)?;
    Ok(())
}
