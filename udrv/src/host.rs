//! Guest drivers, supervised.

use crate::irq::{Delivery, IrqDomain};
use crate::{backend::AnyBackend, pci};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::thread::JoinHandle;
use udrv_backend::{Error, Result};

/// What a driver is given.
pub struct Context {
    /// Its device.
    pub device: AnyBackend,
    /// Its interrupts.
    pub irqs: IrqDomain,
    stop: Stop,
}

impl Context {
    /// Whether the driver has been asked to end. One that runs for long looks at this between its pieces of work, and
    /// returns from [`Driver::run`] when it is set; nobody ends it by force.
    #[must_use]
    pub fn should_stop(&self) -> bool {
        self.stop.is_requested()
    }
}

/// A request to end, shared by a host, its drivers and whoever may make it (a signal handler's thread, say).
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Makes the request. It cannot be taken back.
    pub fn request(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it was made.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A guest driver.
pub trait Driver: Sized {
    /// What makes one driver of this kind differ from another.
    type Config: Send + 'static;

    /// Checks that the device is one that this driver can drive, and brings it up.
    ///
    /// # Errors
    /// Whatever keeps it from doing so; the host then quiesces the device.
    fn probe(context: &Context, config: Self::Config) -> Result<Self>;

    /// Does the driver's work until there is none left, or until [`Context::should_stop`].
    ///
    /// # Errors
    /// As [`Driver::probe`].
    fn run(&mut self, context: &Context) -> Result<()>;

    /// Takes the device down in an orderly way. Not called after an error or a panic.
    ///
    /// # Errors
    /// As [`Driver::probe`].
    fn remove(&mut self, context: &Context) -> Result<()> {
        let _ = context;
        Ok(())
    }
}

/// How a driver ended.
#[derive(Debug)]
pub enum Ended {
    /// It returned.
    Returned,
    /// It returned an error.
    Failed(Error),
    /// It panicked, with this message.
    Panicked(String),
}

/// What became of one driver and its device.
#[derive(Debug)]
pub struct Report {
    /// The device's address.
    pub device: String,
    /// How its driver ended.
    pub ended: Ended,
    /// Whether the device was made quiet after it: interrupts disarmed, bus mastering off, reset if it can be.
    pub quiesced: Result<()>,
}

/// Runs each driver on a thread of its own. However one ends, its device is quiesced and the others go on.
#[derive(Default)]
pub struct Host {
    drivers: Vec<(String, JoinHandle<Report>)>,
    stop: Stop,
}

impl Host {
    /// A host without drivers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A host without drivers whose request to stop is this one.
    #[must_use]
    pub fn stopped_by(stop: Stop) -> Self {
        Self { drivers: Vec::new(), stop }
    }

    /// Starts a driver on a device.
    ///
    /// # Errors
    /// [`Error::Os`] if the thread cannot be started.
    pub fn start<D: Driver>(&mut self, device: AnyBackend, delivery: Delivery, config: D::Config) -> Result<()> {
        let address = device.info().address.clone();
        let stop = self.stop.clone();
        let thread = std::thread::Builder::new()
            .name(format!("driver {address}"))
            .spawn(move || supervise::<D>(device, delivery, stop, config))
            .map_err(|error| Error::os(format!("starting the driver of {address}"), error))?;
        self.drivers.push((address, thread));
        Ok(())
    }

    /// Asks all drivers to end. Those that look ([`Context::should_stop`]) do.
    pub fn stop(&self) {
        self.stop.request();
    }

    /// The same, for whoever does not have the host.
    #[must_use]
    pub fn stopper(&self) -> Stop {
        self.stop.clone()
    }

    /// Waits until all drivers have ended.
    #[must_use]
    #[track_caller]
    pub fn join(self) -> Vec<Report> {
        crate::irq::might_sleep();
        let report = |(device, thread): (String, JoinHandle<Report>)| {
            thread.join().unwrap_or_else(|payload| Report {
                quiesced: Err(Error::Gone { device: device.clone(), why: "its supervisor panicked".into() }),
                device,
                ended: Ended::Panicked(message(&*payload)),
            })
        };
        self.drivers.into_iter().map(report).collect()
    }
}

/// Shows what a panic says in the inspection page, where it is found after the process's end.
fn show_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let trace = std::backtrace::Backtrace::force_capture();
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("without a name");
            udrv_inspect::page().panicked(&format!("thread `{name}` {panic}\n{trace}"));
            before(panic);
        }));
    });
}

fn supervise<D: Driver>(device: AnyBackend, delivery: Delivery, stop: Stop, config: D::Config) -> Report {
    show_panics();
    // Both outlive what may panic: the device is made quiet before their buffers are unmapped under it.
    let (mut context, mut driver) = (None, None);
    let work = catch_unwind(AssertUnwindSafe(|| -> Result<()> {
        // Made here: in signal delivery this thread is the one that is signalled.
        let context = &*context.insert(Context { device: device.clone(), irqs: IrqDomain::new(delivery)?, stop });
        let driver: &mut D = driver.insert(D::probe(context, config)?);
        driver.run(context)?;
        driver.remove(context)
    }));
    let ended = match work {
        Ok(Ok(())) => Ended::Returned,
        Ok(Err(error)) => Ended::Failed(error),
        Err(payload) => Ended::Panicked(message(&*payload)),
    };
    // A backend that panics must not keep its neighbours' reports from being read.
    let quiesced = catch_unwind(AssertUnwindSafe(|| pci::quiesce(&*device)));
    let address = device.info().address.clone();
    let quiesced = quiesced.unwrap_or_else(|payload| {
        let why = format!("its backend panicked: {}", message(&*payload));
        Err(Error::Gone { device: address.clone(), why })
    });
    if let Err(error) = &quiesced {
        tracing::warn!(%error, device = address, "quiescing after the driver");
    }
    for part in [catch_unwind(AssertUnwindSafe(|| drop(driver))), catch_unwind(AssertUnwindSafe(|| drop(context)))] {
        if let Err(payload) = part {
            tracing::error!(device = address, "letting go of the driver panicked: {}", message(&*payload));
        }
    }
    Report { device: address, ended, quiesced }
}

/// What a panic said.
pub(crate) fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
