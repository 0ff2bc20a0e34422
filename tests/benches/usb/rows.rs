//! Measures, rounds and what is written of them.

use std::fmt;

/// Alternating rounds of each measure.
const ROUNDS: usize = 7;

/// What a figure is held against.
#[derive(Clone, Copy)]
pub enum Goal {
    /// At least this many times the peer's figure.
    AtLeast(f64),
    /// At most as much more than the peer's figure.
    More(f64),
    /// For information.
    None,
}

/// One figure of ours and one of a peer.
pub struct Measure<'a> {
    pub name: &'static str,
    pub unit: &'static str,
    pub peer: &'static str,
    pub goal: Goal,
    pub ours: Box<dyn FnMut() -> f64 + 'a>,
    pub theirs: Box<dyn FnMut() -> f64 + 'a>,
}

pub struct Row {
    measure: &'static str,
    unit: &'static str,
    peer: &'static str,
    goal: Goal,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Measure<'_> {
    pub fn run(mut self) -> Row {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            // Neither is always the first.
            if round % 2 == 1 {
                theirs.push((self.theirs)());
            }
            ours.push((self.ours)());
            if round % 2 == 0 {
                theirs.push((self.theirs)());
            }
        }
        ours.sort_by(f64::total_cmp);
        theirs.sort_by(f64::total_cmp);
        Row { measure: self.name, unit: self.unit, peer: self.peer, goal: self.goal, ours, theirs }
    }
}

impl Row {
    fn figures(&self) -> (f64, f64, f64) {
        let (ours, theirs) = (self.ours[ROUNDS / 2], self.theirs[ROUNDS / 2]);
        (ours, theirs, ours / theirs)
    }

    fn is_reached(&self) -> Option<bool> {
        let (ours, theirs, ratio) = self.figures();
        match self.goal {
            Goal::AtLeast(goal) => Some(ratio >= goal),
            Goal::More(goal) => Some(ours - theirs <= goal),
            Goal::None => None,
        }
    }

    /// A goal on the difference is told as the ratio that it comes to.
    fn json(&self) -> serde_json::Value {
        let (ours, theirs, ratio) = self.figures();
        let (bound, goal) = match self.goal {
            Goal::AtLeast(goal) => ("min", Some(goal)),
            Goal::More(goal) => ("max", Some((theirs + goal) / theirs)),
            Goal::None => ("min", None),
        };
        serde_json::json!({
            "measure": self.measure, "ours": ours, "unit": self.unit, "peer": self.peer, "theirs": theirs,
            "ratio": ratio, "bound": bound, "goal": goal,
            "ours_min": self.ours[0], "ours_max": self.ours[ROUNDS - 1],
            "theirs_min": self.theirs[0], "theirs_max": self.theirs[ROUNDS - 1],
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ours, theirs, ratio) = self.figures();
        let goal = match self.goal {
            Goal::AtLeast(goal) => format!("goal: {goal} times"),
            Goal::More(goal) => format!("goal: {goal} {} more", self.unit),
            Goal::None => String::new(),
        };
        let verdict = match self.is_reached() {
            Some(true) => ": reached",
            Some(false) => ": MISSED",
            None => "",
        };
        write!(
            f,
            "{:<30} {ours:>9.2} [{:.2}..{:.2}] {:<5} {:<40} {theirs:>9.2} [{:.2}..{:.2}]  ratio {ratio:>6.3}  {goal}{verdict}",
            self.measure,
            self.ours[0],
            self.ours[ROUNDS - 1],
            self.unit,
            self.peer,
            self.theirs[0],
            self.theirs[ROUNDS - 1],
        )
    }
}

/// Takes the measures whose name has `wanted` in it, tells each, and writes them as JSON.
pub fn run(measures: Vec<Measure<'_>>, wanted: &str, path: &str) {
    let mut rows = Vec::new();
    for measure in measures.into_iter().filter(|measure| measure.name.contains(wanted)) {
        let row = measure.run();
        println!("{row}");
        rows.push(row.json());
    }
    let text = serde_json::to_string_pretty(&rows).expect("rows are plain values");
    std::fs::write(path, text).unwrap_or_else(|error| panic!("writing {path}: {error}"));
}
