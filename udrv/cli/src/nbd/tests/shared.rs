//! What the connections of a server share: memory for requests under way, 64 MiB for all, and half of it for one at most.

use super::{Client, Geometry, Rig};
use std::io::{ErrorKind, Read as _};
use std::net::Shutdown;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;
use udrv::clock::Deadline;

const MIB: u32 = 1 << 20;
/// Of the disk, and the longest request there is.
const LONG: u32 = 32 * MIB;
const SOON: Duration = Duration::from_secs(20);

fn rig(name: &str, clients: usize, patience: Duration) -> Rig {
    let geometry = Geometry { bytes: LONG.into(), block_size: 512, read_only: false, can_trim: true, can_zero: true };
    Rig::of(name, geometry, clients, patience)
}

impl Rig {
    fn until_under_way(&self, bytes: u32) {
        let are = || Ok(self.memory.under_way.load(Ordering::SeqCst) == u64::from(bytes));
        Deadline::after(SOON).poll("requests under way", are).expect("under way");
    }
}

fn ask_for(client: &mut Client, count: u64, length: u32) {
    (0..count).for_each(|handle| client.request_as(handle, 0, 0, (0, length), &[]));
}

fn take_data(client: &mut Client, length: u32) {
    let (error, _) = client.answer();
    assert_eq!(error, 0);
    let took = std::io::copy(&mut std::io::Read::take(&mut client.0, length.into()), &mut std::io::sink());
    assert_eq!(took.expect("its data"), u64::from(length));
}

/// Takes 64 KiB five times a second, which nobody who waits for one piece finds long; how much it was until the server left,
/// or was not gone soon.
fn trickle(client: &mut Client) -> u64 {
    let (mut taken, deadline) = (0, Deadline::after(SOON));
    let (_nobody, pace) = mpsc::channel::<()>();
    let mut piece = vec![0; 64 << 10];
    while deadline.remaining().is_some() {
        match client.0.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => taken += count as u64,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{error}"),
        }
        let _ = pace.recv_timeout(Duration::from_millis(200));
    }
    taken
}

#[test]
fn long_requests_of_many_connections_take_no_more_memory_than_of_one_and_are_all_answered() {
    const EACH: u64 = 8;
    let rig = rig("budget", 4, SOON);
    rig.memory.holds.store(usize::MAX, Ordering::SeqCst);
    let mut clients = [(); 4].map(|()| rig.client());
    clients.iter_mut().for_each(|client| ask_for(client, EACH, 8 * MIB));
    rig.until_under_way(64 * MIB);
    // More would come now.
    let more = || Ok(rig.memory.under_way.load(Ordering::SeqCst) > u64::from(64 * MIB));
    Deadline::after(Duration::from_millis(500)).poll("more", more).expect_err("more than there may be");
    rig.memory.holds.store(0, Ordering::SeqCst);
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| (0..EACH).for_each(|_| take_data(client, 8 * MIB)));
        }
    });
    // Writes, whose memory is taken before their data comes.
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| {
                let data = vec![1; LONG as usize];
                (0..3).for_each(|_| assert_eq!(client.ask(1, 0, LONG, &data), 0));
            });
        }
    });
}

#[test]
fn one_that_takes_no_replies_leaves_memory_for_the_others() {
    let rig = rig("hog", 2, Duration::from_secs(60));
    let (mut hog, mut other) = (rig.client(), rig.client());
    ask_for(&mut hog, 64, 8 * MIB);
    let mut data = vec![7; LONG as usize];
    for _ in 0..3 {
        assert_eq!(other.ask(1, 0, LONG, &data), 0);
        data.fill(8);
    }
    ask_for(&mut other, 1, LONG);
    take_data(&mut other, LONG);
}

#[test]
fn those_that_take_no_replies_or_send_no_data_have_no_memory_once_the_patience_is_over() {
    let rig = rig("hogs", 4, Duration::from_secs(3));
    let [mut one, mut two, mut other] = [(); 3].map(|()| rig.client());
    // All there is: half of it for replies that nobody takes, half for data that does not come.
    ask_for(&mut one, 4, 8 * MIB);
    two.request(0, 1, 0, LONG, &[0; 512]);
    ask_for(&mut other, 1, LONG);
    take_data(&mut other, LONG);
    assert!(two.is_left());
    let mut another = rig.client();
    ask_for(&mut another, 2, LONG);
    (0..2).for_each(|_| take_data(&mut another, LONG));
}

#[test]
fn server_that_is_to_stop_waits_for_nobody_who_waits_for_memory() {
    let rig = rig("stops", 3, Duration::from_secs(60));
    rig.memory.holds.store(usize::MAX, Ordering::SeqCst);
    let mut clients = [(); 3].map(|()| rig.client());
    clients.iter_mut().for_each(|client| ask_for(client, 1, LONG));
    rig.until_under_way(64 * MIB);
    rig.stop.store(true, Ordering::SeqCst);
    // The one without memory has nothing under way, and sees its end although the others' requests are held.
    let is_left = |client: &Client| {
        client.0.set_nonblocking(true).expect("a look");
        (&client.0).read(&mut [0]).is_ok_and(|count| count == 0)
    };
    // The disk holds the others for longer.
    let one_is = || Ok(clients.iter().filter(|client| is_left(client)).count() == 1);
    Deadline::after(SOON / 2).poll("the end of the one without memory", one_is).expect("left");
    rig.memory.holds.store(0, Ordering::SeqCst);
    drop(clients);
    rig.end().expect("ended");
}

#[test]
fn one_deadline_is_for_a_whole_reply_of_which_a_little_is_taken_now_and_then() {
    const PATIENCE: Duration = Duration::from_secs(2);
    let rig = rig("trickles", 3, PATIENCE);
    let [mut one, mut two, mut other] = [(); 3].map(|()| rig.client());
    rig.memory.holds.store(usize::MAX, Ordering::SeqCst);
    [&mut one, &mut two].into_iter().for_each(|client| ask_for(client, 1, LONG));
    // All the memory there is.
    rig.until_under_way(2 * LONG);
    let patience = Deadline::after(PATIENCE);
    rig.memory.holds.store(0, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let slow = [&mut one, &mut two].map(|client| scope.spawn(|| trickle(client)));
        ask_for(&mut other, 1, LONG);
        take_data(&mut other, LONG);
        assert_eq!(patience.remaining(), None, "there was memory for another");
        for taken in slow.map(|client| client.join().expect("no panic")) {
            assert!(taken < LONG.into(), "all of it was sent");
        }
    });
}

/// The replies themselves are taken, each in good time.
#[test]
fn data_that_does_not_come_holds_no_memory_until_all_replies_before_it_are_taken() {
    const EACH: u32 = 512 << 10;
    let rig = rig("no-data", 3, Duration::from_secs(3));
    let [mut one, mut two, mut other] = [(); 3].map(|()| rig.client());
    rig.memory.holds.store(usize::MAX, Ordering::SeqCst);
    for client in [&mut one, &mut two] {
        ask_for(client, 16, EACH);
        client.request(0, 1, 0, LONG - 16 * EACH, &[0; 512]);
    }
    rig.until_under_way(2 * 16 * EACH);
    rig.memory.holds.store(0, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let slow = [&mut one, &mut two].map(|client| scope.spawn(|| trickle(client)));
        // The first may have come before the writes.
        ask_for(&mut other, 2, LONG);
        (0..2).for_each(|_| take_data(&mut other, LONG));
        for taken in slow.map(|client| client.join().expect("no panic")) {
            assert!(taken < u64::from(16 * EACH), "all of it was sent");
        }
    });
}

#[test]
fn client_that_ends_within_its_data_is_left_whatever_replies_it_has_not_taken() {
    let rig = rig("half", 3, Duration::from_secs(60));
    let [mut one, mut two, mut other] = [(); 3].map(|()| rig.client());
    for client in [&mut one, &mut two] {
        ask_for(client, 1, 8 * MIB);
        client.request(0, 1, 0, 24 * MIB, &[0; 512]);
        client.0.shutdown(Shutdown::Write).expect("no more");
    }
    // The first may have come before the writes.
    ask_for(&mut other, 2, LONG);
    (0..2).for_each(|_| take_data(&mut other, LONG));
    assert!(one.rest().expect("an end").len() < 8 << 20);
}

#[test]
fn client_that_has_no_more_requests_has_its_replies_all_the_same() {
    let rig = rig("orderly", 2, SOON);
    for disconnects in [false, true] {
        rig.memory.holds.store(usize::MAX, Ordering::SeqCst);
        let mut client = rig.client();
        ask_for(&mut client, 8, MIB);
        rig.until_under_way(8 * MIB);
        if disconnects {
            client.request(0, 2, 0, 0, &[]);
        } else {
            client.0.shutdown(Shutdown::Write).expect("no more");
        }
        rig.memory.holds.store(0, Ordering::SeqCst);
        (0..8).for_each(|_| take_data(&mut client, MIB));
        assert!(client.rest().expect("an end").is_empty());
    }
}

#[test]
fn server_that_is_to_stop_waits_for_clients_no_longer_than_its_grace() {
    let rig = rig("grace", 6, Duration::from_secs(60));
    let _negotiates = rig.connect();
    let [mut trickles, mut takes_nothing, mut sends_half, mut asks_much] = [(); 4].map(|()| rig.client());
    let mut begins = rig.client();
    ask_for(&mut trickles, 1, 16 * MIB);
    ask_for(&mut takes_nothing, 8, MIB);
    sends_half.request(0, 1, 0, MIB, &[0; 512]);
    // All that are taken in of one client, and more.
    ask_for(&mut asks_much, 140, 64 << 10);
    std::io::Write::write_all(&mut begins.0, &0x2560_9513u32.to_be_bytes()).expect("sent");
    for client in [&mut trickles, &mut takes_nothing, &mut asks_much] {
        assert_eq!(client.answer().0, 0, "it is being answered");
    }
    let deadline = Deadline::after(SOON);
    std::thread::scope(|scope| {
        scope.spawn(|| trickle(&mut trickles));
        rig.end().expect("ended");
        assert!(deadline.remaining().is_some(), "it waited for a client");
    });
}

#[test]
fn server_that_is_to_stop_answers_first_who_takes_its_replies() {
    let rig = rig("answers", 1, SOON);
    rig.memory.holds.store(usize::MAX, Ordering::SeqCst);
    let mut client = rig.client();
    ask_for(&mut client, 4, MIB);
    rig.until_under_way(4 * MIB);
    rig.stop.store(true, Ordering::SeqCst);
    rig.memory.holds.store(0, Ordering::SeqCst);
    // Not at once: it has to be waited for.
    let (_nobody, pause) = mpsc::channel::<()>();
    let _ = pause.recv_timeout(Duration::from_millis(100));
    (0..4).for_each(|_| take_data(&mut client, MIB));
    assert!(client.rest().expect("an end").is_empty());
}
