//! Measures, rounds and what is written of them.

use std::fmt::{self, Write as _};
use std::path::PathBuf;

/// Alternating rounds of each measure.
const ROUNDS: usize = 9;

/// What the ratio is held against.
#[derive(Clone, Copy)]
pub enum Goal {
    /// At most this many times the peer's figure.
    Ratio(f64),
    /// At most this figure, whatever the peer's.
    Figure(f64),
    /// For information.
    None,
}

/// What one round gives: a figure for each part of the measure.
pub type Round = Box<dyn FnMut() -> Vec<f64>>;

/// Figures of ours beside a peer's.
pub struct Measure {
    pub name: &'static str,
    /// What each figure is, which is added to the name, and its goal.
    pub parts: &'static [(&'static str, Goal)],
    pub unit: &'static str,
    pub peer: &'static str,
    pub ours: Round,
    pub theirs: Round,
}

/// A round of a measure that has one part.
pub fn one(mut figure: impl FnMut() -> f64 + 'static) -> Round {
    Box::new(move || vec![figure()])
}

pub struct Row {
    measure: String,
    unit: &'static str,
    peer: &'static str,
    goal: Goal,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Measure {
    /// One row a part.
    pub fn run(mut self) -> Vec<Row> {
        let (ours, theirs): (Vec<_>, Vec<_>) = (0..ROUNDS).map(|_| ((self.ours)(), (self.theirs)())).unzip();
        let sorted = |rounds: &[Vec<f64>], part: usize| {
            let mut figures: Vec<f64> = rounds.iter().map(|round| round[part]).collect();
            figures.sort_by(f64::total_cmp);
            figures
        };
        let row = |(part, (what, goal)): (usize, &(&str, Goal))| Row {
            measure: format!("{}{what}", self.name),
            unit: self.unit,
            peer: self.peer,
            goal: *goal,
            ours: sorted(&ours, part),
            theirs: sorted(&theirs, part),
        };
        self.parts.iter().enumerate().map(row).collect()
    }
}

impl Row {
    fn figures(&self) -> (f64, f64, f64) {
        let (ours, theirs) = (self.ours[ROUNDS / 2], self.theirs[ROUNDS / 2]);
        (ours, theirs, ours / theirs)
    }

    fn goal(&self) -> Option<f64> {
        match self.goal {
            Goal::Ratio(goal) | Goal::Figure(goal) => Some(goal),
            Goal::None => None,
        }
    }

    fn is_reached(&self) -> Option<bool> {
        let (ours, _, ratio) = self.figures();
        match self.goal {
            Goal::Ratio(goal) => Some(ratio <= goal),
            Goal::Figure(goal) => Some(ours <= goal),
            Goal::None => None,
        }
    }

    fn json(&self) -> serde_json::Value {
        let (ours, theirs, ratio) = self.figures();
        serde_json::json!({
            "measure": self.measure, "ours": ours, "unit": self.unit, "peer": self.peer, "theirs": theirs,
            "ratio": ratio, "bound": "max", "goal": self.goal(),
            "ours_min": self.ours[0], "ours_max": self.ours[ROUNDS - 1],
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ours, theirs, ratio) = self.figures();
        let verdict = match (self.is_reached(), self.goal()) {
            (Some(true), Some(goal)) => format!("goal {goal}: reached"),
            (Some(false), Some(goal)) => format!("goal {goal}: MISSED"),
            _ => String::new(),
        };
        write!(
            f,
            "{:<44} {ours:>10.2} {:<6} {:<34} {theirs:>10.2}  ratio {ratio:>6.3}  [{:.2}..{:.2}]  {verdict}",
            self.measure,
            self.unit,
            self.peer,
            self.ours[0],
            self.ours[ROUNDS - 1]
        )
    }
}

/// Writes the rows as JSON and as a plot, into the build's `bench` folder.
pub fn write(name: &str, rows: &[Row]) {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")), PathBuf::from);
    let folder = target.join("bench");
    let json: Vec<_> = rows.iter().map(Row::json).collect();
    let text = serde_json::to_string_pretty(&json).expect("rows are plain values");
    let written = std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(folder.join(format!("{name}.json")), text))
        .and_then(|()| std::fs::write(folder.join(format!("{name}.svg")), plot(rows)));
    written.unwrap_or_else(|error| panic!("writing into {}: {error}", folder.display()));
}

/// Bars of the ratios on a logarithmic scale from 0.01 to 10, with a tick where the goal is.
fn plot(rows: &[Row]) -> String {
    const LEFT: f64 = 470.0;
    const WIDTH: f64 = 420.0;
    let at = |ratio: f64| LEFT + WIDTH * (ratio.clamp(0.01, 10.0).log10() + 2.0) / 3.0;
    let height = 40 + 22 * rows.len();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"960\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for ratio in [0.01, 0.1, 1.0, 10.0] {
        let x = at(ratio);
        let _ = writeln!(svg, "<line x1=\"{x}\" x2=\"{x}\" y1=\"20\" y2=\"{height}\" stroke=\"#ccc\"/>");
        let _ = writeln!(svg, "<text x=\"{x}\" y=\"14\" text-anchor=\"middle\">{ratio}</text>");
    }
    for (y, row) in (24..).step_by(22).zip(rows) {
        let (_, _, ratio) = row.figures();
        let colour = if row.is_reached() == Some(false) { "#c33" } else { "#37a" };
        let (start, end) = (at(0.01), at(ratio));
        let label = format!("{} / {}", row.measure, row.peer).replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{label}</text>", LEFT - 8.0, y + 13);
        let _ = writeln!(
            svg,
            "<rect x=\"{start}\" y=\"{y}\" width=\"{}\" height=\"16\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{}\">{ratio:.3}</text>",
            end - start,
            end + 4.0,
            y + 13
        );
        if let Goal::Ratio(goal) = row.goal {
            let x = at(goal);
            let (top, bottom) = (y - 2, y + 18);
            let _ = writeln!(
                svg,
                "<line x1=\"{x}\" x2=\"{x}\" y1=\"{top}\" y2=\"{bottom}\" stroke=\"black\" stroke-width=\"2\"/>"
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}
