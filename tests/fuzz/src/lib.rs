//! What strangers send, into every decoder of it: a device's descriptors, a USB/IP client's commands, a vfio-user peer's
//! messages, a recording's file. Whatever the bytes are, a decoder gives a value or an error, and the value keeps the decoder's
//! promises; a panic, an overflow or a broken promise is a finding.
//!
//! `cargo xtask fuzz [TARGET] [--seconds N]` lets libFuzzer choose the bytes, beginning with `corpus/TARGET`. An input that
//! once broke something goes there, and `cargo test` runs them all for ever.

use udrv_backend::{Backend as _, RegionIndex, Width};
use udrv_debug::{replay::Replay, trace};
use udrv_usb::descriptor::{Configuration, DeviceDescriptor, parse_bos, parse_string};
use udrv_usb::{EndpointAddress, Speed, usbip};
use udrv_usb_audio::pace::Pace;
use udrv_usb_audio::protocol::{FeatureUnit, Setting};
use udrv_usb_keyboard::protocol::Report;
use udrv_usb_serial::line::{Counters, LineCoding};
use udrv_usb_serial::{cdc, ftdi};
use udrv_usb_storage::protocol::{Capacity, CommandWrapper, Inquiry, Sense, StatusWrapper};
use udrv_wire::*;

const LIMITS: Limits = Limits { max_data_xfer_size: 0x10_0000, max_message_size: 0x10_0020, max_msg_fds: 1 };

/// Descriptors of every kind; the first byte is part of them.
pub fn usb_descriptors(bytes: &[u8]) {
    let _ = (DeviceDescriptor::parse(bytes), parse_string(bytes), parse_bos(bytes));
    let Ok(configuration) = Configuration::parse(bytes) else { return };
    for number in configuration.numbers() {
        assert!(
            configuration.interfaces.iter().any(|interface| interface.number == number),
            "a number of no interface"
        );
    }
    for endpoint in configuration.interfaces.iter().flat_map(|interface| &interface.endpoints) {
        assert_ne!(endpoint.address.number(), 0, "endpoint 0 is everybody's");
    }
    assert!(udrv_usb::host::split_descriptors(bytes).iter().all(|one| one.len() <= bytes.len()));
}

/// A device of each class that has a driver: a device descriptor, a configuration with the class's own descriptors in it, and what
/// the device sends when it is used, a packet or an answer.
pub fn usb_classes(bytes: &[u8]) {
    let (Ok(device), Ok(configuration)) = (DeviceDescriptor::parse(bytes), Configuration::parse(rest(bytes, 18)))
    else {
        return sent(bytes);
    };
    let total = rest(bytes, 18).get(2..4).map_or(0, |total| usize::from(u16::from_le_bytes([total[0], total[1]])));
    let packet = rest(bytes, 18 + total);
    let has = |address: EndpointAddress| {
        let mut endpoints = configuration.interfaces.iter().flat_map(|interface| &interface.endpoints);
        endpoints.any(|endpoint| endpoint.address == address)
    };
    if let Some(function) = cdc::Function::find(&configuration) {
        assert!(function.bulk_in.1 > 0 && has(function.bulk_in.0) && has(function.bulk_out), "no way for data");
        assert!(function.notifications.is_none_or(|(address, size)| size > 0 && has(address)), "no notifications");
        let numbers = configuration.numbers();
        assert!([function.control, function.data].iter().all(|number| numbers.contains(number)), "no such interface");
    }
    if let Some(mut function) = ftdi::Function::find(&device, &configuration) {
        assert!(function.bulk_in.1 > 2 && has(function.bulk_in.0) && has(function.bulk_out), "no way for data");
        let (mut counters, mut received) = (Counters::default(), 0);
        let _ = function.received(packet, &mut counters, |data| received += data.len());
        assert!(received <= packet.len(), "more than came");
        let _ = function.set_line(&LineCoding { baud: u32::from(device.release), ..LineCoding::default() });
    }
    for setting in Setting::all(&configuration) {
        assert!(setting.frame() > 0 && has(setting.endpoint), "a stream of nothing");
        assert!(setting.feedback.is_none_or(|(address, size)| size >= 3 && has(address)), "no feedback");
        for speed in [Speed::Full, Speed::High] {
            let mut pace = Pace::new(48_000, setting.interval(speed));
            let _ = (pace.feedback(packet), pace.packet(), setting.most_frames(), setting.to_string());
        }
    }
    for unit in FeatureUnit::all(&configuration) {
        assert!(configuration.numbers().contains(&unit.interface), "no such interface");
        assert!(unit.mute.len() <= 256 && unit.volume.len() <= 256, "more channels than there can be");
    }
    sent(packet);
}

fn rest(bytes: &[u8], from: usize) -> &[u8] {
    bytes.get(from..).unwrap_or_default()
}

/// Answers and packets that need no descriptors to be understood.
fn sent(bytes: &[u8]) {
    let mut counters = Counters::default();
    let _ = (cdc::notified(bytes, &mut counters), cdc::parse_line_coding(bytes));
    if let Some(report) = Report::from_bytes(bytes) {
        let events = report.since(&Report::default());
        assert!(events.len() <= 8 + 6, "more keys than a report has");
    }
    if let Some(status) = StatusWrapper::from_bytes(bytes) {
        assert_eq!(StatusWrapper::from_bytes(&status.to_bytes()).map(|again| again.tag), Some(status.tag));
    }
    let _ = (CommandWrapper::from_bytes(bytes), Inquiry::from_bytes(bytes), Sense::from_bytes(bytes));
    let _ = (Capacity::from_bytes_10(bytes), Capacity::from_bytes_16(bytes).map(|capacity| capacity.bytes()));
}

/// A client's stream: an operation and a bus id, then commands with what follows them.
pub fn usbip(bytes: &[u8]) {
    if let Some(operation) = bytes.first_chunk() {
        let _ = usbip::Operation::parse(operation);
    }
    if let Some(name) = bytes.first_chunk() {
        let _ = usbip::bus_id(name);
    }
    let mut rest = bytes;
    while let Some((header, follows)) = rest.split_first_chunk() {
        let Ok(command) = usbip::Command::parse(header) else { return };
        rest = follows;
        let usbip::Command::Submit(submit) = command else { continue };
        let (data, packets) = submit.follows();
        assert!(data <= usbip::MAX_TRANSFER as usize && submit.endpoint < 16, "more than a session is ready for");
        let descriptors = rest.get(data..).and_then(|rest| rest.get(..packets)).unwrap_or_default();
        if let Ok(lengths) = usbip::packet_lengths(descriptors, submit.length) {
            let sum: u64 = lengths.into_iter().map(u64::from).sum();
            assert!(sum <= u64::from(submit.length), "packets beyond the buffer");
        }
        rest = rest.get(data + packets..).unwrap_or_default();
    }
}

/// A recording's file: read, shown, compared with itself, and replayed to a driver that reads and writes the first registers.
pub fn trace(bytes: &[u8]) {
    let Ok(read) = trace::Trace::read(bytes, "input") else { return };
    assert!(read.events.len() <= bytes.len() / 32, "events of nothing");
    assert_eq!(trace::diff(&read, &read), None, "it parts from itself");
    let _ = (trace::plot(&read), read.names(), read.has_dma_contents());
    let mut stream = trace::Stream::read(std::io::Cursor::new(bytes), "input").expect("it was read");
    let mut document = Vec::new();
    if trace::perfetto(&mut stream, None, &mut document).is_ok() {
        serde_json::from_slice::<serde_json::Value>(&document).expect("JSON");
    }
    let replay = Replay::new(read, "replay:input".into());
    let regions = replay.info().regions;
    for region in (0..regions.min(9)).map(RegionIndex) {
        for offset in [0, 4, u64::MAX] {
            let _ = (replay.read(region, offset, Width::Bits32), replay.write(region, offset, Width::Bits32, offset));
        }
    }
}

/// A header, a command's number, and a payload.
pub fn vfio_user(bytes: &[u8]) {
    let Some((header, rest)) = bytes.split_first_chunk() else { return };
    let _ = Header::decode(header, 0x1000);
    let Some((&command, payload)) = rest.split_first() else { return };
    for limits in [LIMITS, Limits { max_data_xfer_size: 0, ..LIMITS }] {
        let Ok(request) = Request::decode(Command(u16::from(command % 24)), payload, &limits) else { continue };
        if let Request::DeviceSetIrqs(set) = &request {
            let _ = (set.check_fds(payload.len()), set.check_count(1));
        }
        let again = request.encode();
        assert_eq!(Request::decode(request.command(), &again, &limits).as_ref(), Ok(&request), "another request");
    }
    let _ = (Version::decode(payload), DeviceInfo::decode(payload), IrqInfo::decode(payload));
    let _ = (DeviceFeature::decode(payload), RegionInfo::decode(payload), RegionIoFds::decode(payload));
    let _ = (DmaUnmap::decode(payload), RegionData::decode_read_reply(payload, &LIMITS));
    let _ = (RegionWriteReply::decode(payload), RegionWriteMultiReply::decode(payload));
    let _ = (DmaData::decode_read_reply(payload, &LIMITS), DmaWriteReply::decode(payload));
}

#[cfg(test)]
mod tests {
    fn run_corpus(name: &str, target: fn(&[u8])) {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let mut count = 0;
        for entry in std::fs::read_dir(folder).expect("the corpus") {
            target(&std::fs::read(entry.expect("an entry").path()).expect("an input"));
            count += 1;
        }
        assert!(count >= 3, "{count} inputs of {name}");
    }

    #[test]
    fn traces_of_the_corpus_break_nothing() {
        run_corpus("trace", super::trace);
    }

    #[test]
    fn usb_descriptors_of_the_corpus_break_nothing() {
        run_corpus("usb_descriptors", super::usb_descriptors);
    }

    #[test]
    fn usb_classes_of_the_corpus_break_nothing() {
        run_corpus("usb_classes", super::usb_classes);
    }

    #[test]
    fn usbip_streams_of_the_corpus_break_nothing() {
        run_corpus("usbip", super::usbip);
    }

    #[test]
    fn vfio_user_messages_of_the_corpus_break_nothing() {
        run_corpus("vfio_user", super::vfio_user);
    }
}
