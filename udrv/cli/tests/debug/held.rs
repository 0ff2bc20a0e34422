//! A driver that a debugger holds for seconds in the middle of a section, while its device goes on.

use super::served::{Debugger, Served};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain, IrqReturn};
use udrv::pci::{Command as PciCommand, Config};
use udrv_backend::{AnyBackend, Backend as _, IrqIndex, RegionIndex, Width};
use udrv_edu::registers::{INTERRUPT_ACKNOWLEDGE, INTERRUPT_RAISE, INTERRUPT_STATUS};

/// How long the debugger holds the driver: longer than [`DEADLINE`].
pub const HELD: Duration = Duration::from_secs(3);
/// What must not pass while the driver is held.
const DEADLINE: Duration = Duration::from_secs(2);

const DELIVERIES: [Delivery; 3] = [Delivery::Thread, Delivery::Signal, Delivery::Poll];

/// What the driver says in the end if all went well.
pub const WELL: &str = "seen ffffffff, 0 in the section, every one counted, no deadline passed";
/// Where the debugger stops.
pub const PLACE: &str = concat!(module_path!(), "::in_the_section");

/// The driver: this test again.
pub fn driver() -> [String; 4] {
    let program = std::env::current_exe().expect("this test");
    let program = program.to_str().expect("UTF-8").to_owned();
    [program, "--exact".into(), "held::child_process_is_the_driver".into(), "--nocapture".into()]
}

/// Runs `debug` while the device has every cause of an interrupt, again and again.
pub fn under_load<T>(model: &AnyBackend, debug: impl FnOnce() -> T) -> T {
    let (stop, stopped) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for bit in (0..32).cycle() {
                model.write(RegionIndex::BAR0, INTERRUPT_RAISE.offset, Width::Bits32, 1 << bit).expect("raised");
                if stopped.recv_timeout(Duration::from_millis(2)) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        let result = debug();
        drop(stop);
        result
    })
}

/// What is said when a debugger's user thinks for 3 s, in the middle of a section.
fn think_in_a_section(served: &Served, delivery: Delivery, first: &str) -> String {
    let debugger = served.debugger;
    let think = debugger.python(&format!("import time; time.sleep({})", HELD.as_secs()));
    let stop = match debugger {
        Debugger::Gdb => format!("break {PLACE}"),
        Debugger::Lldb => format!("breakpoint set --name {PLACE}"),
    };
    let delivery = format!("{}={delivery:?}", DELIVERY);
    let environment = match debugger {
        Debugger::Gdb => format!("set environment {delivery}"),
        Debugger::Lldb => format!("settings set target.env-vars {delivery}"),
    };
    // In lldb, a SIGIO that came meanwhile leads back to the breakpoint (docs/debugging.md, "In lldb").
    let leave = if debugger == Debugger::Lldb { debugger.delete() } else { "info breakpoints" };
    let commands =
        [&environment, first, &stop, "run", "udrv irqs", &think, leave, "next", "next", "udrv irqs", "continue"];
    let driver = driver();
    under_load(&served.model, || served.debug(&commands, &driver.each_ref().map(String::as_str)))
}

super::in_both!(
    held_in_a_section_no_interrupt_is_lost_and_no_deadline_passes,
    held_with_the_clock_going_on_the_deadline_passes,
);

fn held_in_a_section_no_interrupt_is_lost_and_no_deadline_passes(debugger: Debugger) {
    for delivery in DELIVERIES {
        let Some(served) = Served::start(debugger) else { return };
        let said = think_in_a_section(&served, delivery, "udrv hold on");
        let opened = "has a section open, entered at udrv/cli/tests/debug/held.rs:";
        assert!(said.contains(opened), "{delivery:?}: {said}");
        let source = format!("({}; enabled", format!("{delivery:?}").to_lowercase());
        assert!(said.contains(&source), "{delivery:?}: {said}");
        assert!(said.contains(WELL), "{delivery:?}: {said}");
        assert!(!said.contains("SIGIO"), "{delivery:?}: {said}");
    }
}

fn held_with_the_clock_going_on_the_deadline_passes(debugger: Debugger) {
    let Some(served) = Served::start(debugger) else { return };
    let said = think_in_a_section(&served, Delivery::Thread, "udrv hold off");
    assert!(said.contains("a deadline passed while the driver was held"), "{said}");
}

/// In the driver's environment.
const DELIVERY: &str = "UDRV_TEST_DELIVERY";

#[inline(never)]
fn in_the_section(inside: &AtomicU64) {
    inside.fetch_add(1, Ordering::SeqCst);
}

/// Not a test by itself: the driver that the debugger holds.
#[test]
fn child_process_is_the_driver() {
    let Some(address) = std::env::var_os("UDRV_TEST_DEBUGGED") else { return };
    let delivery = std::env::var(DELIVERY).unwrap_or_default();
    let delivery = DELIVERIES.into_iter().find(|it| format!("{it:?}") == delivery).unwrap_or(Delivery::Thread);
    let device = udrv::open(address.to_str().expect("UTF-8")).expect("connected");
    Config::new(&*device).change_command(PciCommand::BUS_MASTER, PciCommand::empty()).expect("on");
    let domain = IrqDomain::new(delivery).expect("a domain");
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
