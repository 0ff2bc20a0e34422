//! A device that is nothing but interrupt lines, and the small things that every interrupt test does.
#![expect(dead_code, reason = "each test uses a part")]

use nix::sys::socket::{MsgFlags, send};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain, IrqReturn, Registration};
use udrv_backend::{
    AnyBackend, Backend, DeviceInfo, Dma, Error, IrqFlags, IrqIndex, IrqInfo, RegionIndex, RegionInfo, Result, Trigger,
    Width,
};

pub const DELIVERIES: [Delivery; 3] = [Delivery::Thread, Delivery::Signal, Delivery::Poll];

/// As many messages as any test needs.
const VECTORS: u32 = 2048;

pub fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

/// INTx, which masks itself and is signalled again when unmasked while it is asserted; and messages.
pub struct Lines {
    info: DeviceInfo,
    state: Mutex<State>,
    /// Asked before a vector is given a trigger, before one loses its trigger, and before the pin is unmasked.
    arming: Asked,
    disarming: Asked,
    unmasking: Asked,
}

type Asked = Mutex<Option<Box<dyn FnMut() -> Result<()> + Send>>>;

/// Who comes while it is being answered is not asked, and does not wait.
fn ask(asked: &Asked) -> Result<()> {
    let Some(mut answer) = asked.lock().expect("no test panics inside").take() else { return Ok(()) };
    let answered = answer();
    asked.lock().expect("no test panics inside").get_or_insert(answer);
    answered
}

#[derive(Default)]
struct State {
    pin: Option<OwnedFd>,
    asserted: bool,
    masked: bool,
    messages: Vec<Option<OwnedFd>>,
    unmasks: u64,
}

impl State {
    fn update(&mut self) {
        if self.asserted
            && !self.masked
            && let Some(pin) = &self.pin
        {
            self.masked = true;
            write_to(pin, &1u64.to_ne_bytes());
        }
    }
}

/// False if it was full: then it has signals waiting already.
fn write_to(fd: &OwnedFd, bytes: &[u8]) -> bool {
    match send(fd.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
        Err(nix::errno::Errno::ENOTSOCK) => nix::unistd::write(fd, bytes).is_ok(),
        sent => sent.is_ok(),
    }
}

impl Lines {
    pub fn new() -> Arc<Self> {
        let info = DeviceInfo { address: "model:lines".into(), regions: 0, irqs: 3 };
        Arc::new(Self {
            info,
            state: Mutex::default(),
            arming: Mutex::default(),
            disarming: Mutex::default(),
            unmasking: Mutex::default(),
        })
    }

    /// Lets arming fail with what `answer` says.
    pub fn on_arming(&self, answer: impl FnMut() -> Result<()> + Send + 'static) {
        *self.arming.lock().expect("no test panics inside") = Some(Box::new(answer));
    }

    /// Lets disarming fail with what `answer` says.
    pub fn on_disarming(&self, answer: impl FnMut() -> Result<()> + Send + 'static) {
        *self.disarming.lock().expect("no test panics inside") = Some(Box::new(answer));
    }

    /// Lets unmasking fail with what `answer` says.
    pub fn on_unmasking(&self, answer: impl FnMut() -> Result<()> + Send + 'static) {
        *self.unmasking.lock().expect("no test panics inside") = Some(Box::new(answer));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics inside")
    }

    pub fn backend(self: &Arc<Self>) -> AnyBackend {
        Arc::clone(self) as AnyBackend
    }

    /// The pin's level.
    pub fn assert(&self, level: bool) {
        let mut state = self.state();
        state.asserted = level;
        state.update();
    }

    pub fn is_masked(&self) -> bool {
        self.state().masked
    }

    pub fn unmasks(&self) -> u64 {
        self.state().unmasks
    }

    pub fn fire(&self, vector: u32) {
        self.try_fire(vector);
    }

    /// Whether its trigger took it.
    pub fn try_fire(&self, vector: u32) -> bool {
        self.send(vector, &1u64.to_ne_bytes())
    }

    /// Writes these bytes to a message's trigger, and says whether it took them.
    pub fn send(&self, vector: u32, bytes: &[u8]) -> bool {
        let state = self.state();
        state.messages.get(vector as usize).and_then(Option::as_ref).is_some_and(|fd| write_to(fd, bytes))
    }

    pub fn pin_is_armed(&self) -> bool {
        self.state().pin.is_some()
    }

    pub fn is_armed(&self, vector: u32) -> bool {
        matches!(self.state().messages.get(vector as usize), Some(Some(_)))
    }
}

impl Backend for Lines {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn region(&self, region: RegionIndex) -> Result<RegionInfo> {
        Err(Error::NoSuchRegion { region, count: 0 })
    }
    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        Ok(match index {
            IrqIndex::INTX => {
                IrqInfo { index, count: 1, flags: IrqFlags::EVENTFD | IrqFlags::MASKABLE | IrqFlags::AUTOMASKED }
            }
            _ => IrqInfo { index, count: VECTORS, flags: IrqFlags::EVENTFD },
        })
    }
    fn read(&self, region: RegionIndex, _offset: u64, _width: Width) -> Result<u64> {
        Err(Error::NoSuchRegion { region, count: 0 })
    }
    fn write(&self, region: RegionIndex, _offset: u64, _width: Width, _value: u64) -> Result<()> {
        Err(Error::NoSuchRegion { region, count: 0 })
    }
    fn set_triggers(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        ask(if triggers.iter().any(Option::is_some) { &self.arming } else { &self.disarming })?;
        let mut state = self.state();
        for (vector, trigger) in (start as usize..).zip(triggers) {
            let fd = trigger.map(|fd| fd.as_fd().try_clone_to_owned().expect("a descriptor"));
            if index == IrqIndex::INTX {
                state.pin = fd;
            } else {
                if state.messages.len() <= vector {
                    state.messages.resize_with(vector + 1, || None);
                }
                state.messages[vector] = fd;
            }
        }
        state.update();
        Ok(())
    }
    fn disable_irq(&self, _index: IrqIndex) -> Result<()> {
        *self.state() = State::default();
        Ok(())
    }
    fn mask_irq(&self, _index: IrqIndex, _vector: u32) -> Result<()> {
        self.state().masked = true;
        Ok(())
    }
    fn unmask_irq(&self, _index: IrqIndex, _vector: u32) -> Result<()> {
        ask(&self.unmasking)?;
        let mut state = self.state();
        state.masked = false;
        state.unmasks += 1;
        state.update();
        Ok(())
    }
    fn fire_irq(&self, _index: IrqIndex, vector: u32) -> Result<()> {
        self.fire(vector);
        Ok(())
    }
    fn dma(&self) -> Option<&dyn Dma> {
        None
    }
}

/// A device, a domain, and one message whose handler counts.
pub struct Counted {
    pub device: Arc<Lines>,
    pub domain: IrqDomain,
    pub irq: Registration,
    pub runs: Arc<AtomicU64>,
}

impl Counted {
    pub fn new(delivery: Delivery) -> Self {
        let (device, domain) = (Lines::new(), IrqDomain::new(delivery).expect("a domain"));
        let runs = Arc::new(AtomicU64::new(0));
        let irq = domain.register(&device.backend(), IrqIndex::MSI, 0, counting(&runs)).expect("a registration");
        Self { device, domain, irq, runs }
    }

    pub fn runs(&self) -> u64 {
        self.runs.load(Ordering::SeqCst)
    }

    pub fn wait_runs(&self, count: u64) {
        self.domain.wait("deliveries", soon(), || self.runs() >= count).expect("delivered");
    }
}

/// A handler that counts its runs.
pub fn counting(runs: &Arc<AtomicU64>) -> impl FnMut(udrv::irq::Interrupt) -> IrqReturn + Send + 'static {
    let runs = Arc::clone(runs);
    move |_| {
        runs.fetch_add(1, Ordering::SeqCst);
        IrqReturn::Handled
    }
}

/// Waits, outside any domain, until `done` holds.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    soon().poll(what, || Ok(done())).expect(what);
}

/// Waits until a source has been raised so often, without letting anything but marks happen where a section is open.
pub fn wait_raised(domain: &IrqDomain, irq: &Registration, count: u64) {
    until("the mark", || {
        domain.deliver();
        irq.stats().raised >= count
    });
}
