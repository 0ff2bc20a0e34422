//! Real interrupts of the edu device while sections open and close at random on two threads:
//! `irq-stress ADDRESS msi|intx thread|signal|poll ROUNDS`, a round being each of the 32 causes once.
//!
//! Nothing is lost: in each round every cause is seen. Ends with status 1 at the first thing that is not so.

use anyhow::{Context as _, Result, bail, ensure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain, IrqReturn};
use udrv::mmio::{Io as _, Window};
use udrv::pci::{Command, Config};
use udrv_backend::{IrqIndex, RegionIndex};
use udrv_edu::registers::{INTERRUPT_ACKNOWLEDGE, INTERRUPT_RAISE, INTERRUPT_STATUS, InterruptStatus};

/// Longest wait for the causes of one round.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, irq, delivery, rounds] = arguments.as_slice() else {
        bail!("usage: irq-stress ADDRESS msi|intx thread|signal|poll ROUNDS");
    };
    let irq = match irq.as_str() {
        "msi" => IrqIndex::MSI,
        "intx" => IrqIndex::INTX,
        other => bail!("`{other}` is no interrupt of edu: expected msi or intx"),
    };
    let delivery = match delivery.as_str() {
        "thread" => Delivery::Thread,
        "signal" => Delivery::Signal,
        "poll" => Delivery::Poll,
        other => bail!("`{other}` is no delivery: expected thread, signal or poll"),
    };
    let rounds = rounds.parse().with_context(|| format!("`{rounds}` is no number of rounds"))?;
    stress(address, irq, delivery, rounds)
}

/// What the threads and the handler share.
struct Shared {
    io: Window<0x1000>,
    causes: AtomicU32,
    /// Sections open now, and handlers that found any.
    inside: AtomicU64,
    violations: AtomicU64,
    failed: AtomicBool,
}

impl Shared {
    fn handle(&self) -> IrqReturn {
        self.violations.fetch_add(self.inside.load(Ordering::SeqCst), Ordering::SeqCst);
        let Ok(status) = self.io.read(INTERRUPT_STATUS) else {
            self.failed.store(true, Ordering::SeqCst);
            return IrqReturn::None;
        };
        if status.is_empty() {
            return IrqReturn::None;
        }
        // Before it is acknowledged: who sees the device quiet finds the cause here.
        self.causes.fetch_or(status.bits(), Ordering::SeqCst);
        match self.io.write(INTERRUPT_ACKNOWLEDGE, status) {
            Ok(()) => IrqReturn::Handled,
            Err(_) => IrqReturn::None,
        }
    }

    fn section<T>(&self, domain: &IrqDomain, work: impl FnOnce() -> T) -> T {
        domain.off(|_off| {
            self.inside.fetch_add(1, Ordering::SeqCst);
            let result = work();
            self.inside.fetch_sub(1, Ordering::SeqCst);
            result
        })
    }
}

/// Marsaglia's xorshift.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn stress(address: &str, index: IrqIndex, delivery: Delivery, rounds: u64) -> Result<()> {
    let device = udrv::open(address)?;
    Config::new(&*device).change_command(Command::MEMORY_SPACE | Command::BUS_MASTER, Command::INTERRUPT_DISABLE)?;
    let io = Window::open(&device, RegionIndex::BAR0)?;
    io.write(INTERRUPT_ACKNOWLEDGE, InterruptStatus::all())?;
    let shared = Arc::new(Shared {
        io,
        causes: AtomicU32::new(0),
        inside: AtomicU64::new(0),
        violations: AtomicU64::new(0),
        failed: AtomicBool::new(false),
    });
    let domain = IrqDomain::new(delivery)?;
    let handler = {
        let shared = Arc::clone(&shared);
        move |_| shared.handle()
    };
    let irq = domain.register(&device, index, 0, handler)?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut state = 0x9e37_79b9_7f4a_7c15;
            while !done.load(Ordering::Relaxed) {
                let length = random(&mut state) >> 56;
                shared.section(&domain, || (0..length).for_each(|_| std::hint::spin_loop()));
                (0..length).for_each(|_| std::hint::spin_loop());
            }
        });
        let mut state = 0x2545_f491_4f6c_dd1d;
        let outcome = (0..rounds).try_for_each(|_| round(&shared, &domain, &mut state));
        done.store(true, Ordering::Relaxed);
        outcome
    })?;
    domain.wait("the accounts to close", Deadline::after(PATIENCE), || !irq.is_pending() && !irq.is_active())?;
    let stats = irq.stats();
    let violations = shared.violations.load(Ordering::SeqCst);
    ensure!(!shared.failed.load(Ordering::SeqCst), "a register could not be read");
    ensure!(violations == 0, "{violations} handlers ran inside sections");
    ensure!(shared.io.read(INTERRUPT_STATUS)?.is_empty(), "causes are left in the device");
    ensure!(stats.raised == stats.delivered + stats.merged, "the accounts do not close: {stats:?}");
    ensure!(stats.delivered >= rounds, "fewer deliveries than rounds: {stats:?}");
    println!("ok  {index} {delivery:?}: {} causes, none lost, no handler in a section; {stats:?}", rounds * 32);
    Ok(())
}

/// Every cause once, in and out of sections, until the handler has seen them all.
fn round(shared: &Shared, domain: &IrqDomain, state: &mut u64) -> Result<()> {
    shared.causes.store(0, Ordering::SeqCst);
    for bit in 0..32 {
        let raise = || shared.io.write(INTERRUPT_RAISE, InterruptStatus::from_bits_retain(1 << bit));
        if random(state) & 1 == 0 { shared.section(domain, raise)? } else { raise()? }
    }
    let all = || shared.causes.load(Ordering::SeqCst) == u32::MAX;
    domain
        .wait("every cause of a round", Deadline::after(PATIENCE), all)
        .with_context(|| format!("causes lost: {:#x}", !shared.causes.load(Ordering::SeqCst)))
}
