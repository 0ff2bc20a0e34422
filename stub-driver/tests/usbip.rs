//! The USB/IP server over a real socket, with a software disk; numbers are typed again from usbip_protocol.rst.

use proptest::prelude::*;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;
use stub_driver::usb::session::{self, Exported};
use udrv_usb::software::{Identity, Model, Reply, Software};
use udrv_usb::usbip::{Command, packet_lengths};
use udrv_usb::{EndpointAddress, Speed};
use udrv_usb_storage::model::Disk;

const OUT: u32 = 0;
const IN: u32 = 1;

/// Serves connections, one after the other or at once, as the command does.
fn serve(device: Exported) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let devices = Arc::new(vec![device]);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let devices = Arc::clone(&devices);
            std::thread::spawn(move || session::run(stream.unwrap(), &devices));
        }
    });
    address
}

fn disk() -> SocketAddr {
    let medium = (0..64 * 512).map(|at| (at / 7) as u8).collect();
    let disk = Software::new("model:usb-storage", Disk::new(medium)).unwrap();
    serve(Exported::new("0-1".into(), Arc::new(disk)).unwrap())
}

struct Client(TcpStream);

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(stream)
    }

    /// As soon as the client before has been cleaned up after.
    fn with_device(address: SocketAddr) -> Self {
        loop {
            let mut client = Self::connect(address);
            if client.import("0-1") == 0 {
                return client;
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    fn read(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// OP_REQ_IMPORT; the status in the answer.
    fn import(&mut self, bus_id: &str) -> u32 {
        let mut request = vec![0x01, 0x11, 0x80, 0x03, 0, 0, 0, 0];
        request.extend(bus_id.bytes());
        request.resize(40, 0);
        self.send(&request);
        let answer = self.read(8);
        assert_eq!(answer[..4], [0x01, 0x11, 0x00, 0x03]);
        let status = u32::from_be_bytes(answer[4..].try_into().unwrap());
        if status == 0 {
            self.read(312);
        }
        status
    }

    fn submit(&mut self, seqnum: u32, direction: u32, endpoint: u32, setup: [u8; 8], length: u32, data: &[u8]) {
        let mut bytes = words(&[1, seqnum, 0x0001_0001, direction, endpoint, 0, length, 0, u32::MAX, 0]);
        bytes.extend(setup);
        bytes.extend(data);
        self.send(&bytes);
    }

    fn unlink(&mut self, seqnum: u32, victim: u32) {
        self.send(&words(&[2, seqnum, 0x0001_0001, 0, 0, victim, 0, 0, 0, 0, 0, 0]));
    }

    /// Command, sequence number, status, actual length.
    fn answer(&mut self) -> (u32, u32, i32, u32) {
        let bytes = self.read(48);
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((word(8), word(12), word(16)), (0, 0, 0), "devid, direction and endpoint in an answer");
        (word(0), word(4), word(20).cast_signed(), word(24))
    }

    /// Answers to what was in flight may come first.
    fn is_closed(&mut self) -> bool {
        match self.0.read_to_end(&mut Vec::new()) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

#[test]
fn list_has_every_device_with_its_interfaces() {
    let mut client = Client::connect(disk());

    client.send(&[0x01, 0x11, 0x80, 0x05, 0, 0, 0, 0]);

    let answer = client.read(12 + 312 + 4);
    assert_eq!(answer[..12], [0x01, 0x11, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(answer[12 + 256..12 + 260], *b"0-1\0");
    // bus, device, speed (3 is high), vendor and product
    assert_eq!(answer[300..316], [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 0x12, 0x09, 0x00, 0x02]);
    assert_eq!(answer[324..], [0x08, 0x06, 0x50, 0]);
    assert!(client.is_closed());
}

#[test]
fn device_descriptor_is_read_by_a_control_transfer() {
    let mut client = Client::with_device(disk());

    client.submit(7, IN, 0, [0x80, 6, 0, 1, 0, 0, 64, 0], 64, &[]);

    assert_eq!(client.answer(), (3, 7, 0, 18));
    assert_eq!(client.read(18)[..2], [18, 1]);
}

#[test]
fn bulk_transfers_read_a_block_of_the_disk() {
    let mut client = Client::with_device(disk());
    let mut command =
        vec![0x55, 0x53, 0x42, 0x43, 9, 0, 0, 0, 0, 2, 0, 0, 0x80, 0, 10, 0x28, 0, 0, 0, 0, 3, 0, 0, 1, 0];
    command.resize(31, 0);

    client.submit(1, OUT, 2, [0; 8], 31, &command);
    client.submit(2, IN, 1, [0; 8], 512, &[]);
    client.submit(3, IN, 1, [0; 8], 13, &[]);

    assert_eq!(client.answer(), (3, 1, 0, 31));
    assert_eq!(client.answer(), (3, 2, 0, 512));
    let expected: Vec<u8> = (3 * 512..4 * 512).map(|at| (at / 7) as u8).collect();
    assert_eq!(client.read(512), expected);
    assert_eq!(client.answer(), (3, 3, 0, 13));
    assert_eq!(client.read(13), [0x55, 0x53, 0x42, 0x53, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn stall_is_epipe() {
    let mut client = Client::with_device(disk());

    client.submit(1, IN, 0, [0xc0, 0x77, 0, 0, 0, 0, 8, 0], 8, &[]);

    assert_eq!(client.answer(), (3, 1, -32, 0));
}

#[test]
fn unlink_cancels_one_and_is_its_only_answer() {
    let mut client = Client::with_device(disk());
    // Without a command there is nothing to read.
    client.submit(1, IN, 1, [0; 8], 512, &[]);
    client.submit(2, IN, 1, [0; 8], 512, &[]);

    client.unlink(3, 1);

    assert_eq!(client.answer(), (4, 3, -104, 0));
    client.unlink(4, 2);
    assert_eq!(client.answer(), (4, 4, -104, 0), "the other one was not in flight any more");
}

#[test]
fn unlink_of_an_ended_transfer_comes_after_its_answer() {
    let mut client = Client::with_device(disk());
    client.submit(1, IN, 0, [0x80, 6, 0, 1, 0, 0, 18, 0], 18, &[]);

    client.unlink(2, 1);

    assert_eq!(client.answer(), (3, 1, 0, 18));
    client.read(18);
    assert_eq!(client.answer(), (4, 2, 0, 0));
}

#[test]
fn second_client_at_the_same_time_is_told_that_the_device_is_busy() {
    let address = disk();
    let _first = Client::with_device(address);

    assert_eq!(Client::connect(address).import("0-1"), 2);
    assert_eq!(Client::connect(address).import("9-9"), 4);
}

#[test]
fn second_client_after_the_first_has_a_device_that_was_reset() {
    let address = disk();
    let mut first = Client::with_device(address);
    // It leaves the OUT endpoint halted, and a transfer in flight.
    first.submit(1, OUT, 2, [0; 8], 31, &[0; 31]);
    assert_eq!(first.answer(), (3, 1, -32, 0));
    first.submit(2, IN, 0, [0x82, 0, 0, 0, 2, 0, 2, 0], 2, &[]);
    assert_eq!(first.answer(), (3, 2, 0, 2));
    assert_eq!(first.read(2), [1, 0], "the OUT endpoint is not halted");
    drop(first);

    let mut second = Client::with_device(address);
    second.submit(1, IN, 0, [0x82, 0, 0, 0, 2, 0, 2, 0], 2, &[]);

    assert_eq!(second.answer(), (3, 1, 0, 2));
    assert_eq!(second.read(2), [0, 0], "the OUT endpoint is still halted");
}

#[test]
fn requests_that_the_host_must_make_are_made_and_answered() {
    let mut client = Client::with_device(disk());

    for (seqnum, setup, status) in [
        (1, [0x00, 9, 1, 0, 0, 0, 0, 0], 0),
        (2, [0x01, 11, 0, 0, 0, 0, 0, 0], 0),
        (3, [0x01, 11, 5, 0, 0, 0, 0, 0], -32),
        (4, [0x02, 1, 0, 0, 0x81, 0, 0, 0], 0),
    ] {
        client.submit(seqnum, OUT, 0, setup, 0, &[]);
        assert_eq!(client.answer(), (3, seqnum, status, 0));
    }
}

#[test]
fn client_that_breaks_the_protocol_is_ended_and_the_next_is_served() {
    let address = disk();
    for bad in [
        [9, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 2, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 16, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0x7fff_ffff, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 512, 0, 0x7fff_ffff, 0],
    ] {
        let mut client = Client::with_device(address);

        client.send(&[words(&bad), vec![0; 8]].concat());

        assert!(client.is_closed(), "{bad:?}");
    }
    for greeting in [[0x01, 0x10, 0x80, 0x03, 0, 0, 0, 0], [0x01, 0x11, 0x80, 0x77, 0, 0, 0, 0]] {
        let mut client = Client::connect(address);
        client.send(&greeting);
        assert!(client.is_closed(), "{greeting:02x?}");
    }
}

#[test]
fn sequence_number_in_flight_twice_ends_the_client() {
    let mut client = Client::with_device(disk());

    client.submit(1, IN, 1, [0; 8], 512, &[]);
    client.submit(1, IN, 1, [0; 8], 512, &[]);

    assert!(client.is_closed());
}

#[test]
fn more_in_flight_than_a_client_may_have_is_enomem() {
    let mut client = Client::with_device(disk());

    for seqnum in 1..=1025 {
        client.submit(seqnum, IN, 1, [0; 8], 13, &[]);
    }

    assert_eq!(client.answer(), (3, 1025, -12, 0));
}

/// Sends frames of two bytes less than was asked for.
struct Microphone;

impl Model for Microphone {
    fn identity(&self) -> Identity {
        #[rustfmt::skip]
        let body = [
            9, 4, 0, 0, 0, 1, 2, 0, 0,
            9, 4, 0, 1, 1, 1, 2, 0, 0,
            7, 5, 0x81, 1, 64, 0, 1,
        ];
        Identity::new(Speed::Full, (0x1209, 0x0003), 1, &body, ["udrv", "microphone", "1"])
    }

    fn send(&mut self, _endpoint: EndpointAddress, length: usize) -> Reply {
        Reply::Data(vec![0xa5; length - 2])
    }
}

#[test]
fn isochronous_packets_come_without_gaps_each_with_its_length() {
    let device = Software::new("model:microphone", Microphone).unwrap();
    let mut client = Client::with_device(serve(Exported::new("0-1".into(), Arc::new(device)).unwrap()));
    client.submit(1, OUT, 0, [0x01, 11, 1, 0, 0, 0, 0, 0], 0, &[]);
    assert_eq!(client.answer(), (3, 1, 0, 0));

    let packets = words(&[0, 8, 0, 0, 8, 12, 0, 0]);
    client.send(&[words(&[1, 2, 0, IN, 1, 0, 20, 0, 2, 0]), vec![0; 8], packets].concat());

    assert_eq!(client.answer(), (3, 2, 0, 16));
    assert_eq!(client.read(16), [0xa5; 16]);
    assert_eq!(client.read(32), words(&[0, 8, 6, 0, 8, 12, 10, 0]));
}

proptest! {
    #[test]
    fn arbitrary_commands_are_parsed_within_the_limits_or_refused(bytes in prop::collection::vec(any::<u8>(), 48)) {
        let mut header: [u8; 48] = bytes.try_into().unwrap();
        for command in 0..6 {
            header[..4].copy_from_slice(&u32::to_be_bytes(command));
            if let Ok(Command::Submit(submit)) = Command::parse(&header) {
                prop_assert!(submit.endpoint < 16 && submit.length <= 16 << 20 && submit.packets <= 1024);
            }
        }
    }

    #[test]
    fn packets_that_are_accepted_fit_the_buffer(
        sizes in prop::collection::vec((any::<bool>(), 0u32..3000), 0..20), length in 0u32..20000
    ) {
        let mut offset = 0;
        let mut bytes = Vec::new();
        for (lies, size) in sizes {
            bytes.extend(words(&[offset + u32::from(lies), size, 0, 0]));
            offset += size;
        }
        if let Ok(lengths) = packet_lengths(&bytes, length) {
            prop_assert!(lengths.iter().sum::<u32>() <= length);
        }
    }
}
