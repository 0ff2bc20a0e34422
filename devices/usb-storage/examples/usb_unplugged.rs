//! A disk that is pulled out under load, again and again, in one process: for `tests/vm/62-usb-unplug.sh`.
//!
//! It waits for the disk's arrival, opens it in the handler of the hotplug interrupt, reads from it on one thread while 64
//! control transfers are kept in flight by the handler of their completions; says `pull` at a random moment; and expects
//! that everything ends with "gone". After each round it says `gone`, with what it still holds: descriptors and memory.
//! All the while another thread opens and closes another device: libusb handles no events just then.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain, IrqReturn};
use udrv_usb::host::{Host, HotplugEvent};
use udrv_usb::{CompletionQueue, Device, Error, LINE, Result, Setup, Status, Transfer};
use udrv_usb_storage::driver::Storage;

const IN_FLIGHT: u64 = 64;
const PATIENCE: Duration = Duration::from_secs(60);
/// QEMU's keyboard, which stays.
const OTHER: &str = "usb:0627:0001";
const GET_DEVICE_DESCRIPTOR: Setup = Setup { request_type: 0x80, request: 6, value: 0x0100, index: 0 };

fn main() -> ExitCode {
    let rounds = std::env::args().nth(1).and_then(|rounds| rounds.parse().ok()).unwrap_or(50);
    match run(rounds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("usb_unplugged: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(rounds: usize) -> Result<()> {
    let irqs = IrqDomain::new(Delivery::Thread)?;
    let host = Host::new()?;
    let hotplug = Arc::new(host.hotplug()?);
    let (sender, arrived) = mpsc::channel();
    let handler = {
        let (host, hotplug) = (host.clone(), Arc::clone(&hotplug));
        move |_| {
            while let Some(event) = hotplug.pop() {
                if let HotplugEvent::Arrived { address } = event {
                    // Opening, and waiting for transfers, in the handler.
                    let opened = address.parse().and_then(|address| host.open(&address));
                    let named = opened.and_then(|device| Ok((device.string(2)?, device)));
                    match named {
                        Ok((_, device)) if device.info().descriptors.device.vendor == 0x46f4 => {
                            let _ = sender.send(device);
                        }
                        Ok(_) => {}
                        Err(error) => eprintln!("{address}: {error}"),
                    }
                }
            }
            IrqReturn::Handled
        }
    };
    let _hotplug = irqs.register(&hotplug.line(), LINE, 0, handler)?;
    // Locked while it is open.
    let other = Arc::new(Mutex::new(()));
    let opened = Arc::clone(&other);
    std::thread::spawn(move || {
        loop {
            let open = opened.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = OTHER.parse().and_then(|address| host.open(&address)) {
                eprintln!("{OTHER}: {error}");
            }
            drop(open);
            std::thread::yield_now();
        }
    });
    println!("ready");
    for round in 1..=rounds {
        let device = arrived.recv_timeout(PATIENCE).map_err(|_| missed("the disk's arrival"))?;
        pulled_out(&irqs, device)?;
        let _closed = other.lock().unwrap_or_else(PoisonError::into_inner);
        println!("gone {round} {} {}", descriptors()?, resident_kib()?);
    }
    Ok(())
}

fn missed(what: &str) -> Error {
    Error::Timeout { what: what.into(), after: PATIENCE }
}

/// Puts a disk under load until it is pulled out.
fn pulled_out(irqs: &IrqDomain, device: Device) -> Result<()> {
    let reader = {
        let device = device.clone();
        std::thread::spawn(move || -> Result<()> {
            let mut storage = Storage::attach(device)?;
            let length = storage.capacity().bytes();
            loop {
                storage.read(0, length, |_| Ok(()))?;
            }
        })
    };
    let queue = CompletionQueue::new(&device);
    let (completed, gone) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let handler = {
        let (queue, device, completed, gone) =
            (queue.clone(), device.clone(), Arc::clone(&completed), Arc::clone(&gone));
        move |_| {
            while let Some((tag, completion)) = queue.pop() {
                let again = || queue.submit(&device, descriptor(), PATIENCE, tag).map_err(|refused| refused.error);
                match completion.status {
                    Status::Completed => match again() {
                        Ok(_) => {
                            completed.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                        Err(Error::Gone { .. }) => {}
                        Err(error) => eprintln!("transfer {tag} was refused otherwise: {error}"),
                    },
                    Status::Gone => {}
                    status => eprintln!("transfer {tag} ended as {status:?}"),
                }
                gone.fetch_add(1, Ordering::Relaxed);
            }
            IrqReturn::Handled
        }
    };
    let registration = irqs.register(&queue.line(), LINE, 0, handler)?;
    for tag in 0..IN_FLIGHT {
        queue.submit(&device, descriptor(), PATIENCE, tag)?;
    }
    let moment = usize::try_from(RandomState::new().hash_one(0) % 3000).unwrap_or(0);
    irqs.wait("transfers", Deadline::after(PATIENCE), || completed.load(Ordering::Relaxed) >= moment)?;
    println!("pull");

    let all_gone = || gone.load(Ordering::Relaxed) == IN_FLIGHT as usize;
    irqs.wait("the end of every control transfer", Deadline::after(PATIENCE), all_gone)?;
    match reader.join() {
        Ok(Err(Error::Gone { .. })) => {}
        Ok(other) => eprintln!("the reader ended otherwise: {other:?}"),
        Err(_) => eprintln!("the reader panicked"),
    }
    registration.close()
}

fn descriptor() -> Transfer {
    Transfer::control(GET_DEVICE_DESCRIPTOR, vec![0; 18])
}

fn descriptors() -> Result<usize> {
    let fds = std::fs::read_dir("/proc/self/fd").map_err(|error| Error::os("counting descriptors", error))?;
    // Without the one that counts.
    Ok(fds.count() - 1)
}

fn resident_kib() -> Result<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm").map_err(|error| Error::os("measuring memory", error))?;
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok());
    Ok(pages.unwrap_or(0) * 4)
}
