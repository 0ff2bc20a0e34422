//! What the connections of a server share: memory for requests under way, 64 MiB for all, and half of it for one at most.

use super::{Client, Geometry, Rig};
use std::sync::atomic::Ordering;
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
        client.0.set_read_timeout(Some(Duration::from_secs(2))).expect("a deadline");
        std::io::Read::read(&mut &client.0, &mut [0]).is_ok_and(|count| count == 0)
    };
    assert_eq!(clients.iter().filter(|client| is_left(client)).count(), 1);
    rig.memory.holds.store(0, Ordering::SeqCst);
    drop(clients);
    rig.end().expect("ended");
}
