//! What is put around a device: a fault plan, and a recorder.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use udrv_usb::faults::{FaultPlan, Faulty};
use udrv_usb::record::Recorder;
use udrv_usb::software::{Identity, Model, Reply, Software};
use udrv_usb::{Device, EndpointAddress, Error, Setup, Speed, Status, Transfer};

const IN: EndpointAddress = EndpointAddress(0x81);
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(30);

/// Always has eight bytes.
struct Source;

impl Model for Source {
    fn identity(&self) -> Identity {
        Identity::new(Speed::Full, (1, 2), 1, &[9, 4, 0, 0, 1, 0xff, 0, 0, 0, 7, 5, 0x81, 2, 8, 0, 0], ["a", "b", "c"])
    }

    fn send(&mut self, _endpoint: EndpointAddress, _max_packet: usize) -> Reply {
        Reply::Data(vec![1, 2, 3, 4, 5, 6, 7, 8])
    }
}

fn faulty(plan: &str) -> Device {
    let source = Arc::new(Software::new("model:source", Source).unwrap());
    Device::new(Arc::new(Faulty::new(source, plan.parse().unwrap()).unwrap())).unwrap()
}

fn read(device: &Device, allowed: Duration) -> (Status, Vec<u8>) {
    let completion = device.transfer(Transfer::bulk(IN, vec![0; 8]), allowed).unwrap();
    (completion.status, completion.data.into_vec())
}

#[test]
fn plan_without_rules_changes_nothing() {
    assert_eq!(read(&faulty(""), LONG), (Status::Completed, vec![1, 2, 3, 4, 5, 6, 7, 8]));
}

#[test]
fn stall_halts_its_endpoint_at_its_transfer_until_it_is_cleared() {
    let device = faulty("0x81@2=stall");

    let statuses = [(); 3].map(|()| read(&device, LONG).0);
    device.backend().clear_halt(IN).unwrap();

    assert_eq!(statuses, [Status::Completed, Status::Stall, Status::Stall]);
    assert_eq!(read(&device, LONG).0, Status::Completed);
}

#[test]
fn short_babble_and_error_are_told_as_themselves() {
    let device = faulty("0x81@1=short:3,0x81@2=babble,any@3=error");

    assert_eq!(read(&device, LONG), (Status::Completed, vec![1, 2, 3]));
    assert_eq!(read(&device, LONG).0, Status::Overflow);
    assert_eq!(read(&device, LONG).0, Status::Error);
}

#[test]
fn delayed_transfer_ends_late_or_by_its_deadline() {
    let device = faulty("0x81@1=delay:60,0x81@2=delay:60000");

    assert_eq!(read(&device, LONG).0, Status::Completed);
    assert_eq!(read(&device, SHORT), (Status::Timeout, Vec::new()));
    assert_eq!(read(&device, LONG).0, Status::Completed, "the one after it is not late");
}

#[test]
fn unplug_ends_delayed_and_later_transfers_with_gone() {
    let device = faulty("0x81@1=delay:60000,0x81@2=unplug");
    let delayed = device.submit(Transfer::bulk(IN, vec![0; 8]), LONG).unwrap();

    assert_eq!(read(&device, LONG).0, Status::Gone);
    assert_eq!(delayed.wait().status, Status::Gone);
    assert!(matches!(device.transfer(Transfer::bulk(IN, vec![0; 8]), LONG), Err(Error::Gone { .. })));
    assert!(matches!(device.backend().reset(), Err(Error::Gone { .. })));
}

#[test]
fn unplug_ends_what_the_device_has_with_gone() {
    struct Quiet;
    impl Model for Quiet {
        fn identity(&self) -> Identity {
            Source.identity()
        }
        fn send(&mut self, _endpoint: EndpointAddress, _max_packet: usize) -> Reply {
            Reply::Nak
        }
    }
    let quiet = Arc::new(Software::new("model:quiet", Quiet).unwrap());
    let faulty = Arc::new(Faulty::new(quiet, FaultPlan::default()).unwrap());
    let device = Device::new(faulty.clone()).unwrap();
    let pending = device.submit(Transfer::bulk(IN, vec![0; 8]), LONG).unwrap();

    faulty.unplug();

    assert_eq!(pending.wait().status, Status::Gone);
}

#[test]
fn plan_that_is_none_is_refused() {
    for text in ["0x81", "0x81@0=stall", "81@1=stall", "0x81@1=melt", "0x81@1=short", "0x81@1=delay:x", "0x181@1=stall"]
    {
        assert!(text.parse::<FaultPlan>().is_err(), "{text}");
    }
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The blocks of a pcapng file: type and body (pcapng, 3.1).
fn blocks(file: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let word = |at: usize| u32::from_ne_bytes(file[at..at + 4].try_into().unwrap());
    let (mut at, mut blocks) = (0, Vec::new());
    while at < file.len() {
        let length = word(at + 4) as usize;
        assert!(length.is_multiple_of(4));
        assert_eq!(word(at + length - 4) as usize, length, "the length after the block");
        blocks.push((word(at), file[at + 8..at + length - 4].to_vec()));
        at += length;
    }
    blocks
}

#[test]
fn recording_has_each_submission_and_each_end_as_usbmon_would() {
    let sink = Sink::default();
    let source = Arc::new(Software::new("model:source", Source).unwrap());
    let device = Device::new(Arc::new(Recorder::new(source, Box::new(sink.clone())).unwrap())).unwrap();

    let setup = Setup { request_type: 0x80, request: 6, value: 0x0100, index: 0 };
    device.control_in(setup, 18, LONG, "").unwrap();
    device.transfer(Transfer::bulk(IN, vec![0; 8]), LONG).unwrap();

    let file = sink.0.lock().unwrap().clone();
    let blocks = blocks(&file);
    let kinds: Vec<u32> = blocks.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [0x0a0d_0d0a, 1, 6, 6, 6, 6]);
    assert_eq!(blocks[1].1[..2], 220u16.to_ne_bytes(), "link type");
    // After interface, time and lengths: struct usbmon_packet
    let packets: Vec<&[u8]> = blocks[2..].iter().map(|(_, body)| &body[20..]).collect();
    let head: Vec<(u8, u8, u8)> = packets.iter().map(|packet| (packet[8], packet[9], packet[10])).collect();
    assert_eq!(head, [(b'S', 2, 0x80), (b'C', 2, 0x80), (b'S', 3, 0x81), (b'C', 3, 0x81)]);
    assert_eq!(packets[0][40..48], [0x80, 6, 0, 1, 0, 0, 18, 0], "setup");
    assert_eq!((packets[0][14], packets[1][14]), (0, b'-'), "flag_setup");
    assert_eq!(packets[0][28..32], (-115i32).to_ne_bytes(), "EINPROGRESS");
    assert_eq!(packets[1][32..40], [18u32.to_ne_bytes(), 18u32.to_ne_bytes()].concat()[..], "lengths");
    assert_eq!(packets[3][64..72], [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(packets[2][..8], packets[3][..8], "the same id");
}
