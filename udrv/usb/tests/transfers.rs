//! What a transfer promises, on a software device that gives back what it was sent.

use std::collections::VecDeque;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use udrv_usb::software::{Handshake, Identity, Model, Reply, Software};
use udrv_usb::{
    Completion, CompletionQueue, Device, EndpointAddress, Error, LINE, Setup, Speed, Status, Transfer, TransferFlags,
};

const OUT: EndpointAddress = EndpointAddress(0x01);
const IN: EndpointAddress = EndpointAddress(0x81);
const ISO_IN: EndpointAddress = EndpointAddress(0x82);
const PACKET: usize = 64;
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(30);

/// Gives back on 0x81 the packets it is sent on 0x01.
#[derive(Default)]
struct Loopback {
    packets: VecDeque<Vec<u8>>,
    stall_next: bool,
    busy: bool,
}

impl Model for Loopback {
    fn identity(&self) -> Identity {
        #[rustfmt::skip]
        let body = [
            9, 4, 0, 0, 2, 0xff, 0, 0, 0,
            7, 5, 0x01, 2, PACKET as u8, 0, 0,
            7, 5, 0x81, 2, PACKET as u8, 0, 0,
            9, 4, 0, 1, 1, 0xff, 0, 0, 0,
            7, 5, 0x82, 1, PACKET as u8, 0, 1,
        ];
        Identity::new(Speed::Full, (0x1209, 0x0001), 1, &body, ["udrv", "loopback", "7"])
    }

    fn control(&mut self, setup: &Setup, data: &[u8]) -> Reply {
        match (setup.request_type, setup.request) {
            (0x40, 1) => {
                self.packets.push_back(data.to_vec());
                Reply::Data(Vec::new())
            }
            (0xc0, 2) => Reply::Data(vec![7; usize::from(setup.value)]),
            _ => Reply::Stall,
        }
    }

    fn receive(&mut self, _endpoint: EndpointAddress, packet: &[u8]) -> Handshake {
        if std::mem::take(&mut self.stall_next) {
            return Handshake::Stall;
        }
        if self.busy {
            return Handshake::Nak;
        }
        self.packets.push_back(packet.to_vec());
        Handshake::Ack
    }

    fn send(&mut self, _endpoint: EndpointAddress, _max_packet: usize) -> Reply {
        if std::mem::take(&mut self.stall_next) {
            return Reply::Stall;
        }
        self.packets.pop_front().map_or(Reply::Nak, Reply::Data)
    }
}

fn plugged() -> (Arc<Software<Loopback>>, Device) {
    let bus = Arc::new(Software::new("model:loopback", Loopback::default()).unwrap());
    let device = Device::new(bus.clone()).unwrap();
    (bus, device)
}

fn read(length: usize) -> Transfer {
    Transfer::bulk(IN, vec![0; length])
}

fn write(bytes: &[u8]) -> Transfer {
    Transfer::bulk(OUT, bytes.to_vec())
}

#[test]
fn bulk_what_was_sent_comes_back() {
    let (_bus, device) = plugged();
    let sent: Vec<u8> = (0..200).collect();

    let out = device.transfer(write(&sent), LONG).unwrap();
    let back = device.transfer(read(200), LONG).unwrap();

    assert_eq!((out.status, out.actual), (Status::Completed, 200));
    assert_eq!((back.status, back.data.into_vec()), (Status::Completed, sent));
}

#[test]
fn in_transfer_ended_by_a_short_packet_is_completed_and_short() {
    let (_bus, device) = plugged();
    device.transfer(write(&[1; PACKET + 10]), LONG).unwrap();

    let back = device.transfer(read(200), LONG).unwrap();

    assert_eq!((back.status, back.actual, back.data.len()), (Status::Completed, PACKET + 10, PACKET + 10));
    assert!(back.is_short());
}

#[test]
fn in_transfer_with_short_not_ok_ended_by_a_short_packet_is_short() {
    let (_bus, device) = plugged();
    device.transfer(write(&[1; 10]), LONG).unwrap();

    let back = device.transfer(read(200).with(TransferFlags::SHORT_NOT_OK), LONG).unwrap();

    assert_eq!((back.status, back.data.into_vec()), (Status::Short, vec![1; 10]));
}

#[test]
fn in_transfer_of_a_longer_packet_overflows_and_keeps_what_fits() {
    let (_bus, device) = plugged();
    device.transfer(write(&[3; 20]), LONG).unwrap();

    let back = device.transfer(read(8), LONG).unwrap();

    assert_eq!((back.status, back.data.into_vec()), (Status::Overflow, vec![3; 8]));
}

#[test]
fn out_transfer_with_zero_packet_of_whole_packets_is_followed_by_an_empty_one() {
    let (bus, device) = plugged();

    device.transfer(write(&[1; 2 * PACKET]).with(TransferFlags::ZERO_PACKET), LONG).unwrap();

    let lengths: Vec<usize> = bus.with_model(|model| model.packets.iter().map(Vec::len).collect());
    assert_eq!(lengths, [PACKET, PACKET, 0]);
}

#[test]
fn deadline_that_passes_is_timeout_and_keeps_what_came() {
    let (_bus, device) = plugged();
    device.transfer(write(&[9; PACKET]), LONG).unwrap();

    let back = device.transfer(read(2 * PACKET), SHORT).unwrap();

    assert_eq!((back.status, back.data.into_vec()), (Status::Timeout, vec![9; PACKET]));
}

#[test]
fn cancel_ends_one_keeps_what_came_and_leaves_its_neighbours() {
    let (_bus, device) = plugged();
    let first = device.submit(read(2 * PACKET), LONG).unwrap();
    let second = device.submit(read(PACKET), LONG).unwrap();
    device.transfer(write(&[4; PACKET]), LONG).unwrap();

    first.cancel();
    device.transfer(write(&[5; PACKET]), LONG).unwrap();

    let (first, second) = (first.wait(), second.wait());
    assert_eq!((first.status, first.data.into_vec()), (Status::Cancelled, vec![4; PACKET]));
    assert_eq!((second.status, second.data.into_vec()), (Status::Completed, vec![5; PACKET]));
}

#[test]
fn cancel_of_an_ended_transfer_changes_nothing() {
    let (_bus, device) = plugged();
    let out = device.submit(write(&[1]), LONG).unwrap();

    out.cancel();

    assert_eq!(out.wait().status, Status::Completed);
}

#[test]
fn stall_halts_the_endpoint_until_it_is_cleared() {
    let (bus, device) = plugged();
    bus.with_model(|model| model.stall_next = true);

    let stalled = device.transfer(write(&[1]), LONG).unwrap();
    let halted = device.transfer(write(&[2]), LONG).unwrap();
    device.backend().clear_halt(OUT).unwrap();
    let after = device.transfer(write(&[3]), LONG).unwrap();

    assert_eq!([stalled.status, halted.status, after.status], [Status::Stall, Status::Stall, Status::Completed]);
    assert_eq!(bus.with_model(|model| model.packets.clone()), [[3]]);
}

#[test]
fn halt_is_seen_by_get_status_and_cleared_by_clear_feature() {
    let (bus, device) = plugged();
    let status = Setup { request_type: 0x82, request: 0, value: 0, index: 0x01 };
    let clear = Setup { request_type: 0x02, request: 1, value: 0, index: 0x01 };
    bus.with_model(|model| model.stall_next = true);
    device.transfer(write(&[1]), LONG).unwrap();

    let halted = device.control_in(status, 2, LONG, "GET_STATUS").unwrap();
    device.control_out(clear, &[], LONG, "CLEAR_FEATURE").unwrap();
    let cleared = device.control_in(status, 2, LONG, "GET_STATUS").unwrap();

    assert_eq!((halted, cleared), (vec![1, 0], vec![0, 0]));
}

#[test]
fn unplug_ends_every_transfer_with_gone_and_refuses_the_next() {
    let (bus, device) = plugged();
    let waiting: Vec<_> = (0..64).map(|_| device.submit(read(PACKET), LONG).unwrap()).collect();

    bus.unplug();

    assert!(waiting.into_iter().all(|pending| pending.wait().status == Status::Gone));
    assert!(matches!(device.transfer(read(1), LONG), Err(Error::Gone { .. })));
    assert_eq!(bus.in_flight(), 0);
}

#[test]
fn many_transfers_of_one_endpoint_end_in_order() {
    let (_bus, device) = plugged();
    let (sender, ended) = mpsc::channel();
    for tag in 0..64u8 {
        let sender = sender.clone();
        let done = move |completion: Completion| sender.send((tag, completion.data.into_vec())).unwrap();
        device.submit_then(read(1), LONG, done).unwrap();
    }

    for tag in 0..64u8 {
        device.transfer(write(&[tag]), LONG).unwrap();
    }

    let ended: Vec<(u8, Vec<u8>)> = ended.iter().take(64).collect();
    assert!(ended.iter().enumerate().all(|(at, (tag, data))| usize::from(*tag) == at && *data == [*tag]), "{ended:?}");
}

#[test]
fn transfer_as_a_future_is_woken_by_its_end() {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let (bus, device) = plugged();
    let mut pending = std::pin::pin!(device.submit(read(1), LONG).unwrap());
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    assert!(pending.as_mut().poll(&mut context).is_pending());

    std::thread::spawn(move || bus.with_model(|model| model.packets.push_back(vec![8])));

    let completion = loop {
        match pending.as_mut().poll(&mut context) {
            std::task::Poll::Ready(completion) => break completion,
            std::task::Poll::Pending => std::thread::park_timeout(LONG),
        }
    };
    assert_eq!(completion.data, [8]);
}

#[test]
fn control_request_the_device_does_not_know_is_a_stall() {
    let (_bus, device) = plugged();
    let unknown = Setup { request_type: 0x40, request: 99, value: 0, index: 0 };

    let completion = device.transfer(Transfer::control(unknown, Vec::new()), LONG).unwrap();

    assert_eq!(completion.status, Status::Stall);
}

#[test]
fn control_data_goes_both_ways() {
    let (bus, device) = plugged();
    let out = Setup { request_type: 0x40, request: 1, value: 0, index: 0 };
    let into = Setup { request_type: 0xc0, request: 2, value: 5, index: 0 };

    device.control_out(out, &[1, 2, 3], LONG, "out").unwrap();
    let data = device.control_in(into, 64, LONG, "in").unwrap();

    assert_eq!(bus.with_model(|model| model.packets.clone()), [[1, 2, 3]]);
    assert_eq!(data, [7; 5]);
}

#[test]
fn isochronous_packets_end_one_by_one() {
    let (bus, device) = plugged();
    device.backend().set_alternate(0, 1).unwrap();
    bus.with_model(|model| model.packets.extend([vec![1; 4], vec![2; 9]]));

    let completion = device.transfer(Transfer::isochronous(ISO_IN, vec![8, 8, 8], vec![0; 24]), LONG).unwrap();

    let packets: Vec<(Status, u32)> = completion.packets.iter().map(|packet| (packet.status, packet.actual)).collect();
    assert_eq!(packets, [(Status::Completed, 4), (Status::Overflow, 8), (Status::Completed, 0)]);
    assert_eq!(&completion.data[..16], [1, 1, 1, 1, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2]);
}

#[test]
fn isochronous_lengths_that_are_not_the_buffers_are_refused() {
    let (_bus, device) = plugged();

    let refused = device.submit(Transfer::isochronous(ISO_IN, vec![8, 8], vec![0; 15]), LONG).err().unwrap();

    assert_eq!(refused.transfer.data.len(), 15);
    assert!(matches!(refused.error, Error::Protocol { .. }));
}

#[test]
fn endpoint_of_another_alternate_setting_is_refused() {
    let (_bus, device) = plugged();

    let refused = device.transfer(Transfer::isochronous(ISO_IN, vec![8], vec![0; 8]), LONG);

    assert!(matches!(refused, Err(Error::Unavailable { .. })));
}

#[test]
fn release_ends_what_is_in_flight() {
    let (_bus, device) = plugged();
    device.backend().claim(0).unwrap();
    let pending = device.submit(read(PACKET), LONG).unwrap();

    device.backend().release(0).unwrap();

    assert_eq!(pending.wait().status, Status::Cancelled);
}

#[test]
fn claim_of_a_claimed_or_absent_interface_is_refused() {
    let (_bus, device) = plugged();
    device.backend().claim(0).unwrap();

    assert!(matches!(device.backend().claim(0), Err(Error::Unavailable { .. })));
    assert!(matches!(device.backend().claim(9), Err(Error::Unavailable { .. })));
}

#[test]
fn out_transfer_that_the_device_cannot_take_goes_on_when_it_can() {
    let (bus, device) = plugged();
    bus.with_model(|model| model.busy = true);
    let pending = device.submit(write(&[1]), LONG).unwrap();
    assert_eq!(bus.in_flight(), 1);

    bus.with_model(|model| model.busy = false);

    assert_eq!(pending.wait().status, Status::Completed);
}

#[test]
fn strings_are_read_and_decoded() {
    let (_bus, device) = plugged();

    assert_eq!(device.string(2).unwrap().as_deref(), Some("loopback"));
    assert_eq!(device.string(0).unwrap(), None);
    assert!(device.string(9).is_err());
}

#[test]
fn completion_before_anybody_listens_is_signalled_to_whoever_listens_next() {
    let (_bus, device) = plugged();
    let queue = CompletionQueue::new(&device);
    queue.submit(&device, write(&[1]), LONG, 42).unwrap();
    let event = nix::sys::eventfd::EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_NONBLOCK).unwrap();

    queue.line().set_triggers(LINE, 0, &[Some(std::os::fd::AsFd::as_fd(&event))]).unwrap();

    assert_eq!(event.read(), Ok(1));
    let (tag, completion) = queue.pop().unwrap();
    assert_eq!((tag, completion.status), (42, Status::Completed));
    assert!(queue.pop().is_none());
}

#[test]
fn transfers_ended_by_two_threads_are_told_in_their_order() {
    let (bus, device) = plugged();
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (begun, has_begun) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let first = {
        let order = Arc::clone(&order);
        move |_| {
            begun.send(()).unwrap();
            may_go.recv_timeout(LONG).unwrap();
            order.lock().unwrap().push(1);
        }
    };
    let second = {
        let order = Arc::clone(&order);
        move |_| order.lock().unwrap().push(2)
    };
    device.submit_then(Transfer::bulk(IN, vec![0; PACKET]), LONG, first).unwrap();
    device.submit_then(Transfer::bulk(IN, vec![0; PACKET]), LONG, second).unwrap();

    let other = {
        let device = device.clone();
        std::thread::spawn(move || device.transfer(Transfer::bulk(OUT, vec![1; PACKET]), LONG).unwrap())
    };
    has_begun.recv_timeout(LONG).unwrap();
    let sent = device.submit(Transfer::bulk(OUT, vec![2; PACKET]), LONG).unwrap();
    go.send(()).unwrap();

    assert_eq!((other.join().unwrap().status, sent.wait().status), (Status::Completed, Status::Completed));
    assert_eq!(bus.in_flight(), 0);
    assert_eq!(*order.lock().unwrap(), [1, 2]);
}
