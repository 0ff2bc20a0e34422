//! The edu driver: factorials by interrupt, DMA both ways. Runs unchanged on every backend.

use crate::registers::{
    BUFFER_OFFSET, BUFFER_SIZE, DEVICE, DMA_ADDRESS_BITS, DMA_COMMAND, DMA_COUNT, DMA_DESTINATION, DMA_SOURCE,
    DmaCommand, FACTORIAL, IDENTIFICATION, INTERRUPT_ACKNOWLEDGE, INTERRUPT_RAISE, INTERRUPT_STATUS, InterruptStatus,
    LIVENESS, MAP, STATUS, Status, VENDOR,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use udrv::clock::{self, Deadline};
use udrv::dma::{Buffer, Direction, FromDevice, Pool, ToDevice};
use udrv::host::{Context, Driver};
use udrv::irq::{Delivery, IrqDomain, IrqReturn, IrqStats, Registration};
use udrv::mmio::{Io, Window};
use udrv::pci::{Command, Config};
use udrv_backend::{AnyBackend, Error, IrqIndex, RegionIndex, Result};

/// As much of BAR 0 as the driver touches: the registers. The on-device buffer is reached by DMA only.
const REGISTERS: usize = 0x1000;

/// Most bytes of one transfer: one less than the device's buffer has. QEMU 7.2 (and others before its commit 2c5107e1b455)
/// takes a transfer that fills the buffer for one beyond it, and ends the whole machine.
pub const MAX_TRANSFER: usize = BUFFER_SIZE as usize - 1;

/// Longest wait for any single interrupt. QEMU's device takes up to 100 ms for a DMA transfer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The device, brought up.
pub struct Edu<I: Io = Window<REGISTERS>> {
    io: Arc<I>,
    causes: Arc<AtomicU32>,
    irqs: IrqDomain,
    irq: Registration,
    pool: Pool,
}

impl<I: Io + 'static> Edu<I> {
    /// Takes the device: checks what it is, enables bus mastering, takes vector 0 of `irq`.
    ///
    /// # Errors
    /// [`Error::Protocol`] if the device is no edu; what the backend says otherwise.
    pub fn attach(device: &AnyBackend, io: I, irqs: &IrqDomain, irq: IrqIndex) -> Result<Self> {
        let config = Config::new(&**device);
        let (vendor, id) = config.id()?;
        if (vendor, id) != (VENDOR, DEVICE) {
            return Err(Error::Protocol {
                peer: device.info().address.clone(),
                found: format!("PCI ID {vendor:04x}:{id:04x}"),
                expected: format!("{VENDOR:04x}:{DEVICE:04x}, the education device"),
            });
        }
        udrv::inspect::describe(&**device, &MAP);
        config.change_command(Command::MEMORY_SPACE | Command::BUS_MASTER, Command::INTERRUPT_DISABLE)?;
        let io = Arc::new(io);
        // What an earlier driver left running or raised would be delivered to us as our own: there is no reset.
        idle(&*io)?;
        let stale = io.read(INTERRUPT_STATUS)?;
        io.write(INTERRUPT_ACKNOWLEDGE, stale)?;

        let causes = Arc::new(AtomicU32::new(0));
        let handler = {
            let (io, causes) = (Arc::clone(&io), Arc::clone(&causes));
            move |_| match io.read(INTERRUPT_STATUS) {
                Ok(cause) if cause.is_empty() => IrqReturn::None,
                // A device that is gone reads as all ones.
                Ok(cause) if cause.bits() == u32::MAX => IrqReturn::None,
                // Told last: whoever has seen the cause may raise it again, which an acknowledgement still to come would undo.
                Ok(cause) => match io.write(INTERRUPT_ACKNOWLEDGE, cause) {
                    Ok(()) => {
                        causes.fetch_or(cause.bits(), Ordering::Release);
                        IrqReturn::Handled
                    }
                    Err(_) => IrqReturn::None,
                },
                Err(_) => IrqReturn::None,
            }
        };
        let registration = irqs.register(device, irq, 0, handler)?;
        let pool = Pool::new(Arc::clone(device), 16 * BUFFER_SIZE as usize, DMA_ADDRESS_BITS)?;
        Ok(Self { io, causes, irqs: irqs.clone(), irq: registration, pool })
    }

    /// The identification register: `0xRRrr00ed`, major and minor revision above.
    ///
    /// # Errors
    /// As [`udrv_backend::Backend::read`], here and below.
    pub fn identification(&self) -> Result<u32> {
        self.io.read(IDENTIFICATION)
    }

    /// Whether the device answers with the complement of what was written.
    ///
    /// # Errors
    /// See [`Edu::identification`].
    pub fn is_alive(&self, probe: u32) -> Result<bool> {
        self.io.write(LIVENESS, probe)?;
        Ok(self.io.read(LIVENESS)? == !probe)
    }

    /// `n!` modulo 2³², its end told by interrupt.
    ///
    /// # Errors
    /// [`Error::Timeout`] if the interrupt does not come; see [`Edu::identification`].
    pub fn factorial(&self, n: u32) -> Result<u32> {
        idle(&*self.io)?;
        self.forget(InterruptStatus::FACTORIAL);
        self.io.write(STATUS, Status::IRQ_ON_FACTORIAL)?;
        self.io.write(FACTORIAL, n)?;
        self.wait("the factorial's interrupt", InterruptStatus::FACTORIAL)?;
        self.io.read(FACTORIAL)
    }

    /// Lets the device raise an interrupt with this cause, without waiting for it.
    ///
    /// # Errors
    /// See [`Edu::identification`].
    pub fn raise(&self, cause: InterruptStatus) -> Result<()> {
        self.forget(cause);
        self.io.write(INTERRUPT_RAISE, cause)
    }

    /// Whether the handler has seen this cause since it was last raised or waited for.
    #[must_use]
    pub fn has_seen(&self, cause: InterruptStatus) -> bool {
        self.causes.load(Ordering::Acquire) & cause.bits() == cause.bits()
    }

    /// Waits until the handler has seen this cause.
    ///
    /// # Errors
    /// [`Error::Timeout`] naming `what`; [`Error::Gone`] if the device has vanished meanwhile.
    pub fn wait(&self, what: &str, cause: InterruptStatus) -> Result<()> {
        self.irqs.wait(what, Deadline::after(PATIENCE), || self.has_seen(cause)).or_else(|missed| {
            // A device that is gone raises no interrupt either; then that is what the driver's author has to know.
            self.io.read(IDENTIFICATION)?;
            Err(missed)
        })
    }

    fn forget(&self, cause: InterruptStatus) {
        self.causes.fetch_and(!cause.bits(), Ordering::Relaxed);
    }

    /// Memory for transfers with this device.
    #[must_use]
    pub const fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What its interrupt has seen.
    #[must_use]
    pub fn irq_stats(&self) -> IrqStats {
        self.irq.stats()
    }

    /// Moves a buffer's bytes into the device's own buffer, from its start.
    ///
    /// # Errors
    /// [`Error::DmaRange`] beyond [`MAX_TRANSFER`]; [`Error::Timeout`], after which the buffer is lost to the device. See
    /// [`Edu::identification`].
    pub fn copy_to_device(&self, buffer: Buffer<ToDevice>) -> Result<Buffer<ToDevice>> {
        let length = checked_length(&buffer)?;
        let flight = buffer.submit();
        self.transfer(flight.iova(), BUFFER_OFFSET, length, DmaCommand::START | DmaCommand::IRQ)?;
        Ok(flight.complete())
    }

    /// Fills a buffer from the start of the device's own buffer.
    ///
    /// # Errors
    /// As [`Edu::copy_to_device`].
    pub fn copy_from_device(&self, buffer: Buffer<FromDevice>) -> Result<Buffer<FromDevice>> {
        let length = checked_length(&buffer)?;
        let flight = buffer.submit();
        let command = DmaCommand::START | DmaCommand::IRQ | DmaCommand::TO_MEMORY;
        self.transfer(BUFFER_OFFSET, flight.iova(), length, command)?;
        Ok(flight.complete())
    }

    /// One transfer between raw addresses: what the copies are made of, and what a test aims outside its mappings.
    ///
    /// The device reports no failure: one whose memory cannot be reached ends like any other, and moves nothing
    /// ([`Edu::copy_from_device`] shows what is in the device's buffer). The end in the device's buffer must be in it.
    ///
    /// # Errors
    /// [`Error::Timeout`]; see [`Edu::identification`].
    pub fn transfer(&self, source: u64, destination: u64, length: u64, command: DmaCommand) -> Result<()> {
        // Writes to these registers are ignored during a transfer.
        idle(&*self.io)?;
        self.forget(InterruptStatus::DMA);
        self.io.write(DMA_SOURCE, source)?;
        self.io.write(DMA_DESTINATION, destination)?;
        self.io.write(DMA_COUNT, length)?;
        self.io.write(DMA_COMMAND, command)?;
        self.wait("the end of a DMA transfer", InterruptStatus::DMA)?;
        // The interrupt is raised with START already clear; a device that lies would corrupt the next transfer.
        idle(&*self.io)
    }
}

/// Waits until neither a transfer nor a factorial is running.
fn idle(io: &impl Io) -> Result<()> {
    let deadline = Deadline::after(PATIENCE);
    deadline.poll("DMA command START going to 0", || Ok(!io.read(DMA_COMMAND)?.contains(DmaCommand::START)))?;
    deadline.poll("status COMPUTING going to 0", || Ok(!io.read(STATUS)?.contains(Status::COMPUTING)))
}

fn checked_length<D: Direction>(buffer: &Buffer<D>) -> Result<u64> {
    if buffer.len() > MAX_TRANSFER {
        let why = "the device moves at most 4095 bytes at once";
        return Err(Error::DmaRange { iova: buffer.iova(), size: buffer.len() as u64, why });
    }
    Ok(buffer.len() as u64)
}

/// What to show, and where to.
pub struct TourConfig {
    /// Which interrupt to use; the best the device has if `None`.
    pub irq: Option<IrqIndex>,
    /// How many interrupts to time.
    pub samples: usize,
    /// Called with each thing found.
    pub tell: Box<dyn FnMut(Finding) + Send>,
}

/// One thing that the tour found.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// Identification, and whether the complement came back.
    Identified {
        /// The identification register.
        identification: u32,
        /// Interrupt in use.
        irq: IrqIndex,
        /// Whether registers are mapped rather than reached by message.
        mapped: bool,
    },
    /// A factorial.
    Factorial {
        /// Its argument.
        n: u32,
        /// n! modulo 2³².
        value: u32,
    },
    /// Bytes went to the device and came back equal.
    Dma {
        /// How many.
        bytes: usize,
    },
    /// A section held an interrupt back, and its end delivered it.
    Section {
        /// Whether the handler ran while the section was open (it must not).
        during: bool,
        /// Whether it had run when the section's end returned.
        after: bool,
    },
    /// From the write that raises an interrupt until the driver, having waited, sees its handler's mark.
    Latency {
        /// Median.
        p50: Duration,
        /// 99th percentile.
        p99: Duration,
        /// Number of samples.
        samples: usize,
    },
    /// Interrupts of the whole tour.
    Interrupts(IrqStats),
}

/// The whole device shown once: what `udrv run edu` runs.
pub struct Tour {
    edu: Edu,
    config: TourConfig,
    irq: IrqIndex,
    mapped: bool,
}

impl Driver for Tour {
    type Config = TourConfig;

    fn probe(context: &Context, config: TourConfig) -> Result<Self> {
        let available = |index: &IrqIndex| context.device.irq(*index).is_ok_and(|irq| irq.count > 0);
        let irq = match config.irq {
            Some(irq) => irq,
            None => [IrqIndex::MSI, IrqIndex::INTX]
                .into_iter()
                .find(available)
                .ok_or(Error::NotSupported { what: "an interrupt", by: context.device.info().address.clone() })?,
        };
        let window = Window::open(&context.device, RegionIndex::BAR0)?;
        let mapped = matches!(window, Window::Mapped(_));
        let edu = Edu::attach(&context.device, window, &context.irqs, irq)?;
        Ok(Self { edu, config, irq, mapped })
    }

    fn run(&mut self, context: &Context) -> Result<()> {
        let Self { edu, config, irq, mapped } = self;
        let identification = edu.identification()?;
        (config.tell)(Finding::Identified { identification, irq: *irq, mapped: *mapped });
        for probe in [0, 0x1234_5678, u32::MAX] {
            if !edu.is_alive(probe)? {
                return Err(wrong(context, format!("{probe:#x} not complemented"), "the complement"));
            }
        }
        for n in [5, 10, 12] {
            (config.tell)(Finding::Factorial { n, value: edu.factorial(n)? });
        }
        let sent: Vec<u8> = (0..MAX_TRANSFER as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut out = edu.pool().alloc::<ToDevice>(sent.len())?;
        out.write(0, &sent)?;
        let _out = edu.copy_to_device(out)?;
        let back = edu.copy_from_device(edu.pool().alloc::<FromDevice>(sent.len())?)?;
        let mut came = vec![0; sent.len()];
        back.read(0, &mut came)?;
        if came != sent {
            return Err(wrong(context, "other bytes than were sent by DMA".into(), "the same bytes"));
        }
        (config.tell)(Finding::Dma { bytes: sent.len() });
        let section = show_section(edu, context)?;
        // In poll delivery the end of a section delivers what has been seen, and does not look for more (rule 3).
        let polled = context.irqs.delivery() == Delivery::Poll;
        let kept = matches!(section, Finding::Section { during: false, after } if after || polled);
        (config.tell)(section);
        if !kept {
            return Err(wrong(context, "an interrupt that a section did not hold until its end".into(), "it held"));
        }
        (config.tell)(measure(edu, context, config.samples)?);
        (config.tell)(Finding::Interrupts(edu.irq_stats()));
        Ok(())
    }
}

fn wrong(context: &Context, found: String, expected: &str) -> Error {
    Error::Protocol { peer: context.device.info().address.clone(), found, expected: expected.into() }
}

/// A cause of the driver's own choice, apart from the device's two.
const OWN: InterruptStatus = InterruptStatus::from_bits_retain(1 << 4);

fn show_section(edu: &Edu, context: &Context) -> Result<Finding> {
    let before = edu.irq_stats().raised;
    let during = context.irqs.off(|_off| -> Result<bool> {
        edu.raise(OWN)?;
        // Until its signal has arrived and been marked, "not yet" would look the same as "held back". Delivering takes
        // what has come; while a section is open it runs nothing.
        Deadline::after(PATIENCE).poll("the interrupt raised in a section", || {
            context.irqs.deliver();
            Ok(edu.irq_stats().raised > before)
        })?;
        Ok(edu.has_seen(OWN))
    })?;
    let after = edu.has_seen(OWN);
    Ok(Finding::Section { during, after })
}

fn measure(edu: &Edu, context: &Context, samples: usize) -> Result<Finding> {
    let mut times = Vec::with_capacity(samples);
    for _ in 0..samples.max(1) {
        let start = clock::now();
        edu.raise(OWN)?;
        edu.wait("an interrupt whose latency is measured", OWN)?;
        times.push(clock::now().saturating_duration_since(start));
        if context.should_stop() {
            break;
        }
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    Ok(Finding::Latency { p50: at(50), p99: at(99), samples: times.len() })
}
