//! From a raise in another process, which serves a device through the stub, to the handler in this one.
//!
//! The device notes the time just before it writes to its trigger, and gives it in a register: the message that made it
//! raise is not part of the figure. Both sides receive through the same kind of server; theirs has a thread that reads the
//! eventfd where ours has a domain.

use crate::latency::{Seen, eventfd_reader, percentiles};
use crate::{Goal, Measure};
use nix::sys::eventfd::EventFd;
use nix::time::{ClockId, clock_gettime};
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stub_driver::serve::{DeviceServer, Export};
use udrv::irq::{Delivery, IrqDomain, IrqReturn};
use udrv_backend::{
    AnyBackend, Backend, DeviceInfo, Dma, Error, IrqFlags, IrqIndex, IrqInfo, RegionFlags, RegionIndex, RegionInfo,
    Result, Trigger, Width,
};

/// This process is the server, if its first argument is this; the second is the socket.
const SERVE: &str = "--serve-stamped";

const SAMPLES: usize = 2000;
const REGISTERS: RegionIndex = RegionIndex(0);

/// Nanoseconds of CLOCK_MONOTONIC, which is the same in every process.
fn now() -> u64 {
    Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock")).as_nanos() as u64
}

/// A device whose only register raises when written, and says when it did when read.
struct Stamped {
    info: DeviceInfo,
    armed: Mutex<Option<OwnedFd>>,
    raised: AtomicU64,
}

impl Backend for Stamped {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn region(&self, index: RegionIndex) -> Result<RegionInfo> {
        let size = if index == REGISTERS { 4096 } else { 0 };
        Ok(RegionInfo { index, size, flags: RegionFlags::READ | RegionFlags::WRITE, mappable: Vec::new() })
    }
    fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        Ok(IrqInfo { index, count: u32::from(index == IrqIndex::MSI), flags: IrqFlags::EVENTFD })
    }
    fn read(&self, _region: RegionIndex, _offset: u64, _width: Width) -> Result<u64> {
        Ok(self.raised.load(Ordering::Acquire))
    }
    fn write(&self, _region: RegionIndex, _offset: u64, _width: Width, _value: u64) -> Result<()> {
        let armed = self.armed.lock().expect("no panic inside");
        self.raised.store(now(), Ordering::Release);
        if let Some(trigger) = &*armed {
            nix::unistd::write(trigger, &1u64.to_ne_bytes()).expect("raised");
        }
        Ok(())
    }
    fn set_triggers(&self, _index: IrqIndex, _start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        let trigger = triggers.first().copied().flatten();
        *self.armed.lock().expect("no panic inside") = trigger.map(|fd| fd.try_clone_to_owned().expect("a descriptor"));
        Ok(())
    }
    fn disable_irq(&self, _index: IrqIndex) -> Result<()> {
        *self.armed.lock().expect("no panic inside") = None;
        Ok(())
    }
    fn mask_irq(&self, _index: IrqIndex, _vector: u32) -> Result<()> {
        Ok(())
    }
    fn unmask_irq(&self, _index: IrqIndex, _vector: u32) -> Result<()> {
        Ok(())
    }
    fn fire_irq(&self, index: IrqIndex, vector: u32) -> Result<()> {
        Err(Error::NoSuchIrq { index, start: vector, count: 1, available: 0 })
    }
    fn dma(&self) -> Option<&dyn Dma> {
        None
    }
}

/// Serves until its parent goes, if this process is a server. True if it was.
pub fn serve_if_asked() -> bool {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(SERVE) {
        return false;
    }
    let socket = arguments.next().expect("the socket");
    let info = DeviceInfo { address: "model:stamped".into(), regions: 9, irqs: 5 };
    let device = Stamped { info, armed: Mutex::default(), raised: AtomicU64::new(0) };
    let _server = DeviceServer::start(Export::shared("stamped", Arc::new(device)), Path::new(&socket)).expect("served");
    println!("ready");
    let _parent_gone = std::io::stdin().read(&mut [0]);
    true
}

/// A server in a process of its own.
struct Stub {
    child: Child,
    folder: std::path::PathBuf,
    device: AnyBackend,
}

impl Stub {
    fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("udrv-bench-irq-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let socket = folder.join("stamped.sock");
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg(SERVE)
            .arg(&socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        // One line: it serves.
        child.stdout.as_mut().expect("piped").read_exact(&mut [0; 6]).expect("ready");
        let device = udrv::open(&format!("unix:{}", socket.display())).expect("connected");
        Self { child, folder, device }
    }

    /// Lets it raise so many times; the latencies, sorted.
    fn sample(&self, seen: &Seen) -> Vec<u64> {
        let mut latencies: Vec<u64> = seen
            .rounds(SAMPLES)
            .map(|_| {
                seen.settle();
                seen.clear();
                self.device.write(REGISTERS, 0, Width::Bits64, 1).expect("written");
                let at = seen.wait();
                let raised = self.device.read(REGISTERS, 0, Width::Bits64).expect("read");
                at.saturating_sub(raised)
            })
            .collect();
        latencies.sort_unstable();
        latencies
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        // Its end of file, for which it waits.
        drop(self.child.stdin.take());
        let _ended = self.child.wait();
        let _removed = std::fs::remove_dir_all(&self.folder);
    }
}

fn ours() -> Vec<f64> {
    let (stub, seen) = (Stub::start(), Seen::counting_from(now));
    let domain = IrqDomain::new(Delivery::Thread).expect("a domain");
    let handled = Arc::clone(&seen);
    let handler = move |_| {
        handled.see();
        IrqReturn::Handled
    };
    let _irq = domain.register(&stub.device, IrqIndex::MSI, 0, handler).expect("registered");
    percentiles(&stub.sample(&seen))
}

fn theirs() -> Vec<f64> {
    let (stub, seen) = (Stub::start(), Seen::counting_from(now));
    let fd = EventFd::new().expect("an eventfd");
    let trigger = fd.as_fd().try_clone_to_owned().expect("a descriptor");
    stub.device.set_triggers(IrqIndex::MSI, 0, &[Some(trigger.as_fd())]).expect("armed");
    let latencies = eventfd_reader(&seen, fd, &trigger, || stub.sample(&seen));
    percentiles(&latencies)
}

pub fn measures() -> Vec<Measure> {
    vec![Measure {
        name: "raise in a stub process to handler",
        parts: &[(", p50", Goal::Ratio(1.15)), (", p99", Goal::None)],
        unit: "ns",
        peer: "bare read of the eventfd",
        ours: Box::new(ours),
        theirs: Box::new(theirs),
    }]
}
