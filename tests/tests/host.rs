//! The host: whatever one driver does, its device ends quiet and its neighbours go on.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use udrv::host::{Context, Driver, Ended, Host, Report};
use udrv::irq::Delivery;
use udrv::pci::{Command, Config};
use udrv_backend::{AnyBackend, Error, IrqIndex, Result};
use udrv_edu::driver::{Tour, TourConfig};

const PATIENCE: Duration = Duration::from_secs(10);

/// How a test's driver is to end.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Return,
    Fail,
    Panic,
    PanicInProbe,
    WhenAsked,
}

/// Takes its device (bus mastering on, MSI armed), says so, and ends as told.
struct Scripted(End, Sender<&'static str>);

impl Driver for Scripted {
    type Config = (End, Arc<EventFd>, Sender<&'static str>);

    fn probe(context: &Context, (end, trigger, tell): Self::Config) -> Result<Self> {
        Config::new(&*context.device).change_command(Command::BUS_MASTER, Command::empty())?;
        context.device.set_triggers(IrqIndex::MSI, 0, &[Some(trigger.as_fd())])?;
        if end == End::PanicInProbe {
            std::panic::resume_unwind(Box::new("in probe"));
        }
        Ok(Self(end, tell))
    }

    fn run(&mut self, context: &Context) -> Result<()> {
        let _told = self.1.send("running");
        match self.0 {
            End::Return => Ok(()),
            End::Fail => Err(Error::Timeout { what: "something".into(), after: PATIENCE }),
            End::Panic | End::PanicInProbe => std::panic::resume_unwind(Box::new(String::from("a bug"))),
            End::WhenAsked => {
                let deadline = udrv::clock::Deadline::after(PATIENCE);
                deadline.poll("the request to stop", || Ok(context.should_stop()))
            }
        }
    }

    fn remove(self, _: &Context) -> Result<()> {
        let _told = self.1.send("removed");
        Ok(())
    }
}

struct Case {
    device: AnyBackend,
    trigger: Arc<EventFd>,
    told: Receiver<&'static str>,
}

fn start(host: &mut Host, end: End) -> Case {
    let device: AnyBackend = Arc::new(udrv_edu::model::edu());
    let trigger = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).expect("an eventfd"));
    let (tell, told) = channel();
    host.start::<Scripted>(Arc::clone(&device), Delivery::Thread, (end, Arc::clone(&trigger), tell)).expect("started");
    Case { device, trigger, told }
}

fn run_one(end: End) -> (Case, Report) {
    let mut host = Host::new();
    let case = start(&mut host, end);
    let report = host.join().pop().expect("one report");
    (case, report)
}

fn assert_quiet(case: &Case, report: &Report) {
    report.quiesced.as_ref().expect("quiesced");
    let command = Config::new(&*case.device).command().expect("the command register");
    assert!(!command.contains(Command::BUS_MASTER), "bus mastering is still on");
    case.device.fire_irq(IrqIndex::MSI, 0).expect("fired");
    assert!(case.trigger.read().is_err(), "the interrupt is still armed");
}

#[test]
fn driver_that_returns_is_removed_and_its_device_quiet() {
    let (case, report) = run_one(End::Return);
    assert!(matches!(report.ended, Ended::Returned), "{report:?}");
    assert_eq!(case.told.iter().collect::<Vec<_>>(), ["running", "removed"]);
    assert_quiet(&case, &report);
}

#[test]
fn driver_that_fails_is_reported_and_its_device_quiet() {
    let (case, report) = run_one(End::Fail);
    assert!(matches!(report.ended, Ended::Failed(Error::Timeout { .. })), "{report:?}");
    assert_eq!(case.told.iter().collect::<Vec<_>>(), ["running"], "remove is not for what failed");
    assert_quiet(&case, &report);
}

#[test]
fn driver_that_panics_is_reported_and_its_device_quiet() {
    let (case, report) = run_one(End::Panic);
    assert!(matches!(&report.ended, Ended::Panicked(message) if message == "a bug"), "{report:?}");
    assert_quiet(&case, &report);
}

#[test]
fn driver_that_panics_in_probe_leaves_its_device_quiet() {
    let (case, report) = run_one(End::PanicInProbe);
    assert!(matches!(&report.ended, Ended::Panicked(message) if message == "in probe"), "{report:?}");
    assert_quiet(&case, &report);
}

#[test]
fn driver_goes_on_while_its_neighbour_panics() {
    let mut host = Host::new();
    let (tell, findings) = channel();
    let tour = TourConfig { irq: None, samples: 50, tell: Box::new(move |finding| drop(tell.send(finding))) };
    let bad = start(&mut host, End::Panic);
    host.start::<Tour>(Arc::new(udrv_edu::model::edu()), Delivery::Thread, tour).expect("started");
    let long = start(&mut host, End::WhenAsked);
    assert_eq!(long.told.recv_timeout(PATIENCE), Ok("running"));
    // The tour ends, long after the panic, and the third still runs.
    while findings.recv_timeout(PATIENCE).is_ok() {}
    assert_eq!(bad.told.iter().collect::<Vec<_>>(), ["running"]);
    assert_eq!(long.told.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty));

    host.stop();

    let reports = host.join();
    assert!(
        matches!(
            &reports[..],
            [
                Report { ended: Ended::Panicked(_), .. },
                Report { ended: Ended::Returned, .. },
                Report { ended: Ended::Returned, .. }
            ]
        ),
        "{reports:?}"
    );
    assert_quiet(&bad, &reports[0]);
    assert_quiet(&long, &reports[2]);
}

#[test]
fn stop_reaches_a_driver_that_looks() {
    let mut host = Host::new();
    let case = start(&mut host, End::WhenAsked);
    assert_eq!(case.told.recv_timeout(PATIENCE), Ok("running"));
    assert_eq!(case.told.recv_timeout(Duration::from_millis(20)), Err(RecvTimeoutError::Timeout));
    host.stopper().request();
    assert_eq!(case.told.recv_timeout(PATIENCE), Ok("removed"));
    assert!(matches!(host.join()[..], [Report { ended: Ended::Returned, .. }]));
}
