//! The driver on the model, the test at the other end of its line.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain};
use udrv::mmio::{ByMessage, Io, Window};
use udrv_backend::register::Word;
use udrv_backend::{AnyBackend, Backend, Error, RegionIndex, Result, Width};
use udrv_model::ModelBackend;
use udrv_uart16550::driver::{Counts, Parity, Settings, StopBits, Uart};
use udrv_uart16550::model::{Plug, UartModel, uart16550};
use udrv_uart16550::registers::{LineStatus, ModemControl, ModemStatus};

const DELIVERIES: [Delivery; 3] = [Delivery::Thread, Delivery::Signal, Delivery::Poll];

/// A driver, and the model of its device.
struct Line {
    uart: Uart,
    model: Arc<ModelBackend<UartModel>>,
    irqs: IrqDomain,
}

fn attach(device: AnyBackend, irqs: &IrqDomain, settings: Settings) -> Result<Uart> {
    let window = Window::open(&device, RegionIndex::BAR0)?;
    Uart::attach(&device, window, irqs, settings, || {})
}

impl Line {
    fn new(delivery: Delivery, settings: Settings) -> Self {
        let model = Arc::new(ModelBackend::new("uart", UartModel::new(Plug::Outside)));
        let irqs = IrqDomain::new(delivery).expect("a domain");
        let uart = attach(model.clone(), &irqs, settings).expect("attached");
        Self { uart, model, irqs }
    }

    fn arrive(&self, bytes: &[u8], errors: LineStatus) {
        bytes.iter().for_each(|byte| self.model.from_outside(|model| model.receive(*byte, errors)));
    }

    fn register(&self, offset: u64) -> u64 {
        self.model.read(RegionIndex::BAR0, offset, Width::Bits8).expect("a register")
    }

    /// Waits until the driver has counted what it is to count.
    fn counted(&self, what: &str, done: impl Fn(Counts) -> bool) -> Counts {
        self.irqs.wait(what, soon(), || done(self.uart.counts())).expect("counted");
        self.uart.counts()
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

/// As many bytes as are asked for.
fn read_exactly(uart: &Uart, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut have = 0;
    while have < length {
        uart.wait_readable(soon()).expect("a character");
        have += uart.read(&mut bytes[have..]).expect("read");
    }
    bytes
}

#[test]
fn bytes_go_both_ways_in_every_delivery() {
    for delivery in DELIVERIES {
        let line = Line::new(delivery, Settings::default());
        assert_eq!(line.uart.write(b"from the driver, more than a FIFO").expect("written"), 33);
        line.uart.drain(soon()).expect("sent");
        assert_eq!(line.model.from_outside(UartModel::take_sent), b"from the driver, more than a FIFO", "{delivery:?}");
        line.arrive(b"to it", LineStatus::empty());
        assert_eq!(read_exactly(&line.uart, 5), b"to it", "{delivery:?}");
        assert_eq!(line.uart.read(&mut [0; 8]).expect("nothing"), 0);
    }
}

#[test]
fn loopback_plug_returns_many_bytes_in_order() {
    for delivery in DELIVERIES {
        let irqs = IrqDomain::new(delivery).expect("a domain");
        let settings = Settings { wait_for_cts: true, ..Settings::default() };
        let uart = attach(Arc::new(uart16550()), &irqs, settings).expect("attached");
        let bytes: Vec<u8> = (0..1u32 << 17).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let (mut written, mut came) = (0, Vec::<u8>::new());
        let mut piece = [0; 1000];
        while came.len() < bytes.len() {
            written += uart.write(&bytes[written..]).expect("written");
            uart.wait_readable(soon()).expect("a character");
            let length = uart.read(&mut piece).expect("read");
            came.extend(&piece[..length]);
        }
        assert!(came == bytes, "other bytes, {delivery:?}");
        let counts = uart.counts();
        assert_eq!((counts.sent, counts.received, counts.overruns), (1 << 17, 1 << 17, 0), "{delivery:?}");
    }
}

#[test]
fn errors_are_counted_and_a_break_is_no_character() {
    let line = Line::new(Delivery::Thread, Settings::default());
    line.arrive(b"p", LineStatus::PARITY_ERROR);
    line.arrive(b"f", LineStatus::FRAMING_ERROR);
    line.arrive(&[0], LineStatus::BREAK | LineStatus::FRAMING_ERROR);
    line.arrive(b"x", LineStatus::empty());
    assert_eq!(read_exactly(&line.uart, 3), b"pfx");
    let counts = line.counted("three characters", |counts| counts.received == 3);
    assert_eq!((counts.parity_errors, counts.framing_errors, counts.breaks), (1, 1, 1));
}

#[test]
fn characters_beyond_the_fifo_are_counted_as_an_overrun() {
    let line = Line::new(Delivery::Thread, Settings::default());
    // No handler runs while these arrive.
    line.irqs.off(|_| line.arrive(&[b'x'; 20], LineStatus::empty()));
    let counts = line.counted("an overrun", |counts| counts.overruns > 0);
    assert_eq!((counts.received, counts.overruns), (16, 1));
    assert_eq!(read_exactly(&line.uart, 16), [b'x'; 16]);
}

#[test]
fn full_queue_asks_the_other_end_to_wait_and_loses_nothing() {
    let line = Line::new(Delivery::Thread, Settings::default());
    let has = |output| line.model.from_outside(|model| model.outputs().contains(output));
    let mut arrived = 0usize;
    // Beyond the request to wait, until the device has no room either.
    let full = Deadline::after(Duration::from_secs(60));
    // In this order: once the queue is full, nothing leaves the device.
    while line.uart.counts().received < 4096 || line.model.from_outside(|model| model.has_room()) {
        if line.model.from_outside(|model| model.has_room()) {
            line.arrive(&[arrived as u8], LineStatus::empty());
            arrived += 1;
        }
        assert!(full.remaining().is_some(), "{arrived} characters have arrived: {:?}", line.uart.counts());
        std::thread::yield_now();
    }
    assert!(!has(ModemControl::RTS), "RTS is on with a full queue");
    assert_eq!(arrived, 4096 + 16);
    let came = read_exactly(&line.uart, arrived);
    assert!(came.iter().enumerate().all(|(at, byte)| *byte == at as u8), "other bytes");
    assert!(has(ModemControl::RTS), "RTS is off with an empty queue");
    assert_eq!(line.uart.counts().overruns, 0);
}

#[test]
fn sending_waits_for_cts_if_it_is_to() {
    let line = Line::new(Delivery::Thread, Settings { wait_for_cts: true, ..Settings::default() });
    line.uart.write(b"held").expect("written");
    let missed = line.uart.drain(Deadline::after(Duration::from_millis(50)));
    assert!(matches!(missed, Err(Error::Timeout { .. })), "{missed:?}");
    assert!(line.model.from_outside(UartModel::take_sent).is_empty());
    line.model.from_outside(|model| model.set_inputs(ModemStatus::CTS | ModemStatus::DCD));
    line.uart.drain(soon()).expect("sent");
    assert_eq!(line.model.from_outside(UartModel::take_sent), b"held");
    assert_eq!(line.uart.modem(), ModemStatus::CTS | ModemStatus::DCD);
    assert_eq!(line.uart.counts().modem_changes, 2);
}

#[test]
fn settings_reach_the_divisor_latch_and_the_line_control() {
    let settings =
        Settings { baud: 9600, data_bits: 7, parity: Parity::Even, stop_bits: StopBits::Two, wait_for_cts: false };
    let line = Line::new(Delivery::Thread, settings);
    let lcr = || udrv_backend::Backend::read(&*line.model, RegionIndex(0), 3, udrv_backend::Width::Bits8);
    assert_eq!((line.model.from_outside(|model| model.divisor()), lcr().expect("LCR")), (12, 0x1e));
    line.uart.set_line(Settings { baud: 50, ..Settings::default() }, soon()).expect("set");
    assert_eq!((line.model.from_outside(|model| model.divisor()), lcr().expect("LCR")), (2304, 0x03));
    for baud in [0, 1, 115_201] {
        let refused = line.uart.set_line(Settings { baud, ..Settings::default() }, soon()).expect_err("no such speed");
        assert!(refused.to_string().contains(&format!("no speed of {baud} baud")), "{refused}");
    }
    assert_eq!(line.model.from_outside(|model| model.divisor()), 2304, "it is as it was");
}

#[test]
fn wake_is_called_for_what_arrives() {
    let model = Arc::new(ModelBackend::new("uart", UartModel::new(Plug::Outside)));
    let irqs = IrqDomain::new(Delivery::Thread).expect("a domain");
    let device: AnyBackend = model.clone();
    let window: Window<8> = Window::open(&device, RegionIndex::BAR0).expect("BAR 0");
    let woken = Arc::new(AtomicUsize::new(0));
    let wake = {
        let woken = Arc::clone(&woken);
        move || {
            woken.fetch_add(1, Ordering::Release);
        }
    };
    let _uart = Uart::attach(&device, window, &irqs, Settings::default(), wake).expect("attached");
    assert_eq!(woken.load(Ordering::Acquire), 0, "nothing has arrived");
    model.from_outside(|model| model.receive(b'x', LineStatus::empty()));
    irqs.wait("the wake", soon(), || woken.load(Ordering::Acquire) > 0).expect("woken");
}

#[test]
fn device_that_is_no_16550_is_refused() {
    let irqs = IrqDomain::new(Delivery::Thread).expect("a domain");
    let mut stuck = udrv::debug::fault::FaultPlan::default();
    stuck.faults.push(udrv::debug::fault::Fault::StuckBits { region: 0, offset: 2, ones: 0, zeros: 0x80 });
    let device = udrv::debug::fault::Faulty::new(uart16550(), stuck).expect("a faulty device");
    let refused = attach(Arc::new(device), &irqs, Settings::default()).err().expect("refused").to_string();
    assert!(refused.contains("0x41 in IIR") && refused.contains("16550A"), "{refused}");
}

#[test]
fn shut_down_leaves_no_interrupt_and_nobody_present() {
    let line = Line::new(Delivery::Thread, Settings::default());
    line.uart.shut_down().expect("quiet");
    let register =
        |offset| udrv_backend::Backend::read(&*line.model, RegionIndex(0), offset, udrv_backend::Width::Bits8);
    assert_eq!([1, 4].map(|offset| register(offset).expect("a register")), [0, 0], "IER, MCR");
    line.arrive(b"x", LineStatus::empty());
    assert!(!line.model.from_outside(|model| udrv_model::DeviceModel::line(model)));
}

#[test]
fn device_of_another_class_is_refused_before_it_is_touched() {
    let irqs = IrqDomain::new(Delivery::Thread).expect("a domain");
    let mut other = udrv::debug::fault::FaultPlan::default();
    // The programming interface: 0, a port without FIFOs.
    other.faults.push(udrv::debug::fault::Fault::StuckBits { region: 7, offset: 8, ones: 0, zeros: 0x0200 });
    let device = udrv::debug::fault::Faulty::new(uart16550(), other).expect("another device");
    let refused = attach(Arc::new(device), &irqs, Settings::default()).err().expect("refused").to_string();
    assert!(refused.contains("070000") && refused.contains("070002"), "{refused}");
}

#[test]
fn parity_and_length_are_those_of_the_data_sheets_table() {
    let line = Line::new(Delivery::Thread, Settings::default());
    for (data_bits, parity, stop_bits, expected) in [
        (5, Parity::None, StopBits::One, 0x00),
        (6, Parity::Odd, StopBits::One, 0x09),
        (7, Parity::Even, StopBits::One, 0x1a),
        (8, Parity::Mark, StopBits::One, 0x2b),
        (8, Parity::Space, StopBits::Two, 0x3f),
    ] {
        let settings = Settings { data_bits, parity, stop_bits, ..Settings::default() };
        line.uart.set_line(settings, soon()).expect("set");
        assert_eq!(line.register(3), expected, "{settings:?}");
    }
    for data_bits in [4, 9] {
        let refused = line.uart.set_line(Settings { data_bits, ..Settings::default() }, soon());
        assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    }
}

#[test]
fn break_and_dtr_change_nothing_else_of_the_line() {
    let line = Line::new(Delivery::Thread, Settings::default());
    line.uart.set_break(true).expect("set");
    assert_eq!(line.register(3), 0x43);
    line.uart.set_break(false).expect("set");
    assert_eq!(line.register(3), 0x03);
    line.uart.set_dtr(false).expect("set");
    assert_eq!(line.register(4), 0x0a, "RTS, OUT2");
    line.uart.set_dtr(true).expect("set");
    assert_eq!(line.register(4), 0x0b);
}

#[test]
fn write_takes_what_there_is_room_for() {
    let line = Line::new(Delivery::Thread, Settings { wait_for_cts: true, ..Settings::default() });
    assert_eq!(line.uart.write(&[1; 4000]).expect("written"), 4000);
    assert_eq!(line.uart.room(), 96);
    assert_eq!(line.uart.write(&[2; 4000]).expect("written"), 96);
    assert_eq!((line.uart.room(), line.uart.write(&[3]).expect("no room")), (0, 0));
}

#[test]
fn line_changes_only_once_what_was_written_before_is_sent() {
    let settings = Settings { wait_for_cts: true, ..Settings::default() };
    let line = Line::new(Delivery::Thread, settings);
    assert_eq!(line.uart.write(b"held back").expect("written"), 9);
    let shorter = Settings { data_bits: 7, ..settings };
    let missed = line.uart.set_line(shorter, Deadline::after(Duration::from_millis(50)));
    assert!(matches!(missed, Err(Error::Timeout { .. })), "{missed:?}");
    assert_eq!(line.register(3), 0x03);
}

#[test]
fn break_that_waits_behind_a_full_queue_is_still_no_character() {
    let line = Line::new(Delivery::Thread, Settings::default());
    for count in (16..=4096).step_by(16) {
        line.arrive(&[1; 16], LineStatus::empty());
        line.counted("a FIFO of characters", |counts| counts.received == count);
    }
    line.arrive(&[0], LineStatus::BREAK);
    line.counted("the break", |counts| counts.breaks == 1);
    line.arrive(&[2], LineStatus::empty());
    assert_eq!(read_exactly(&line.uart, 4097)[4095..], [1, 2]);
    assert_eq!(line.uart.counts().received, 4097);
}

#[test]
fn drain_waits_for_the_device_too() {
    let irqs = IrqDomain::new(Delivery::Thread).expect("a domain");
    let uart = attach(Arc::new(uart16550()), &irqs, Settings::default()).expect("attached");
    // The driver's queue, the receiver's FIFO, and part of the transmitter's: the plug takes no more.
    let length = 4096 + 16 + 5;
    let mut written = uart.write(&vec![7; length]).expect("written");
    irqs.wait("a full queue", soon(), || {
        written += uart.write(&vec![7; length - written]).expect("written");
        uart.counts().sent == length as u64
    })
    .expect("all is in the device");
    let missed = uart.drain(Deadline::after(Duration::from_millis(50)));
    assert!(matches!(missed, Err(Error::Timeout { .. })), "{missed:?}");
    assert_eq!(read_exactly(&uart, length), vec![7; length]);
    uart.drain(soon()).expect("sent");
}

#[test]
fn other_end_goes_on_only_when_a_quarter_of_the_queue_is_left() {
    let line = Line::new(Delivery::Thread, Settings::default());
    let has_rts = || line.model.from_outside(|model| model.outputs().contains(ModemControl::RTS));
    for count in (16..=3072).step_by(16) {
        line.arrive(&[1; 16], LineStatus::empty());
        line.counted("a FIFO of characters", |counts| counts.received == count);
    }
    line.irqs.wait("RTS off", soon(), || !has_rts()).expect("three quarters are full");
    read_exactly(&line.uart, 3072 - 1024);
    assert!(!has_rts(), "a quarter is still there");
    read_exactly(&line.uart, 1);
    assert!(has_rts());
}

/// The registers of a device that falls off its bus.
struct Falling {
    registers: ByMessage<dyn Backend>,
    is_gone: Arc<AtomicBool>,
}

impl Io for Falling {
    fn load<W: Word>(&self, offset: u64) -> Result<W> {
        // LSR only, so that the handler comes to it.
        let is_gone = offset == 5 && self.is_gone.load(Ordering::SeqCst);
        if is_gone { Ok(W::from_raw(u64::MAX)) } else { self.registers.load(offset) }
    }
    fn store<W: Word>(&self, offset: u64, value: W) -> Result<()> {
        self.registers.store(offset, value)
    }
}

#[test]
fn device_that_is_gone_ends_waits_and_hands_out_first_what_had_come() {
    let model = Arc::new(ModelBackend::new("uart", UartModel::new(Plug::Outside)));
    let device: AnyBackend = model.clone();
    let irqs = IrqDomain::new(Delivery::Thread).expect("a domain");
    let is_gone = Arc::new(AtomicBool::new(false));
    let registers = ByMessage::new(Arc::clone(&device), RegionIndex::BAR0);
    let io = Falling { registers, is_gone: Arc::clone(&is_gone) };
    let failed = Arc::new(AtomicUsize::new(0));
    let wake = {
        let (failed, is_gone) = (Arc::clone(&failed), Arc::clone(&is_gone));
        move || _ = failed.fetch_add(usize::from(is_gone.load(Ordering::SeqCst)), Ordering::SeqCst)
    };
    let uart = Uart::attach(&device, io, &irqs, Settings::default(), wake).expect("attached");
    model.from_outside(|model| model.receive(b'x', LineStatus::empty()));
    irqs.wait("a character", soon(), || uart.counts().received == 1).expect("received");
    is_gone.store(true, Ordering::SeqCst);
    model.from_outside(|model| model.receive(b'y', LineStatus::empty()));
    irqs.wait("the wake", soon(), || failed.load(Ordering::SeqCst) > 0)
        .expect("told that something is to be looked at");
    let mut bytes = [0; 2];
    assert_eq!((uart.read(&mut bytes).expect("what had come"), bytes[0]), (1, b'x'));
    let waited = uart.wait_readable(soon());
    assert!(matches!(waited, Err(Error::Gone { .. })), "{waited:?}");
}

/// The registers of a device on a line that is faster than its driver: for each character that is taken another has come.
struct Flooded {
    registers: ByMessage<dyn Backend>,
    model: Arc<ModelBackend<UartModel>>,
    floods: Arc<AtomicBool>,
}

impl Io for Flooded {
    fn load<W: Word>(&self, offset: u64) -> Result<W> {
        let loaded = self.registers.load(offset);
        if offset == 0 && self.floods.load(Ordering::SeqCst) {
            self.model.from_outside(|model| model.receive(b'x', LineStatus::empty()));
        }
        loaded
    }
    fn store<W: Word>(&self, offset: u64, value: W) -> Result<()> {
        self.registers.store(offset, value)
    }
}

#[test]
fn driver_that_is_slower_than_its_line_sends_all_the_same() {
    let model = Arc::new(ModelBackend::new("uart", UartModel::new(Plug::Outside)));
    let device: AnyBackend = model.clone();
    let irqs = IrqDomain::new(Delivery::Thread).expect("a domain");
    let floods = Arc::new(AtomicBool::new(false));
    let registers = ByMessage::new(Arc::clone(&device), RegionIndex::BAR0);
    let io = Flooded { registers, model: Arc::clone(&model), floods: Arc::clone(&floods) };
    let uart = Uart::attach(&device, io, &irqs, Settings::default(), || {}).expect("attached");
    floods.store(true, Ordering::SeqCst);
    model.from_outside(|model| model.receive(b'x', LineStatus::empty()));
    uart.write(b"sent").expect("written");
    // Read all the time, so that the queue is never full: a full one would let the transmitter have its turn.
    let mut sent = Vec::new();
    while sent.len() < 4 {
        uart.wait_readable(soon()).expect("the flood goes on");
        uart.read(&mut [0; 4096]).expect("read");
        sent.extend(model.from_outside(UartModel::take_sent));
        let received = uart.counts().received;
        assert!(received < 100_000, "{received} characters came and {} went", sent.len());
    }
    floods.store(false, Ordering::SeqCst);
    assert_eq!(sent, b"sent");
}
