//! A controller that lies to the driver, and a host that lies to the model: neither may panic or be made to wait for ever.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use udrv::debug::fault::{Fault, FaultPlan, Faulty, Span};
use udrv::irq::{Delivery, IrqDomain};
use udrv::mmio::Window;
use udrv_backend::{AnyBackend, Error, RegionIndex, Result, Width};
use udrv_model::{Bus, DeviceModel, Identity, ModelBackend};
use udrv_nvme::command::Outcome;
use udrv_nvme::driver::{Controller, IoQueue, QueueConfig, Wait};
use udrv_nvme::model::{Backing, Faults, Hold, NvmeModel};

/// What is not true of a [`Liar`].
#[derive(Default)]
struct Lies {
    /// CAP.
    capabilities: Option<u64>,
    /// What Identify and Get Log Page answer with.
    page: Option<Page>,
    /// Changes an entry of the I/O completion queue before the driver can look: Dwords 0 to 3.
    completion: Option<Completion>,
    /// Aborts are not answered.
    ignores_aborts: bool,
    /// The opcode of admin commands that are for a queue that cannot be.
    refuses: Option<u32>,
}

/// Changes Dwords 0 to 3 of a completion.
type Completion = fn(&mut [u32; 4]);

/// Changes the page, given the command's Dword 10 and opcode.
type Page = Box<dyn Fn(u8, u32, &mut [u8]) + Send>;

/// A queue's memory, as the driver has told the controller of it.
#[derive(Default, Clone, Copy)]
struct Queue {
    commands: u64,
    completions: u64,
    entries: u64,
    done: u64,
}

/// A controller that is honest but for its lies.
struct Liar {
    honest: NvmeModel,
    lies: Arc<Mutex<Lies>>,
    aborts: Arc<AtomicU32>,
    configured: Arc<AtomicU32>,
    admin: Queue,
    io: Queue,
}

impl Liar {
    fn lies(&self) -> std::sync::MutexGuard<'_, Lies> {
        self.lies.lock().expect("not poisoned")
    }

    /// What the admin queue is about to be given; whether it is to be passed on.
    fn watch(&mut self, tail: u64, bus: &Bus<'_>) -> (Vec<[u32; 16]>, bool) {
        let mut commands = Vec::new();
        while self.admin.done % 32 != tail {
            let mut bytes = [0; 64];
            bus.read(self.admin.commands + 64 * (self.admin.done % 32), &mut bytes).expect("the queue is mapped");
            let mut dwords = [0; 16];
            dwords.iter_mut().zip(bytes.chunks_exact(4)).for_each(|(dword, bytes)| {
                *dword = u32::from_le_bytes(bytes.try_into().expect("four bytes"));
            });
            if self.lies().refuses == Some(dwords[0] & 0xff) {
                bus.write(self.admin.commands + 64 * (self.admin.done % 32) + 40, &[0; 2])
                    .expect("the queue is mapped");
            }
            self.admin.done += 1;
            if dwords[0] & 0xff == 0x05 {
                let base = u64::from(dwords[6]) | u64::from(dwords[7]) << 32;
                self.io = Queue { completions: base, entries: u64::from(dwords[10] >> 16) + 1, ..Queue::default() };
            }
            commands.push(dwords);
        }
        let aborts = commands.iter().filter(|command| command[0] & 0xff == 0x08).count() as u32;
        self.aborts.fetch_add(aborts, Ordering::SeqCst);
        let ignored = aborts > 0 && self.lies().ignores_aborts;
        (commands, !ignored)
    }

    fn lie_in_pages(&self, commands: &[[u32; 16]], bus: &Bus<'_>) {
        let lies = self.lies();
        let Some(lie) = &lies.page else { return };
        for command in commands.iter().filter(|command| [0x06, 0x02].contains(&(command[0] & 0xff))) {
            let at = u64::from(command[6]) | u64::from(command[7]) << 32;
            // The driver lets a controller write only, so the honest page is not read back: zeros are as good.
            let mut page = vec![0; 4096];
            lie(command[0] as u8, command[10], &mut page);
            bus.write(at, &page).expect("the buffer is mapped");
        }
    }

    fn lie_in_completions(&mut self, count: u64, bus: &Bus<'_>) {
        let lie = self.lies().completion;
        for _ in 0..count {
            let at = self.io.completions + 16 * (self.io.done % self.io.entries);
            self.io.done += 1;
            let Some(lie) = lie else { continue };
            let mut bytes = [0; 16];
            bus.read(at, &mut bytes).expect("the queue is mapped");
            let mut dwords =
                [0, 4, 8, 12].map(|at| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
            lie(&mut dwords);
            bus.write(at, &dwords.map(u32::to_le_bytes).concat()).expect("the queue is mapped");
        }
    }
}

impl DeviceModel for Liar {
    fn identity(&self) -> Identity {
        self.honest.identity()
    }
    fn read(&mut self, bar: u32, offset: u64, width: Width) -> u64 {
        match self.lies().capabilities {
            Some(lie) if offset == 0 => return lie & width.all_ones(),
            _ => {}
        }
        self.honest.read(bar, offset, width)
    }
    fn write(&mut self, bar: u32, offset: u64, width: Width, value: u64, bus: &mut Bus<'_>) {
        match offset {
            0x14 => {
                self.configured.fetch_add(1, Ordering::SeqCst);
                self.admin.done = 0;
            }
            0x28 => self.admin.commands = value,
            0x1000 => {
                let (commands, passed_on) = self.watch(value, bus);
                if passed_on {
                    self.honest.write(bar, offset, width, value, bus);
                }
                return self.lie_in_pages(&commands, bus);
            }
            0x1008 => {
                let count = (value + self.io.entries - self.io.commands) % self.io.entries;
                self.io.commands = value;
                self.honest.write(bar, offset, width, value, bus);
                return self.lie_in_completions(count, bus);
            }
            _ => {}
        }
        self.honest.write(bar, offset, width, value, bus);
    }
    fn line(&self) -> bool {
        self.honest.line()
    }
    fn messages(&self) -> &[u64] {
        self.honest.messages()
    }
    fn reset(&mut self) {
        self.honest.reset();
    }
}

struct Rig {
    device: AnyBackend,
    lies: Arc<Mutex<Lies>>,
    faults: Arc<Faults>,
    aborts: Arc<AtomicU32>,
    /// Writes to CC.
    configured: Arc<AtomicU32>,
}

impl Rig {
    fn new(lies: Lies) -> Self {
        let (lies, faults, aborts) =
            (Arc::new(Mutex::new(lies)), Arc::<Faults>::default(), Arc::<AtomicU32>::default());
        let configured = Arc::<AtomicU32>::default();
        let honest = NvmeModel::new(vec![Backing::memory(1 << 20, 4096).expect("memory")], Arc::clone(&faults));
        let (admin, io) = (Queue::default(), Queue::default());
        let [told, counted] = [&aborts, &configured].map(Arc::clone);
        let liar = Liar { honest, lies: Arc::clone(&lies), aborts: told, configured: counted, admin, io };
        Self { device: Arc::new(ModelBackend::new("liar", liar)), lies, faults, aborts, configured }
    }

    fn attach(&self) -> Result<Controller> {
        self.attach_with(1)
    }

    fn attach_with(&self, queues: u16) -> Result<Controller> {
        let irqs = IrqDomain::new(Delivery::Thread)?;
        Controller::attach(&self.device, Window::open(&self.device, RegionIndex::BAR0)?, &irqs, queues)
    }

    fn set(&self, lies: Lies) {
        *self.lies.lock().expect("not poisoned") = lies;
    }
}

fn queue(controller: &mut Controller, wait: Wait) -> IoQueue {
    let config = QueueConfig { depth: 4, wait, timeout: Duration::from_millis(50) };
    controller.io_queue(config).expect("a queue")
}

#[test]
fn capabilities_that_cannot_be_are_refused() {
    const SANE: u64 = 63 | 1 << 16 | 1 << 24 | 1 << 37;
    let refused = [0, u64::MAX, 1 << 37, SANE & !0xffff, SANE | 15 << 48, SANE & !(1 << 37)];
    for capabilities in refused {
        let error = Rig::new(Lies { capabilities: Some(capabilities), ..Lies::default() }).attach().map(drop);
        assert!(matches!(error, Err(Error::Protocol { .. })), "{capabilities:#x}: {error:?}");
    }
    // Doorbells so far apart that they are not in the registers.
    let error = Rig::new(Lies { capabilities: Some(SANE | 15 << 32), ..Lies::default() }).attach().map(drop);
    assert!(matches!(error, Err(Error::OutOfRegion { .. })), "{error:?}");
}

#[test]
fn queue_of_the_fewest_entries_takes_one_command_at_a_time() {
    let rig = Rig::new(Lies { capabilities: Some(1 | 1 << 16 | 1 << 24 | 1 << 37), ..Lies::default() });
    let mut controller = rig.attach().expect("attached");
    let namespace = controller.namespace(1).expect("a namespace");
    let mut queue = queue(&mut controller, Wait::Polled);
    queue.write(&namespace, 0, &[3; 8192]).expect("written");
}

#[test]
fn queue_that_the_controller_refuses_disturbs_no_other() {
    let rig = Rig::new(Lies::default());
    let mut controller = rig.attach_with(2).expect("attached");
    let namespace = controller.namespace(1).expect("a namespace");
    let mut other = queue(&mut controller, Wait::Polled);
    let configured = rig.configured.load(Ordering::SeqCst);
    for create in [0x05, 0x01] {
        rig.set(Lies { refuses: Some(create), ..Lies::default() });
        let config = QueueConfig { depth: 4, wait: Wait::Polled, timeout: Duration::from_millis(50) };
        let error = controller.io_queue(config).map(drop).expect_err("refused");
        assert!(Outcome::of(&error).is_some(), "{error}");
        rig.set(Lies::default());
        other.read(&namespace, 0, &mut [0; 4096]).expect("read");
        drop(controller.io_queue(config).expect("the same number, again"));
    }
    assert_eq!(rig.configured.load(Ordering::SeqCst), configured, "the controller was reset");
}

/// Every status and every limit that a page can claim, and pages of every one byte.
#[test]
fn pages_of_garbage_are_refused_or_lived_with() {
    let fill = |seed: u64| -> Page {
        Box::new(move |opcode, cdw10, page| {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(opcode) ^ u64::from(cdw10) << 8;
            for byte in page {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *byte = if seed < 256 { seed as u8 } else { (state >> 56) as u8 };
            }
        })
    };
    for seed in 0..512 {
        let rig = Rig::new(Lies { page: Some(fill(seed)), ..Lies::default() });
        let Ok(mut controller) = rig.attach() else { continue };
        let shown = controller.info().model.clone() + &controller.info().serial;
        assert!(shown.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{shown:?} is for a terminal");
        let _ = (controller.namespace_ids(), controller.smart(), controller.error_log());
        if let Ok(namespace) = controller.namespace(1) {
            assert!(namespace.block_size <= controller.max_transfer() as u64, "{namespace:?}");
            let mut data = vec![0; namespace.block_size as usize];
            let _ = queue(&mut controller, Wait::Polled).read(&namespace, u64::MAX, &mut data);
        }
    }
}

#[test]
fn transfers_are_as_large_as_any_power_that_is_claimed() {
    for power in 0..=255 {
        let page: Page = Box::new(move |_, cdw10, page| {
            if cdw10 == 1 {
                (page[77], page[516]) = (power, 1);
            }
        });
        let rig = Rig::new(Lies { page: Some(page), ..Lies::default() });
        let most = rig.attach().expect("attached").max_transfer();
        let expected = if (1..9).contains(&power) { 4096 << power } else { 2 << 20 };
        assert_eq!(most, expected, "MDTS {power}");
    }
}

#[test]
fn list_of_namespaces_without_an_end_is_given_up() {
    let page: Page = Box::new(|opcode, cdw10, page| match (opcode, cdw10) {
        (0x06, 1) => page[516..520].copy_from_slice(&u32::MAX.to_le_bytes()),
        (0x06, 2) => {
            // It does not know what it was asked for, and counts by itself.
            static NEXT: AtomicU32 = AtomicU32::new(1);
            for id in page.chunks_exact_mut(4) {
                id.copy_from_slice(&NEXT.fetch_add(1, Ordering::SeqCst).to_le_bytes());
            }
        }
        _ => {}
    });
    let error = Rig::new(Lies { page: Some(page), ..Lies::default() }).attach().expect("attached").namespace_ids();
    assert!(matches!(&error, Err(Error::Protocol { .. })), "{:?}", error.map(|ids| ids.len()));
}

/// A completion of a command that is not there, of another queue, or of one that has ended.
#[test]
fn completion_that_cannot_be_resets_the_controller_and_is_told() {
    let lies: [(&str, Completion); 3] = [
        ("CID", |dwords| dwords[3] |= 0xffff),
        ("a free CID", |dwords| dwords[3] ^= 1),
        ("SQID", |dwords| dwords[2] |= 7 << 16),
    ];
    for wait in [Wait::Polled, Wait::Interrupt] {
        for (name, lie) in lies {
            let rig = Rig::new(Lies::default());
            let mut controller = rig.attach().expect("attached");
            let namespace = controller.namespace(1).expect("a namespace");
            let mut queue = queue(&mut controller, wait);
            queue.write(&namespace, 0, &[5; 4096]).expect("written");
            rig.set(Lies { completion: Some(lie), ..Lies::default() });
            let mut came = [0; 4096];
            let error = queue.read(&namespace, 0, &mut came).expect_err(name);
            assert!(matches!(error, Error::Protocol { .. }), "{name}: {error}");
            rig.set(Lies::default());
            queue.read(&namespace, 0, &mut came).unwrap_or_else(|error| panic!("{name}: afterwards: {error}"));
            assert_eq!((came, queue.outstanding(), controller.pool().leaks().len()), ([5; 4096], 0, 0), "{name}");
        }
    }
}

#[test]
fn completion_with_the_old_phase_is_none_and_its_command_is_answered_by_a_reset() {
    let rig = Rig::new(Lies::default());
    let mut controller = rig.attach().expect("attached");
    let namespace = controller.namespace(1).expect("a namespace");
    let mut queue = queue(&mut controller, Wait::Polled);
    rig.set(Lies { completion: Some(|dwords| dwords[3] ^= 1 << 16), ..Lies::default() });
    let error = queue.flush(&namespace).expect_err("never ends");
    assert_eq!(Outcome::of(&error), Some(Outcome::ABORTED_BY_HOST), "{error}");
    assert_eq!(queue.outstanding(), 0);
}

/// Four commands and an admin queue that does not answer: the patience of one Abort, not of four.
#[test]
fn controller_that_ignores_an_abort_is_not_asked_to_abort_again() {
    let rig = Rig::new(Lies { ignores_aborts: true, ..Lies::default() });
    let mut controller = rig.attach().expect("attached");
    let namespace = controller.namespace(1).expect("a namespace");
    let mut queue = queue(&mut controller, Wait::Polled);
    rig.faults.hold_next(4, Hold::UntilReset);
    for _ in 0..4 {
        let buffer = controller.pool().alloc(4096).expect("a buffer");
        queue.submit_read(&namespace, 0, buffer, 0..4096).expect("submitted");
    }
    let mut ended = Vec::new();
    while queue.outstanding() > 0 {
        queue.wait(|done| ended.push(done.outcome)).expect("answered");
    }
    assert_eq!((ended, rig.aborts.load(Ordering::SeqCst)), (vec![Outcome::ABORTED_BY_HOST; 4], 1));
}

#[test]
fn command_whose_interrupt_is_lost_is_taken_and_not_aborted() {
    let lost = FaultPlan::one(Fault::LostInterrupt { interrupts: Span::default() });
    let mut rig = Rig::new(Lies::default());
    rig.device = Arc::new(Faulty::new(Arc::clone(&rig.device), lost).expect("a device with a fault"));
    let mut controller = rig.attach().expect("attached");
    let namespace = controller.namespace(1).expect("a namespace");
    queue(&mut controller, Wait::Interrupt).write(&namespace, 0, &[1; 4096]).expect("written");
    assert_eq!(rig.aborts.load(Ordering::SeqCst), 0);
}

#[test]
fn status_of_a_command_can_be_told_from_the_error() {
    let rig = Rig::new(Lies::default());
    let mut controller = rig.attach().expect("attached");
    let namespace = controller.namespace(1).expect("a namespace");
    let error = queue(&mut controller, Wait::Polled).read(&namespace, 1 << 40, &mut [0; 4096]).expect_err("beyond");
    assert_eq!(Outcome::of(&error), Some(Outcome::LBA_OUT_OF_RANGE));
}

/// Numbers that are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 16
    }

    fn of<T: Copy>(&mut self, some: &[T]) -> T {
        some[self.next() as usize % some.len()]
    }
}

/// Queues and PRP lists of random commands in memory, some of it shared by all of them, and random register writes: every
/// write returns, and after a reset the model is as good as new.
#[test]
fn host_that_writes_anything_anywhere_does_not_harm_the_model() {
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::FileExt as _;
    use udrv_backend::{Backend as _, Dma as _, DmaAccess, DmaMap};
    const BASE: u64 = 0x10_0000;
    const SIZE: u64 = 0x4_0000;
    let faults = Arc::<Faults>::default();
    let backings =
        vec![Backing::memory(1 << 20, 512).expect("memory"), Backing::memory(1 << 20, 4096).expect("memory")];
    let device = Arc::new(ModelBackend::new("nvme", NvmeModel::new(backings, Arc::clone(&faults))));
    let memory = std::fs::File::from(
        nix::sys::memfd::memfd_create(c"host", nix::sys::memfd::MFdFlags::empty()).expect("a memfd"),
    );
    memory.set_len(SIZE).expect("its size");
    let access = DmaAccess::READ | DmaAccess::WRITE;
    device.map(&DmaMap { iova: BASE, size: SIZE, access, file: memory.as_fd(), offset: 0 }).expect("mapped");
    device.write(RegionIndex(7), 4, Width::Bits16, 6).expect("bus mastering");
    let mut numbers = Numbers(1);
    let write = |offset, width, value: u64| {
        device.write(RegionIndex(0), offset, width, value & width.all_ones()).expect("a register");
    };
    for _ in 0..400 {
        write(0x14, Width::Bits32, 0);
        write(0x24, Width::Bits32, numbers.of(&[0x000f_000f, 0, u64::MAX, 0x0001_0fff]));
        write(0x28, Width::Bits64, BASE + ((numbers.next() % 8) << 12));
        write(0x30, Width::Bits64, BASE + ((numbers.next() % 8) << 12));
        for at in (0..SIZE).step_by(64) {
            let opcode = numbers.of(&[0u32, 1, 2, 4, 5, 6, 8, 9, 0x0a, 0x0c, 0x7c, 0x80]);
            let mut command = [0u32; 16];
            command.iter_mut().for_each(|dword| *dword = numbers.next() as u32 & numbers.of(&[0, 3, 0xff, u32::MAX]));
            command[0] = opcode | (numbers.next() as u32) << 16;
            for half in [6, 8] {
                command[half] = (BASE as u32 + (numbers.next() % SIZE) as u32) & numbers.of(&[!0, !3, !7, !0xfff]);
                command[half + 1] = numbers.of(&[0, 0, 0, u32::MAX]);
            }
            memory.write_all_at(&command.map(u32::to_le_bytes).concat(), at).expect("memory");
        }
        if numbers.next().is_multiple_of(4) {
            faults.hold_next(2, Hold::UntilAbort);
        }
        write(0x14, Width::Bits32, 0x0046_0001);
        for _ in 0..50 {
            let offset =
                numbers.of(&[0x1000, 0x1000, 0x1004, 0x1008, 0x100c, 0x1010, 0x1014, 0x0c, 0x10, 0x14, 0x3ffc]);
            write(offset, Width::Bits32, numbers.next() % numbers.of(&[2, 16, 1 << 32]));
        }
        assert!(device.read(RegionIndex(0), 0x1c, Width::Bits32).is_ok());
    }
    faults.hold_next(0, Hold::UntilAbort);
    let device: AnyBackend = device;
    let irqs = IrqDomain::new(Delivery::Thread).expect("a domain");
    let window = Window::open(&device, RegionIndex::BAR0).expect("a window");
    let mut controller = Controller::attach(&device, window, &irqs, 1).expect("an honest driver");
    let namespace = controller.namespace(2).expect("a namespace");
    let mut queue = queue(&mut controller, Wait::Polled);
    queue.write(&namespace, 0, &[9; 4096]).expect("written");
    let mut came = [0; 4096];
    queue.read(&namespace, 0, &mut came).expect("read");
    assert_eq!(came, [9; 4096]);
}
