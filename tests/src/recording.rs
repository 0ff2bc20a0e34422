//! Recordings to be looked at: of the edu model, and of its driver's whole tour.

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use udrv::host::{Ended, Host};
use udrv::irq::{Delivery, IrqDomain, IrqOptions, IrqReturn};
use udrv::pci::{Command, Config};
use udrv_backend::{AnyBackend, Backend as _, IrqIndex, RegionIndex, Width};
use udrv_debug::trace::{Options, Recorder, Trace, What};
use udrv_edu::driver::{Tour, TourConfig};

/// A file of its own, gone with the value.
pub struct File(pub PathBuf);

impl File {
    /// Not made yet. The name is the test's.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("udrv-trace-{}-{name}", std::process::id())))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

/// An edu model that is recorded.
///
/// # Panics
/// If the file cannot be made.
#[must_use]
pub fn recorder(path: &Path, options: Options) -> Recorder<AnyBackend> {
    let edu: AnyBackend = Arc::new(udrv_edu::model::edu());
    Recorder::new(edu, path, options).expect("a recorder")
}

/// Room for 1000 events, without memory.
#[must_use]
pub fn small() -> Options {
    Options { events: 1000, dma_contents: false }
}

/// The edu driver's whole tour, recorded with memory.
///
/// # Panics
/// If the driver fails.
pub fn tour(path: &Path) {
    let options = Options { events: 10_000, dma_contents: true };
    let device = Arc::new(recorder(path, options));
    let mut host = Host::new();
    let config = TourConfig { irq: None, samples: 5, tell: Box::new(|_| {}) };
    host.start::<Tour>(device, Delivery::Signal, config).expect("started");
    for report in host.join() {
        assert!(matches!(report.ended, Ended::Returned), "{report:?}");
    }
}

/// Three interrupts of an edu model, each with a threaded half, and three runs of a bottom half, recorded.
///
/// # Panics
/// If an interrupt does not come.
pub fn halves(path: &Path) {
    let device: AnyBackend = Arc::new(recorder(path, small()));
    Config::new(&*device).change_command(Command::BUS_MASTER, Command::empty()).expect("bus master");
    let domain = IrqDomain::new(Delivery::Thread).expect("a domain");
    let (ran, runs) = mpsc::channel();
    let threaded = move |_| ran.send(()).expect("somebody listens");
    let first = |_| IrqReturn::WakeThread;
    let options = IrqOptions::default();
    let registered = domain.register_threaded(&device, IrqIndex::MSI, 0, options, first, threaded);
    let registered = registered.expect("registered");
    let (ran, half_runs) = mpsc::channel();
    let half = domain.bottom_half(move || ran.send(()).expect("somebody listens"));
    for _ in 0..3 {
        device.write(RegionIndex::BAR0, 0x60, Width::Bits32, 1).expect("raised");
        runs.recv_timeout(Duration::from_secs(10)).expect("its threaded half");
        half.schedule();
        // The domain's thread may be the one that runs it.
        half_runs.recv_timeout(Duration::from_secs(10)).expect("its bottom half");
    }
    drop((half, registered));
}

/// How many events are `which`.
#[must_use]
pub fn count(trace: &Trace, which: impl Fn(&What) -> bool) -> usize {
    trace.events.iter().filter(|event| which(&event.what)).count()
}
