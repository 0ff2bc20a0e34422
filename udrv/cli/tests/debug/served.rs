//! A device that is served from here, and a debugger with its driver.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use stub_driver::serve::{ControlServer, DeviceServer, Export};
use udrv_backend::{AnyBackend, Backend as _, RegionIndex, Width};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Debugger {
    Gdb,
    Lldb,
}

impl Debugger {
    pub fn name(self) -> &'static str {
        match self {
            Self::Gdb => "gdb",
            Self::Lldb => "lldb",
        }
    }

    /// Whether it is installed; where CI runs, it must be.
    fn is_here(self) -> bool {
        let name = self.name();
        let found = Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
        assert!(
            found || std::env::var_os("CI").is_none_or(|ci| ci != "true"),
            "CI has no {name}: apt-get install {name}"
        );
        if !found {
            eprintln!("skipped: there is no {name} (apt-get install {name})");
        }
        found
    }

    /// Deletes all breakpoints.
    pub fn delete(self) -> &'static str {
        match self {
            Self::Gdb => "delete",
            Self::Lldb => "breakpoint delete --force",
        }
    }

    pub fn locals(self) -> &'static str {
        match self {
            Self::Gdb => "info locals",
            Self::Lldb => "frame variable",
        }
    }

    /// Runs a line of Python.
    pub fn python(self, line: &str) -> String {
        match self {
            Self::Gdb => format!("python {line}"),
            Self::Lldb => format!("script {line}"),
        }
    }

    /// Shows a variable, by its path from a pointer of the frame.
    pub fn show(self, pointer: &str, field: &str) -> String {
        match self {
            Self::Gdb => format!("print (*{pointer}).{field}"),
            Self::Lldb => format!("frame variable {pointer}->{field}"),
        }
    }
}

/// The edu model, served with a control socket.
pub struct Served {
    pub debugger: Debugger,
    pub model: AnyBackend,
    address: String,
    folder: PathBuf,
    _control: ControlServer,
    _server: Vec<DeviceServer>,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Served {
    /// `None` if the debugger is not installed.
    pub fn start(debugger: Debugger) -> Option<Self> {
        if !debugger.is_here() {
            return None;
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("udrv-debug-{}-{number}", std::process::id()));
        std::fs::create_dir(&folder).expect("a folder");
        let model: AnyBackend = Arc::new(udrv_edu::model::edu());
        let export = Export::shared("edu", Arc::new(Arc::clone(&model)));
        let server = DeviceServer::start(export, &folder.join("edu.sock")).expect("served");
        let address = format!("unix:{}", server.path().display());
        let server = vec![server];
        let control = ControlServer::start(&folder, nix::unistd::geteuid(), &server).expect("served");
        Some(Self { debugger, model, address, folder, _control: control, _server: server })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn register(&self, offset: u64, width: Width) -> u64 {
        self.model.read(RegionIndex::BAR0, offset, width).expect("read")
    }

    /// `udrv debug`, with whatever else it is to be told.
    pub fn command(&self) -> Command {
        let mut udrv = Command::new(env!("CARGO_BIN_EXE_udrv"));
        udrv.args(["debug", &format!("--{}", self.debugger.name())]);
        udrv.env("UDRV_TEST_DEBUGGED", &self.address).env("NO_COLOR", "1");
        udrv
    }

    fn output(&self, commands: &[&str], program: &[&str]) -> (Output, String) {
        let mut udrv = self.command();
        udrv.arg("--batch");
        for command in commands {
            udrv.args(["--ex", command]);
        }
        let output = udrv.arg("--").args(program).output().expect("udrv starts");
        let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
        (output, said)
    }

    /// What the debugger says when it is given these commands and this driver.
    pub fn debug(&self, commands: &[&str], program: &[&str]) -> String {
        let (output, said) = self.output(commands, program);
        assert!(output.status.success(), "{said}");
        said
    }

    fn edu(&self) -> [&str; 7] {
        ["udrv", "run", "edu", "--samples", "5", "--device", &self.address]
    }

    /// The same of `udrv run edu`.
    pub fn debug_edu(&self, commands: &[&str]) -> String {
        self.debug(commands, &self.edu())
    }

    /// The same, where a command is wrong. In batch mode gdb goes on then, and lldb ends.
    pub fn debug_edu_badly(&self, commands: &[&str]) -> String {
        let (output, said) = self.output(commands, &self.edu());
        assert!(self.debugger == Debugger::Gdb || output.status.code() == Some(1), "{}: {said}", output.status);
        said
    }
}
