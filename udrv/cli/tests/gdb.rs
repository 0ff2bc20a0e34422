//! `udrv debug`: a real gdb, in batch mode, on a driver whose device is served from here, so that it goes on meanwhile.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use stub_driver::serve::{ControlServer, DeviceServer, Export};
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain, IrqReturn};
use udrv::pci::{Command as PciCommand, Config};
use udrv_backend::{AnyBackend, Backend as _, IrqIndex, RegionIndex, Width};
use udrv_edu::registers::{INTERRUPT_ACKNOWLEDGE, INTERRUPT_RAISE, INTERRUPT_STATUS, MAP};

/// How long gdb holds the driver: longer than [`DEADLINE`].
const HELD: Duration = Duration::from_secs(3);
/// What must not pass while the driver is held.
const DEADLINE: Duration = Duration::from_secs(2);

/// The edu model, served with a control socket.
struct Served {
    model: AnyBackend,
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
    fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("udrv-gdb-{}-{number}", std::process::id()));
        std::fs::create_dir(&folder).expect("a folder");
        let model: AnyBackend = Arc::new(udrv_edu::model::edu());
        let export = Export::shared("edu", Arc::new(Arc::clone(&model)));
        let server = DeviceServer::start(export, &folder.join("edu.sock")).expect("served");
        let address = format!("unix:{}", server.path().display());
        let server = vec![server];
        let control = ControlServer::start(&folder, nix::unistd::geteuid(), &server).expect("served");
        Self { model, address, folder, _control: control, _server: server }
    }

    fn register(&self, offset: u64, width: Width) -> u64 {
        self.model.read(RegionIndex::BAR0, offset, width).expect("read")
    }

    /// What gdb says when it is given these commands and this driver.
    fn debug(&self, commands: &[&str], program: &[&str]) -> String {
        let mut udrv = Command::new(env!("CARGO_BIN_EXE_udrv"));
        udrv.args(["debug", "--batch"]).env("UDRV_TEST_DEBUGGED", &self.address).env("NO_COLOR", "1");
        for command in commands {
            udrv.args(["--ex", command]);
        }
        let output = udrv.arg("--").args(program).output().expect("udrv starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        said + &String::from_utf8_lossy(&output.stderr)
    }

    /// The same of `udrv run edu`.
    fn debug_edu(&self, commands: &[&str]) -> String {
        self.debug(commands, &["udrv", "run", "edu", "--samples", "5", "--device", &self.address])
    }
}

/// Whether there is a gdb; where CI runs, there must be.
fn has_gdb() -> bool {
    let found = Command::new("gdb").arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(found || std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI has no gdb: apt-get install gdb");
    if !found {
        eprintln!("skipped: there is no gdb (apt-get install gdb)");
    }
    found
}

/// Number of the line of the edu driver that has this text.
fn line_of(text: &str) -> usize {
    let source = include_str!("../../../devices/edu/src/driver.rs");
    let mut lines = source.lines().zip(1..).filter(|(line, _)| line.contains(text));
    let (_, number) = lines.next().expect("a line of the driver");
    assert!(lines.next().is_none(), "`{text}` is on more than one line");
    number
}

#[test]
fn break_on_write_stops_at_the_drivers_line_with_its_value() {
    if !has_gdb() {
        return;
    }
    let served = Served::start();
    let said = served.debug_edu(&["udrv break-on-write factorial 10", "run", "info locals", "udrv trace 2", "kill"]);
    let line = line_of("self.io.write(FACTORIAL, n)?");
    let stopped =
        format!("udrv: factorial computation is to be written with 0xa at devices/edu/src/driver.rs:{line}\n");
    assert!(said.contains(&stopped), "{said}");
    assert!(said.contains("write BAR0 status                   0x00000080  IRQ_ON_FACTORIAL\n"), "{said}");
    assert!(said.contains("write BAR0 factorial computation    0x0000000a\n"), "{said}");
    // Stopped before the write: the device still has the result for 5.
    assert_eq!(served.register(0x08, Width::Bits32), 120);
}

#[test]
fn break_on_read_stops_behind_the_read() {
    if !has_gdb() {
        return;
    }
    let served = Served::start();
    let said = served.debug_edu(&["udrv break-on-read 0x08 3628800", "run", "frame", "kill"]);
    let line = line_of("self.io.read(FACTORIAL)\n".trim_end());
    let stopped = format!("udrv: factorial computation was read as 0x375f00 at devices/edu/src/driver.rs:{line}\n");
    assert!(said.contains(&stopped), "{said}");
}

#[test]
fn regs_are_what_the_device_holds() {
    if !has_gdb() {
        return;
    }
    let served = Served::start();
    let said = served.debug_edu(&["udrv break-on-write 0x60", "run", "udrv poke liveness 0x1234", "udrv regs", "kill"]);
    for register in MAP.registers {
        let line = said.lines().find(|line| line.starts_with(&format!("{:<26} ", register.name)));
        let line = line.unwrap_or_else(|| panic!("no {} in {said}", register.name));
        if register.kind.is_readable() {
            let value = served.register(register.offset, register.width);
            let digits = 2 + 2 * register.width.bytes() as usize;
            assert!(line.contains(&format!("{:#06x}  {value:#0digits$x}", register.offset)), "{line}: not {value:#x}");
        } else {
            assert!(line.ends_with("write only"), "{line}");
        }
    }
    assert!(said.contains("0xffffedcb"), "the complement of what was poked: {said}");
}

#[test]
fn break_on_irq_stops_before_the_handler_and_raise_makes_one() {
    if !has_gdb() {
        return;
    }
    let served = Served::start();
    let said = served.debug_edu(&[
        "udrv break-on-irq 0",
        "run",
        "udrv irqs",
        "delete",
        "udrv break-on-write 0x64 0x10",
        "continue",
        "udrv raise 0",
        "delete",
        "continue",
    ]);
    assert!(said.contains("udrv: MSI vector 0 is about to be delivered, for 1 signals\n"), "{said}");
    assert!(said.contains("(thread; enabled, in its handler on thread "), "{said}");
    // 3 factorials, 2 transfers, 1 in the section, 5 timed, and the one that was not the device's.
    let last = said.lines().find(|line| line.starts_with("irqs ")).unwrap_or_else(|| panic!("no end: {said}"));
    assert!(last.contains("12 raised"), "{last}");
}

#[test]
fn unknown_register_is_refused_with_those_there_are() {
    if !has_gdb() {
        return;
    }
    let served = Served::start();
    let said = served.debug_edu(&["udrv break-on-write 0x60", "run", "udrv regs dma", "kill"]);
    assert!(said.contains("edu has several registers like `dma`: DMA source address (0x80), "), "{said}");
}

/// What is said when a debugger's user thinks for 3 s, in the middle of a section, while the device goes on.
fn think_in_a_section(first: &str) -> String {
    let served = Served::start();
    let stop = AtomicBool::new(false);
    let program = std::env::current_exe().expect("this test");
    let program = program.to_str().expect("UTF-8");
    let think = format!("python import time; time.sleep({})", HELD.as_secs());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The load: every cause, again and again, until the driver has ended.
            for bit in (0..32).cycle() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                served.model.write(RegionIndex::BAR0, INTERRUPT_RAISE.offset, Width::Bits32, 1 << bit).expect("raised");
                let pause = Deadline::after(Duration::from_millis(2));
                while pause.remaining().is_some() {
                    std::thread::yield_now();
                }
            }
        });
        let said = served.debug(
            &[first, "break gdb::in_the_section", "run", "udrv irqs", &think, "next", "next", "udrv irqs", "continue"],
            &[program, "--exact", "child_process_is_the_driver", "--nocapture"],
        );
        stop.store(true, Ordering::SeqCst);
        said
    })
}

#[test]
fn held_in_a_section_no_interrupt_is_lost_and_no_deadline_passes() {
    if !has_gdb() {
        return;
    }
    let said = think_in_a_section("set udrv-hold on");
    assert!(said.contains("has a section open, entered at udrv/cli/tests/gdb.rs:"), "{said}");
    assert!(said.contains("seen ffffffff, 0 in the section, every one counted, no deadline passed"), "{said}");
}

#[test]
fn held_with_the_clock_going_on_the_deadline_passes() {
    if !has_gdb() {
        return;
    }
    let said = think_in_a_section("set udrv-hold off");
    assert!(said.contains("a deadline passed while the driver was held"), "{said}");
}

/// Where gdb stops.
#[inline(never)]
fn in_the_section(inside: &AtomicU64) {
    inside.fetch_add(1, Ordering::SeqCst);
}

/// Not a test by itself: the driver that gdb holds.
#[test]
fn child_process_is_the_driver() {
    let Some(address) = std::env::var_os("UDRV_TEST_DEBUGGED") else { return };
    let device = udrv::open(address.to_str().expect("UTF-8")).expect("connected");
    Config::new(&*device).change_command(PciCommand::BUS_MASTER, PciCommand::empty()).expect("on");
    let domain = IrqDomain::new(Delivery::Thread).expect("a domain");
    let [causes, in_section, inside] = [(); 3].map(|()| Arc::new(AtomicU64::new(0)));
    let handler = {
        let (device, causes, in_section, inside) = (device.clone(), causes.clone(), in_section.clone(), inside.clone());
        move |_| {
            in_section.fetch_add(inside.load(Ordering::SeqCst), Ordering::SeqCst);
            let status = device.read(RegionIndex::BAR0, INTERRUPT_STATUS.offset, Width::Bits32).expect("read");
            device.write(RegionIndex::BAR0, INTERRUPT_ACKNOWLEDGE.offset, Width::Bits32, status).expect("written");
            causes.fetch_or(status, Ordering::SeqCst);
            IrqReturn::Handled
        }
    };
    let irq = domain.register(&device, IrqIndex::MSI, 0, handler).expect("registered");
    let fired = Arc::new(AtomicBool::new(false));
    let watchdog = {
        let fired = Arc::clone(&fired);
        domain.timer(move |_| fired.store(true, Ordering::SeqCst)).expect("a timer")
    };
    watchdog.arm(DEADLINE).expect("armed");
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // One deadline runs in the kernel meanwhile, one is looked at afterwards.
        let waiter = scope
            .spawn(|| domain.wait("the section's end", Deadline::after(DEADLINE), || ended.load(Ordering::SeqCst)));
        let deadline = Deadline::after(DEADLINE);
        domain.off(|_| {
            in_the_section(&inside);
            inside.store(0, Ordering::SeqCst);
        });
        assert!(deadline.remaining().is_some(), "a deadline passed while the driver was held");
        ended.store(true, Ordering::SeqCst);
        irq.pend();
        waiter.join().expect("it returned").expect("no deadline passed");
        assert!(!fired.load(Ordering::SeqCst), "a watchdog fired while the driver was held");
    });
    let fires = || fired.load(Ordering::SeqCst);
    domain.wait("the watchdog, later", Deadline::after(Duration::from_secs(20)), fires).expect("it was set again");
    let all = || causes.load(Ordering::SeqCst) == u64::from(u32::MAX);
    domain.wait("every cause", Deadline::after(Duration::from_secs(20)), all).expect("nothing is lost");
    irq.disable().expect("disabled");
    let stats = irq.stats();
    // What is pending now is raised and not delivered: that is at most what has come since.
    let counted = if stats.raised >= stats.delivered + stats.merged { "every one counted" } else { "too few counted" };
    let in_section = in_section.load(Ordering::SeqCst);
    println!("seen {:x}, {in_section} in the section, {counted}, no deadline passed", causes.load(Ordering::SeqCst));
}
