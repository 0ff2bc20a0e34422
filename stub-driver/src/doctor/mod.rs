//! `stub-driver doctor`: one look at all that a machine, or one device, needs. It changes nothing.

mod device;
mod host;

pub(crate) use host::how_to_turn_on_the_iommu;

use crate::paint::{Colour, Paint};
use anyhow::Result;
use serde::Serialize;
use std::io::Write as _;
use udrv_vfio::{Bdf, Sysfs};

/// `stub-driver doctor`
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Look at this device too: its PCI address, such as 0000:03:00.0.
    #[arg(value_name = "BDF")]
    device: Option<Bdf>,
    /// For scripts: one JSON object with everything.
    #[arg(long)]
    json: bool,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// Worth knowing, or could not be seen.
    Warn,
    /// Nothing works, or this device does not, until this is changed.
    Fail,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    level: Level,
    what: &'static str,
    detail: String,
    /// What to do, if anything.
    fix: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, detail: impl Into<String>) -> Self {
        Self { level: Level::Ok, what, detail: detail.into(), fix: None }
    }

    fn warn(what: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Warn, what, detail: detail.into(), fix: Some(fix.into()) }
    }

    fn fail(what: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Fail, what, detail: detail.into(), fix: Some(fix.into()) }
    }

    fn line(&self, paint: Paint) -> String {
        let level = match self.level {
            Level::Ok => paint.text("ok  ", Colour::Good),
            Level::Warn => paint.text("warn", Colour::Doubtful),
            Level::Fail => paint.text("FAIL", Colour::Bad),
        };
        let fix = self.fix.as_ref().map(|fix| format!("; {fix}")).unwrap_or_default();
        format!("{level}  {:16}  — {}{fix}\n", self.what, self.detail)
    }
}

/// What `doctor` has said already: so many checks failed.
#[derive(Debug, thiserror::Error)]
#[error("checks that failed: {0}; each line that says FAIL says what to do")]
pub struct Failed(usize);

/// Runs it.
///
/// # Errors
/// [`Failed`] if a check failed; warnings are none.
pub fn run(args: &DoctorArgs) -> Result<()> {
    let sysfs = Sysfs::default();
    let mut findings = host::look(&sysfs);
    if let Some(bdf) = args.device {
        findings.extend(device::look(&sysfs, bdf));
    }
    let failed = findings.iter().filter(|finding| finding.level == Level::Fail).count();
    let mut out = std::io::stdout().lock();
    if args.json {
        let report = serde_json::json!({ "passed": failed == 0, "findings": findings });
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        let paint = Paint::for_stdout();
        for finding in &findings {
            out.write_all(finding.line(paint).as_bytes())?;
        }
    }
    if failed == 0 { Ok(()) } else { Err(Failed(failed).into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_has_level_what_detail_and_fix() {
        let finding = Finding::fail("IOMMU", "off", "turn it on");
        assert_eq!(finding.line(Paint::plain()), "FAIL  IOMMU             — off; turn it on\n");
        assert_eq!(Finding::ok("IOMMU", "on").line(Paint::plain()), "ok    IOMMU             — on\n");
    }
}
