//! One line of a benchmark: figures of ours, beside a peer's where there is one; as text, as JSON, as a plot.

use crate::vm;
use anyhow::{Context as _, Result};
use std::fmt;

/// Which way the ratio is held to its goal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    AtLeast,
    AtMost,
}

/// Whose figures ours are held against.
pub(super) struct Peer {
    pub(super) name: String,
    /// Ascending.
    pub(super) figures: Vec<f64>,
}

pub(super) struct Row {
    pub(super) measure: String,
    pub(super) unit: &'static str,
    /// Ascending.
    pub(super) ours: Vec<f64>,
    pub(super) peer: Option<Peer>,
    pub(super) bound: Bound,
    /// Of the ratio of the medians.
    pub(super) goal: Option<f64>,
}

fn median(ascending: &[f64]) -> Option<f64> {
    ascending.get(ascending.len() / 2).copied()
}

impl Row {
    fn theirs(&self) -> &[f64] {
        self.peer.as_ref().map_or(&[], |peer| &peer.figures)
    }

    fn ratio(&self) -> Option<f64> {
        Some(median(&self.ours)? / median(self.theirs())?)
    }

    fn is_reached(&self) -> Option<bool> {
        let (ratio, goal) = (self.ratio()?, self.goal?);
        Some(if self.bound == Bound::AtLeast { ratio >= goal } else { ratio <= goal })
    }

    fn json(&self) -> serde_json::Value {
        let bound = if self.bound == Bound::AtLeast { "min" } else { "max" };
        let theirs = self.theirs();
        serde_json::json!({
            "measure": self.measure, "ours": median(&self.ours), "unit": self.unit,
            "peer": self.peer.as_ref().map_or("none", |peer| &peer.name), "theirs": median(theirs),
            "ratio": self.ratio(), "bound": bound, "goal": self.goal,
            "ours_min": self.ours.first(), "ours_max": self.ours.last(),
            "theirs_min": theirs.first(), "theirs_max": theirs.last(), "rounds": self.ours.len(),
        })
    }
}

/// The median, and in brackets the lowest and highest.
fn spread(ascending: &[f64]) -> String {
    match (median(ascending), ascending) {
        (Some(median), [only]) if *only == median => format!("{median:.0}"),
        (Some(median), [lowest, .., highest]) => format!("{median:.0} [{lowest:.0}..{highest:.0}]"),
        _ => String::new(),
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ours, theirs) = (spread(&self.ours), spread(self.theirs()));
        let peer = self.peer.as_ref().map_or("", |peer| &peer.name);
        write!(f, "{:<28} {ours:>24} {:<13} {peer:<42} {theirs:>24}", self.measure, self.unit)?;
        if let Some(ratio) = self.ratio() {
            write!(f, "  ratio {ratio:.3}")?;
        }
        match (self.is_reached(), self.goal) {
            (Some(reached), Some(goal)) => write!(f, ", goal {goal}: {}", if reached { "reached" } else { "MISSED" }),
            _ => Ok(()),
        }
    }
}

/// Writes `target/bench/NAME.json` and `NAME.svg`.
pub(super) fn write(name: &str, rows: &[Row]) -> Result<()> {
    let folder = vm::target_dir(&vm::repo_root())?.join("bench");
    let text = serde_json::to_string_pretty(&rows.iter().map(Row::json).collect::<Vec<_>>())?;
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(folder.join(format!("{name}.json")), text))
        .and_then(|()| std::fs::write(folder.join(format!("{name}.svg")), plot(rows)))
        .with_context(|| format!("writing into {}", folder.display()))?;
    println!("written: {}/{name}.json and {name}.svg", folder.display());
    Ok(())
}

/// Bars of the ratios on a logarithmic scale from 0.1 to 20, with a mark where the goal is. What has no peer is not in it.
fn plot(rows: &[Row]) -> String {
    const LEFT: f64 = 520.0;
    const WIDTH: f64 = 400.0;
    const SCALE: (f64, f64) = (0.1, 20.0);
    let at = |ratio: f64| LEFT + WIDTH * (ratio.clamp(SCALE.0, SCALE.1) / SCALE.0).ln() / (SCALE.1 / SCALE.0).ln();
    let rows: Vec<(&Row, f64)> = rows.iter().filter_map(|row| Some((row, row.ratio()?))).collect();
    let height = 40 + 22 * rows.len();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"980\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut line = |text: String| {
        svg.push_str(&text);
        svg.push('\n');
    };
    for ratio in [0.1, 1.0, 2.0, 5.0, 10.0, 20.0] {
        let x = at(ratio);
        line(format!("<line x1=\"{x}\" x2=\"{x}\" y1=\"20\" y2=\"{height}\" stroke=\"#ccc\"/>"));
        line(format!("<text x=\"{x}\" y=\"14\" text-anchor=\"middle\">{ratio}</text>"));
    }
    for (y, (row, ratio)) in (24..).step_by(22).zip(rows) {
        let colour = if row.is_reached() == Some(false) { "#c33" } else { "#37a" };
        let peer = row.peer.as_ref().map_or("", |peer| &peer.name);
        let label = format!("{} / {peer}", row.measure).replace('&', "&amp;").replace('<', "&lt;");
        let (x, end, base) = (LEFT - 8.0, at(ratio), y + 13);
        line(format!("<text x=\"{x}\" y=\"{base}\" text-anchor=\"end\">{label}</text>"));
        line(format!("<rect x=\"{LEFT}\" y=\"{y}\" width=\"{}\" height=\"16\" fill=\"{colour}\"/>", end - LEFT));
        line(format!("<text x=\"{}\" y=\"{base}\">{ratio:.2}</text>", end + 4.0));
        if let Some(goal) = row.goal {
            let (x, top, bottom) = (at(goal), y - 2, y + 18);
            line(format!(
                "<line x1=\"{x}\" x2=\"{x}\" y1=\"{top}\" y2=\"{bottom}\" stroke=\"black\" stroke-width=\"2\"/>"
            ));
        }
    }
    svg.push_str("</svg>\n");
    svg
}
