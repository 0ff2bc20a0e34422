//! Every example is run, and says what its reader is told it says. (`nvme_identify` has its device in the virtual machine:
//! tests/vm/40-nvme-identify.sh; here it must refuse any other.)

use std::process::{Command, Output};

fn run(example: &str, arguments: &[&str]) -> Output {
    Command::new(example).args(arguments).output().expect("the example starts")
}

/// Runs an example, which must succeed and print each of `lines`.
#[track_caller]
fn assert_prints(example: &str, lines: &[&str]) {
    assert_prints_of(example, &[], lines);
}

#[track_caller]
fn assert_prints_of(example: &str, arguments: &[&str], lines: &[&str]) {
    let output = run(example, arguments);
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{complained}");
    for line in lines {
        assert!(said.lines().any(|found| found == *line), "no line `{line}` in:\n{said}");
    }
}

#[test]
fn open_device_lists_the_device() {
    let lines = ["model:edu is 1234:11e8", "region BAR0: 1048576 bytes", "MSI: 1 vector(s)", "reset: no"];
    assert_prints(env!("CARGO_BIN_EXE_open_device"), &lines);
}

#[test]
fn read_register_reads_and_writes() {
    let lines = ["identification: 0x010000ed", "liveness: wrote 0x12345678, read 0xedcba987"];
    assert_prints(env!("CARGO_BIN_EXE_read_register"), &lines);
}

#[test]
fn wait_for_interrupt_is_delivered() {
    assert_prints(env!("CARGO_BIN_EXE_wait_for_interrupt"), &["interrupt with cause 0x10", "delivered: 1"]);
}

#[test]
fn interrupts_off_holds_back_and_delivers() {
    let lines = ["in the section: raised 2, handler ran 0 times", "after it: handler ran 1 time"];
    assert_prints(env!("CARGO_BIN_EXE_interrupts_off"), &lines);
}

#[test]
fn dma_goes_there_and_back() {
    assert_prints(env!("CARGO_BIN_EXE_dma"), &["came back: there and back again"]);
}

#[test]
fn serve_model_serves_a_model_of_its_own() {
    assert_prints(env!("CARGO_BIN_EXE_serve_model"), &["sum: 42"]);
}

#[test]
fn nvme_identify_refuses_another_device() {
    let output = run(env!("CARGO_BIN_EXE_nvme_identify"), &[]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("model:edu is no NVMe controller"));
}

#[test]
fn nvme_hello_reads_a_block() {
    let lines = [
        "controller:  udrv NVMe model, serial number udrv-model",
        "namespace 1: 131072 blocks of 512 bytes",
        "block 0:     0 bytes that are not zero",
    ];
    assert_prints_of(env!("CARGO_BIN_EXE_nvme_hello"), &["model:nvme"], &lines);
}

#[test]
fn examples_are_short_enough_to_copy() {
    for entry in std::fs::read_dir(env!("CARGO_MANIFEST_DIR")).expect("this folder").flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("an example");
            let code =
                text.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//")).count();
            assert!(code <= 60, "{} has {code} lines of code", path.display());
        }
    }
}
