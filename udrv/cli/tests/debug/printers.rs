//! How the debuggers show values of the runtime's types: exactly, with what is only in the inspection page.

use super::in_both;
use super::served::{Debugger, Served};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use udrv::dma::{Buffer, Coherent, FromDevice, InFlight, Pool, ToDevice};
use udrv::irq::{Delivery, IrqDomain, IrqLock, IrqReturn, Registration, Timer};
use udrv::mmio::{ByMessage, Mapped};
use udrv::pci::{Command as PciCommand, Config};
use udrv_backend::register::{ReadWrite, Register};
use udrv_backend::{
    AnyBackend, Backend, DeviceInfo, Dma, Error, IrqIndex, IrqInfo, MapRegion, RegionFile, RegionFlags, RegionIndex,
    RegionInfo, Result, SparseArea, Trigger, Width,
};

in_both!(
    values_in_a_driver_are_shown_with_their_bits_and_states,
    one_of_each_is_shown_exactly,
    what_is_not_yet_made_is_shown_plainly,
);

/// What is shown of a variable.
#[track_caller]
fn assert_shows(said: &str, what: &str, expected: &str) {
    let found = said.lines().any(|line| line.split_once(" = ").is_some_and(|(_, shown)| shown.trim() == expected));
    assert!(found, "{what} is not `{expected}` in:\n{said}");
}

fn values_in_a_driver_are_shown_with_their_bits_and_states(debugger: Debugger) {
    let Some(served) = Served::start(debugger) else { return };
    let (up, command, flight) = match debugger {
        Debugger::Gdb => ("up", "print command", "print flight"),
        Debugger::Lldb => ("up", "frame variable command", "frame variable flight"),
    };
    let (irqs, irq) = (debugger.show("self", "irqs"), debugger.show("self", "irq"));
    let commands = ["udrv break-on-write \"DMA command\"", "run", command, &irqs, &irq, up, flight, "kill"];
    let said = served.debug(&commands, &["udrv", "run", "edu", "--samples", "5", "--device", "model:edu"]);
    assert_shows(&said, "command", "0x5 (START | IRQ)");
    assert_shows(&said, "irqs", "thread delivery, 1 source");
    // The three factorials.
    assert_shows(&said, "irq", "MSI vector 0 of model:edu: enabled; 3 raised, 3 delivered");
    assert_shows(&said, "flight", "4095 bytes at bus address 0x1000, the device's");
}

fn one_of_each_is_shown_exactly(debugger: Debugger) {
    let Some(served) = Served::start(debugger) else { return };
    let stop = match debugger {
        Debugger::Gdb => format!("break {}::look", module_path!()),
        Debugger::Lldb => format!("breakpoint set --name {}::look", module_path!()),
    };
    let fields =
        ["irqs", "irq", "timer", "lock", "locked", "owned", "flight", "shared", "mapped", "message", "register"];
    let shows = fields.map(|field| debugger.show("each", field));
    let mut commands = vec![stop.as_str(), "run"];
    commands.extend(shows.iter().map(String::as_str));
    commands.push("kill");
    let program = std::env::current_exe().expect("this test");
    let program =
        [program.to_str().expect("UTF-8"), "--exact", "printers::child_process_has_one_of_each", "--nocapture"];
    let said = served.debug(&commands, &program);
    let thread = said.lines().find_map(|line| line.split_once("section of thread ")).expect("it says which").1;
    let opens = |line: &str| line.trim() == "let guard = each.locked.lock();";
    let line =
        include_str!("printers.rs").lines().zip(1..).find(|(line, _)| opens(line)).expect("it opens a section").1;
    let domain = format!(
        "thread delivery, 2 sources, off by thread {thread}, entered at udrv/cli/tests/debug/printers.rs:{line}"
    );
    let expected = [
        domain.as_str(),
        "MSI vector 0 of model:edu: disabled 2 deep, 1 pending; 1 raised, 0 delivered",
        "timer: enabled; 0 raised, 0 delivered",
        &format!("unlocked; {domain}"),
        &format!("locked; {domain}"),
        "100 bytes at bus address 0x1000, the driver's",
        "200 bytes at bus address 0x2000, the device's",
        "300 bytes at bus address 0x3000, both's",
        "BAR0 of test:memory, mapped at 0x",
        "BAR0 of model:edu, by message",
        "status (offset 0x20)",
    ];
    for (field, expected) in fields.iter().zip(expected) {
        let mut shown = said.lines().filter_map(|line| line.split_once(" = ")).map(|(_, shown)| shown.trim());
        let found = shown.any(|shown| shown == expected || expected.ends_with("0x") && shown.starts_with(expected));
        assert!(found, "{field} is not `{expected}` in:\n{said}");
    }
}

fn what_is_not_yet_made_is_shown_plainly(debugger: Debugger) {
    let Some(served) = Served::start(debugger) else { return };
    // Behind this line most of its variables hold anything, and the driver has not told of its registers.
    let line = super::line_of("let config = Config::new(&**device);");
    let stop = match debugger {
        Debugger::Gdb => format!("break devices/edu/src/driver.rs:{line}"),
        Debugger::Lldb => format!("breakpoint set --file driver.rs --line {line}"),
    };
    let said = served.debug_edu(&[&stop, "run", debugger.locals(), "kill"]);
    assert!(said.contains("thread delivery, 0 sources"), "{said}");
    assert!(!said.contains("Traceback") && !said.contains("Python Exception"), "{said}");
}

/// What the child has, for the debugger to look at.
#[expect(dead_code, reason = "the debugger reads them")]
struct OneOfEach {
    irqs: IrqDomain,
    irq: Registration,
    timer: Timer,
    lock: IrqLock<u32>,
    locked: IrqLock<u32>,
    owned: Buffer<ToDevice>,
    flight: InFlight<FromDevice>,
    shared: Coherent,
    mapped: Mapped<4096>,
    message: ByMessage<dyn Backend>,
    register: Register<u32, ReadWrite>,
}

#[inline(never)]
fn look(each: &OneOfEach) {
    std::hint::black_box(each);
}

/// Not a test by itself.
#[test]
fn child_process_has_one_of_each() {
    if std::env::var_os("UDRV_TEST_DEBUGGED").is_none() {
        return;
    }
    let device: AnyBackend = Arc::new(udrv_edu::model::edu());
    Config::new(&*device).change_command(PciCommand::BUS_MASTER, PciCommand::empty()).expect("on");
    let irqs = IrqDomain::new(Delivery::Thread).expect("a domain");
    let irq = irqs.register(&device, IrqIndex::MSI, 0, |_| IrqReturn::Handled).expect("registered");
    irq.disable_nosync();
    irq.disable_nosync();
    irq.pend();
    let pool = Pool::new(device.clone(), 0x1_0000, 28).expect("a pool");
    let mapped = Mapped::map(&Memory::new(), RegionIndex::BAR0).expect("mapped").expect("mappable");
    let each = OneOfEach {
        timer: irqs.timer(|_| {}).expect("a timer"),
        lock: IrqLock::new(&irqs, 7),
        locked: IrqLock::new(&irqs, 8),
        owned: pool.alloc(100).expect("memory"),
        flight: pool.alloc(200).expect("memory").submit(),
        shared: pool.alloc_coherent(300).expect("memory"),
        message: ByMessage::new(device, RegionIndex::BAR0),
        register: Register::new("status", 0x20),
        mapped,
        irqs,
        irq,
    };
    let guard = each.locked.lock();
    println!("section of thread {}", nix::unistd::gettid());
    look(&each);
    drop(guard);
    drop(each.flight.complete());
}

/// A device that is nothing but memory, and can be mapped.
struct Memory(DeviceInfo, std::os::fd::OwnedFd);

impl Memory {
    fn new() -> Self {
        let file = nix::sys::memfd::memfd_create(c"device", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).expect("a memfd");
        nix::unistd::ftruncate(&file, 4096).expect("its size");
        Self(DeviceInfo { address: "test:memory".into(), regions: 1, irqs: 0 }, file)
    }

    fn none<T>(&self) -> Result<T> {
        Err(Error::NotSupported { what: "anything but memory", by: self.0.address.clone() })
    }
}

impl MapRegion for Memory {
    fn region_file(&self, _: RegionIndex) -> Result<RegionFile<'_>> {
        Ok(RegionFile { file: self.1.as_fd(), offset: 0 })
    }
}

impl Backend for Memory {
    fn info(&self) -> &DeviceInfo {
        &self.0
    }
    fn region(&self, index: RegionIndex) -> Result<RegionInfo> {
        let mappable = vec![SparseArea { offset: 0, size: 4096 }];
        Ok(RegionInfo { index, size: 4096, flags: RegionFlags::all(), mappable })
    }
    fn mappable(&self) -> Option<&dyn MapRegion> {
        Some(self)
    }
    fn irq(&self, _: IrqIndex) -> Result<IrqInfo> {
        self.none()
    }
    fn read(&self, _: RegionIndex, _: u64, _: Width) -> Result<u64> {
        self.none()
    }
    fn write(&self, _: RegionIndex, _: u64, _: Width, _: u64) -> Result<()> {
        self.none()
    }
    fn set_triggers(&self, _: IrqIndex, _: u32, _: &[Option<Trigger<'_>>]) -> Result<()> {
        self.none()
    }
    fn disable_irq(&self, _: IrqIndex) -> Result<()> {
        self.none()
    }
    fn mask_irq(&self, _: IrqIndex, _: u32) -> Result<()> {
        self.none()
    }
    fn unmask_irq(&self, _: IrqIndex, _: u32) -> Result<()> {
        self.none()
    }
    fn fire_irq(&self, _: IrqIndex, _: u32) -> Result<()> {
        self.none()
    }
    fn dma(&self) -> Option<&dyn Dma> {
        None
    }
}
