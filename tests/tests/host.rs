//! The host: whatever one driver does, its device ends quiet and its neighbours go on.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use udrv::dma::{Buffer, Pool, ToDevice};
use udrv::host::{Context, Driver, Ended, Host, Report};
use udrv::irq::Delivery;
use udrv::pci::{Command, Config};
use udrv_backend::{
    AnyBackend, Backend, DeviceInfo, Dma, DmaLimits, DmaMap, Error, IrqIndex, IrqInfo, RegionIndex, RegionInfo, Result,
    Trigger, Width,
};
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

    fn remove(&mut self, _: &Context) -> Result<()> {
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

/// The edu model, noting in which order it is made quiet and its memory unmapped.
struct Recording {
    edu: AnyBackend,
    notes: Mutex<Vec<&'static str>>,
}

impl Recording {
    fn note(&self, what: &'static str) {
        self.notes.lock().expect("not poisoned").push(what);
    }
}

impl Backend for Recording {
    fn info(&self) -> &DeviceInfo {
        self.edu.info()
    }
    fn region(&self, region: RegionIndex) -> Result<RegionInfo> {
        self.edu.region(region)
    }
    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        self.edu.irq(index)
    }
    fn read(&self, region: RegionIndex, offset: u64, width: Width) -> Result<u64> {
        self.edu.read(region, offset, width)
    }
    fn write(&self, region: RegionIndex, offset: u64, width: Width, value: u64) -> Result<()> {
        if (region, offset) == (RegionIndex::CONFIG, 4) && value & 4 == 0 {
            self.note("bus mastering off");
        }
        self.edu.write(region, offset, width, value)
    }
    fn set_triggers(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        self.edu.set_triggers(index, start, triggers)
    }
    fn disable_irq(&self, index: IrqIndex) -> Result<()> {
        self.edu.disable_irq(index)
    }
    fn mask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.edu.mask_irq(index, vector)
    }
    fn unmask_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.edu.unmask_irq(index, vector)
    }
    fn fire_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        self.edu.fire_irq(index, vector)
    }
    fn dma(&self) -> Option<&dyn Dma> {
        Some(self)
    }
}

impl Dma for Recording {
    fn limits(&self) -> DmaLimits {
        self.edu.dma().expect("DMA").limits()
    }
    fn map(&self, map: &DmaMap<'_>) -> Result<()> {
        self.edu.dma().expect("DMA").map(map)
    }
    fn unmap(&self, iova: u64, size: u64) -> Result<()> {
        self.note("unmapped");
        self.edu.dma().expect("DMA").unmap(iova, size)
    }
}

/// Has a buffer mapped and bus mastering on when it ends as told.
struct Buffered(End, #[expect(dead_code, reason = "held, to be dropped with the driver")] Buffer<ToDevice>);

impl Driver for Buffered {
    type Config = End;

    fn probe(context: &Context, end: End) -> Result<Self> {
        Config::new(&*context.device).change_command(Command::BUS_MASTER, Command::empty())?;
        Ok(Self(end, Pool::new(Arc::clone(&context.device), 4096, 28)?.alloc(4096)?))
    }

    fn run(&mut self, _: &Context) -> Result<()> {
        match self.0 {
            End::Fail => Err(Error::Timeout { what: "something".into(), after: PATIENCE }),
            End::Panic => std::panic::resume_unwind(Box::new("a bug")),
            _ => Ok(()),
        }
    }
}

#[test]
fn driver_that_ends_in_any_way_has_its_buffers_unmapped_after_bus_mastering_is_off() {
    for end in [End::Return, End::Fail, End::Panic] {
        let device = Arc::new(Recording { edu: Arc::new(udrv_edu::model::edu()), notes: Mutex::default() });
        let mut host = Host::new();
        let any: AnyBackend = device.clone();
        host.start::<Buffered>(any, Delivery::Thread, end).expect("started");
        let report = host.join().pop().expect("one report");
        report.quiesced.expect("quiesced");
        assert_eq!(
            *device.notes.lock().expect("not poisoned"),
            ["bus mastering off", "unmapped"],
            "{:?}",
            report.ended
        );
    }
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
