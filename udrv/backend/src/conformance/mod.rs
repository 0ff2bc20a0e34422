//! What a [`Backend`] promises, as checks that run against any of them (feature `conformance`).
//!
//! Each [`Check`] states one promise of the trait and tries it on a device that it opens for itself. It needs the
//! backend, memory and descriptors, nothing else; what a check needs to know of the *device* comes with the
//! [`Subject`]: a register that keeps what is written, a way to make the device interrupt, a transfer. A check that
//! lacks such knowledge, or whose promise the device gives no occasion for, says so ([`Outcome::NotApplicable`]).
//!
//! The suite writes nothing to a device whose registers it has not been told of, except the command register and what
//! must be refused.

mod access;
mod dma;
mod line;
mod reset;
mod signal;
mod teardown;
mod trigger;
mod vectors;

use crate::pci::{Command, Config};
use crate::{AnyBackend, Backend, Error, IrqIndex, IrqInfo, RegionIndex, Result, Width};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A register that keeps what is written to it, without any other effect.
#[derive(Debug, Clone, Copy)]
pub struct Scratch {
    /// Its region.
    pub region: RegionIndex,
    /// Its byte offset.
    pub offset: u64,
    /// The width it is accessed with; every bit of it can be written.
    pub width: Width,
    /// What it reads after a reset, if that is specified.
    pub reset: Option<u64>,
}

/// How to make a device interrupt. One that is raised and not acknowledged keeps its pin asserted.
#[derive(Debug, Clone, Copy)]
pub struct Interrupt {
    /// How many message vectors the device uses, from 0.
    pub vectors: u32,
    /// Makes the device raise the interrupt that belongs to a vector; any of them asserts the pin.
    pub raise: fn(&dyn Backend, u32) -> Result<()>,
    /// Acknowledges all of them, so that the pin is no longer asserted.
    pub acknowledge: fn(&dyn Backend) -> Result<()>,
}

/// How to make a device transfer [`Transfer::LENGTH`] bytes between memory and a buffer of its own. Each call returns
/// once the transfer is over, whether or not it reached memory, or gives up with an error.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    /// Highest bus address that the device can emit.
    pub mask: u64,
    /// From memory at this bus address into the device's buffer.
    pub to_device: fn(&dyn Backend, u64) -> Result<()>,
    /// From the device's buffer to memory at this bus address.
    pub to_memory: fn(&dyn Backend, u64) -> Result<()>,
}

impl Transfer {
    /// Bytes of one transfer.
    pub const LENGTH: usize = 64;
}

/// What is known of a device beyond the trait.
#[derive(Debug, Clone, Copy, Default)]
pub struct Knowledge {
    /// Its scratch registers.
    pub scratch: &'static [Scratch],
    /// Its interrupt.
    pub interrupt: Option<Interrupt>,
    /// Its transfers.
    pub transfer: Option<Transfer>,
}

/// A device to check.
pub struct Subject<'a> {
    /// Opens it. Every check does so for itself, some twice, never while an earlier one is open.
    pub open: &'a dyn Fn() -> Result<AnyBackend>,
    /// What is known of it.
    pub knowledge: Knowledge,
}

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The promise was kept.
    Passed,
    /// The device gives no occasion to try it, or too little is known of it.
    NotApplicable(String),
    /// The promise was broken, in this way.
    Failed(String),
}

/// One promise.
#[derive(Clone, Copy)]
pub struct Check {
    /// Its name, `subject_condition_result`.
    pub name: &'static str,
    /// The promise, as the trait's documentation has it.
    pub promise: &'static str,
    body: fn(&Subject<'_>) -> Step,
}

impl Check {
    /// Tries it. A panic of the backend is a failure.
    #[must_use]
    pub fn run(&self, subject: &Subject<'_>) -> Outcome {
        match catch_unwind(AssertUnwindSafe(|| (self.body)(subject))) {
            Ok(Ok(())) => Outcome::Passed,
            Ok(Err(Stop::NotApplicable(why))) => Outcome::NotApplicable(why),
            Ok(Err(Stop::Failed(why))) => Outcome::Failed(why),
            Err(_) => Outcome::Failed("it panicked".into()),
        }
    }
}

/// Every check, in the order of the trait.
#[must_use]
pub fn checks() -> Vec<Check> {
    [access::CHECKS, trigger::CHECKS, vectors::CHECKS, line::CHECKS, dma::CHECKS, reset::CHECKS, teardown::CHECKS]
        .concat()
}

/// Why a check ended early.
#[derive(Debug)]
enum Stop {
    NotApplicable(String),
    Failed(String),
}

type Step<T = ()> = std::result::Result<T, Stop>;

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Ends the check as failed unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Stop::Failed(format!($($why)+)));
        }
    };
}

/// Ends the check as failed unless a result is an error of the given kind.
macro_rules! refuses {
    ($result:expr, $kind:pat, $($what:tt)+) => {
        match $result {
            Err($kind) => {}
            Err(error) => return Err($crate::conformance::Stop::Failed(
                format!("{}: expected {}, got `{error}`", format!($($what)+), stringify!($kind)))),
            Ok(_) => return Err($crate::conformance::Stop::Failed(
                format!("{}: expected {}, got success", format!($($what)+), stringify!($kind)))),
        }
    };
}
use {ensure, refuses};

fn not_applicable<T>(why: &str) -> Step<T> {
    Err(Stop::NotApplicable(why.into()))
}

impl Subject<'_> {
    /// The device, answering memory accesses, allowed to send, and with no interrupt raised.
    fn opened(&self) -> Step<AnyBackend> {
        let device = (self.open)()?;
        self.prepare(&*device)?;
        Ok(device)
    }

    /// What a driver does after opening a device, and again after a reset.
    fn prepare(&self, device: &dyn Backend) -> Step {
        if device.info().regions > RegionIndex::CONFIG.0 && device.region(RegionIndex::CONFIG)?.size > 0 {
            Config::new(device)
                .change_command(Command::MEMORY_SPACE | Command::BUS_MASTER, Command::INTERRUPT_DISABLE)?;
        }
        if let Some(interrupt) = self.knowledge.interrupt {
            (interrupt.acknowledge)(device)?;
        }
        Ok(())
    }

    fn interrupt(&self) -> Step<Interrupt> {
        self.knowledge.interrupt.map_or_else(|| not_applicable("how to make the device interrupt is not known"), Ok)
    }

    fn transfer(&self) -> Step<Transfer> {
        self.knowledge.transfer.map_or_else(|| not_applicable("how to make the device transfer is not known"), Ok)
    }
}

/// The interrupt indices that have vectors; not applicable if none has.
fn armable(device: &dyn Backend) -> Step<Vec<IrqInfo>> {
    let infos: Vec<_> = (0..device.info().irqs).map(|n| device.irq(IrqIndex(n))).collect::<Result<_>>()?;
    let some: Vec<_> = infos.into_iter().filter(|info| info.count > 0).collect();
    if some.is_empty() { not_applicable("the device has no interrupt") } else { Ok(some) }
}

/// Those with at least `count` vectors.
fn armable_with(device: &dyn Backend, count: u32) -> Step<Vec<IrqInfo>> {
    let some: Vec<_> = armable(device)?.into_iter().filter(|info| info.count >= count).collect();
    if some.is_empty() { not_applicable("the device has no interrupt with as many vectors") } else { Ok(some) }
}
