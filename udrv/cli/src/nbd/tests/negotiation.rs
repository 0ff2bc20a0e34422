//! What a client is told before its first request, and how it leaves. Numbers are retyped from the protocol's document.

use super::{BYTES, Geometry, Rig};
use std::time::Duration;

/// HAS_FLAGS, FLUSH, FUA, CAN_MULTI_CONN.
const ALWAYS: u16 = 0x10d;

#[test]
fn flags_tell_what_the_disk_can_and_what_it_cannot_is_refused() {
    for (index, (read_only, can_trim, can_zero, more, trim, zero)) in [
        (false, false, false, 0, 22, 22),
        (false, true, false, 0x20, 0, 22),
        (false, false, true, 0x40, 22, 0),
        (true, true, true, 0x02, 1, 1),
    ]
    .into_iter()
    .enumerate()
    {
        let geometry = Geometry { bytes: BYTES as u64, block_size: 4096, read_only, can_trim, can_zero };
        let rig = Rig::of(&format!("flags-{index}"), geometry, 1, Duration::from_secs(30));
        let mut client = rig.connect();
        client.greet(3);
        client.option(1, &[]);
        // The old way, without the zeros that were agreed to be left out.
        let told = client.take::<10>();
        assert_eq!((&told[..8], &told[8..]), (&(BYTES as u64).to_be_bytes()[..], &(ALWAYS | more).to_be_bytes()[..]));
        assert_eq!((client.ask(4, 0, 4096, &[]), client.ask(6, 0, 4096, &[])), (trim, zero), "{geometry:?}");
        assert_eq!(client.ask(0, 512, 4096, &[]), 22, "no whole block of 4096 bytes");
    }
}

#[test]
fn information_is_asked_for_and_the_negotiation_goes_on() {
    let rig = Rig::new("info", false);
    let mut client = rig.connect();
    client.greet(3);
    // With types that it wants, which are answered in any case.
    client.option(6, &[0, 0, 0, 0, 0, 1, 0, 3]);
    assert_eq!((client.reply(6).0, client.reply(6).0, client.reply(6)), (3, 3, (1, vec![])));
    client.option(3, &[]);
    assert_eq!((client.reply(3).0, client.reply(3).0), (2, 1), "it goes on");
}

#[test]
fn client_that_aborts_is_acknowledged_and_left_and_one_that_disconnects_is_left_without_a_word() {
    let rig = Rig::new("abort", false);
    let mut client = rig.connect();
    client.greet(3);
    client.option(2, &[]);
    assert_eq!(client.reply(2), (1, vec![]));
    assert!(client.is_left());
    let mut client = rig.client();
    client.request(0, 2, 0, 0, &[]);
    assert!(client.rest().expect("an end").is_empty());
}
