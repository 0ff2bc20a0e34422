//! Transfers of next to no work, submitted again by their completions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;
use udrv_usb::{Buffer, Completion, Device, Setup, Status, Transfer};

const PATIENCE: Duration = Duration::from_secs(30);
const LENGTH: usize = 18;
const GET_DEVICE_DESCRIPTOR: Setup = Setup { request_type: 0x80, request: 6, value: 0x0100, index: 0 };

/// Seconds a transfer, of `count`, `in_flight` at a time, by the clock.
pub fn seconds(device: &Device, count: u64, in_flight: u64, clock: impl Fn() -> f64) -> f64 {
    let (ended, all_ended) = channel();
    let left = Arc::new(AtomicU64::new(count - in_flight));
    let begin = clock();
    for _ in 0..in_flight {
        again(device.clone(), Buffer::zeroed(LENGTH), Arc::clone(&left), ended.clone());
    }
    drop(ended);
    for _ in 0..in_flight {
        all_ended.recv_timeout(PATIENCE).expect("the end of the transfers");
    }
    (clock() - begin) / count as f64
}

fn again(device: Device, mut buffer: Buffer, left: Arc<AtomicU64>, ended: Sender<()>) {
    buffer.resize(LENGTH);
    let transfer = Transfer::control(GET_DEVICE_DESCRIPTOR, buffer);
    let next = device.clone();
    let done = move |completion: Completion| {
        assert_eq!(completion.status, Status::Completed);
        if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            again(next, completion.data, left, ended);
        } else {
            let _ = ended.send(());
        }
    };
    device.submit_then(transfer, PATIENCE, done).expect("submitted");
}
