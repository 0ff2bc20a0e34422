//! Rows of a benchmark as JSON and as a plot, in the build's `bench` folder.

use anyhow::{Context as _, Result};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::Path;

const LEFT: f64 = 470.0;
const WIDTH: f64 = 420.0;
/// Pixels from one row to the next.
const ROW: usize = 22;

/// Writes `NAME.json` and `NAME.svg`.
pub(crate) fn write(folder: &Path, name: &str, rows: &[Value]) -> Result<()> {
    let json = folder.join(format!("{name}.json"));
    std::fs::write(&json, serde_json::to_string_pretty(rows)?)
        .and_then(|()| std::fs::write(folder.join(format!("{name}.svg")), draw(rows)))
        .with_context(|| format!("writing {}", json.display()))?;
    println!("written: {}, and {name}.svg beside it", json.display());
    Ok(())
}

/// Bars of ours / theirs on a logarithmic scale from 0.01 to 10, with a tick where the goal is. What has no peer is not in it.
fn draw(rows: &[Value]) -> String {
    let rows: Vec<&Value> = rows.iter().filter(|row| row.get("ratio").is_some_and(Value::is_number)).collect();
    let height = 40 + ROW * rows.len();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"960\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for ratio in [0.01, 0.1, 1.0, 10.0] {
        let x = at(ratio);
        let _ = writeln!(svg, "<line x1=\"{x}\" x2=\"{x}\" y1=\"20\" y2=\"{height}\" stroke=\"#ccc\"/>");
        let _ = writeln!(svg, "<text x=\"{x}\" y=\"14\" text-anchor=\"middle\">{ratio}</text>");
    }
    for (y, row) in (24..).step_by(ROW).zip(rows) {
        bar(&mut svg, y, row);
    }
    svg.push_str("</svg>\n");
    svg
}

fn at(ratio: f64) -> f64 {
    LEFT + WIDTH * (ratio.clamp(0.01, 10.0).log10() + 2.0) / 3.0
}

fn bar(svg: &mut String, y: usize, row: &Value) {
    let number = |key: &str| row.get(key).and_then(Value::as_f64);
    let text = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default();
    let (ratio, goal) = (number("ratio").unwrap_or_default(), number("goal"));
    let missed = goal.is_some_and(|goal| if text("bound") == "min" { ratio < goal } else { ratio > goal });
    let (start, end, colour) = (at(0.01), at(ratio), if missed { "#c33" } else { "#37a" });
    let label = format!("{} / {}", text("measure"), text("peer")).replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{label}</text>", LEFT - 8.0, y + 13);
    let _ = writeln!(
        svg,
        "<rect x=\"{start}\" y=\"{y}\" width=\"{}\" height=\"16\" fill=\"{colour}\"/>\
         <text x=\"{}\" y=\"{}\">{ratio:.3}</text>",
        end - start,
        end + 4.0,
        y + 13
    );
    if let Some(x) = goal.map(at) {
        let (top, bottom) = (y - 2, y + 18);
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" x2=\"{x}\" y1=\"{top}\" y2=\"{bottom}\" stroke=\"black\" stroke-width=\"2\"/>"
        );
    }
}
