//! Placed interrupts: planted bugs are found and shrunk, and the edu driver survives all pairs.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use udrv::dma::{FromDevice, ToDevice};
use udrv::irq::{IrqReturn, Registration};
use udrv::mmio::{ByMessage, Io as _};
use udrv::pci::{Command as PciCommand, Config};
use udrv::schedules::{Explored, Placement, Run, Schedule, Schedules};
use udrv_backend::{AnyBackend, Backend, IrqIndex, RegionIndex, Result, Width};
use udrv_edu::driver::Edu;
use udrv_edu::registers::{INTERRUPT_ACKNOWLEDGE, INTERRUPT_RAISE, INTERRUPT_STATUS, InterruptStatus, LIVENESS};

/// The cause that placed interrupt `irq` raises.
const fn cause(irq: usize) -> InterruptStatus {
    InterruptStatus::from_bits_retain(0x10 << irq)
}

fn raise(irq: usize) -> impl Fn(&dyn Backend) -> Result<()> {
    move |device| {
        let bits = u64::from(cause(irq).bits());
        device.write(RegionIndex::BAR0, INTERRUPT_RAISE.offset, Width::Bits32, bits)
    }
}

/// The edu device, with two causes to place.
fn on_edu() -> Schedules {
    Schedules::on(|| Arc::new(udrv_edu::model::edu()) as AnyBackend).raise(raise(0)).raise(raise(1))
}

type Registers = Arc<ByMessage<dyn Backend>>;

/// A driver so small that its bugs are its whole difference: a handler that gathers causes, and work that takes them.
struct Small {
    io: Registers,
    causes: Arc<AtomicU32>,
    _irq: Registration,
    up_at: u64,
}

impl Small {
    fn new(run: &Run, acknowledge: fn(InterruptStatus) -> InterruptStatus) -> Result<Self> {
        Config::new(&*run.device).change_command(PciCommand::BUS_MASTER, PciCommand::empty())?;
        let io: Registers = Arc::new(ByMessage::new(Arc::clone(&run.device), RegionIndex::BAR0));
        let causes = Arc::new(AtomicU32::new(0));
        let handler = {
            let (io, causes) = (Arc::clone(&io), Arc::clone(&causes));
            move |_| match io.read(INTERRUPT_STATUS) {
                Ok(status) if !status.is_empty() => {
                    causes.fetch_or(status.bits(), Ordering::SeqCst);
                    io.write(INTERRUPT_ACKNOWLEDGE, acknowledge(status)).expect("a model");
                    IrqReturn::Handled
                }
                _ => IrqReturn::None,
            }
        };
        let irq = run.irqs.register(&run.device, IrqIndex::MSI, 0, handler)?;
        Ok(Self { io, causes, _irq: irq, up_at: run.accesses() })
    }

    /// Takes the causes out, with a register access in the middle, as a driver that has more to read would.
    fn take(&self) -> Result<u32> {
        let causes = self.causes.load(Ordering::SeqCst);
        self.io.read(LIVENESS)?;
        self.causes.store(0, Ordering::SeqCst);
        Ok(causes)
    }
}

/// Whether all causes that were raised since `up_at` are among those seen.
fn nothing_lost(run: &Run, up_at: u64, seen: u32) -> std::result::Result<(), String> {
    let raised = run
        .raised()
        .iter()
        .filter(|placement| placement.access >= up_at)
        .fold(0, |all, placement| all | cause(placement.irq).bits());
    match raised & !seen {
        0 => Ok(()),
        lost => Err(format!("cause {lost:#x} was lost")),
    }
}

/// Acknowledges more than it has read.
fn hasty(run: &Run) -> std::result::Result<(), String> {
    let small = Small::new(run, |_| InterruptStatus::all()).map_err(|error| error.to_string())?;
    small.io.write(LIVENESS, 1).map_err(|error| error.to_string())?;
    run.irqs.deliver();
    nothing_lost(run, small.up_at, small.causes.load(Ordering::SeqCst))
}

/// Takes what the handler left, with or without interrupts off meanwhile.
fn taking(run: &Run, in_section: bool) -> std::result::Result<(), String> {
    let small = Small::new(run, |status| status).map_err(|error| error.to_string())?;
    let mut seen = 0;
    for _ in 0..2 {
        let taken = if in_section { run.irqs.off(|_off| small.take()) } else { small.take() };
        seen |= taken.map_err(|error| error.to_string())?;
    }
    run.irqs.deliver();
    nothing_lost(run, small.up_at, seen | small.causes.load(Ordering::SeqCst))
}

#[test]
fn explore_handler_that_acknowledges_what_it_has_not_read_fails_with_the_pair() {
    let failure = on_edu().explore(hasty).expect_err("a cause is lost between read and acknowledge");

    // One interrupt to bring the handler in, and a second, of another cause, between its two accesses.
    let [first, second] = failure.schedule.placements() else { panic!("not two placements: {failure}") };
    assert_ne!(first.irq, second.irq, "{failure}");
    assert_eq!(second.access, first.access + 2, "{failure}");
    assert!(failure.to_string().starts_with(&format!("UDRV_SCHEDULE={} replays it: cause 0x", failure.schedule)));
}

#[test]
fn explore_read_modify_write_without_a_section_fails_with_one_interrupt() {
    let failure = on_edu().explore(|run| taking(run, false)).expect_err("a cause is lost between load and store");

    assert_eq!(failure.schedule.placements().len(), 1, "{failure}");
    let again = on_edu().replay(&failure.schedule, |run| taking(run, false));
    assert_eq!(again.expect_err("it replays").error, failure.error);
}

#[test]
fn explore_read_modify_write_in_a_section_survives_all_pairs() {
    let Explored { runs, accesses } = on_edu().check(|run| taking(run, true));

    assert!(runs > accesses * accesses, "{runs} runs of {accesses} accesses");
}

#[test]
fn explore_at_random_shrinks_ten_interrupts_to_one() {
    let failure = on_edu().depth(0).random(50, 10, 1).explore(|run| taking(run, false)).expect_err("a cause is lost");

    assert_eq!(failure.found.placements().len(), 10, "{failure}");
    assert_eq!(failure.schedule.placements().len(), 1, "{failure}");
}

#[test]
fn explore_with_the_printed_line_in_the_environment_replays_that_schedule_alone() {
    let failure = on_edu().explore(|run| taking(run, false)).expect_err("a cause is lost");
    let mut again = Command::new(std::env::current_exe().expect("this test"));
    again.args(["--exact", "child_process_explores", "--nocapture"]).env("UDRV_TEST_EXPLORE", "");

    let output = again.env("UDRV_SCHEDULE", failure.schedule.to_string()).output().expect("it ran");

    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    let line = format!("UDRV_SCHEDULE={} replays it: {} ", failure.schedule, failure.error);
    assert!(said.contains(&line) && said.contains("after 1 runs"), "no `{line}` in: {said}");
}

/// Not a test by itself: what the test above starts.
#[test]
fn child_process_explores() {
    if std::env::var_os("UDRV_TEST_EXPLORE").is_some() {
        on_edu().check(|run| taking(run, false));
    }
}

#[test]
fn schedule_printed_and_read_back_is_the_same() {
    let schedule = Schedule::new(vec![Placement { irq: 1, access: 7 }, Placement { irq: 0, access: 4 }]);

    assert_eq!(schedule.to_string(), "0@4,1@7");
    assert_eq!(schedule.to_string().parse::<Schedule>().expect("its own form"), schedule);
    assert!("0@x".parse::<Schedule>().expect_err("no number").to_string().contains("0@4,1@7"));
}

fn edu_works(run: &Run) -> Result<u64> {
    let io = ByMessage::new(Arc::clone(&run.device), RegionIndex::BAR0);
    let edu = Edu::attach(&run.device, io, &run.irqs, IrqIndex::MSI)?;
    let up_at = run.accesses();
    assert_eq!(edu.factorial(5)?, 120);
    let mut out = edu.pool().alloc::<ToDevice>(8)?;
    out.write(0, b"schedule")?;
    edu.copy_to_device(out)?;
    let mut back = [0; 8];
    edu.copy_from_device(edu.pool().alloc::<FromDevice>(8)?)?.read(0, &mut back)?;
    assert_eq!(&back, b"schedule");
    run.irqs.deliver();
    for placement in run.raised().iter().filter(|placement| placement.access >= up_at) {
        assert!(edu.has_seen(cause(placement.irq)), "cause {:#x} was lost", cause(placement.irq).bits());
    }
    Ok(up_at)
}

#[test]
fn explore_edu_driver_survives_all_pairs() {
    let explored = on_edu().check(|run| edu_works(run).map(drop));

    println!("{explored:?}");
    assert!(explored.runs > 1000, "{explored:?}");
}
