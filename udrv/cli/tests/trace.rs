//! `udrv trace` as a person uses it: recorded by `udrv run`, shown, filtered, plotted, made shorter.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use stub_driver::serve::{DeviceServer, Export};
use udrv::debug::trace::Trace;

/// A folder with a recording of the edu driver's tour in it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("udrv-cli-trace-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).expect("a folder");
        Self(path)
    }

    fn recorded(name: &str, device: &str) -> Self {
        let it = Self::new(name);
        it.record(device, "a.trace");
        it
    }

    /// One more of the same.
    fn record(&self, device: &str, name: &str) {
        let file = self.file(name);
        let recorded = ["--device", device, "--record", &file];
        let (before, after): (&[_], &[_]) = match device {
            "model:edu" => (&["run", "edu", "--samples", "5"], &[]),
            "model:nvme" => (&["run", "nvme"], &["identify"]),
            _ => panic!("no driver of {device}"),
        };
        succeed(&[before, &recorded, after].concat());
    }

    fn file(&self, name: &str) -> String {
        text(&self.0.join(name)).to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn udrv(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_udrv")).args(arguments).output().expect("udrv starts")
}

#[track_caller]
fn succeed(arguments: &[&str]) -> String {
    let output = udrv(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn show_decodes_by_the_recorded_device_and_filters() {
    let folder = Folder::recorded("show", "model:edu");
    let file = folder.file("a.trace");
    let all = succeed(&["trace", "show", &file]);
    assert!(
        all.contains("DMA source address")
            && all.contains("irqs off, at devices/edu/src/driver.rs:")
            && !all.contains('\x1b'),
        "{all}"
    );
    let raised = succeed(&["trace", "show", &file, "--register", "interrupt raise"]);
    assert!(raised.lines().count() >= 6 && raised.lines().all(|line| line.contains("interrupt raise")), "{raised}");
    let config = succeed(&["trace", "show", &file, "--region", "7"]);
    assert!(!config.is_empty() && config.lines().all(|line| line.contains("config")), "{config}");
    let irqs = succeed(&["trace", "show", &file, "--irq", "--json"]);
    for line in irqs.lines() {
        let event: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(["irq", "handler", "handled"].contains(&event["kind"].as_str().expect("a kind")), "{line}");
    }
    let nvme = succeed(&["trace", "show", &file, "--device-map", "nvme", "--range", "0x20..0x28"]);
    assert!(nvme.contains("AQA") && !nvme.contains("status"), "{nvme}");
    let unknown = udrv(&["trace", "show", &file, "--device-map", "nvma"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("expected one of edu, nvme, uart16550"));
}

#[test]
fn show_begins_and_ends_when_it_is_told_to() {
    let folder = Folder::recorded("times", "model:edu");
    let file = folder.file("a.trace");
    let times = |limits: &[&str]| -> Vec<u64> {
        let shown = succeed(&[&["trace", "show", &file, "--json"], limits].concat());
        let time = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["time_s"].as_f64();
        shown.lines().map(|line| (time(line).expect("a time") * 1e9).round() as u64).collect()
    };
    let all = times(&[]);
    let [from, to] = [all.len() / 3, all.len() * 2 / 3].map(|place| all[place]);
    let seconds = |time: u64| format!("{}.{:09}", time / 1_000_000_000, time % 1_000_000_000);
    let within = |from, to| all.iter().copied().filter(|time| (from..=to).contains(time)).collect::<Vec<_>>();
    assert_eq!(times(&["--from", &seconds(from)]), within(from, u64::MAX));
    assert_eq!(times(&["--to", &seconds(to)]), within(0, to));
    assert_eq!(times(&["--from", &seconds(from), "--to", &seconds(to)]), within(from, to));
}

#[test]
fn reader_that_leaves_is_no_error() {
    let folder = Folder::recorded("left", "model:edu");
    for command in ["show", "diff"] {
        let file = folder.file("a.trace");
        let files = if command == "diff" { vec![file.clone(), file] } else { vec![file] };
        let mut child = Command::new(env!("CARGO_BIN_EXE_udrv"))
            .args(["trace", command])
            .args(files)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        drop(child.stdout.take());
        let ended = child.wait_with_output().expect("ended");
        assert!(ended.status.success() && ended.stderr.is_empty(), "{command}: {ended:?}");
    }
}

#[test]
fn two_good_runs_on_one_device_do_not_diverge_and_one_bit_of_a_fault_does() {
    let folder = Folder::new("diff");
    let edu = Arc::new(udrv_edu::model::edu());
    let server = DeviceServer::start(Export::shared("edu", edu), &folder.0.join("edu.sock")).expect("served");
    let device = format!("unix:{}", server.path().display());
    let run = |name: &str, options: &[&str]| {
        let file = folder.file(name);
        let run = ["run", "edu", "--samples", "5", "--device", &device, "--record", &file];
        let _may_fail = udrv(&[&run, options].concat());
        file
    };
    let [one, two] = ["one.trace", "two.trace"].map(|name| run(name, &[]));
    assert_eq!(succeed(&["trace", "diff", &one, &two]), "no divergence\n");
    let plan = folder.file("plan.toml");
    std::fs::write(&plan, "[[fault]]\nkind = \"stuck-bits\"\nregion = 0\noffset = 0\nones = \"0x2\"\n")
        .expect("written");
    let bad = run("bad.trace", &["--faults", &plan]);
    let output = udrv(&["trace", "diff", &one, &bad]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(1) && said.contains("0x010000ef"), "{said}");
}

#[test]
fn two_good_runs_of_nvme_do_not_diverge() {
    let folder = Folder::recorded("diff-nvme", "model:nvme");
    folder.record("model:nvme", "b.trace");
    let said = succeed(&["trace", "diff", &folder.file("a.trace"), &folder.file("b.trace")]);
    assert_eq!(said, "no divergence\n");
}

#[test]
fn plot_is_written_beside_the_recording() {
    let folder = Folder::recorded("plot", "model:edu");
    succeed(&["trace", "plot", &folder.file("a.trace")]);
    let svg = std::fs::read_to_string(folder.0.join("a.svg")).expect("written");
    assert!(svg.contains("model:edu") && svg.contains("raised to handler"), "{svg}");
}

/// What it makes of the events is several times the memory that it may have.
#[test]
fn export_of_a_long_recording_takes_little_memory() {
    let folder = Folder::recorded("export", "model:edu");
    let (file, document) = (folder.file("a.trace"), folder.file("a.json"));
    let mut trace = Trace::open(Path::new(&file)).expect("a trace");
    let tour = trace.events.clone();
    trace.events = (0..1 << 17).map(|number| tour[number % tour.len()].clone()).collect();
    trace.save(Path::new(&file)).expect("saved");
    let export = "ulimit -d 32768; exec \"$0\" trace export \"$1\" --perfetto \"$2\"";
    let arguments = ["-c", export, env!("CARGO_BIN_EXE_udrv"), &file, &document];
    let output = Command::new("sh").args(arguments).output().expect("sh starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: serde_json::Value = serde_json::from_slice(&std::fs::read(document).expect("written")).expect("JSON");
    assert!(document["traceEvents"].as_array().expect("events").len() > 1 << 16);
}

#[test]
fn writing_over_the_recording_itself_is_refused_by_whatever_name() {
    let folder = Folder::recorded("over", "model:edu");
    let [file, symbolic, hard] = ["a.trace", "symbolic.json", "hard.json"].map(|name| folder.file(name));
    std::os::unix::fs::symlink(&file, &symbolic).expect("a symbolic link");
    std::fs::hard_link(&file, &hard).expect("a hard link");
    let before = std::fs::read(&file).expect("read");
    for over in [&file, &symbolic, &hard] {
        let export = ["export", &file, "--perfetto", over];
        let plot = ["plot", &file, "--output", over];
        let minimise = ["minimise", &file, "--output", over, "--", "false"];
        for command in [&export[..], &plot, &minimise] {
            let output = udrv(&[&["trace"], command].concat());
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && said.contains("would be overwritten: name another"), "{output:?}");
            assert!(said.contains(over.as_str()), "{said}");
            assert_eq!(std::fs::read(&file).expect("read"), before, "{command:?}");
        }
    }
}

#[test]
fn minimise_leaves_what_makes_the_test_fail() {
    let folder = Folder::recorded("minimise", "model:edu");
    let (file, short) = (folder.file("a.trace"), folder.file("short.trace"));
    // It fails while the recording has a transfer's beginning.
    let test = format!("! {} trace show {{}} | grep -q 'write.*DMA command'", env!("CARGO_BIN_EXE_udrv"));
    let script = folder.file("test.sh");
    std::fs::write(&script, test.replace("{}", "\"$1\"")).expect("written");
    let said = succeed(&["trace", "minimise", &file, "--output", &short, "--", "sh", &script]);
    assert!(said.contains(" events"), "{said}");
    let left = succeed(&["trace", "show", &short]);
    let events: Vec<_> = left.lines().filter(|line| !line.contains("thread ")).collect();
    assert!(events.len() == 1 && events[0].contains("DMA command"), "{left}");
    assert!(!folder.0.join("short.trace.candidate").exists());
}

#[test]
fn minimise_of_a_test_that_succeeds_or_takes_for_ever_says_so() {
    let folder = Folder::recorded("minimise-not", "model:edu");
    let file = folder.file("a.trace");
    for test in [&["true"][..], &["sh", "-c", "exec sleep 1000"]] {
        let output = udrv(&[&["trace", "minimise", &file, "--timeout", "1", "--"], test].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("the test succeeds"), "{said}");
    }
}

#[test]
fn dma_checker_finds_nothing_in_the_edu_driver() {
    succeed(&["run", "edu", "--samples", "5", "--device", "model:edu", "--sanitise-dma"]);
}
