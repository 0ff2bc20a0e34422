//! What the hot path allocates: nothing. Submitting, ringing and polling reads and writes, counted by the allocator of this
//! program, on the model, whose own work (behind the doorbell) is not counted.
#![expect(unsafe_code, reason = "an allocator that counts is one")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;
use udrv::dma::{Buffer, FromDevice, ToDevice};
use udrv::irq::{Delivery, IrqDomain};
use udrv::mmio::{ByMessage, Io};
use udrv_backend::register::Word;
use udrv_backend::{AnyBackend, Backend, RegionIndex, Result};
use udrv_nvme::driver::{Controller, Data, IoQueue, Namespace, QueueConfig, Wait};

thread_local! {
    static COUNTS: Cell<bool> = const { Cell::new(false) };
    static ALLOCATIONS: Cell<u32> = const { Cell::new(0) };
    static DOORBELLS: Cell<u32> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTS.get() {
            ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if COUNTS.get() {
            ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        }
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The registers of the model: what happens behind them is the device's.
struct Registers(ByMessage<dyn Backend>);

impl Io for Registers {
    fn load<W: Word>(&self, offset: u64) -> Result<W> {
        self.0.load(offset)
    }
    fn store<W: Word>(&self, offset: u64, value: W) -> Result<()> {
        DOORBELLS.set(DOORBELLS.get() + u32::from(offset >= 0x1000));
        let counts = COUNTS.replace(false);
        let stored = self.0.store(offset, value);
        COUNTS.set(counts);
        stored
    }
}

struct Rig {
    queue: IoQueue<Registers>,
    namespace: Namespace,
    reads: Vec<Buffer<FromDevice>>,
    writes: Vec<Buffer<ToDevice>>,
    _controller: Controller<Registers>,
}

const DEPTH: usize = 16;

impl Rig {
    fn new() -> Self {
        let device: AnyBackend = Arc::new(udrv_nvme::model::nvme().expect("a model"));
        let irqs = IrqDomain::new(Delivery::Thread).expect("a domain");
        let registers = Registers(ByMessage::new(Arc::clone(&device), RegionIndex::BAR0));
        let mut controller = Controller::attach(&device, registers, &irqs, 1).expect("attached");
        let namespace = controller.namespace(1).expect("a namespace");
        let config = QueueConfig { depth: DEPTH as u16, wait: Wait::Polled, timeout: Duration::from_secs(20) };
        let queue = controller.io_queue(config).expect("a queue");
        let pool = controller.pool();
        // From a lone page to a list of PRP entries.
        let reads = (0..DEPTH / 2).map(|n| pool.alloc(4096 << (n % 4)).expect("a buffer")).collect();
        let writes = (0..DEPTH / 2).map(|n| pool.alloc(4096 << (n % 4)).expect("a buffer")).collect();
        Self { queue, namespace, reads, writes, _controller: controller }
    }

    /// A full queue of reads and writes, rung once and waited for.
    fn round(&mut self) {
        let Self { queue, namespace, reads, writes, .. } = self;
        while let Some(buffer) = reads.pop() {
            let length = buffer.len();
            queue.submit_read(namespace, 8, buffer, 0..length).expect("submitted");
        }
        while let Some(buffer) = writes.pop() {
            let length = buffer.len();
            queue.submit_write(namespace, 800, buffer, 0..length).expect("submitted");
        }
        queue.ring().expect("rung");
        while queue.outstanding() > 0 {
            let take = |done: udrv_nvme::driver::Done| {
                assert!(done.outcome.is_success());
                match done.data {
                    Data::Read(buffer) => reads.push(buffer),
                    Data::Written(buffer) => writes.push(buffer),
                    Data::None => {}
                }
            };
            queue.wait(take).expect("ended");
        }
    }
}

#[test]
fn polled_reads_and_writes_allocate_nothing() {
    let mut rig = Rig::new();
    rig.round();
    COUNTS.set(true);
    for _ in 0..100 {
        rig.round();
    }
    COUNTS.set(false);
    assert_eq!(ALLOCATIONS.get(), 0);
}

#[test]
fn batch_of_commands_takes_one_doorbell_and_completions_one_for_many_batches() {
    let mut rig = Rig::new();
    // So many that each entry of both queues is used several times.
    const ROUNDS: u32 = 60;
    let before = DOORBELLS.get();
    for _ in 0..ROUNDS {
        rig.round();
    }
    let rung = DOORBELLS.get() - before;
    assert!((ROUNDS..=ROUNDS + ROUNDS / 2).contains(&rung), "{rung} writes for {ROUNDS} batches");
}
