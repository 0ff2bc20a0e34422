//! The debugger's case: a driver is stopped for seconds with a section open, while its device goes on. Nothing is lost.
//!
//! The driver is this test, started again; its device is served from here, so that it goes on while the driver stands.
#![expect(unsafe_code, reason = "ptrace(2) is how one thread is stopped")]

mod irq_device;

use irq_device::{DELIVERIES, until};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use stub_driver::serve::{DeviceServer, Export};
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain, IrqReturn};
use udrv::pci::{Command as PciCommand, Config};
use udrv_backend::{AnyBackend, Backend as _, IrqIndex, RegionIndex, Width};
use udrv_edu::registers::{INTERRUPT_ACKNOWLEDGE, INTERRUPT_RAISE, INTERRUPT_STATUS};

/// How long the driver stands.
const STOPPED: Duration = Duration::from_secs(2);

/// As above, in gdb.
const IN_GDB: Duration = Duration::from_secs(3);

/// What is stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// All threads, as a debugger does unless told otherwise.
    Process,
    /// The one that has the section open; the domain's own thread goes on.
    Thread,
    /// All threads, by a breakpoint in gdb, which then steps through the section.
    InGdb,
}

/// What gdb does. It tells us by echo(1), since its own output may be late, and is told on the input that is the driver's, too.
const GDB: [&str; 9] = [
    "set startup-with-shell off",
    "set disable-randomization off",
    "break irq_stopped::in_the_section",
    "run",
    "shell echo gdb stands; read line; echo gdb steps",
    "next",
    "step",
    "next",
    "continue",
];

struct Stopped {
    delivery: Delivery,
    child: Child,
    output: BufReader<ChildStdout>,
    thread: Pid,
    model: AnyBackend,
    _server: DeviceServer,
    folder: std::path::PathBuf,
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn ptrace(request: libc::c_uint, thread: Pid) {
    // SAFETY: these requests (SEIZE without options, INTERRUPT, DETACH without a signal) use neither address nor data, and
    // touch no memory of ours.
    let done = unsafe { libc::ptrace(request, thread.as_raw(), 0, 0) };
    assert_eq!(done, 0, "ptrace {request:#x}: {}", std::io::Error::last_os_error());
}

impl Stopped {
    /// A driver with a section open.
    fn start(delivery: Delivery, what: What) -> Self {
        let folder =
            std::env::temp_dir().join(format!("udrv-stopped-{}-{delivery:?}-{}", std::process::id(), what as u8));
        std::fs::create_dir(&folder).expect("a folder");
        let model: AnyBackend = Arc::new(udrv_edu::model::edu());
        let export = Export::shared("edu", Arc::new(Arc::clone(&model)));
        let server = DeviceServer::start(export, &folder.join("edu.sock")).expect("served");
        let test = std::env::current_exe().expect("this test");
        let mut driver = Command::new(&test);
        if what == What::InGdb {
            driver = Command::new("gdb");
            driver.args(["-nx", "-q", "-batch"]);
            for command in GDB {
                driver.args(["-ex", command]);
            }
            driver.arg("--args").arg(test);
        }
        let mut child = driver
            .args(["--exact", "child_process_is_the_driver", "--nocapture"])
            .env("UDRV_TEST_STOPPED", server.path())
            .env("UDRV_TEST_DELIVERY", format!("{delivery:?}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Not ours: a group with a member that stands is sent SIGHUP when its leader's parent ends.
            .process_group(0)
            .spawn()
            .expect("started");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let mut it = Self { delivery, child, output, thread: Pid::from_raw(0), model, _server: server, folder };
        it.thread = Pid::from_raw(it.line("open ").parse().expect("a thread's number"));
        it
    }

    /// What follows `start` in the driver's output.
    fn line(&mut self, start: &str) -> String {
        let mut lines = (&mut self.output).lines().map_while(Result::ok);
        let found = lines.find_map(|line| line.split_once(start).map(|(_, rest)| rest.to_owned()));
        found.unwrap_or_else(|| panic!("{:?}: the driver ended without `{start}`", self.delivery))
    }

    fn process(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    fn stop(&self, what: What) {
        match what {
            What::Process => {
                kill(self.process(), Signal::SIGSTOP).expect("stopped");
                waitpid(self.process(), Some(WaitPidFlag::WUNTRACED)).expect("it stands");
            }
            What::InGdb => unreachable!("it stops by itself"),
            What::Thread => {
                ptrace(libc::PTRACE_SEIZE, self.thread);
                ptrace(libc::PTRACE_INTERRUPT, self.thread);
                waitpid(self.thread, Some(WaitPidFlag::__WALL)).expect("it stands");
            }
        }
    }

    fn go_on(&mut self, what: What) {
        match what {
            What::Process => kill(self.process(), Signal::SIGCONT).expect("it goes on"),
            What::Thread => ptrace(libc::PTRACE_DETACH, self.thread),
            What::InGdb => self.child.stdin.as_mut().expect("its input").write_all(b"step\n").expect("told"),
        }
        self.child.stdin.as_mut().expect("its input").write_all(b"go\n").expect("told");
    }
}

fn driver_stopped_in_a_section(what: What) {
    let mut drivers = DELIVERIES.map(|delivery| Stopped::start(delivery, what));
    for driver in &mut drivers {
        match what {
            What::InGdb => drop(driver.line("gdb stands")),
            What::Process | What::Thread => driver.stop(what),
        }
    }
    let time = if what == What::InGdb { IN_GDB } else { STOPPED };
    let end = Deadline::after(time);
    for bit in 0.. {
        // Each cause once at least, and on through all the time that they stand: 200 and odd messages, spread over it.
        let next = Deadline::after(time / 200);
        for driver in &drivers {
            let cause = 1 << (bit % 32);
            driver.model.write(RegionIndex::BAR0, INTERRUPT_RAISE.offset, Width::Bits32, cause).expect("raised");
        }
        until("the time for the next cause", || next.remaining().is_none());
        if end.remaining().is_none() {
            assert!(bit >= 32, "{bit}: not every cause was raised");
            break;
        }
    }
    for driver in &mut drivers {
        driver.go_on(what);
        let seen = driver.line("seen ");
        assert_eq!(seen, "ffffffff, 0 in the section, the accounts close", "{:?}", driver.delivery);
    }
}

#[test]
fn process_stopped_in_a_section_loses_no_interrupt() {
    driver_stopped_in_a_section(What::Process);
}

#[test]
fn thread_stopped_in_a_section_loses_no_interrupt() {
    driver_stopped_in_a_section(What::Thread);
}

#[test]
fn driver_stepped_by_gdb_through_a_section_loses_no_interrupt() {
    if Command::new("gdb").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "there is no gdb: install it");
        return println!("left out: there is no gdb on this machine");
    }
    driver_stopped_in_a_section(What::InGdb);
}

/// Where gdb stops.
#[inline(never)]
fn in_the_section() -> i32 {
    let thread = nix::unistd::gettid().as_raw();
    std::hint::black_box(thread)
}

/// Not a test by itself: the driver that is stopped.
#[test]
fn child_process_is_the_driver() {
    let (Ok(socket), Ok(delivery)) = (std::env::var("UDRV_TEST_STOPPED"), std::env::var("UDRV_TEST_DELIVERY")) else {
        return;
    };
    let delivery = DELIVERIES.into_iter().find(|it| format!("{it:?}") == delivery).expect("a delivery");
    let device = udrv::open(&format!("unix:{socket}")).expect("connected");
    Config::new(&*device).change_command(PciCommand::BUS_MASTER, PciCommand::empty()).expect("on");
    let domain = IrqDomain::new(delivery).expect("a domain");
    let (causes, in_section, inside) =
        (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let handler = {
        let (device, causes, in_section, inside) = (device.clone(), causes.clone(), in_section.clone(), inside.clone());
        move |_| {
            in_section.fetch_add(inside.load(Ordering::SeqCst), Ordering::SeqCst);
            let status = device.read(RegionIndex::BAR0, INTERRUPT_STATUS.offset, Width::Bits32).expect("read");
            device.write(RegionIndex::BAR0, INTERRUPT_ACKNOWLEDGE.offset, Width::Bits32, status).expect("written");
            causes.fetch_or(status as u32, Ordering::SeqCst);
            IrqReturn::Handled
        }
    };
    let irq = domain.register(&device, IrqIndex::MSI, 0, handler).expect("registered");
    domain.off(|_| {
        inside.store(1, Ordering::SeqCst);
        println!("open {}", nix::unistd::gettid());
        in_the_section();
        let told = std::io::stdin().lines().next();
        assert_eq!(told.expect("not the end").expect("read"), "go");
        inside.store(0, Ordering::SeqCst);
    });
    let all = || causes.load(Ordering::SeqCst) == u32::MAX && !irq.is_pending();
    let waited = domain.wait("every cause", Deadline::after(Duration::from_secs(20)), all);
    let stats = irq.stats();
    let accounts =
        if stats.raised == stats.delivered + stats.merged { "the accounts close".into() } else { format!("{stats:?}") };
    let (causes, in_section) = (causes.load(Ordering::SeqCst), in_section.load(Ordering::SeqCst));
    println!("seen {causes:x}, {in_section} in the section, {accounts}");
    waited.expect("nothing is lost");
}
