//! `--json`: one object a command (or one a line, where it goes on), as docs/json.md has it; errors too.

#[expect(dead_code, reason = "what is here for the tests of outside.rs")]
mod driven;

use driven::{Driven, until};
use serde_json::Value;
use std::process::{Command, Output};

const AN_ERROR: &str = "an error";

fn udrv(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_udrv")).args(arguments).output().expect("udrv starts")
}

fn parse(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(text)))
}

/// The table's line of a command: the names at the top, then those of an element of its list.
fn documented(command: &str) -> String {
    let table = include_str!("../../../docs/json.md");
    let name = if command == AN_ERROR { format!("| {command} ") } else { format!("| `{command}` ") };
    let line = table.lines().find(|line| line.starts_with(&name));
    line.unwrap_or_else(|| panic!("docs/json.md has no `{command}`")).to_owned()
}

/// Names as scripts like them, all the way down.
fn check_names(value: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let good = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
                assert!(name.chars().all(good), "`{name}` is not in snake case");
                for bare in ["size", "length", "width", "time", "seconds"] {
                    assert_ne!(name, bare, "what unit?");
                }
                check_names(value);
            }
        }
        Value::Array(elements) => elements.iter().for_each(check_names),
        _ => {}
    }
}

/// Every name at the top, and of the elements of lists of objects, is in the table.
fn check(command: &str, value: &Value) {
    check_names(value);
    let line = documented(command);
    let fields = value.as_object().unwrap_or_else(|| panic!("{command}: no object: {value}"));
    let elements = fields.values().filter_map(Value::as_array).flatten().filter_map(Value::as_object);
    let names = fields.keys().chain(elements.flat_map(|element| element.keys()));
    for name in names {
        assert!(line.contains(&format!("`{name}`")), "docs/json.md does not have `{name}` of `{command}`: {value}");
    }
}

#[test]
fn commands_on_a_driver_print_one_object_as_documented() {
    let driven = Driven::start();
    until("an access", || driven.ask_json(&["accesses"])["accesses"].as_array().is_some_and(|all| !all.is_empty()));
    for command in ["devices", "irqs", "regs", "dma", "accesses"] {
        let value = driven.ask_json(&[command]);
        check(&format!("udrv {command}"), &value);
        let mut lists = value.as_object().expect("an object").values().filter_map(Value::as_array);
        assert!(lists.any(|list| !list.is_empty()), "{command}: {value}");
    }
    let registers = driven.ask_json(&["regs", "identification"]);
    assert_eq!(registers["registers"][0]["value"], 0x0100_00ed);
    assert_eq!(registers["registers"][0]["width_bits"], 32);
    assert_eq!(registers["address"], driven.address.as_str());
}

#[test]
fn bundle_is_one_object_as_documented() {
    let mut driven = Driven::start();
    driven.child.kill().expect("killed");
    driven.child.wait().expect("ended");
    let folder = driven.folder.join("bundles");
    let bundle = || Some(std::fs::read_dir(&folder).ok()?.next()?.ok()?.path());
    until("a bundle", || bundle().is_some_and(|path| std::fs::read_to_string(path).is_ok_and(|it| it.ends_with('}'))));
    let path = bundle().expect("it is there");
    let value = parse(&udrv(&["inspect", path.to_str().expect("UTF-8"), "--json"]).stdout);
    check("udrv inspect", &value);
    check_names(&value["state"]);
}

#[test]
fn commands_without_a_driver_print_one_object_as_documented() {
    check("udrv info", &parse(&udrv(&["info", "model:nvme", "--json"]).stdout));
    let usb = udrv(&["usb", "list", "--json"]);
    let value = parse(&usb.stdout);
    check(if usb.status.success() { "udrv usb list" } else { AN_ERROR }, &value);
    let off = udrv(&["run", "edu", "--device", "model:edu", "--samples", "5", "--irqsoff", "--json"]);
    let last = String::from_utf8(off.stdout).expect("text");
    check("udrv run edu --irqsoff", &parse(last.lines().last().expect("a line").as_bytes()));
}

#[test]
fn recording_is_one_object_a_line_as_documented() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("edu.trace");
    let file = file.to_str().expect("UTF-8");
    let run = udrv(&["run", "edu", "--device", "model:edu", "--samples", "5", "--record", file]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let shown = String::from_utf8(udrv(&["trace", "show", file, "--json"]).stdout).expect("text");
    assert!(shown.lines().count() > 20, "{shown}");
    for line in shown.lines() {
        check("udrv trace show", &parse(line.as_bytes()));
    }
}

#[test]
fn error_is_an_object_on_standard_output_beside_the_line_on_standard_error() {
    for (arguments, code) in [
        (&["info", "model:mouse", "--json"][..], 2),
        (&["irqs", "pci:0000:77:00.0", "--json"], 1),
        (&["inspect", "/nowhere", "--json"], 1),
        (&["trace", "show", "/nowhere", "--json"], 1),
        (&["regs", "--json", "--wrong"], 2),
    ] {
        let output = udrv(arguments);
        let value = parse(&output.stdout);
        check(AN_ERROR, &value);
        let text = value["error"].as_str().expect("a text");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.starts_with(&format!("udrv: {text}")), "{arguments:?}: {said}");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    }
    // Not asked for, not given; and what is behind `--` is not asked of us.
    assert!(udrv(&["info", "model:mouse"]).stdout.is_empty());
    assert!(udrv(&["debug", "--", "/nowhere", "--json"]).stdout.is_empty());
}
