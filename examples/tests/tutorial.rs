//! docs/debugging.md, followed: its commands are run, gdb's among them, and must say what is written there. In the text `…`
//! stands for whatever differs from one run to the next: alone for any lines, within a line for any characters.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use udrv::clock::Deadline;

/// The folder that the text uses.
const FOLDER: &str = "/tmp/tutorial";

/// One command of the text, what is typed into gdb after it, and what both say.
#[derive(Default, Debug)]
struct Step {
    command: String,
    typed: Vec<String>,
    said: Vec<String>,
}

fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if let Some(command) = line.strip_prefix("$ ").filter(|_| inside) {
            steps.push(Step { command: command.into(), ..Step::default() });
        } else if let Some(step) = steps.last_mut().filter(|_| inside) {
            match line.strip_prefix("(gdb) ") {
                Some(typed) => step.typed.push(typed.into()),
                None => step.said.push(line.into()),
            }
        }
    }
    steps
}

/// Whether a line is as it is written.
fn is_like(line: &str, written: &str) -> bool {
    let mut parts = written.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts: Vec<_> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[track_caller]
fn assert_said(step: &Step, said: &str) {
    let mut lines = said.lines();
    let mut any = true;
    for written in &step.said {
        if written == "…" {
            any = true;
            continue;
        }
        // gdb in batch mode says more than the text has of it.
        any |= !step.typed.is_empty();
        let found = if any {
            lines.any(|line| is_like(line, written))
        } else {
            lines.next().is_some_and(|line| is_like(line, written))
        };
        assert!(found, "`{}` did not say `{written}` there, but:\n{said}", step.command);
        any = false;
    }
}

/// Ends the stub when dropped.
struct Background(Child, PathBuf);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = std::fs::remove_dir_all(&self.1);
    }
}

#[test]
fn debugging_tutorial_is_true() {
    if !Command::new("gdb").arg("--version").output().is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI has no gdb: apt-get install gdb");
        eprintln!("skipped: there is no gdb (apt-get install gdb)");
        return;
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--offline", "-p", "udrv-cli", "-p", "stub-driver"])
        .current_dir(workspace)
        .output()
        .expect("cargo starts");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let programs = Path::new(env!("CARGO_BIN_EXE_planted_bug")).parent().expect("a folder").to_owned();
    let path = std::env::join_paths(
        std::iter::once(programs).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    );
    let path = path.expect("a PATH");
    let folder = std::env::temp_dir().join(format!("udrv-tutorial-{}", std::process::id()));
    std::fs::create_dir(&folder).expect("a folder");
    let shown = folder.to_str().expect("UTF-8").to_owned();

    let text = include_str!("../../docs/debugging.md");
    let steps = steps(text);
    assert!(steps.len() >= 5, "{steps:#?}");
    let mut background = None;
    for step in &steps {
        let command = step.command.replace(FOLDER, &shown);
        let mut words: Vec<String> = command.split(' ').map(str::to_owned).collect();
        if words.last().is_some_and(|word| word == "&") {
            words.pop();
            let mut child = Command::new(&words[0]);
            child.args(&words[1..]).env("PATH", &path).stdout(Stdio::null()).stderr(Stdio::null());
            background = Some(Background(child.spawn().expect("started"), folder.clone()));
            let there = || Ok(folder.join("control.sock").exists());
            Deadline::after(Duration::from_secs(30)).poll("the stub's sockets", there).expect("served");
            continue;
        }
        if !step.typed.is_empty() {
            let at = words.iter().position(|word| word == "--").expect("a driver behind --");
            let typed = step.typed.iter().flat_map(|typed| ["--ex".to_owned(), typed.clone()]);
            let batch: Vec<_> = std::iter::once("--batch".to_owned()).chain(typed).collect();
            words.splice(at..at, batch);
        }
        let output = Command::new(&words[0]).args(&words[1..]).env("PATH", &path).current_dir(workspace).output();
        let output = output.unwrap_or_else(|error| panic!("{command}: {error}"));
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert_said(step, &said.replace(&shown, FOLDER));
    }
    assert!(background.is_some(), "the tutorial serves no device");
}
