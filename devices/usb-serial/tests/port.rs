//! The driver on both software ports, and the protocols; numbers are typed again from the specifications.

use std::sync::Arc;
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain};
use udrv_usb::descriptor::{Configuration, DeviceDescriptor};
use udrv_usb::software::{Handshake, Identity, Model, Reply, Software};
use udrv_usb::{Device, EndpointAddress, Error, Setup};
use udrv_usb_serial::driver::{Protocol, SerialPort};
use udrv_usb_serial::ftdi::{Clock, divisor};
use udrv_usb_serial::line::{Counters, Flow, Format, LineCoding, ModemInputs, Parity, StopBits};
use udrv_usb_serial::model::{CdcAcm, Ftdi, Line, Trouble};
use udrv_usb_serial::{cdc, ftdi};

const LONG: Duration = Duration::from_secs(20);

/// A port on a model, and the model.
struct Bench<M: Model> {
    bus: Arc<Software<M>>,
    irqs: IrqDomain,
    port: SerialPort,
}

/// Models that have a line.
trait HasLine: Model {
    fn line(&mut self) -> &mut Line;
}

impl HasLine for CdcAcm {
    fn line(&mut self) -> &mut Line {
        &mut self.line
    }
}

impl HasLine for Ftdi {
    fn line(&mut self) -> &mut Line {
        &mut self.line
    }
}

fn attach<M: Model>(model: M) -> Bench<M> {
    let bus = Arc::new(Software::new("model:serial", model).unwrap());
    let irqs = IrqDomain::new(Delivery::Thread).unwrap();
    let device = Device::new(bus.clone()).unwrap();
    let port = SerialPort::attach(device, Protocol::Auto, &irqs, || {}).unwrap();
    Bench { bus, irqs, port }
}

impl<M: Model> Bench<M> {
    fn until(&self, what: &str, mut condition: impl FnMut(&SerialPort) -> bool) {
        self.irqs.wait(what, Deadline::after(LONG), || condition(&self.port)).unwrap();
    }

    fn read(&self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.until("all bytes", |port| {
            bytes.extend(port.read(length - bytes.len()).unwrap());
            bytes.len() == length
        });
        bytes
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at as u32 + 1).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn bytes_go_both_ways<M: HasLine>(model: M) {
    let bench = attach(model);
    let bytes = pattern(1000);

    bench.bus.with_model(|model| model.line().come(&bytes));
    assert!(bench.read(1000) == bytes);
    assert_eq!(bench.port.write(&bytes), 1000);
    bench.until("the end of sending", SerialPort::is_sent);

    assert!(bench.bus.with_model(|model| model.line().take_sent()) == bytes);
    let counters = bench.port.counters();
    assert_eq!((counters.received, counters.sent), (1000, 1000));
}

#[test]
fn cdc_bytes_go_both_ways() {
    bytes_go_both_ways(CdcAcm::default());
}

#[test]
fn ftdi_bytes_go_both_ways_without_the_status() {
    bytes_go_both_ways(Ftdi::default());
}

fn echo_of_more_than_all_buffers_comes_back_whole<M: HasLine>(model: M) {
    let bench = attach(model);
    let bytes = pattern(1_000_000);
    let (mut written, mut read) = (0, Vec::new());

    bench.until("the echo", |port| {
        // nobody reads until the device and both buffers are full
        loop {
            let taken = port.write(&bytes[written..]);
            written += taken;
            if taken == 0 {
                break;
            }
        }
        read.extend(port.read(usize::MAX).unwrap());
        read.len() == bytes.len()
    });

    assert!(read == bytes);
    assert_eq!(bench.port.counters().overruns, 0);
}

#[test]
fn cdc_echo_of_more_than_all_buffers_comes_back_whole() {
    echo_of_more_than_all_buffers_comes_back_whole(CdcAcm::echoing());
}

#[test]
fn ftdi_echo_of_more_than_all_buffers_comes_back_whole() {
    echo_of_more_than_all_buffers_comes_back_whole(Ftdi::echoing());
}

fn line_and_lines_reach_the_device<M: HasLine>(model: M, flow: Flow) {
    let mut bench = attach(model);
    let format = Format { data_bits: 7, parity: Parity::Even, stop_bits: StopBits::Two };
    let line = LineCoding { baud: 19_200, format, flow };

    bench.port.set_line(&line).unwrap();
    bench.port.set_outputs(true, false).unwrap();
    bench.port.set_break(true).unwrap();
    bench.bus.with_model(|model| {
        assert_eq!((model.line().coding(), model.line().outputs()), (line, (true, false)));
        assert!(model.line().is_in_break());
    });
    bench.port.set_break(false).unwrap();

    assert!(!bench.bus.with_model(|model| model.line().is_in_break()));
    assert_eq!(bench.bus.with_model(|model| model.line().coding()), line);
    let bus = Arc::clone(&bench.bus);
    bench.port.set_outputs(true, true).unwrap();
    drop(bench);
    assert_eq!(bus.with_model(|model| model.line().outputs()), (false, false), "a dropped port hangs up");
}

#[test]
fn cdc_line_and_lines_reach_the_device() {
    line_and_lines_reach_the_device(CdcAcm::default(), Flow::None);
}

#[test]
fn ftdi_line_and_lines_reach_the_device() {
    line_and_lines_reach_the_device(Ftdi::default(), Flow::Hardware);
}

fn trouble_is_counted_and_lines_are_told<M: HasLine>(model: M, cts: bool) {
    let bench = attach(model);
    let inputs = ModemInputs { cts, dsr: true, dcd: true, ring: false };

    bench.bus.with_model(|model| {
        model.line().set_inputs(inputs);
        model.line().set_trouble(Trouble { overrun: true, parity: true, framing: true, break_seen: true });
    });
    bench.until("the lines", |port| port.inputs() == inputs);
    // more than has room
    bench.bus.with_model(|model| {
        model.line().set_trouble(Trouble { overrun: true, ..Trouble::default() });
        model.line().come(b"x");
    });
    bench.until("the overrun", |port| port.counters().overruns == 2);

    let expected = Counters { received: 1, sent: 0, overruns: 2, parity: 1, framing: 1, breaks: 1 };
    bench.until("the byte", |port| port.counters() == expected);
}

#[test]
fn cdc_trouble_is_counted_and_lines_are_told() {
    trouble_is_counted_and_lines_are_told(CdcAcm::default(), false);
}

#[test]
fn ftdi_trouble_is_counted_and_lines_are_told() {
    trouble_is_counted_and_lines_are_told(Ftdi::default(), true);
}

#[test]
fn more_than_the_fifo_holds_is_an_overrun() {
    let mut model = Ftdi::default();

    model.line.come(&pattern(4097));

    let Reply::Data(packet) = model.send(EndpointAddress(0x81), 64) else { panic!("no packet") };
    // modem status valid; LSR bit 1: overrun
    assert_eq!((packet[0], packet[1], packet.len()), (0x01, 0x02, 64));
    assert!(packet[2..] == pattern(62));
}

#[test]
fn ftdi_packet_of_status_alone_is_no_data() {
    let bench = attach(Ftdi::default());

    for _ in 0..20 {
        bench.bus.with_model(Ftdi::latency_passes);
    }
    bench.bus.with_model(|model| model.line.come(b"end"));

    assert_eq!(bench.read(3), b"end");
    assert_eq!(bench.bus.with_model(|model| model.latency_ms()), 1);
}

#[test]
fn ftdi_status_repeated_without_data_counts_once() {
    let device = DeviceDescriptor::parse(&Ftdi::default().identity().device).unwrap();
    let configuration = Configuration::parse(&Ftdi::default().identity().configurations[0]).unwrap();
    let mut function = ftdi::Function::find(&device, &configuration).unwrap();
    let mut counters = Counters::default();
    let mut data = Vec::new();

    // LSR: overrun with a byte, twice again without, then gone, then with a byte
    for packet in [[0x01, 0x02, b'a'].as_slice(), &[0x01, 0x02], &[0x01, 0x02], &[0x01, 0x00], &[0x01, 0x02, b'b']] {
        function.received(packet, &mut counters, |bytes| data.extend_from_slice(bytes));
    }

    assert_eq!((counters.overruns, data.as_slice()), (2, b"ab".as_slice()));
}

#[test]
fn ftdi_divisor_is_what_the_application_note_says() {
    // AN232B-05: 3 MHz / 312.5 is 9600, the half being code 1 in bits 14 and up; .125 is code 3, .75 code 6, and so on
    for (baud, value) in [
        (300, 0x2710),
        (9600, 0x4138),
        (38_400, 0xc04e),
        (57_600, 0xc034),
        (115_200, 0x001a),
        (230_400, 0x000d),
        (460_800, 0x4006),
        (921_600, 0x8003),
        (2_000_000, 1),
        (3_000_000, 0),
        // 3 MHz / 150.625: code 5
        (19_917, 0x1_4096),
    ] {
        assert_eq!(divisor(Clock::Full, baud).unwrap(), value, "{baud}");
    }
    // AN120: bit 17 for 12 MHz
    assert_eq!(divisor(Clock::High, 12_000_000).unwrap(), 0x2_0000);
    assert_eq!(divisor(Clock::High, 9600).unwrap(), 0x2_04e2);
}

#[test]
fn ftdi_speed_that_no_divisor_gives_is_refused() {
    for baud in [0, 50, 2_500_000, 3_000_001, u32::MAX] {
        assert!(matches!(divisor(Clock::Full, baud), Err(Error::Protocol { .. })), "{baud}");
    }
}

#[test]
fn line_coding_is_what_pstn_says() {
    let format = Format { data_bits: 7, parity: Parity::Odd, stop_bits: StopBits::Two };
    let line = LineCoding { baud: 115_200, format, flow: Flow::None };

    // dwDTERate, bCharFormat (2: two stop bits), bParityType (1: odd), bDataBits
    assert_eq!(cdc::line_coding(&line), [0x00, 0xc2, 0x01, 0x00, 2, 1, 7]);
    assert_eq!(cdc::parse_line_coding(&[0x00, 0xc2, 0x01, 0x00, 2, 1, 7]), Some(line));
    assert_eq!(cdc::parse_line_coding(&[0, 0, 0, 0, 3, 1, 7]), None);
}

#[test]
fn notification_other_than_serial_state_is_not_looked_at() {
    let mut counters = Counters::default();

    // NETWORK_CONNECTION; a serial state that is too short; one whose length lies
    for bytes in [[0xa1, 0, 1, 0, 0, 0, 0, 0, 0, 0].as_slice(), &[0xa1, 0x20, 0, 0, 0, 0, 2, 0, 0x40], &[]] {
        assert_eq!(cdc::notified(bytes, &mut counters), None);
    }
    assert_eq!(counters, Counters::default());
}

#[test]
fn format_is_parsed_or_refused_with_an_example() {
    let format = Format { data_bits: 7, parity: Parity::Mark, stop_bits: StopBits::OneAndHalf };

    assert_eq!("7m1.5".parse(), Ok(format));
    for text in ["", "8", "8N", "9N1", "8X1", "8N3", "äN1"] {
        let error = text.parse::<Format>().unwrap_err();
        assert!(error.contains("8N1"), "{error}");
    }
}

#[test]
fn unplugged_is_told_after_what_came() {
    let bench = attach(Ftdi::default());
    bench.bus.with_model(|model| model.line.come(b"last"));
    bench.until("the bytes", |port| port.counters().received == 4);

    bench.bus.unplug();
    bench.until("the end", SerialPort::has_ended);

    assert_eq!(bench.port.read(100).unwrap(), b"last");
    let error = bench.port.read(100).unwrap_err();
    assert!(matches!(error, Error::Gone { .. }), "{error}");
}

#[test]
fn interface_that_another_has_is_refused() {
    let bus = Arc::new(Software::new("model:serial", Ftdi::default()).unwrap());
    let irqs = IrqDomain::new(Delivery::Thread).unwrap();
    let first = SerialPort::attach(Device::new(bus.clone()).unwrap(), Protocol::Auto, &irqs, || {}).unwrap();
    first.set_outputs(true, true).unwrap();

    let second = SerialPort::attach(Device::new(bus.clone()).unwrap(), Protocol::Auto, &irqs, || {});

    assert!(matches!(second.err().unwrap(), Error::Unavailable { .. }));
    assert_eq!(bus.with_model(|model| model.line.outputs()), (true, true), "the first one's lines");
    assert!(bus.in_flight() > 0, "the first one's transfers");
}

/// A device that says anything of itself, and answers nothing.
struct Liar(Vec<u8>);

impl Model for Liar {
    fn identity(&self) -> Identity {
        Identity::new(udrv_usb::Speed::High, (0x1209, 0x0005), 2, &self.0, ["udrv", "Liar", "1"])
    }

    fn control(&mut self, _setup: &Setup, _data: &[u8]) -> Reply {
        Reply::Stall
    }

    fn receive(&mut self, _endpoint: EndpointAddress, _packet: &[u8]) -> Handshake {
        Handshake::Stall
    }
}

/// A CDC function whose union descriptor and data interface are given.
fn function(functional: &[u8], data_interface: &[u8]) -> Vec<u8> {
    [&[9, 4, 0, 0, 1, 2, 2, 1, 0], functional, &[7, 5, 0x83, 3, 16, 0, 8], data_interface].concat()
}

#[test]
fn hostile_descriptors_are_errors() {
    let data = [9, 4, 1, 0, 2, 0x0a, 0, 0, 0, 7, 5, 0x81, 2, 64, 0, 0, 7, 5, 2, 2, 64, 0, 0];
    let empty_packets = [9, 4, 1, 0, 2, 0x0a, 0, 0, 0, 7, 5, 0x81, 2, 0, 0, 0, 7, 5, 2, 2, 64, 0, 0];
    let one_way = [9, 4, 1, 0, 1, 0x0a, 0, 0, 0, 7, 5, 0x81, 2, 64, 0, 0];
    let hostile = [
        ("a union with itself", function(&[5, 0x24, 6, 0, 0], &data)),
        ("a union with an interface that is not there", function(&[5, 0x24, 6, 0, 9], &data)),
        ("packets of no bytes", function(&[5, 0x24, 6, 0, 1], &empty_packets)),
        ("one direction", function(&[5, 0x24, 6, 0, 1], &one_way)),
        ("nothing", vec![]),
    ];
    let irqs = IrqDomain::new(Delivery::Thread).unwrap();
    for (what, body) in hostile {
        let bus = Arc::new(Software::new("model:liar", Liar(body)).unwrap());
        for protocol in [Protocol::CdcAcm, Protocol::Ftdi] {
            let device = Device::new(bus.clone()).unwrap();
            let error = SerialPort::attach(device, protocol, &irqs, || {}).err().expect(what);
            assert!(matches!(error, Error::Unavailable { .. }), "{what}: {error}");
        }
    }
}

#[test]
fn short_functional_descriptors_are_taken_as_absent() {
    let data = [9, 4, 1, 0, 2, 0x0a, 0, 0, 0, 7, 5, 0x81, 2, 64, 0, 0, 7, 5, 2, 2, 64, 0, 0];
    let body = function(&[3, 0x24, 6, 3, 0x24, 2, 2, 0x24], &data);

    let configuration = &Liar(body).identity().configurations[0];
    let function = cdc::Function::find(&Configuration::parse(configuration).unwrap()).unwrap();

    assert_eq!((function.control, function.data, function.has_line_coding), (0, 1, true));
}

#[test]
fn device_without_line_coding_says_so() {
    let data = [9, 4, 1, 0, 2, 0x0a, 0, 0, 0, 7, 5, 0x81, 2, 64, 0, 0, 7, 5, 2, 2, 64, 0, 0];
    // ACM descriptor without capabilities
    let body = function(&[4, 0x24, 2, 0], &data);
    let bus = Arc::new(Software::new("model:liar", Liar(body)).unwrap());
    let irqs = IrqDomain::new(Delivery::Thread).unwrap();

    let mut port = SerialPort::attach(Device::new(bus).unwrap(), Protocol::Auto, &irqs, || {}).unwrap();

    assert!(matches!(port.set_line(&LineCoding::default()), Err(Error::NotSupported { .. })));
    assert!(matches!(port.set_break(true), Err(Error::NotSupported { .. })));
}
