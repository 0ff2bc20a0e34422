//! `cargo xtask bench nvme`: the driver beside the kernel's with fio, on the same device in the virtual machine; the driver on the
//! model, without the machine and without a peer; and how many instructions it takes.

use super::row::{Bound, Peer, Row, write};
use crate::vm;
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Alternating rounds.
const ROUNDS: usize = 5;
/// Of each measurement.
const SECONDS: &str = "2";
/// For boot and all rounds, on a machine that does other things too.
const LIMIT: Duration = Duration::from_secs(2400);

/// Measures that have a peer, what the peer is, and the least ratio to it.
const BESIDE_FIO: [(&str, &str, f64); 6] = [
    ("randread-qd1-interrupt", "kernel nvme, fio io_uring", 1.2),
    ("randread-qd1-polled", "kernel nvme polled, fio io_uring --hipri", 1.2),
    ("randread-qd32-interrupt", "kernel nvme, fio io_uring", 1.2),
    ("randread-qd32-polled", "kernel nvme polled, fio io_uring --hipri", 1.2),
    ("read-128k", "kernel nvme, fio io_uring", 1.0),
    ("write-128k", "kernel nvme, fio io_uring", 1.0),
];

/// A second namespace, on nothing, whose reads take as long as a disk's: one queue pair with one command at a time is then
/// bound by the device, and what several do together by the processors.
const SLOW_NAMESPACE: [&str; 4] = [
    "-blockdev",
    "driver=null-co,node-name=slow,size=268435456,latency-ns=4000000,read-zeroes=on",
    "-device",
    "nvme-ns,drive=slow,bus=nvme,nsid=2",
];
/// Queue pairs, and whether they are held to linear growth. The machine's two processors, and the two of the host that emulate
/// them and the controller, are used up by the last.
const QUEUES: [(u32, bool); 5] = [(1, false), (2, true), (4, true), (8, true), (32, false)];
/// Of linear growth.
const GROWTH: f64 = 0.85;

/// Instructions of a polled read in the driver, and in others, counted in the same way (docs/devices/nvme.md).
const INSTRUCTIONS: &str = "instructions-4k-read-polled";
const COUNTED: [(&str, f64); 2] = [("SPDK 3230130e6a, as counted", 788.0), ("vroom 7af4119, as counted", 134.0)];

/// Figures by measure and by whose they are.
type Figures = BTreeMap<(String, String), Vec<f64>>;

pub(super) fn run(part: Option<&str>) -> Result<()> {
    crate::succeed(crate::cargo().args([
        "build",
        "--quiet",
        "--release",
        "--locked",
        "-p",
        "udrv-cli",
        "-p",
        "udrv-tests",
    ]))?;
    let release = vm::target_dir(&vm::repo_root())?.join("release");
    let mut figures = on_the_model(&release.join("udrv"))?;
    match instructions(&release.join("nvme-instructions")) {
        Ok(count) => drop(figures.insert((INSTRUCTIONS.into(), "ours".into()), vec![count])),
        Err(error) => println!("{INSTRUCTIONS} is left out: {error:#}"),
    }
    let udrv = release.join("udrv").to_string_lossy().into_owned();
    let words = ["tests/benches/nvme.sh", &udrv, &ROUNDS.to_string(), SECONDS].map(str::to_owned);
    let said = vm::capture(&words, &SLOW_NAMESPACE, LIMIT)?;
    for line in said.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [measure, who @ ("ours" | "theirs"), figure] = words.as_slice() {
            let figure = figure.parse().with_context(|| format!("the figure in {line:?}"))?;
            figures.entry(((*measure).to_owned(), (*who).to_owned())).or_default().push(figure);
        }
    }
    let rows: Vec<Row> =
        rows(&figures).into_iter().filter(|row| part.is_none_or(|part| row.measure.contains(part))).collect();
    if rows.is_empty() {
        bail!("nothing was measured; the machine said:\n{said}");
    }
    rows.iter().for_each(|row| println!("{row}"));
    write("nvme", &rows)
}

/// The driver and the model in one process, where a doorbell is a call: the model's own time is most of it.
fn on_the_model(udrv: &Path) -> Result<Figures> {
    let mut figures = Figures::new();
    for _ in 0..ROUNDS {
        for (measure, wait, depth) in [
            ("model-qd1-polled", "polled", "1"),
            ("model-qd32-polled", "polled", "32"),
            ("model-qd1-interrupt", "interrupt", "1"),
            ("model-qd32-interrupt", "interrupt", "32"),
        ] {
            let mut command = Command::new(udrv);
            command.args(["run", "nvme", "--device", "model:nvme", "--wait", wait]);
            command.args(["bench", "--seconds", "0.5", "--depth", depth]);
            let said = vm::output_of(&mut command)?;
            let figure = said.split_whitespace().next().and_then(|word| word.parse().ok());
            let figure = figure.with_context(|| format!("no figure in {said:?}"))?;
            figures.entry((measure.into(), "ours".into())).or_default().push(figure);
        }
    }
    Ok(figures)
}

/// Of one read, by callgrind: what many take more than few.
fn instructions(program: &Path) -> Result<f64> {
    const FEW: f64 = 1_000.0;
    const MANY: f64 = 11_000.0;
    vm::install_missing(&[("valgrind", "valgrind")])?;
    let counted = |reads: f64| -> Result<f64> {
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*counted_*"]);
        let out = valgrind.arg(program).arg(reads.to_string()).output().context("cannot start valgrind")?;
        let said = String::from_utf8_lossy(&out.stderr);
        let count = said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
        count.with_context(|| format!("valgrind says no count: {said}"))
    };
    Ok((counted(MANY)? - counted(FEW)?) / (MANY - FEW))
}

fn sorted(figures: &Figures, measure: &str, who: &str) -> Option<Vec<f64>> {
    let mut sorted = figures.get(&(measure.to_owned(), who.to_owned()))?.clone();
    sorted.sort_by(f64::total_cmp);
    Some(sorted)
}

fn rows(figures: &Figures) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |measure: &str, from: &str, peer: Option<Peer>, goal: Option<f64>| {
        let Some(ours) = sorted(figures, from, "ours") else { return };
        rows.push(Row { measure: measure.into(), unit: "transfers/s", ours, peer, bound: Bound::AtLeast, goal });
    };
    let beside = |measure: &str, name: &str| {
        sorted(figures, measure, "theirs").map(|figures| Peer { name: name.into(), figures })
    };
    for (measure, name, goal) in BESIDE_FIO {
        let peer = beside(measure, name);
        let goal = peer.as_ref().map(|_| goal);
        row(measure, measure, peer, goal);
    }
    for (queues, is_held) in QUEUES {
        let measure = format!("growth-{queues}");
        row(&measure, &measure, beside(&measure, &format!("kernel nvme, fio, {queues} jobs")), None);
        let one = sorted(figures, "growth-1", "ours").filter(|_| queues > 1);
        let linear = one.map(|one| Peer {
            name: format!("{queues} times one queue pair"),
            figures: one.iter().map(|figure| figure * f64::from(queues)).collect(),
        });
        if linear.is_some() {
            row(&format!("{measure}-linear"), &measure, linear, is_held.then_some(GROWTH));
        }
    }
    for measure in ["model-qd1-polled", "model-qd32-polled", "model-qd1-interrupt", "model-qd32-interrupt"] {
        row(measure, measure, None, None);
    }
    if let Some(ours) = sorted(figures, INSTRUCTIONS, "ours") {
        for (name, theirs) in COUNTED {
            let peer = Some(Peer { name: name.into(), figures: vec![theirs] });
            let (measure, ours) = (INSTRUCTIONS.to_owned(), ours.clone());
            rows.push(Row { measure, unit: "instructions", ours, peer, bound: Bound::AtMost, goal: Some(1.0) });
        }
    }
    rows
}
