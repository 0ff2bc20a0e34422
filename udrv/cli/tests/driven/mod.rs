//! A driver in a process of its own, whose device is served from the test's.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use stub_driver::serve::{ControlServer, DeviceServer, Export};
use udrv::clock::Deadline;
use udrv_backend::AnyBackend;

/// Longer than anything here takes on a machine that has other things to do.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A driver in a process of its own, its device served from here; ended when dropped.
pub struct Driven {
    pub child: Child,
    pub model: AnyBackend,
    pub address: String,
    pub folder: PathBuf,
    pub server: Option<DeviceServer>,
    _control: ControlServer,
}

impl Drop for Driven {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Driven {
    /// The edu driver, while it takes interrupts without end.
    pub fn start() -> Self {
        let model = Arc::new(udrv_edu::model::edu());
        Self::of(model, &["edu", "--samples", "100000000"], |line| line.starts_with("section"))
    }

    /// A driver on this device, once it has said something.
    pub fn of(model: AnyBackend, driver: &[&str], has_begun: impl Fn(&str) -> bool) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("udrv-outside-{}-{number}", std::process::id()));
        std::fs::create_dir(&folder).expect("a folder");
        let name = driver[0];
        let export = Export::shared(name, Arc::clone(&model));
        let server = DeviceServer::start(export, &folder.join(name).with_extension("sock")).expect("served");
        let control = ControlServer::start(&folder, nix::unistd::geteuid(), std::slice::from_ref(&server));
        let address = format!("unix:{}", server.path().display());
        let mut child = Command::new(env!("CARGO_BIN_EXE_udrv"))
            .arg("run")
            .args(driver)
            .args(["--device", &address])
            .stdout(Stdio::piped())
            // Not ours: a group with a member that stands is sent SIGHUP when its leader's parent ends.
            .process_group(0)
            .spawn()
            .expect("started");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let control = control.expect("served");
        let it = Self { child, model, address, folder, server: Some(server), _control: control };
        assert!(output.lines().map_while(Result::ok).any(|line| has_begun(&line)), "the driver has ended");
        it
    }

    /// What a command says of it.
    #[track_caller]
    pub fn ask(&self, arguments: &[&str]) -> String {
        let pid = self.child.id().to_string();
        let output = Command::new(env!("CARGO_BIN_EXE_udrv")).args(arguments).args(["--pid", &pid]).output();
        let output = output.expect("udrv starts");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    #[track_caller]
    pub fn ask_json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ask(&[arguments, &["--json"]].concat())).expect("JSON")
    }

    pub fn delivered(&self) -> u64 {
        self.ask_json(&["irqs"])["sources"][0]["delivered"].as_u64().expect("a number")
    }
}

#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    Deadline::after(PATIENCE).poll(what, || Ok(done())).expect("in time");
}
