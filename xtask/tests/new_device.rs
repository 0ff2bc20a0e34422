//! What `cargo xtask new-device` lays out compiles, passes its tests and lints, and is what docs/writing-a-driver.md shows.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn repo() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

/// A copy of the workspace's sources, which is gone with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("new-device-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        let files = ["Cargo.toml", "Cargo.lock", "rustfmt.toml", "clippy.toml"];
        let folders = ["stub-driver", "udrv", "devices", "examples", "tests", "xtask", "docs"];
        let from = files.iter().chain(&folders).map(|name| repo().join(name));
        let copied = Command::new("cp").arg("-r").args(from).arg(&path).status().expect("cp starts");
        assert!(copied.success());
        Self(path)
    }

    fn lay_out(&self, name: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(["new-device", name, "--root"])
            .arg(&self.0)
            .env("CARGO", env!("CARGO"))
            .output()
            .expect("xtask starts")
    }

    fn assert_cargo(&self, arguments: &[&str]) {
        // The outer cargo's folder, where the dependencies are built already.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target folder");
        let out = Command::new(env!("CARGO"))
            .args(arguments)
            .current_dir(&self.0)
            .env("CARGO_TARGET_DIR", target)
            .output()
            .expect("cargo starts");
        let (said, complained) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "cargo {arguments:?}:\n{said}\n{complained}");
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

/// The document's blocks of Rust.
fn shown() -> Vec<String> {
    let document = std::fs::read_to_string(repo().join("docs/writing-a-driver.md")).expect("the document");
    let after = document.split("```rust\n").skip(1);
    after.filter_map(|rest| rest.split("```").next()).map(str::to_owned).collect()
}

#[test]
fn device_laid_out_passes_its_tests_and_is_what_the_document_shows() {
    let scratch = Scratch::new();
    let out = scratch.lay_out("my-adder");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));

    let folder = scratch.0.join("devices/my-adder");
    let files = ["src/registers.rs", "src/driver.rs", "src/model.rs", "tests/model.rs", "tests/driver.rs"];
    let code = files.map(|file| std::fs::read_to_string(folder.join(file)).expect("a file laid out"));
    let shown = shown();
    assert!(shown.len() >= 5, "the document shows little: {shown:?}");
    for block in shown {
        assert!(code.iter().any(|file| file.contains(&block)), "in no file that is laid out:\n{block}");
    }

    scratch.assert_cargo(&["fmt", "--package", "udrv-my-adder", "--", "--check"]);
    scratch.assert_cargo(&["test", "--offline", "--locked", "--package", "udrv-my-adder"]);
    let clippy = ["clippy", "--offline", "--locked", "--package", "udrv-my-adder", "--all-targets"];
    scratch.assert_cargo(&[&clippy[..], &["--", "-D", "warnings"]].concat());

    let again = scratch.lay_out("my-adder");
    assert!(!again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("is there already"));
}

#[test]
fn name_that_is_none_is_refused() {
    for name in ["", "My-Device", "../edu", "9lives", "ends-"] {
        let out = Command::new(env!("CARGO_BIN_EXE_xtask")).args(["new-device", name]).output().expect("xtask starts");
        assert!(!out.status.success(), "{name}");
        assert!(String::from_utf8_lossy(&out.stderr).contains("is no name for a device"), "{name}");
    }
}
