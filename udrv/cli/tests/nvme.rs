//! `udrv run nvme` on the model, here and behind the stub.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use stub_driver::serve::{DeviceServer, Export};

fn udrv(device: &str, work: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_udrv"))
        .args(["run", "nvme", "--device", device])
        .args(work)
        .output()
        .expect("udrv starts")
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(error.lines().count(), 1, "one line: {error}");
    error
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn identify_shows_controller_and_namespaces() {
    let shown = said(&udrv("model:nvme", &["identify"]));
    for line in [
        "model      udrv NVMe model",
        "version    1.4",
        "transfers  up to 512 KiB",
        "namespace  1: 131072 blocks of 512 bytes, 64 MiB",
        "namespace  2: 4096 blocks of 4096 bytes, 16 MiB",
    ] {
        assert!(shown.contains(line), "no `{line}` in {shown}");
    }
}

#[test]
fn file_written_to_blocks_is_read_back_by_another_process() {
    let folder = std::env::temp_dir().join(format!("udrv-cli-nvme-{}", std::process::id()));
    std::fs::create_dir(&folder).expect("a folder");
    let model = Arc::new(udrv_nvme::model::nvme().expect("a model"));
    let server = DeviceServer::start(Export::shared("nvme", model), &folder.join("nvme.sock")).expect("served");
    let device = format!("unix:{}", server.path().display());
    let (input, output) = (folder.join("in"), folder.join("out"));
    // Several transfers, the last of them shorter.
    let bytes: Vec<u8> =
        (0..3 * (512 << 10) + 3 * 4096u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&input, &bytes).expect("a file");
    for (namespace, lba, blocks) in [("1", "77", bytes.len() / 512), ("2", "3", bytes.len() / 4096)] {
        for wait in ["interrupt", "polled", "hybrid"] {
            let place = ["--namespace", namespace, "--lba", lba];
            let blocks = blocks.to_string();
            said(&udrv(&device, &[&["--wait", wait, "write", "--input", text(&input)], &place[..]].concat()));
            let read = [&["--wait", wait, "read", "--blocks", &blocks, "--output", text(&output)], &place[..]].concat();
            said(&udrv(&device, &read));
            assert!(std::fs::read(&output).expect("a file") == bytes, "other bytes, {wait}, namespace {namespace}");
            std::fs::remove_file(&output).expect("removed");
        }
    }
    let health = said(&udrv(&device, &["smart"]));
    assert!(health.contains("host commands      24 reads, 24 writes"), "{health}");
    drop(server);
    std::fs::remove_dir_all(&folder).expect("removed");
}

/// What is on the disk of the recordings: 8 blocks that tell where they are.
fn pattern() -> Vec<u8> {
    (0..8 * 512_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Both that are done to a recorded disk; what identify says, and what is read.
fn looked_at(devices: [&str; 2], options: [&[&str]; 2], folder: &Path) -> (String, Vec<u8>) {
    let identified = said(&udrv(devices[0], &[options[0], &["identify"]].concat()));
    let output = folder.join("out");
    said(&udrv(devices[1], &[options[1], &["read", "--blocks", "8", "--output", text(&output)]].concat()));
    (identified, std::fs::read(output).expect("read"))
}

#[test]
fn identify_and_read_that_are_recorded_with_memory_replay() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = Arc::new(udrv_nvme::model::nvme().expect("a model"));
    let server = DeviceServer::start(Export::shared("nvme", model), &folder.path().join("nvme.sock")).expect("served");
    let device = format!("unix:{}", server.path().display());
    let input = folder.path().join("in");
    std::fs::write(&input, pattern()).expect("a file");
    said(&udrv(&device, &["write", "--input", text(&input)]));
    let [identify, read] = ["identify", "read"].map(|name| folder.path().join(name));
    let record = |file| ["--record", text(file), "--record-dma"];
    let options = [&record(&identify)[..], &record(&read)];
    let recorded = looked_at([&device, &device], options, folder.path());
    drop(server);
    assert!(recorded.1 == pattern(), "other bytes");
    let replays = [&identify, &read].map(|file| format!("replay:{}", file.display()));
    let replayed = looked_at(replays.each_ref().map(String::as_str), [&[], &[]], folder.path());
    assert!(replayed == recorded, "{} is not {}, or other bytes", replayed.0, recorded.0);
}

#[test]
fn recorded_read_of_the_model_replays() {
    let folder = tempfile::tempdir().expect("a folder");
    let replay = concat!("replay:", env!("CARGO_MANIFEST_DIR"), "/../../tests/traces/nvme-model.trace");
    let output = folder.path().join("out");
    said(&udrv(replay, &["read", "--blocks", "8", "--output", text(&output)]));
    assert!(std::fs::read(output).expect("read") == pattern(), "other bytes");
}

#[test]
fn replay_of_a_recording_without_memory_says_which_flag_it_was_recorded_without() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.trace");
    said(&udrv("model:nvme", &["--record", text(&file), "identify"]));
    let error = refused(&udrv(&format!("replay:{}", file.display()), &["identify"]));
    assert!(error.contains("its recording has no DMA contents") && error.contains("with --record-dma"), "{error}");
}

#[test]
fn dma_checker_finds_nothing_in_the_driver() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("out");
    said(&udrv("model:nvme", &["--sanitise-dma", "read", "--blocks", "600", "--output", text(&output)]));
}

#[test]
fn what_cannot_be_copied_is_refused_in_one_line() {
    let file = std::env::temp_dir().join(format!("udrv-cli-nvme-odd-{}", std::process::id()));
    std::fs::write(&file, [0; 513]).expect("a file");
    let odd = refused(&udrv("model:nvme", &["write", "--input", text(&file)]));
    assert!(
        odd.contains("513 bytes from block 0") && odd.contains("whole blocks of 512 bytes, within 131072"),
        "{odd}"
    );
    let beyond = ["read", "--lba", "131071", "--blocks", "2", "--output", text(&file)];
    let beyond = refused(&udrv("model:nvme", &beyond));
    assert!(beyond.contains("within 131072"), "{beyond}");
    let namespace = ["read", "--namespace", "9", "--blocks", "1", "--output", text(&file)];
    let namespace = refused(&udrv("model:nvme", &namespace));
    assert!(namespace.contains("Invalid Namespace or Format (SCT 0h, SC 0bh) to Identify (namespace)"), "{namespace}");
    let missing = refused(&udrv("model:nvme", &["write", "--input", "/nowhere/file"]));
    assert!(missing.contains("opening /nowhere/file"), "{missing}");
    let edu = refused(&udrv("model:edu", &["identify"]));
    assert!(edu.contains("class code 00ff00: expected 010802"), "{edu}");
    std::fs::remove_file(&file).expect("removed");
}
