//! `cargo xtask bench nvme`: the driver beside the kernel's with fio, on the same device in the virtual machine, and the driver on
//! the model, without the machine and without a peer.

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
/// Of linear growth, until the machine's processors are used up.
const GROWTH: f64 = 0.85;
const PROCESSORS: u32 = 2;

/// Figures by measure and by whose they are.
type Figures = BTreeMap<(String, String), Vec<f64>>;

pub(super) fn run(part: Option<&str>) -> Result<()> {
    crate::succeed(crate::cargo().args(["build", "--quiet", "--release", "--locked", "-p", "udrv-cli"]))?;
    let udrv = vm::target_dir(&vm::repo_root())?.join("release/udrv");
    let mut figures = on_the_model(&udrv)?;
    let udrv = udrv.to_string_lossy().into_owned();
    let words = ["tests/benches/nvme.sh", &udrv, &ROUNDS.to_string(), SECONDS].map(str::to_owned);
    let said = vm::capture(&words, LIMIT)?;
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
    rows.iter().for_each(Row::print);
    let folder = vm::target_dir(&vm::repo_root())?.join("bench");
    let text = serde_json::to_string_pretty(&rows.iter().map(Row::json).collect::<Vec<_>>())?;
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(folder.join("nvme.json"), text))
        .context("writing nvme.json")
}

/// The driver and the model in one process, where a doorbell is a call: the model's own time is most of it.
fn on_the_model(udrv: &Path) -> Result<Figures> {
    let mut figures = Figures::new();
    for _ in 0..ROUNDS {
        for (measure, wait, depth) in [
            ("model-qd1-polled", "polled", "1"),
            ("model-qd32-polled", "polled", "32"),
            ("model-qd1-interrupt", "interrupt", "1"),
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

struct Row {
    measure: String,
    peer: String,
    ours: Vec<f64>,
    theirs: Option<f64>,
    goal: Option<f64>,
}

fn sorted(figures: &Figures, measure: &str, who: &str) -> Option<Vec<f64>> {
    let mut sorted = figures.get(&(measure.to_owned(), who.to_owned()))?.clone();
    sorted.sort_by(f64::total_cmp);
    Some(sorted)
}

fn median(sorted: &[f64]) -> Option<f64> {
    sorted.get(sorted.len() / 2).copied()
}

fn rows(figures: &Figures) -> Vec<Row> {
    let mut rows = Vec::new();
    for (measure, peer, goal) in BESIDE_FIO {
        let Some(ours) = sorted(figures, measure, "ours") else { continue };
        let theirs = sorted(figures, measure, "theirs").as_deref().and_then(median);
        rows.push(Row { measure: measure.into(), peer: peer.into(), ours, theirs, goal: theirs.map(|_| goal) });
    }
    let one = sorted(figures, "growth-1", "ours").as_deref().and_then(median);
    for queues in [2u32, 4, 8] {
        let measure = format!("growth-{queues}");
        let (Some(ours), Some(one)) = (sorted(figures, &measure, "ours"), one) else { continue };
        let (theirs, peer) = (Some(one * f64::from(queues)), format!("{queues} times one queue pair"));
        rows.push(Row { measure, peer, ours, theirs, goal: (queues <= PROCESSORS).then_some(GROWTH) });
    }
    for measure in ["model-qd1-polled", "model-qd32-polled", "model-qd1-interrupt"] {
        let Some(ours) = sorted(figures, measure, "ours") else { continue };
        rows.push(Row { measure: measure.into(), peer: "none".into(), ours, theirs: None, goal: None });
    }
    rows
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        Some(median(&self.ours)? / self.theirs?)
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "measure": self.measure, "ours": median(&self.ours), "unit": "transfers/s", "peer": self.peer, "theirs": self.theirs,
            "ratio": self.ratio(), "bound": "min", "goal": self.goal,
            "ours_min": self.ours.first(), "ours_max": self.ours.last(),
        })
    }

    fn print(&self) {
        let verdict = match (self.ratio(), self.goal) {
            (Some(ratio), Some(goal)) if ratio >= goal => format!("ratio {ratio:.3}, goal {goal}: reached"),
            (Some(ratio), Some(goal)) => format!("ratio {ratio:.3}, goal {goal}: MISSED"),
            _ => String::new(),
        };
        let ours = median(&self.ours).unwrap_or_default();
        let theirs = self.theirs.map_or_else(String::new, |theirs| format!("{theirs:.0}"));
        println!("{:<26} {ours:>9.0}/s  {:<42} {theirs:>9}  {verdict}", self.measure, self.peer);
    }
}
