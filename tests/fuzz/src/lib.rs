//! What strangers send, into every decoder of it: a device's descriptors, a USB/IP client's commands, a vfio-user peer's
//! messages, a recording's file. Whatever the bytes are, a decoder gives a value or an error, and the value keeps the decoder's promises; a
//! panic, an overflow or a broken promise is a finding.
//!
//! `cargo xtask fuzz [TARGET] [--seconds N]` lets libFuzzer choose the bytes, beginning with `corpus/TARGET`. An input that
//! once broke something goes there, and `cargo test` runs them all for ever.

use udrv_backend::{Backend as _, RegionIndex, Width};
use udrv_debug::{replay::Replay, trace};
use udrv_usb::descriptor::{Configuration, DeviceDescriptor, parse_bos, parse_string};
use udrv_usb::usbip;
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
    let _ = (trace::perfetto(&read, None), trace::plot(&read), read.names(), read.has_dma_contents());
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
    fn usbip_streams_of_the_corpus_break_nothing() {
        run_corpus("usbip", super::usbip);
    }

    #[test]
    fn vfio_user_messages_of_the_corpus_break_nothing() {
        run_corpus("vfio_user", super::vfio_user);
    }
}
