//! The driver as the host runs it: brought up, given one job, shut down.

use super::{Controller, REGISTERS};
use udrv::host::{Context, Driver};
use udrv::mmio::Window;
use udrv_backend::{RegionIndex, Result};

/// What to do with the controller.
pub type Job = Box<dyn FnOnce(&mut Controller, &Context) -> Result<()> + Send>;

/// What a [`Task`] is given.
pub struct Work {
    /// I/O queue pairs that the controller is asked for.
    pub queues: u16,
    /// What is done with them.
    pub job: Job,
}

/// One job on one controller.
pub struct Task {
    controller: Controller,
    job: Option<Job>,
}

impl Driver for Task {
    type Config = Work;

    fn probe(context: &Context, work: Work) -> Result<Self> {
        let window = Window::<REGISTERS>::open(&context.device, RegionIndex::BAR0)?;
        let controller = Controller::attach(&context.device, window, &context.irqs, work.queues)?;
        Ok(Self { controller, job: Some(work.job) })
    }

    fn run(&mut self, context: &Context) -> Result<()> {
        self.job.take().map_or(Ok(()), |job| job(&mut self.controller, context))
    }

    fn remove(&mut self, _context: &Context) -> Result<()> {
        self.controller.shut_down()
    }
}
