//! `udrv faults` on the models: every driver that it knows survives every fault of its catalogue.

use serde_json::Value;
use std::process::{Command, Output};

fn faults(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_udrv")).arg("faults").args(arguments).output().expect("udrv starts")
}

/// Survived by the driver on its model: one object for each plan, and the sum.
fn survived(driver: &str, options: &[&str]) -> Vec<Value> {
    let device = format!("model:{driver}");
    let output = faults(&[&[driver, "--device", &device, "--json"], options].concat());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let mut lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let sum = lines.pop().expect("the sum");
    assert_eq!((&sum["driver"], sum["faults"].as_u64()), (&driver.into(), Some(lines.len() as u64)), "{sum}");
    assert!(sum["survived"] == sum["faults"] && sum["sound_after"] == true, "{sum}");
    assert!(lines.iter().all(|line| line["survived"] == true && line["what"].is_string()), "{lines:?}");
    lines
}

/// How the run with this fault ended.
fn ended<'a>(lines: &'a [Value], what: &str) -> (&'a str, &'a str) {
    let line = lines.iter().find(|line| line["what"] == what).unwrap_or_else(|| panic!("no `{what}`: {lines:?}"));
    (line["ended"].as_str().expect("a word"), line["error"].as_str().unwrap_or_default())
}

#[test]
fn edu_driver_survives_its_catalogue() {
    let lines = survived("edu", &[]);
    assert_eq!(ended(&lines, "interrupts twice").0, "finished");
    assert_eq!(ended(&lines, "gone at access 0").0, "failed");
}

#[test]
fn nvme_driver_survives_its_catalogue() {
    let lines = survived("nvme", &[]);
    assert_eq!(ended(&lines, "interrupts lost"), ("finished", ""), "completions are in memory");
    let (ended_so, error) = ended(&lines, "region 0 offset 0x1c never changes");
    assert!(ended_so == "failed" && error.contains("CSTS.RDY"), "{error}");
    // Noticed when it is shut down, and not waited for.
    assert!(ended(&lines, "reads give all ones from number 30").1.contains("CSTS reads as all ones"));
    assert!(ended(&lines, "DMA mappings fail").1.contains("Cannot allocate memory"));
}

#[test]
fn uart16550_driver_survives_its_catalogue() {
    let lines = survived("uart16550", &[]);
    assert_eq!(ended(&lines, "interrupts lost").0, "failed", "a line is sent by interrupt");
    assert_eq!(ended(&lines, "DMA corrupt"), ("finished", ""), "it has none");
}

#[test]
fn plans_from_seeds_are_of_the_drivers_own_registers() {
    let lines = survived("uart16550", &["--seeds", "3"]);
    assert_eq!(lines.len(), 4);
    let offsets = lines.iter().flat_map(|line| line["faults"].as_array().expect("faults"));
    assert!(offsets.filter_map(|fault| fault["offset"].as_u64()).all(|offset| offset < 8), "{lines:?}");
}

#[test]
fn driver_that_there_is_not_is_refused_with_those_there_are() {
    let output = faults(&["floppy", "--device", "model:edu"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(error.contains("edu, nvme, uart16550"), "{error}");
}

#[test]
fn device_that_is_not_sound_without_faults_is_told_apart_from_a_driver_that_broke() {
    let output = faults(&["nvme", "--device", "model:edu", "--seeds", "0"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("model:edu is not as good as before the faults"), "{error}");
}
