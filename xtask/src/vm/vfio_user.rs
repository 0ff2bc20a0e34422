//! The stub before somebody else's client: QEMU's `vfio-user-pci` shows the edu model to Debian's stock kernel as a PCI device, and the
//! stub serves the next client afterwards. What the kernel does is recorded meanwhile.
//!
//! `vfio_user.sh` is the guest's only process; it tells what it finds, and here that is judged. `own_drivers.rs` has the kernel's own
//! drivers on the other models.

mod own_drivers;

use super::initramfs;
use super::kernel::{self, Kernel};
use super::machine::{escape, target_dir};
use super::newer_qemu::NewerQemu;
use super::run_folder::RunFolder;
use super::verdict::{Outcome, Verdict, skip_all, summarize};
use super::watch::{End, watch};
use crate::clock;
use crate::stub::Stub;
use anyhow::{Context as _, Result, bail, ensure};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A boot takes about 6 s on two idle cores; with ten others at work on them, 40 s have been seen.
const BOOT: Duration = Duration::from_secs(240);
/// For the next client.
const CLIENT_SECONDS: &str = "60";
/// How often the guest has worked the device when its QEMU is killed.
const BUSY: usize = 3;

const KERNEL_COMMAND_LINE: &str = "console=ttyS0 panic=-1 oops=panic no_timer_check";
/// Leaves memory above 192 MiB to the device's transfers.
const MEMORY: &str = "mem=192M";
/// The memory is shared, so that the client can pass it on to the server.
const MACHINE: &[&str] = &[
    "-accel",
    "tcg,thread=multi",
    "-machine",
    "q35,memory-backend=memory",
    "-object",
    "memory-backend-memfd,id=memory,size=256M,share=on",
    "-m",
    "256M",
    "-cpu",
    "max",
    "-nodefaults",
    "-display",
    "none",
    "-nic",
    "none",
];

/// What a guest has to tell: in which test, under which name, what.
type Expected = (&'static str, &'static str, &'static str);

/// By the specification of the device (QEMU docs/specs/edu.rst).
const EXPECTED: &[Expected] = &[
    (FINDS, "vendor", "0x1234"),
    (FINDS, "device", "0x11e8"),
    (FINDS, "class", "0x00ff00"),
    (FINDS, "bar0-size", "1048576"),
    (FINDS, "config-ids", "3412e811"),
    (FINDS, "config-command", "0600"),
    (FINDS, "driver-before", "none"),
    (ACCESSES, "identification", "0x010000ED"),
    (ACCESSES, "liveness", "0xEDCBA987"),
    (ACCESSES, "factorial", "0x00000078"),
    (TRANSFERS, "dma-first", "0xDEADBEEF"),
    (TRANSFERS, "dma-last", "0x0BADCAFE"),
    (INTERRUPTS, "driver", "uio_pci_generic"),
    (INTERRUPTS, "interrupts", "1"),
    (INTERRUPTS, "interrupt-cause", "0x00000100"),
    (INTERRUPTS, "interrupt-acknowledged", "0x00000000"),
];

const FINDS: &str = "vfio_user::stock_kernel_finds_the_device";
const ACCESSES: &str = "vfio_user::stock_kernel_reads_and_writes_registers";
const TRANSFERS: &str = "vfio_user::stock_kernel_gets_bytes_by_dma";
const INTERRUPTS: &str = "vfio_user::stock_kernel_gets_the_interrupt";
const RECORDED: &str = "vfio_user::stub_records_what_the_stock_kernel_does";
const NEXT: &str = "vfio_user::stub_after_qemu_serves_the_next_client";
const NEXT_AFTER_KILL: &str = "vfio_user::stub_after_killed_qemu_serves_the_next_client";

const TESTS: [&str; 7] = [FINDS, ACCESSES, TRANSFERS, INTERRUPTS, RECORDED, NEXT, NEXT_AFTER_KILL];

/// What the guest does, as `udrv trace show` has it: what it is, of which register, with which value.
const RECORD: &[(&str, &str, u64)] = &[
    ("write", "card liveness check", 0x1234_5678),
    ("read", "card liveness check", 0xedcb_a987),
    ("write", "factorial computation", 5),
    // Half of a register of 64 bits at a time.
    ("write", "DMA source address byte 0", 0x0c00_0000),
    ("write", "DMA command byte 0", 1),
    ("write", "DMA command byte 0", 3),
    ("write", "interrupt raise", 0x100),
    ("irq", "", 0),
    ("write", "interrupt acknowledge", 0x100),
];

/// The names of all, in their order.
pub(crate) fn tests() -> impl Iterator<Item = &'static str> {
    TESTS.into_iter().chain(own_drivers::TESTS)
}

/// Runs them, printing a line for each and a summary. Where they cannot run they are skipped with the reason.
pub(crate) fn run(repo: &Path) -> Result<Vec<Verdict>> {
    let begin = clock::now();
    println!("\n     Running {} tests of a newer QEMU's vfio-user client against the stub", tests().count());
    let target = target_dir(repo)?;
    let cache = target.join("vm");
    let prepared = kernel::prepare(&cache).and_then(|kernel| Ok((kernel, NewerQemu::prepare(&cache)?)));
    let verdicts = match prepared {
        Ok((kernel, qemu)) => {
            println!("{}", qemu.version()?);
            let binaries = target.join("debug");
            let machine = Machine { kernel: &kernel, qemu: &qemu, folder: RunFolder::new(&cache, "vfio-user")? };
            let mut verdicts = Story { machine, binaries: binaries.clone(), verdicts: Vec::new() }.tell()?;
            let machine = Machine { kernel: &kernel, qemu: &qemu, folder: RunFolder::new(&cache, "own-drivers")? };
            verdicts.extend(own_drivers::tell(&machine, &binaries)?);
            verdicts
        }
        Err(error) => skip_all(tests().map(str::to_owned), &format!("it cannot run here: {error:#}")),
    };
    summarize(&verdicts, 0, begin.elapsed());
    Ok(verdicts)
}

/// One line of the guest's: a name and a value.
type Fact = (String, String);

/// What a machine is made of that sees the stub's devices through QEMU's vfio-user client.
struct Machine<'a> {
    kernel: &'a Kernel,
    qemu: &'a NewerQemu,
    folder: RunFolder,
}

impl Machine<'_> {
    fn initramfs(&self) -> PathBuf {
        self.folder.file("initramfs")
    }

    /// A boot with these devices, by address and socket: what the guest tells, until it ends, or until `enough` of it kills it.
    fn boot(
        &self,
        devices: &[(&str, &Path)],
        options: &[&str],
        command_line: &str,
        enough: impl Fn(&[Fact]) -> bool,
    ) -> Result<(End, Vec<Fact>)> {
        let mut qemu = self.qemu.command();
        qemu.args(MACHINE).args(options).arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(self.initramfs());
        qemu.arg("-append").arg(format!("{KERNEL_COMMAND_LINE} {command_line}"));
        qemu.arg("-chardev").arg(format!("file,id=console,path={}", escape(&self.folder.log())));
        qemu.args(["-serial", "chardev:console", "-chardev", "stdio,id=told,signal=on", "-serial", "chardev:told"]);
        for (address, socket) in devices {
            let socket = serde_json::json!({"type": "unix", "path": socket});
            let device = serde_json::json!({"driver": "vfio-user-pci", "addr": address, "socket": socket});
            qemu.arg("-device").arg(device.to_string());
        }
        let complaints = fs::File::create(self.folder.complaints())?;
        qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(complaints);
        let mut qemu = qemu.spawn().context("cannot start QEMU by setpriv")?;
        let mut told = Vec::new();
        let end = watch(&mut qemu, BOOT, &self.folder.log(), |bytes| {
            told.extend_from_slice(bytes);
            Ok(if enough(&facts(&told)) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok((end, facts(&told)))
    }
}

/// One stub, and its clients one after the other.
struct Story<'a> {
    machine: Machine<'a>,
    binaries: PathBuf,
    verdicts: Vec<Verdict>,
}

impl Story<'_> {
    fn tell(mut self) -> Result<Vec<Verdict>> {
        let initramfs = self.machine.initramfs();
        initramfs::build(self.machine.kernel, &["uio_pci_generic"], include_str!("vfio_user.sh"), &initramfs)?;
        // a socket's path may have 107 bytes, and a target folder's may be long
        let sockets = std::env::temp_dir().join(format!("udrv-vfio-user-{}", std::process::id()));
        fs::create_dir_all(&sockets).with_context(|| format!("cannot create {}", sockets.display()))?;
        let options = ["--record".as_ref(), sockets.as_os_str()];
        let told = Stub::start(&self.binaries, &["edu"], &sockets, &options).map(|mut stub| self.tell_with(&mut stub));
        drop(fs::remove_dir_all(&sockets));
        told?;
        fs::remove_file(initramfs)?;
        if self.verdicts.iter().any(|verdict| matches!(verdict.outcome, Outcome::Failed(_))) {
            println!("{}", self.machine.folder.log_tail());
        }
        Ok(self.verdicts)
    }

    fn tell_with(&mut self, stub: &mut Stub) {
        let begin = clock::now();
        let facts = self.boot(stub, "", |_| false);
        let mut duration = begin.elapsed();
        for test in [FINDS, ACCESSES, TRANSFERS, INTERRUPTS] {
            let outcome = match &facts {
                Ok((End::Itself, facts)) => judge(EXPECTED, test, facts),
                Ok((end, facts)) => Err(anyhow::anyhow!("the machine ended so: {end:?}; it told {facts:?}")),
                Err(error) => Err(anyhow::anyhow!("{error:#}")),
            };
            self.conclude(test, outcome, std::mem::take(&mut duration));
        }

        let begin = clock::now();
        let recorded = self.recorded(&stub.socket.with_file_name("edu-1.trace"));
        self.conclude(RECORDED, recorded, begin.elapsed());

        let begin = clock::now();
        let served = self.next_client(stub);
        self.conclude(NEXT, served, begin.elapsed());

        let begin = clock::now();
        let killed = self.boot(stub, "hold", |facts| facts.iter().filter(|(name, _)| name == "busy").count() >= BUSY);
        let served = killed.and_then(|(end, facts)| {
            ensure!(
                end == End::Stopped,
                "the machine was to be killed while it was busy, but: {end:?}; it told {facts:?}"
            );
            self.next_client(stub)
        });
        self.conclude(NEXT_AFTER_KILL, served, begin.elapsed());
    }

    fn conclude(&mut self, test: &str, outcome: Result<()>, duration: Duration) {
        self.verdicts.push(conclude(test, outcome, duration));
    }

    fn boot(&self, stub: &Stub, words: &str, enough: impl Fn(&[Fact]) -> bool) -> Result<(End, Vec<Fact>)> {
        self.machine.boot(&[("4", &stub.socket)], &["-no-reboot"], &format!("{MEMORY} {words}"), enough)
    }

    /// Whether the first lease's recording has what the guest did, in order.
    fn recorded(&self, recording: &Path) -> Result<()> {
        let out = Command::new(self.binaries.join("udrv"))
            .args(["trace", "show", "--json"])
            .arg(recording)
            .stdin(Stdio::null())
            .output()
            .context("cannot start udrv")?;
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "udrv trace show {} failed: {}", recording.display(), said.trim());
        let shown = String::from_utf8_lossy(&out.stdout);
        let mut events = shown.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        for (kind, register, value) in RECORD {
            let is = |event: serde_json::Value| {
                event["kind"] == *kind
                    && (*kind == "irq" || (event["register"] == *register && event["value"] == *value))
            };
            ensure!(events.any(is), "{} has no {kind} {register} {value:#x} where it was due", recording.display());
        }
        Ok(())
    }

    /// Our own driver on the same socket, with all its checks.
    fn next_client(&self, stub: &mut Stub) -> Result<()> {
        ensure!(stub.is_alive(), "the stub has ended");
        let out = Command::new("timeout")
            .arg(CLIENT_SECONDS)
            .arg(self.binaries.join("udrv"))
            .args(["run", "edu", "--samples", "50", "--device", &stub.address()])
            .stdin(Stdio::null())
            .output()
            .context("cannot start udrv")?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            bail!("udrv run edu --device {} failed ({}): {}", stub.address(), out.status, said.trim());
        }
        Ok(())
    }
}

fn conclude(test: &str, outcome: Result<()>, duration: Duration) -> Verdict {
    let outcome = match outcome {
        Ok(()) => Outcome::Passed,
        Err(error) => Outcome::Failed(format!("{error:#}")),
    };
    let verdict = Verdict { name: test.to_owned(), outcome, duration };
    verdict.report();
    verdict
}

/// The complete lines of what the guest told; a line has a name and its value, which may be empty.
fn facts(told: &[u8]) -> Vec<Fact> {
    let text = String::from_utf8_lossy(told);
    let complete = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    complete
        .map(|line| {
            let (name, value) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
            (name.to_owned(), value.to_owned())
        })
        .collect()
}

/// Whether the guest told all that `test` expects, and told nothing else under these names.
fn judge(expected: &[Expected], test: &str, facts: &[Fact]) -> Result<()> {
    let mut wrong = Vec::new();
    for (_, name, expected) in expected.iter().filter(|(of, ..)| *of == test) {
        let mut told = facts.iter().filter(|(told, _)| told == name).map(|(_, value)| value.as_str());
        match (told.next(), told.next()) {
            (Some(value), None) if value == *expected => {}
            (Some(value), None) => wrong.push(format!("{name} is {value:?}, expected {expected:?}")),
            (Some(_), Some(_)) => wrong.push(format!("{name} was told twice")),
            (None, _) => wrong.push(format!("the guest did not tell {name}")),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judge_nothing_told_fails_every_test_of_the_guest() {
        for test in [FINDS, ACCESSES, TRANSFERS, INTERRUPTS] {
            assert!(judge(EXPECTED, test, &[]).is_err(), "{test}");
        }
    }

    #[test]
    fn judge_names_what_is_wrong() {
        let facts = facts(b"identification 0x010000ED\r\nliveness \nfactorial 0x00000078\n");
        let error = judge(EXPECTED, ACCESSES, &facts).expect_err("liveness is wrong");
        assert_eq!(error.to_string(), "liveness is \"\", expected \"0xEDCBA987\"");
    }

    #[test]
    fn facts_of_an_incomplete_line_are_none() {
        assert_eq!(facts(b"vendor 0x12"), []);
    }
}
