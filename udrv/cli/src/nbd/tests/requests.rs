//! Requests at the edges: of the disk, of their flags, of its end.

use super::{BYTES, Rig};
use std::sync::atomic::Ordering;

#[test]
fn last_block_is_part_of_the_disk() {
    let rig = Rig::new("last", false);
    let mut client = rig.client();
    let last = BYTES as u64 - 512;
    assert_eq!(client.ask(1, last, 512, &[5; 512]), 0);
    assert_eq!(client.ask(0, last, 512, &[]), 0);
    assert_eq!(client.take::<512>(), [5; 512]);
    assert_eq!(client.ask(6, 0, BYTES as u32, &[]), 0, "all of it");
    assert_eq!(*rig.memory.bytes.lock().expect("not poisoned"), vec![0; BYTES]);
}

#[test]
fn flag_is_for_the_commands_that_have_it_and_a_refused_write_is_read_to_its_end() {
    const NO_HOLE: u16 = 2;
    let rig = Rig::new("command-flags", false);
    let mut client = rig.client();
    for (kind, expected) in [(6, 0), (4, 22), (3, 22), (0, 22)] {
        client.request(NO_HOLE, kind, 0, 512, &[]);
        assert_eq!(client.error(), expected, "type {kind}");
    }
    client.request(NO_HOLE, 1, 0, 512, &[9; 512]);
    assert_eq!(client.error(), 22);
    assert_eq!(client.ask(3, 0, 0, &[]), 0, "in step");
    assert_eq!(*rig.memory.bytes.lock().expect("not poisoned"), vec![0; BYTES]);
}

#[test]
fn requests_that_wait_for_a_disk_that_ends_are_told_that_it_shuts_down() {
    let rig = Rig::new("ends", false);
    rig.memory.holds.store(usize::MAX, Ordering::SeqCst);
    let mut client = rig.client();
    // 16 is all that the disk takes at a time.
    for handle in 0..20 {
        client.request_as(handle, 0, 3, (0, 0), &[]);
    }
    rig.memory.is_gone.store(true, Ordering::SeqCst);
    rig.memory.holds.store(16, Ordering::SeqCst);
    let rest = client.rest().expect("an end");
    // Those of the last four that it had not looked at are not answered.
    assert!(rest.len() >= 16 * 16, "{} bytes", rest.len());
    for answer in rest.chunks(16) {
        let error = if answer[15] < 16 { 5 } else { 108 };
        assert_eq!(answer[4..8], u32::to_be_bytes(error), "handle {}", answer[15]);
    }
    assert!(rig.end().is_err());
}
