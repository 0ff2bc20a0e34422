//! Guest drivers, supervised.

use crate::irq::{Delivery, IrqDomain};
use crate::{backend::AnyBackend, pci};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use udrv_backend::{Error, Result};

/// What a driver is given.
pub struct Context {
    /// Its device.
    pub device: AnyBackend,
    /// Its interrupts.
    pub irqs: IrqDomain,
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

    /// Does the driver's work until there is none left.
    ///
    /// # Errors
    /// As [`Driver::probe`].
    fn run(&mut self, context: &Context) -> Result<()>;

    /// Takes the device down in an orderly way. Not called after an error or a panic.
    ///
    /// # Errors
    /// As [`Driver::probe`].
    fn remove(self, context: &Context) -> Result<()> {
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

/// Runs each driver on a thread of its own. However one ends, its device is quiesced and the others go on.
#[derive(Default)]
pub struct Host {
    drivers: Vec<(String, JoinHandle<Ended>)>,
}

impl Host {
    /// A host without drivers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a driver on a device.
    ///
    /// # Errors
    /// [`Error::Os`] if the thread cannot be started.
    pub fn start<D: Driver>(&mut self, device: AnyBackend, delivery: Delivery, config: D::Config) -> Result<()> {
        let address = device.info().address.clone();
        let supervised = move || {
            let work = catch_unwind(AssertUnwindSafe(|| -> Result<()> {
                // Made here: in signal delivery this thread is the one that is signalled.
                let context = Context { device: device.clone(), irqs: IrqDomain::new(delivery)? };
                let mut driver = D::probe(&context, config)?;
                driver.run(&context)?;
                driver.remove(&context)
            }));
            let ended = match work {
                Ok(Ok(())) => Ended::Returned,
                Ok(Err(error)) => Ended::Failed(error),
                Err(payload) => {
                    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
                    Ended::Panicked(text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default())
                }
            };
            if let Err(error) = pci::quiesce(&*device) {
                tracing::warn!(%error, device = device.info().address, "quiescing after the driver");
            }
            ended
        };
        let thread = std::thread::Builder::new()
            .name(format!("driver {address}"))
            .spawn(supervised)
            .map_err(|error| Error::os(format!("starting the driver of {address}"), error))?;
        self.drivers.push((address, thread));
        Ok(())
    }

    /// Waits for all drivers; each with its device's address.
    #[must_use]
    pub fn join(self) -> Vec<(String, Ended)> {
        let end = |thread: JoinHandle<Ended>| {
            thread.join().unwrap_or_else(|_| Ended::Panicked("the supervisor itself panicked".into()))
        };
        self.drivers.into_iter().map(|(address, thread)| (address, end(thread))).collect()
    }
}
