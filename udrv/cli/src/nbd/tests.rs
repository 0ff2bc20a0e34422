//! The server against clients of its own kind and against hostile ones, on a disk in memory. What other people's clients say
//! of it is in `tests/nbd.rs`. Numbers are retyped from the protocol's document.

use super::{Command, Disk, Ended, Geometry, Job, Server, bind, errno};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use udrv_backend::{Error, Result};

mod negotiation;
mod requests;
mod shared;

const BYTES: usize = 64 << 10;

#[derive(Clone)]
struct Memory {
    bytes: Arc<Mutex<Vec<u8>>>,
    flushes: Arc<AtomicU32>,
    is_gone: Arc<AtomicBool>,
    /// How many requests must be under way before one ends.
    holds: Arc<AtomicUsize>,
    begun: Vec<Job>,
    /// Bytes of all requests that are begun and not ended, on all connections.
    under_way: Arc<AtomicU64>,
}

impl Memory {
    /// Does it, and ends it.
    fn perform(&self, Job { request, mut data }: Job) -> Ended {
        let at = request.offset as usize;
        let mut bytes = self.bytes.lock().expect("not poisoned");
        let part = bytes.get_mut(at..at + request.length as usize).unwrap_or_default();
        match request.command {
            Command::Read => data = part.to_vec(),
            Command::Write => part.copy_from_slice(&data),
            Command::Trim | Command::WriteZeroes => part.fill(0),
            _ => {}
        }
        let flushes = request.durable || request.command == Command::Flush;
        self.flushes.fetch_add(flushes.into(), Ordering::SeqCst);
        Ended { request, error: 0, data }
    }
}

impl Disk for Memory {
    fn has_room(&self) -> bool {
        self.begun.len() < 16
    }
    fn begin(&mut self, job: Job) {
        self.under_way.fetch_add(job.request.length.into(), Ordering::SeqCst);
        self.begun.push(job);
    }
    /// The last that was begun ends first.
    fn wait(&mut self, more: &dyn Fn() -> bool, ended: &mut dyn FnMut(Ended)) -> Result<()> {
        let deadline = udrv::clock::Deadline::after(Duration::from_secs(20));
        while self.begun.len() < self.holds.load(Ordering::SeqCst) && deadline.remaining().is_some() {
            if more() {
                return Ok(());
            }
            std::thread::yield_now();
        }
        if self.is_gone.load(Ordering::SeqCst) {
            self.begun.drain(..).for_each(|Job { request, data }| ended(Ended { request, error: errno::EIO, data }));
            return Err(Error::Gone { device: "memory".into(), why: "so the test says".into() });
        }
        while let Some(job) = self.begun.pop() {
            self.under_way.fetch_sub(job.request.length.into(), Ordering::SeqCst);
            ended(self.perform(job));
        }
        Ok(())
    }
    fn waker(&self) -> Box<dyn Fn() + Send + Sync> {
        Box::new(|| {})
    }
}

/// A server in a thread of its own, for two clients at a time.
struct Rig {
    memory: Memory,
    path: PathBuf,
    stop: Arc<AtomicBool>,
    server: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Rig {
    fn new(name: &str, read_only: bool) -> Self {
        let geometry = Geometry { bytes: BYTES as u64, block_size: 512, read_only, can_trim: true, can_zero: true };
        Self::of(name, geometry, 2, Duration::from_secs(30))
    }

    /// With another disk, for another number of clients, and with another patience.
    fn of(name: &str, geometry: Geometry, clients: usize, patience: Duration) -> Self {
        let path = std::env::temp_dir().join(format!("udrv-nbd-{name}-{}.sock", std::process::id()));
        let memory = Memory {
            bytes: Arc::new(Mutex::new(vec![0; geometry.bytes as usize])),
            flushes: Arc::default(),
            is_gone: Arc::default(),
            holds: Arc::default(),
            begun: Vec::new(),
            under_way: Arc::default(),
        };
        let (listener, stop) = (bind(&path).expect("listening"), Arc::new(AtomicBool::new(false)));
        let (disks, stopped) = (vec![memory.clone(); clients], Arc::clone(&stop));
        let mut server = Server::new(geometry, disks);
        server.patience = patience;
        let serve = move || server.run(&listener, &|| stopped.load(Ordering::SeqCst));
        Self { memory, path, stop, server: Some(std::thread::spawn(serve)) }
    }

    fn connect(&self) -> Client {
        let stream = UnixStream::connect(&self.path).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a deadline");
        stream.set_write_timeout(Some(Duration::from_secs(20))).expect("a deadline");
        Client(stream)
    }

    /// A client that is past the negotiation.
    fn client(&self) -> Client {
        let mut client = self.connect();
        client.greet(3);
        client.option(7, &[0; 6]);
        assert_eq!((client.reply(7).0, client.reply(7).0, client.reply(7).0), (3, 3, 1));
        client
    }

    fn end(mut self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        self.server.take().expect("one").join().expect("no panic")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(server) = self.server.take() {
            let ended = server.join();
            assert!(std::thread::panicking() || matches!(ended, Ok(Ok(()))), "{ended:?}");
        }
    }
}

struct Client(UnixStream);

impl Client {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).expect("an answer");
        bytes
    }

    fn greet(&mut self, flags: u32) {
        assert_eq!(&self.take::<16>(), b"NBDMAGICIHAVEOPT");
        assert_eq!(self.take::<2>(), [0, 3], "fixed newstyle, no zeros");
        self.0.write_all(&flags.to_be_bytes()).expect("sent");
    }

    fn option(&mut self, kind: u32, data: &[u8]) {
        let head = [&b"IHAVEOPT"[..], &kind.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat();
        self.0.write_all(&head).expect("sent");
    }

    /// Type and data of a reply to an option.
    fn reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        assert_eq!(u64::from_be_bytes(self.take()), 0x0003_e889_0455_65a9);
        assert_eq!(u32::from_be_bytes(self.take()), option);
        let kind = u32::from_be_bytes(self.take());
        let mut data = vec![0; u32::from_be_bytes(self.take()) as usize];
        self.0.read_exact(&mut data).expect("its data");
        (kind, data)
    }

    fn request(&mut self, flags: u16, kind: u16, offset: u64, length: u32, data: &[u8]) {
        self.request_as(0x0123_4567_89ab_cdef, flags, kind, (offset, length), data);
    }

    fn request_as(&mut self, handle: u64, flags: u16, kind: u16, (offset, length): (u64, u32), data: &[u8]) {
        let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
        bytes.extend([flags.to_be_bytes(), kind.to_be_bytes()].concat());
        bytes.extend(handle.to_be_bytes());
        bytes.extend([&offset.to_be_bytes()[..], &length.to_be_bytes(), data].concat());
        self.0.write_all(&bytes).expect("sent");
    }

    /// Error and handle of a reply.
    fn answer(&mut self) -> (u32, u64) {
        assert_eq!(u32::from_be_bytes(self.take()), 0x6744_6698);
        (u32::from_be_bytes(self.take()), u64::from_be_bytes(self.take()))
    }

    /// The error of the reply to the only request.
    fn error(&mut self) -> u32 {
        let (error, handle) = self.answer();
        assert_eq!(handle, 0x0123_4567_89ab_cdef);
        error
    }

    fn ask(&mut self, kind: u16, offset: u64, length: u32, data: &[u8]) -> u32 {
        self.request(0, kind, offset, length, data);
        self.error()
    }

    /// What comes until the server has closed the connection; an error if it does not.
    fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            // It had not read all that was sent to it.
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error),
            _ => Ok(rest),
        }
    }

    /// The server has closed the connection.
    fn is_left(&mut self) -> bool {
        // What it had sent before may come first.
        self.rest().is_ok()
    }
}

#[test]
fn go_tells_size_flags_and_block_sizes() {
    let rig = Rig::new("go", false);
    let mut client = rig.connect();
    client.greet(3);
    client.option(7, &[0; 6]);
    let (kind, export) = client.reply(7);
    assert_eq!((kind, export.len(), &export[..2]), (3, 12, &[0, 0][..]));
    assert_eq!(export[2..10], (BYTES as u64).to_be_bytes());
    // HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, CAN_MULTI_CONN.
    assert_eq!(export[10..], 0x16du16.to_be_bytes());
    let (_, sizes) = client.reply(7);
    assert_eq!(
        sizes,
        [&[0, 3][..], &512u32.to_be_bytes(), &4096u32.to_be_bytes(), &(32u32 << 20).to_be_bytes()].concat()
    );
    assert_eq!(client.reply(7), (1, vec![]));
}

#[test]
fn other_options_are_answered_and_negotiation_goes_on() {
    let rig = Rig::new("options", false);
    let mut client = rig.connect();
    client.greet(1);
    for unsupported in [5, 8, 10, 0, u32::MAX] {
        client.option(unsupported, b"whatever");
        assert_eq!(client.reply(unsupported).0, 0x8000_0001);
    }
    client.option(3, &[]);
    assert_eq!((client.reply(3), client.reply(3).0), ((2, vec![0; 4]), 1), "one export, of no name");
    client.option(3, b"data");
    assert_eq!(client.reply(3).0, 0x8000_0003);
    client.option(6, &[0, 0, 0, 5, b'o', b't', b'h', b'e', b'r', 0, 0]);
    assert_eq!(client.reply(6).0, 0x8000_0006, "no such export");
    for malformed in [&[][..], &[0; 3], &[0xff; 6], &[0, 0, 0, 0, 0, 9], &[0, 0, 0, 0, 0, 0, 0]] {
        client.option(6, malformed);
        assert_eq!(client.reply(6).0, 0x8000_0003, "{malformed:?}");
    }
    client.option(1, &[]);
    assert_eq!(client.take::<10>()[..8], (BYTES as u64).to_be_bytes(), "the old way");
    assert_eq!(client.take::<124>(), [0; 124]);
    assert_eq!(client.ask(3, 0, 0, &[]), 0);
}

#[test]
fn data_written_is_read_by_another_connection() {
    let rig = Rig::new("data", false);
    let (mut one, mut two) = (rig.client(), rig.client());
    assert_eq!(one.ask(1, 1024, 512, &[7; 512]), 0);
    assert_eq!(two.ask(0, 512, 1024, &[]), 0);
    assert_eq!(two.take::<1024>(), <[u8; 1024]>::try_from([[0; 512], [7; 512]].concat()).expect("1024"));
    assert_eq!(one.ask(6, 1024, 512, &[]), 0);
    assert_eq!(two.ask(0, 1024, 512, &[]), 0);
    assert_eq!(two.take::<512>(), [0; 512]);
}

#[test]
fn requests_under_way_are_answered_in_the_order_of_their_end_each_with_its_handle() {
    const COUNT: u64 = 8;
    let rig = Rig::new("handles", false);
    for block in 0..COUNT {
        rig.memory.bytes.lock().expect("not poisoned")[block as usize * 512..][..512].fill(block as u8 + 1);
    }
    // None ends before all have come: a server that does one after the other would wait for ever.
    rig.memory.holds.store(COUNT as usize, Ordering::SeqCst);
    let mut client = rig.client();
    let handle = |block: u64| 0xfeed_0000_0000_0000 | block.wrapping_mul(0x0101_0101);
    for block in 0..COUNT {
        client.request_as(handle(block), 0, 0, (block * 512, 512), &[]);
    }
    for block in (0..COUNT).rev() {
        assert_eq!(client.answer(), (0, handle(block)));
        assert_eq!(client.take::<512>(), [block as u8 + 1; 512], "the data of another request");
    }
}

#[test]
fn refusal_and_data_of_writes_are_not_mixed_up_among_requests_under_way() {
    let rig = Rig::new("mixed", false);
    rig.memory.holds.store(3, Ordering::SeqCst);
    let mut client = rig.client();
    client.request_as(1, 0, 1, (0, 512), &[1; 512]);
    client.request_as(2, 0, 1, (BYTES as u64, 512), &[2; 512]);
    client.request_as(3, 0, 1, (512, 1024), &[3; 1024]);
    client.request_as(4, 1, 6, (1536, 512), &[]);
    let mut answers: Vec<(u32, u64)> = (0..4).map(|_| client.answer()).collect();
    answers.sort_by_key(|(_, handle)| *handle);
    assert_eq!(answers, [(0, 1), (28, 2), (0, 3), (0, 4)]);
    let bytes = rig.memory.bytes.lock().expect("not poisoned");
    assert_eq!(bytes[..2048], [[1; 512], [3; 512], [3; 512], [0; 512]].concat());
}

#[test]
fn client_that_leaves_with_requests_under_way_leaves_a_disk_for_the_next() {
    let rig = Rig::new("leaves", false);
    rig.memory.holds.store(4, Ordering::SeqCst);
    // As many as there are disks.
    for mut client in [rig.client(), rig.client()] {
        for block in 0..64 {
            client.request_as(block, 0, 0, (0, BYTES as u32), &[]);
        }
    }
    rig.memory.holds.store(0, Ordering::SeqCst);
    let deadline = udrv::clock::Deadline::after(Duration::from_secs(20));
    let served = || Ok(rig.connect().0.read(&mut [0; 1]).is_ok_and(|count| count == 1));
    deadline.poll("a free disk", served).expect("served");
}

#[test]
fn fua_is_durable_and_flush_flushes() {
    let rig = Rig::new("fua", false);
    let mut client = rig.client();
    assert_eq!((client.ask(1, 0, 512, &[1; 512]), rig.memory.flushes.load(Ordering::SeqCst)), (0, 0));
    for (count, (kind, data)) in (1..).zip([(1, &[2; 512][..]), (4, &[]), (6, &[])]) {
        client.request(1, kind, 0, 512, data);
        assert_eq!((client.error(), rig.memory.flushes.load(Ordering::SeqCst)), (0, count), "type {kind}");
    }
    assert_eq!((client.ask(3, 0, 0, &[]), rig.memory.flushes.load(Ordering::SeqCst)), (0, 4));
}

#[test]
fn request_that_does_not_fit_is_refused_and_the_stream_stays_in_step() {
    let rig = Rig::new("fit", false);
    let mut client = rig.client();
    let end = BYTES as u64;
    for (kind, offset, length, error) in [
        (0, end, 512, 22),
        (0, u64::MAX - 511, 512, 22),
        (0, 0, (32 << 20) + 512, 22),
        (0, 1, 512, 22),
        (1, end - 512, 1024, 28),
        (1, 0, 100, 22),
        (4, end, 512, 28),
        (6, 0, u32::MAX, 28),
        (5, 0, 512, 22),
        (0xffff, 0, 0, 22),
    ] {
        let data = vec![9; if kind == 1 { length as usize } else { 0 }];
        assert_eq!(client.ask(kind, offset, length, &data), error, "type {kind}, {length} bytes at {offset}");
    }
    client.request(0x8000, 0, 0, 512, &[]);
    assert_eq!(client.error(), 22, "a flag that no read has");
    assert_eq!(client.ask(3, 0, 0, &[]), 0);
    assert_eq!(*rig.memory.bytes.lock().expect("not poisoned"), vec![0; BYTES]);
}

#[test]
fn export_that_is_read_only_takes_no_writes() {
    let rig = Rig::new("read-only", true);
    let mut client = rig.client();
    assert_eq!(client.ask(1, 0, 512, &[1; 512]), 1, "EPERM");
    assert_eq!(client.ask(0, 0, 512, &[]), 0);
}

#[test]
fn client_that_breaks_the_protocol_is_left_and_the_next_one_served() {
    let rig = Rig::new("broken", false);
    let negotiating: [&[u8]; 5] = [
        &[0xff; 4],
        &[[0, 0, 0, 3].as_slice(), &[0; 16]].concat(),
        &[[0, 0, 0, 3].as_slice(), b"IHAVEOPT", &[0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff]].concat(),
        &[[0, 0, 0, 3].as_slice(), b"IHAVEOPT", &[0, 0, 0, 1, 0, 0, 0, 1, b'x']].concat(),
        &[[0, 0, 0, 3].as_slice(), &b"IHAVEOPT\0\0\0\x09\0\0\0\0".repeat(64)].concat(),
    ];
    for bytes in negotiating {
        let mut client = rig.connect();
        client.0.write_all(bytes).expect("sent");
        assert!(client.is_left(), "{bytes:?}");
    }
    let mut client = rig.client();
    client.0.write_all(&[0; 28]).expect("sent");
    assert!(client.is_left(), "no magic number");
    let mut client = rig.client();
    client.request(0, 1, 0, u32::MAX, &[]);
    assert!(client.is_left(), "a write of 4 GiB");
    let mut client = rig.client();
    client.request(0, 1, 0, 512, &[1; 100]);
    drop(client);
    assert_eq!(rig.client().ask(3, 0, 0, &[]), 0);
}

#[test]
fn client_more_than_there_are_disks_is_turned_away_until_one_leaves() {
    let rig = Rig::new("many", false);
    let (one, _two) = (rig.client(), rig.client());
    assert!(rig.connect().is_left(), "a third");
    drop(one);
    let deadline = udrv::clock::Deadline::after(Duration::from_secs(20));
    let served = || Ok(rig.connect().0.read(&mut [0; 1]).is_ok_and(|count| count == 1));
    deadline.poll("a free disk", served).expect("served");
}

#[test]
fn stop_ends_idle_clients_and_takes_the_socket_away() {
    let rig = Rig::new("stop", false);
    let mut client = rig.client();
    let path = rig.path.clone();
    rig.end().expect("ended");
    assert!(client.is_left() && !path.exists());
}

#[test]
fn disk_that_is_gone_ends_the_server_with_its_error() {
    let rig = Rig::new("gone", false);
    let mut client = rig.client();
    rig.memory.is_gone.store(true, Ordering::SeqCst);
    assert_eq!(client.ask(1, 0, 512, &[1; 512]), 5, "EIO");
    assert!(client.is_left());
    assert!(matches!(rig.end(), Err(Error::Gone { .. })));
}

#[test]
fn socket_left_by_a_server_that_was_killed_is_replaced_and_one_in_use_is_not() {
    let path = std::env::temp_dir().join(format!("udrv-nbd-left-{}.sock", std::process::id()));
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    let listener = bind(&path).expect("replaced");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).expect("there").permissions());
    assert_eq!(mode & 0o777, 0o600, "for this user only");
    assert!(matches!(bind(&path), Err(Error::Unavailable { .. })));
    drop(listener);
    std::fs::write(&path, b"a file").expect("written");
    assert!(bind(&path).is_err());
    assert_eq!(std::fs::read(&path).expect("untouched"), b"a file");
    std::fs::remove_file(&path).expect("removed");
}

/// Whatever the bytes: a type, or none.
#[test]
fn any_bytes_decode_or_are_refused() {
    let mut state = 1u64;
    for length in 0..64 {
        for _ in 0..200 {
            let mut bytes = vec![0u8; length];
            for byte in &mut bytes {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = if state >> 63 == 0 { (state >> 40) as u8 } else { 0 };
            }
            let _ = super::wire::wanted_export(&bytes);
            if let Some(head) = bytes.first_chunk() {
                let _ = super::wire::option_head(*head);
            }
            if let Some(mut head) = bytes.first_chunk().copied() {
                assert_eq!(super::wire::Request::decode(head), None, "without the magic number");
                head[..4].copy_from_slice(&0x2560_9513u32.to_be_bytes());
                assert!(super::wire::Request::decode(head).is_some());
            }
        }
    }
}
