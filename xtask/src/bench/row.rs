//! One line of a benchmark: figures of ours, beside a peer's where there is one; as text and as JSON.

use super::plot;
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
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    plot::write(&folder, name, &rows.iter().map(Row::json).collect::<Vec<_>>())
}
