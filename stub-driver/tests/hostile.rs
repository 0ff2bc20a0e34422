//! Clients that mean harm, or are broken: whatever they do ends their own lease at most.

mod support;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use support::{Client, PATIENCE, Stub, memfd, serve, serve_with, words};
use udrv_channel::ChannelError;
use udrv_wire::{
    Capabilities, Command, DeviceSetIrqs, Errno, Header, IrqAction, IrqData, RegionRead, Request, Version, pci,
};

/// Short, so that tests of what happens after it are.
const SHORT: Duration = Duration::from_millis(300);

/// The peer must see the end, and the stub serve the next.
fn assert_dropped(stub: &Stub, mut stream: &UnixStream) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    let mut rest = Vec::new();
    let end = stream.read_to_end(&mut rest);
    // A reset is what a peer sees that had sent more than was read.
    let reset = matches!(&end, Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset);
    assert!(end.is_ok() || reset, "not dropped: {end:?}");
    stub.client().assert_served();
}

fn hello() -> Vec<u8> {
    let payload = Request::Version(Version { major: 0, minor: 2, capabilities: Capabilities::default() }).encode();
    [&Header::command(0, Command::VERSION, payload.len()).encode()[..], &payload].concat()
}

fn info_request(id: u16) -> Vec<u8> {
    let payload = words(&[16, 0, 0, 0]);
    [&Header::command(id, Command::DEVICE_GET_INFO, payload.len()).encode()[..], &payload].concat()
}

#[test]
fn silent_peer_is_dropped_and_takes_no_lease_meanwhile() {
    let stub = serve_with(SHORT);
    let silent = stub.stream();
    stub.client().assert_served();
    assert_dropped(&stub, &silent);
}

#[test]
fn peer_that_stops_within_its_first_message_is_dropped() {
    let stub = serve_with(SHORT);
    let mut stream = stub.stream();
    stream.write_all(&hello()[..20]).expect("sent");
    assert_dropped(&stub, &stream);
}

#[test]
fn client_that_stops_within_a_message_is_dropped() {
    let stub = serve_with(SHORT);
    let client = stub.client();
    client.channel.stream().set_nonblocking(false).expect("blocking");
    let mut stream = client.channel.stream();
    stream.write_all(&info_request(1)[..25]).expect("sent");
    assert_dropped(&stub, stream);
}

#[test]
fn client_that_trickles_a_message_is_dropped() {
    let stub = serve_with(SHORT);
    let client = stub.client();
    let mut stream = client.channel.stream();
    // Each byte in time, all of them not: a deadline for the message, not for the byte.
    let mut sent = 0;
    for byte in info_request(1) {
        if stream.write_all(&[byte]).is_err() {
            break;
        }
        sent += 1;
        let _ = client.channel.stream().set_nonblocking(false);
        stream.set_read_timeout(Some(SHORT / 4)).expect("a pause");
        if matches!(stream.read(&mut [0]), Ok(0)) {
            break;
        }
    }
    assert!(sent < 32, "all of it was taken");
    stub.client().assert_served();
}

#[test]
fn client_that_is_idle_between_messages_is_kept() {
    let stub = serve_with(SHORT);
    let mut client = stub.client();
    // Nothing to wait for but time itself: the other side must not act.
    client.channel.stream().set_nonblocking(false).expect("blocking");
    client.channel.stream().set_read_timeout(Some(SHORT * 3)).expect("a pause");
    let mut stream = client.channel.stream();
    assert!(stream.read(&mut [0]).is_err(), "it was dropped");
    client.channel.stream().set_nonblocking(true).expect("non-blocking");
    client.assert_served();
}

#[test]
fn disconnect_at_any_byte_leaves_the_stub_serving() {
    let stub = serve();
    let all = [hello(), info_request(1), info_request(2)].concat();
    for length in 0..all.len() {
        let mut stream = stub.stream();
        stream.write_all(&all[..length]).expect("sent");
    }
    stub.client().assert_served();
}

#[test]
fn flood_of_pipelined_commands_is_answered_in_order() {
    const COUNT: u16 = 5000;
    let stub = serve();
    let client = stub.client();
    let mut stream = client.channel.stream().try_clone().expect("a clone");
    stream.set_nonblocking(false).expect("blocking");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for id in 0..COUNT {
                stream.write_all(&info_request(id)).expect("sent");
            }
        });
        for id in 0..COUNT {
            let mut header = [0; 16];
            let mut from = client.channel.stream();
            from.set_read_timeout(Some(PATIENCE)).expect("a deadline");
            from.read_exact(&mut header).expect("a reply");
            let header = Header::decode(&header, 4096).expect("a header");
            assert_eq!((header.msg_id, header.error), (id, None));
            from.read_exact(&mut [0; 16]).expect("its payload");
        }
    });
}

#[test]
fn client_that_never_reads_its_replies_is_dropped() {
    let stub = serve_with(SHORT);
    let client = stub.client();
    let mut stream = client.channel.stream();
    stream.set_nonblocking(false).expect("blocking");
    stream.set_write_timeout(Some(PATIENCE)).expect("a deadline");
    let payload = Request::RegionRead(RegionRead { offset: 0, region: 0, count: 8192 }).encode();
    let message = [&Header::command(1, Command::REGION_READ, payload.len()).encode()[..], &payload].concat();
    let end = loop {
        if let Err(error) = stream.write_all(&message) {
            break error;
        }
    };
    // Which of the two depends on whether the server had read everything when it closed.
    let closed = [std::io::ErrorKind::BrokenPipe, std::io::ErrorKind::ConnectionReset];
    assert!(closed.contains(&end.kind()), "{end}");
    stub.client().assert_served();
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let stub = serve();
    let mut client = stub.client();
    // Its own side of the file is all that may keep it open at the end.
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    for _ in 0..20 {
        client.send(Command::DEVICE_GET_INFO, &words(&[16, 0, 0, 0]), &[theirs.as_fd(); 10]);
        client.reply().expect("answered all the same");
        // As many as the kernel passes at once.
        client.send(Command::DEVICE_GET_INFO, &words(&[16, 0, 0, 0]), &[theirs.as_fd(); 253]);
        assert_eq!(client.reply().map(|_| ()), Err(Errno::EINVAL));
    }
    client.assert_served();
    drop(theirs);
    ours.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    assert_eq!((&ours).read(&mut [0]).expect("the end, once every copy is closed"), 0);
}

#[test]
fn second_client_is_refused_at_once_with_ebusy_and_the_first_goes_on() {
    let stub = serve();
    let mut first = stub.client();
    // Well before what waits for a lease to end gives up.
    let mut second = Client::over_with(stub.stream(), Duration::from_secs(2));
    assert_eq!(second.hello(), Err(Errno::EBUSY));
    second.assert_closed();
    first.assert_served();
    drop(first);
    stub.client().assert_served();
}

#[test]
fn more_connections_than_allowed_are_closed_and_the_rest_go_on() {
    let stub = serve();
    let mut first = stub.client();
    let crowd: Vec<_> = (0..40).map(|_| stub.stream()).collect();
    let mut closed = 0;
    for mut stream in &crowd {
        stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a deadline");
        closed += u32::from(matches!(stream.read(&mut [0]), Ok(0)));
    }
    assert!(closed >= 20, "{closed} of 40 were closed");
    first.assert_served();
}

#[test]
fn device_that_panics_ends_the_lease_and_not_the_stub() {
    let stub = serve();
    let mut client = stub.client();
    *stub.device.panicking.lock().expect("unpoisoned") = Some("read BAR0");
    client.send(Command::REGION_READ, &[words(&[0, 0]), words(&[0, 4])].concat(), &[]);
    assert!(matches!(client.channel.receive(), Err(ChannelError::Closed)));
    *stub.device.panicking.lock().expect("unpoisoned") = None;
    stub.client().assert_served();
    assert!(stub.device.taken_log().contains(&"reset".into()), "the lease was not ended in order");
}

#[test]
fn client_whose_lease_is_refused_by_the_device_hears_why() {
    let folder = support::Folder::new();
    let export = stub_driver::serve::Export::opened_by("broken", "test:broken", || {
        Err(udrv_backend::Error::Gone { device: "test:broken".into(), why: "it was pulled".into() })
    });
    let server = stub_driver::serve::DeviceServer::start(export, &folder.join("it.sock")).expect("served");
    for _ in 0..2 {
        let mut client = Client::over(UnixStream::connect(server.path()).expect("connected"));
        assert_eq!(client.hello(), Err(Errno::ENODEV));
        client.assert_closed();
    }
}

#[test]
fn memory_of_a_client_that_is_gone_is_released() {
    let stub = serve();
    let mut client = stub.client();
    let file = memfd(4096);
    let map = udrv_wire::DmaMap { flags: udrv_wire::DmaFlags::READ, offset: 0, iova: 0, size: 4096 };
    client.request(&Request::DmaMap(map), &[file.as_fd()]).expect("mapped");
    drop(client);
    let mut next = stub.client();
    next.request(&Request::DmaMap(map), &[file.as_fd()]).expect("free again");
}

/// What is in an eventfd, taken out without waiting.
fn drain(event: &EventFd) {
    if poll(&mut [PollFd::new(event.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1) {
        event.read().expect("something to read");
    }
}

/// The client's eventfd is one whose writes wait. It is made empty and full again at the very moments at which a software device
/// signals it, and is left full until the device has answered.
#[test]
fn client_that_fills_its_blocking_eventfd_under_the_devices_hands_does_not_hold_it_up() {
    let folder = support::Folder::new();
    let export = stub_driver::serve::Export::shared("edu", std::sync::Arc::new(udrv_edu::model::edu()));
    let server = stub_driver::serve::DeviceServer::start(export, &folder.join("edu.sock")).expect("served");
    let mut client = Client::over_with(UnixStream::connect(server.path()).expect("connected"), Duration::from_secs(5));
    client.hello().expect("a lease");
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("an eventfd");
    let message =
        |data, count| DeviceSetIrqs { action: IrqAction::Trigger, data, index: pci::MSI_IRQ, start: 0, count };
    client.request(&Request::DeviceSetIrqs(message(IrqData::Eventfd, 1)), &[event.as_fd()]).expect("armed");

    let rounds = 20_000;
    let [round, filling, filled] = [0; 3].map(AtomicU32::new);
    // While it is being filled nobody else reads it, and a write that waits for the device's signal to go is let through.
    let let_fill = |number| {
        while filled.load(Ordering::Acquire) < number {
            if filling.load(Ordering::Acquire) > filled.load(Ordering::Acquire) {
                drain(&event);
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=rounds {
                while round.load(Ordering::Acquire) < number {
                    std::hint::spin_loop();
                }
                drain(&event);
                (0..number % 64).for_each(|_| std::hint::spin_loop());
                filling.store(number, Ordering::Release);
                event.write(u64::MAX - 1).expect("filled");
                filled.store(number, Ordering::Release);
            }
        });
        for number in 1..=rounds {
            client.send(Command::DEVICE_SET_IRQS, &Request::DeviceSetIrqs(message(IrqData::None, 1)).encode(), &[]);
            round.store(number, Ordering::Release);
            let answer = client.channel.receive();
            let_fill(number);
            if let Err(error) = answer {
                // Let go of, so that this test ends.
                round.store(rounds, Ordering::Release);
                let_fill(rounds);
                panic!("in round {number}: {error}");
            }
        }
    });
    client.assert_served();
}
