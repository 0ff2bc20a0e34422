//! The client against servers that lie, stall and break off: each gives the right error quickly, and none hangs.
//!
//! A server here is a script over one connection: it behaves up to a point, which is where the test begins.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use udrv::vfio_user::Client;
use udrv_backend::{Backend, Dma as _, DmaAccess, DmaMap, Error, IrqIndex, RegionIndex, Width};
use udrv_wire::{self as wire, Command, Errno, Header, Limits, MessageKind, Request};

/// How long the client waits for one reply in these tests.
const PATIENCE: Duration = Duration::from_millis(300);
/// When a test that should take [`PATIENCE`] has hung: this machine may be busy.
const HUNG: Duration = Duration::from_secs(20);

/// The server's end of a connection.
struct Peer(UnixStream);

type Incoming = (Header, Vec<u8>);

impl Peer {
    /// The next request; `None` once the client has gone.
    fn next(&mut self) -> Option<Incoming> {
        let mut head = [0; 16];
        self.0.read_exact(&mut head).ok()?;
        let header = Header::decode(&head, 1 << 20).expect("the client's header");
        let mut payload = vec![0; header.payload_len() as usize];
        self.0.read_exact(&mut payload).ok()?;
        Some((header, payload))
    }

    fn send(&mut self, header: &Header, payload: &[u8]) {
        let _gone = self.0.write_all(&[&header.encode()[..], payload].concat());
    }

    fn reply(&mut self, (header, _): &Incoming, payload: &[u8]) {
        self.send(&header.reply(payload.len()), payload);
    }

    fn fail(&mut self, (header, _): &Incoming, errno: Errno) {
        self.send(&Header::error_reply(header.msg_id, header.command, errno), &[]);
    }

    /// Answers as a decent device with one region of 4096 bytes and one MSI would.
    fn behave(&mut self, incoming: &Incoming) {
        let payload = decent(incoming);
        self.reply(incoming, &payload);
    }

    /// Behaves until a request of this kind; that one.
    fn until(&mut self, command: Command) -> Incoming {
        loop {
            let incoming = self.next().expect("the client goes on");
            if incoming.0.command == command {
                return incoming;
            }
            self.behave(&incoming);
        }
    }

    fn behave_on(&mut self) {
        while let Some(incoming) = self.next() {
            self.behave(&incoming);
        }
    }

    /// Waits until the client hangs up.
    fn drain(&mut self) {
        let _all = self.0.read_to_end(&mut Vec::new());
    }
}

fn decent((header, payload): &Incoming) -> Vec<u8> {
    match Request::decode(header.command, payload, &Limits::default()).expect("the client's request") {
        Request::Version(version) => version.encode(),
        Request::DeviceGetInfo(_) => {
            let flags = wire::DeviceFlags::PCI | wire::DeviceFlags::RESET;
            wire::DeviceInfo { flags, num_regions: 9, num_irqs: 5 }.encode()
        }
        Request::DeviceGetRegionInfo(request) => region(request.index).encode(request.argsz),
        Request::DeviceGetIrqInfo(request) => {
            let count = u32::from(request.index == 1);
            wire::IrqInfo { flags: wire::IrqFlags::EVENTFD, index: request.index, count }.encode()
        }
        Request::RegionRead(read) => {
            let data = vec![0x5a; read.count as usize];
            wire::RegionData { offset: read.offset, region: read.region, data: &data }.encode()
        }
        Request::RegionWrite(write) => {
            let count = write.data.len() as u32;
            wire::RegionWriteReply { offset: write.offset, region: write.region, count }.encode()
        }
        Request::DmaUnmap(unmap) => unmap.encode(),
        _ => Vec::new(),
    }
}

fn region(index: u32) -> wire::RegionInfo {
    let size = if index == 0 || index == 7 { 4096 } else { 0 };
    let flags = wire::RegionFlags::READ | wire::RegionFlags::WRITE;
    wire::RegionInfo { index, flags, size, offset: 0, sparse_areas: None }
}

/// A socket with a script behind it, which has ended when the test ends.
struct Server {
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
    started: Instant,
}

impl Server {
    fn run(script: impl FnOnce(&mut Peer) + Send + 'static) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("udrv-hostile-{}-{number}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).expect("a socket");
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            stream.set_read_timeout(Some(HUNG)).expect("a timeout");
            let mut peer = Peer(stream);
            script(&mut peer);
        });
        Self { path, thread: Some(thread), started: udrv_backend::clock::now() }
    }

    fn connect(&self) -> Result<Client, Error> {
        Client::connect_with(&self.path, PATIENCE)
    }

    /// The error of a connection that must fail.
    fn refusal(&self) -> Error {
        self.connect().err().expect("the client must not believe this server")
    }

    /// The error of a read through a connection that came about.
    fn read_error(&self) -> (Client, Error) {
        let client = self.connect().expect("decent so far");
        let error = client.read(RegionIndex::BAR0, 0, Width::Bits32).expect_err("the reply was wrong");
        (client, error)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = self.thread.take().expect("one thread").join();
        let _removed = std::fs::remove_file(&self.path);
        if !std::thread::panicking() {
            ended.expect("the script ends well");
            assert!(self.started.elapsed() < HUNG, "took {:?}", self.started.elapsed());
        }
    }
}

/// Every later request fails at once, without asking.
fn assert_gone(client: &Client) {
    let before = udrv_backend::clock::now();
    for _ in 0..20 {
        let again = client.read(RegionIndex::BAR0, 0, Width::Bits32);
        assert!(matches!(again, Err(Error::Gone { .. })), "{again:?}");
    }
    assert!(before.elapsed() < PATIENCE, "a device that is gone must say so at once");
}

#[test]
fn decent_server_is_believed() {
    let server = Server::run(Peer::behave_on);
    let client = server.connect().expect("decent");
    assert_eq!(client.read(RegionIndex::BAR0, 8, Width::Bits16).expect("a read"), 0x5a5a);
    client.write(RegionIndex::BAR0, 8, Width::Bits64, 1).expect("a write");
}

#[test]
fn nonsense_instead_of_a_version_is_a_protocol_error() {
    let server = Server::run(|peer| {
        let _gone = peer.0.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        peer.drain();
    });
    assert!(matches!(server.refusal(), Error::Protocol { .. }));
}

#[test]
fn silence_is_a_timeout() {
    let server = Server::run(Peer::drain);
    let error = server.refusal();
    assert!(matches!(error, Error::Timeout { after: PATIENCE, .. }), "{error}");
}

#[test]
fn silence_later_is_a_timeout_and_then_gone() {
    let server = Server::run(|peer| {
        peer.until(Command::REGION_READ);
        peer.drain();
    });
    let (client, error) = server.read_error();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert_gone(&client);
}

#[test]
fn server_that_accepts_nobody_is_an_error() {
    let path = std::env::temp_dir().join(format!("udrv-hostile-full-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path).expect("a socket");
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).expect("0")).expect("a short queue");
    let started = udrv_backend::clock::now();
    // The queue holds one or two; each of those connects, and waits for an answer in vain.
    let error = loop {
        match Client::connect_with(&path, Duration::from_millis(50)) {
            Err(Error::Timeout { .. }) => {}
            outcome => break outcome.err().expect("nobody answers"),
        }
        assert!(started.elapsed() < HUNG);
    };
    let _removed = std::fs::remove_file(&path);
    assert!(matches!(&error, Error::Os { cause, .. } if cause.kind() == std::io::ErrorKind::WouldBlock), "{error}");
}

#[test]
fn closing_after_each_byte_of_a_reply_is_noticed() {
    // A whole reply to a read is 16 + 16 + 4 bytes.
    for length in 0..36 {
        let server = Server::run(move |peer| {
            let incoming = peer.until(Command::REGION_READ);
            let payload = decent(&incoming);
            let whole = [&incoming.0.reply(payload.len()).encode()[..], &payload].concat();
            let _gone = peer.0.write_all(whole.get(..length).expect("less than the whole"));
        });
        let (client, error) = server.read_error();
        assert!(matches!(error, Error::Gone { .. }), "after {length} bytes: {error}");
        assert_gone(&client);
    }
}

#[test]
fn stopping_after_each_byte_of_a_header_is_a_timeout() {
    for length in [1, 4, 15, 16, 17, 35] {
        let server = Server::run(move |peer| {
            let incoming = peer.until(Command::REGION_READ);
            let payload = decent(&incoming);
            let whole = [&incoming.0.reply(payload.len()).encode()[..], &payload].concat();
            let _gone = peer.0.write_all(whole.get(..length).expect("less than the whole"));
            peer.drain();
        });
        let (_client, error) = server.read_error();
        assert!(matches!(error, Error::Timeout { .. }), "after {length} bytes: {error}");
    }
}

#[test]
fn reply_to_another_request_is_a_protocol_error() {
    let server = Server::run(|peer| {
        let incoming = peer.until(Command::REGION_READ);
        let payload = decent(&incoming);
        let header = Header { msg_id: incoming.0.msg_id.wrapping_add(1), ..incoming.0.reply(payload.len()) };
        peer.send(&header, &payload);
        peer.drain();
    });
    let (client, error) = server.read_error();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    assert_gone(&client);
}

#[test]
fn reply_to_another_command_is_a_protocol_error() {
    let server = Server::run(|peer| {
        let incoming = peer.until(Command::REGION_READ);
        peer.send(&Header { command: Command::DEVICE_RESET, ..incoming.0.reply(0) }, &[]);
        peer.drain();
    });
    assert!(matches!(server.read_error().1, Error::Protocol { .. }));
}

#[test]
fn error_reply_is_the_error_and_the_device_stays() {
    let server = Server::run(|peer| {
        let incoming = peer.until(Command::REGION_READ);
        peer.fail(&incoming, Errno::EBUSY);
        peer.behave_on();
    });
    let (client, error) = server.read_error();
    assert!(matches!(&error, Error::Os { cause, .. } if cause.raw_os_error() == Some(16)), "{error}");
    assert_eq!(client.read(RegionIndex::BAR0, 0, Width::Bits8).expect("the next read"), 0x5a);
}

#[test]
fn error_reply_where_a_description_was_expected_is_the_error() {
    for command in [Command::VERSION, Command::DEVICE_GET_INFO, Command::DEVICE_GET_REGION_INFO] {
        let server = Server::run(move |peer| {
            let incoming = peer.until(command);
            peer.fail(&incoming, Errno::EINVAL);
            peer.drain();
        });
        assert!(matches!(server.refusal(), Error::Os { .. }), "{command}");
    }
}

#[test]
fn header_size_that_cannot_be_is_a_protocol_error() {
    for size in [0u32, 15, 1 << 21, u32::MAX] {
        let server = Server::run(move |peer| {
            let incoming = peer.until(Command::REGION_READ);
            peer.send(&Header { size, ..incoming.0.reply(0) }, &[]);
            peer.drain();
        });
        let error = server.read_error().1;
        assert!(matches!(error, Error::Protocol { .. }), "{size}: {error}");
    }
}

#[test]
fn reply_of_wrong_length_is_a_protocol_error() {
    let commands = [
        (Command::VERSION, 3),
        (Command::DEVICE_GET_INFO, 8),
        (Command::DEVICE_GET_REGION_INFO, 31),
        (Command::DEVICE_GET_IRQ_INFO, 8),
    ];
    for (command, length) in commands {
        let server = Server::run(move |peer| {
            let incoming = peer.until(command);
            let mut payload = decent(&incoming);
            payload.truncate(length);
            peer.reply(&incoming, &payload);
            peer.drain();
        });
        let error = server.refusal();
        assert!(matches!(error, Error::Protocol { .. }), "{command}: {error}");
    }
}

#[test]
fn read_of_another_length_is_a_protocol_error() {
    for length in [0usize, 3, 5, 4096] {
        let server = Server::run(move |peer| {
            let incoming = peer.until(Command::REGION_READ);
            let data = vec![1; length];
            peer.reply(&incoming, &wire::RegionData { offset: 0, region: 0, data: &data }.encode());
            peer.drain();
        });
        let error = server.read_error().1;
        assert!(matches!(error, Error::Protocol { .. }), "{length} bytes: {error}");
    }
}

#[test]
fn write_that_was_cut_short_is_a_protocol_error() {
    let server = Server::run(|peer| {
        let incoming = peer.until(Command::REGION_WRITE);
        peer.reply(&incoming, &wire::RegionWriteReply { offset: 0, region: 0, count: 3 }.encode());
        peer.drain();
    });
    let client = server.connect().expect("decent so far");
    let error = client.write(RegionIndex::BAR0, 0, Width::Bits32, 1).expect_err("3 of 4 bytes");
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[test]
fn huge_counts_are_a_protocol_error() {
    for (num_regions, num_irqs) in [(u32::MAX, 5), (9, u32::MAX), (65, 5)] {
        let server = Server::run(move |peer| {
            let incoming = peer.until(Command::DEVICE_GET_INFO);
            let info = wire::DeviceInfo { flags: wire::DeviceFlags::PCI, num_regions, num_irqs };
            peer.reply(&incoming, &info.encode());
            peer.drain();
        });
        assert!(matches!(server.refusal(), Error::Protocol { .. }), "{num_regions} {num_irqs}");
    }
}

#[test]
fn vector_count_of_all_ones_costs_nothing() {
    let server = Server::run(|peer| {
        let incoming = peer.until(Command::DEVICE_GET_IRQ_INFO);
        let info = wire::IrqInfo { flags: wire::IrqFlags::EVENTFD, index: 0, count: u32::MAX };
        peer.reply(&incoming, &info.encode());
        peer.behave_on();
    });
    let client = server.connect().expect("allowed");
    assert_eq!(client.irq(IrqIndex::INTX).expect("irq 0").count, u32::MAX);
    assert!(matches!(client.fire_irq(IrqIndex::INTX, u32::MAX), Err(Error::NoSuchIrq { .. })));
}

#[test]
fn version_of_another_protocol_is_a_protocol_error() {
    for (major, minor) in [(1, 0), (0, 3), (u16::MAX, u16::MAX)] {
        let server = Server::run(move |peer| {
            let incoming = peer.until(Command::VERSION);
            let capabilities = wire::Capabilities::default();
            peer.reply(&incoming, &wire::Version { major, minor, capabilities }.encode());
            peer.drain();
        });
        assert!(matches!(server.refusal(), Error::Protocol { .. }), "{major}.{minor}");
    }
}

#[test]
fn capabilities_at_their_limits_are_survived() {
    let server = Server::run(|peer| {
        let incoming = peer.until(Command::VERSION);
        let capabilities = wire::Capabilities {
            max_msg_fds: 0,
            max_data_xfer_size: 0,
            max_dma_maps: 0,
            pgsizes: 2 << 20,
            ..wire::Capabilities::default()
        };
        peer.reply(&incoming, &wire::Version { major: 0, minor: 1, capabilities }.encode());
        peer.behave_on();
    });
    let client = std::sync::Arc::new(server.connect().expect("allowed"));
    assert_eq!(client.limits().page_size, 2 << 20);
    assert!(udrv::dma::Pool::new(client.clone(), 4096, 64).is_ok());
}

#[test]
fn smallest_page_of_gigabytes_is_a_protocol_error() {
    for pgsizes in [1 << 34, 1 << 63, 4 << 20] {
        let server = Server::run(move |peer| {
            let incoming = peer.until(Command::VERSION);
            let capabilities = wire::Capabilities { pgsizes, ..wire::Capabilities::default() };
            peer.reply(&incoming, &wire::Version { major: 0, minor: 1, capabilities }.encode());
            peer.behave_on();
        });
        let error = server.refusal();
        assert!(matches!(error, Error::Protocol { .. }), "{pgsizes:#x}: {error}");
    }
}

/// Answers the first region info with a file of `length` bytes along with it.
fn mapped_region(info: wire::RegionInfo, length: i64) -> Server {
    Server::run(move |peer| {
        let (header, _) = peer.until(Command::DEVICE_GET_REGION_INFO);
        let file = memfd(length);
        let payload = info.encode(4096);
        let bytes = [&header.reply(payload.len()).encode()[..], &payload].concat();
        send_with_file(&peer.0, &bytes, &file);
        peer.behave_on();
    })
}

fn memfd(length: i64) -> std::os::fd::OwnedFd {
    let file = nix::sys::memfd::memfd_create(c"region", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).expect("a memfd");
    nix::unistd::ftruncate(&file, length).expect("its size");
    file
}

fn send_with_file(stream: &UnixStream, bytes: &[u8], file: &std::os::fd::OwnedFd) {
    use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
    use std::os::fd::AsRawFd as _;
    let rights = [ControlMessage::ScmRights(&[file.as_raw_fd()])];
    let parts = [std::io::IoSlice::new(bytes)];
    sendmsg::<UnixAddr>(stream.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None).expect("sent");
}

fn mappable(areas: Option<Vec<(u64, u64)>>) -> wire::RegionInfo {
    let area = |(offset, size)| wire::SparseArea { offset, size };
    let sparse_areas = areas.map(|areas| areas.into_iter().map(area).collect());
    let info = region(0);
    wire::RegionInfo { flags: info.flags | wire::RegionFlags::MMAP, size: 0x4000, offset: 0x1000, sparse_areas, ..info }
}

#[test]
fn region_with_a_file_is_mapped_where_the_server_says() {
    use udrv::mmio::{Io as _, Mapped};
    let server = mapped_region(mappable(Some(vec![(0x3000, 0x1000), (0, 0x1000)])), 0x5000);
    let client = server.connect().expect("decent");
    let file = client.mappable().expect("mappable").region_file(RegionIndex::BAR0).expect("a file");
    assert_eq!(file.offset, 0x1000);
    let behind = std::fs::File::from(file.file.try_clone_to_owned().expect("a duplicate"));
    behind.write_all_at(&0xfeed_u32.to_ne_bytes(), 0x1008).expect("written");

    let io: Mapped<0x1000> = Mapped::map(&client, RegionIndex::BAR0).expect("mapped").expect("mappable");

    assert_eq!(io.load::<u32>(8).expect("in bounds"), 0xfeed);
    // Beyond the first area: not as one mapping.
    assert!(Mapped::<0x2000>::map(&client, RegionIndex::BAR0).expect("no error").is_none());
}

#[test]
fn region_without_areas_is_mappable_as_a_whole() {
    let server = mapped_region(mappable(None), 0x5000);
    let client = server.connect().expect("decent");
    let info = client.region(RegionIndex::BAR0).expect("BAR 0");
    assert_eq!(info.mappable, [udrv_backend::SparseArea { offset: 0, size: 0x4000 }]);
}

#[test]
fn region_with_the_flag_and_no_file_is_reached_by_message() {
    let server = Server::run(|peer| {
        let incoming = peer.until(Command::DEVICE_GET_REGION_INFO);
        peer.reply(&incoming, &mappable(None).encode(4096));
        peer.behave_on();
    });
    let client = server.connect().expect("allowed");
    assert!(client.mappable().is_none());
    assert!(client.region(RegionIndex::BAR0).expect("BAR 0").mappable.is_empty());
}

#[test]
fn file_shorter_than_its_region_reads_as_gone() {
    use udrv::mmio::{Io as _, Mapped};
    let server = mapped_region(mappable(None), 0x1000);
    let client = server.connect().expect("decent so far");
    let io: Mapped<0x1000> = Mapped::map(&client, RegionIndex::BAR0).expect("mapped").expect("mappable");
    assert_eq!(io.load::<u32>(0).expect("in bounds"), u32::MAX);
    assert!(io.alive().is_err());
}

#[test]
fn areas_that_cannot_be_are_a_protocol_error() {
    let wrong = [
        vec![(0, 0x2000), (0x1000, 0x1000)],
        vec![(0, 0)],
        vec![(0x3000, 0x2000)],
        vec![(u64::MAX, 1)],
        vec![(1, u64::MAX)],
    ];
    for areas in wrong {
        let server = mapped_region(mappable(Some(areas.clone())), 0x5000);
        assert!(matches!(server.refusal(), Error::Protocol { .. }), "{areas:?}");
    }
}

#[test]
fn region_of_all_ones_is_bounded_without_a_panic() {
    let info = wire::RegionInfo { size: u64::MAX, offset: 0, ..mappable(None) };
    let server = mapped_region(info, 0x5000);
    assert!(matches!(server.refusal(), Error::Protocol { .. }), "no file is that large");
    let server = Server::run(|peer| {
        let incoming = peer.until(Command::DEVICE_GET_REGION_INFO);
        peer.reply(&incoming, &wire::RegionInfo { size: u64::MAX, ..region(0) }.encode(4096));
        peer.behave_on();
    });
    let client = server.connect().expect("allowed: a region may be large");
    assert!(client.read(RegionIndex::BAR0, u64::MAX, Width::Bits64).is_err());
    assert!(client.read(RegionIndex::BAR0, u64::MAX - 7, Width::Bits64).is_err());
}

#[test]
fn region_info_that_needs_more_room_is_asked_for_again() {
    let server = Server::run(|peer| {
        let areas: Vec<_> = (0..400).map(|n| (n * 8, 4)).collect();
        let incoming = peer.until(Command::DEVICE_GET_REGION_INFO);
        peer.reply(&incoming, &mappable(Some(areas.clone())).encode(4096));
        let again = peer.next().expect("asked again");
        let Ok(Request::DeviceGetRegionInfo(request)) = Request::decode(again.0.command, &again.1, &Limits::default())
        else {
            panic!("{again:?}")
        };
        assert_eq!(request.argsz, 32 + 16 + 400 * 16);
        let payload = mappable(Some(areas)).encode(request.argsz);
        send_with_file(&peer.0, &[&again.0.reply(payload.len()).encode()[..], &payload].concat(), &memfd(0x5000));
        peer.behave_on();
    });
    let client = server.connect().expect("decent");
    assert_eq!(client.region(RegionIndex::BAR0).expect("BAR 0").mappable.len(), 400);
}

#[test]
fn region_info_that_never_has_room_enough_is_a_protocol_error() {
    for needed in [8192u32, u32::MAX] {
        let server = Server::run(move |peer| {
            // As an old library does: flags with capabilities, and an argsz that is never reached.
            peer.until(Command::VERSION);
            let mut incoming = Some((Header::command(0, Command::VERSION, 0), Vec::new()));
            while let Some((header, payload)) = incoming.take() {
                if header.command == Command::VERSION {
                    let version = wire::Version { major: 0, minor: 1, capabilities: wire::Capabilities::default() };
                    let bytes = version.encode();
                    peer.send(&header.reply(bytes.len()), &bytes);
                } else if header.command == Command::DEVICE_GET_REGION_INFO {
                    let mut bytes = mappable(Some(vec![(0, 0x1000)])).encode(32);
                    bytes.splice(..4, needed.to_ne_bytes());
                    peer.send(&header.reply(bytes.len()), &bytes);
                } else {
                    peer.behave(&(header, payload));
                }
                incoming = peer.next();
            }
        });
        assert!(matches!(server.refusal(), Error::Protocol { .. }), "{needed}");
    }
}

/// A client with 2 pages of memory that the device may read at 0x10000 and 1 that it may write at 0x20000, in one file.
fn with_memory(server: &Server) -> (Client, std::fs::File) {
    let client = server.connect().expect("decent so far");
    let file = std::fs::File::from(memfd(0x3000));
    file.write_all_at(&[0x11; 0x3000], 0).expect("filled");
    for (iova, size, offset, access) in
        [(0x1_0000, 0x2000, 0, DmaAccess::READ), (0x2_0000, 0x1000, 0x2000, DmaAccess::WRITE)]
    {
        client.map(&DmaMap { iova, size, access, file: file.as_fd(), offset }).expect("mapped");
    }
    (client, file)
}

/// What the client answers to one DMA request while it waits for a read.
fn ask(peer: &mut Peer, request: &Request<'_>) -> (Header, Vec<u8>) {
    let payload = request.encode();
    peer.send(&Header::command(77, request.command(), payload.len()), &payload);
    let reply = peer.next().expect("an answer");
    assert_eq!((reply.0.kind, reply.0.msg_id), (MessageKind::Reply, 77));
    reply
}

#[test]
fn dma_by_message_reaches_the_mappings_in_their_direction() {
    let server = Server::run(|peer| {
        let incoming = peer.until(Command::REGION_READ);
        let (header, payload) = ask(peer, &Request::DmaRead(wire::DmaRead { address: 0x1_0ff8, count: 16 }));
        assert_eq!(header.error, None);
        let data = wire::DmaData::decode_read_reply(&payload, &Limits::default()).expect("data");
        assert_eq!(data.data, [0x11; 16]);
        let (header, payload) = ask(peer, &Request::DmaWrite(wire::DmaWrite { address: 0x2_0010, data: &[0x22; 8] }));
        assert_eq!(header.error, None);
        assert_eq!(wire::DmaWriteReply::decode(&payload).expect("a reply").count, 8);
        peer.behave(&incoming);
        peer.behave_on();
    });
    let (client, file) = with_memory(&server);
    client.read(RegionIndex::BAR0, 0, Width::Bits32).expect("the read, after the server's DMA");
    let mut came = [0; 10];
    file.read_exact_at(&mut came, 0x200f).expect("read");
    assert_eq!(came, [0x11, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x11]);
}

#[test]
fn dma_by_message_outside_or_against_a_mapping_is_refused() {
    let server = Server::run(|peer| {
        let incoming = peer.until(Command::REGION_READ);
        let read = |address, count| Request::DmaRead(wire::DmaRead { address, count });
        let write = |address| Request::DmaWrite(wire::DmaWrite { address, data: &[0x33; 8] });
        let refused = [
            (read(0, 8), Errno::EFAULT),
            (read(0x1_1ffc, 8), Errno::EFAULT),
            (read(0x1_0000, 0x2001), Errno::EFAULT),
            (read(0x2_0000, 8), Errno::EACCES),
            (write(0x1_0000), Errno::EACCES),
            (write(0x2_0ffc), Errno::EFAULT),
            (write(0xffff), Errno::EFAULT),
            (read(0x1_0000, 1 << 40), Errno::EINVAL),
            (Request::DeviceReset, Errno::ENOTSUP),
        ];
        for (request, errno) in refused {
            let (header, _) = ask(peer, &request);
            assert_eq!(header.error, Some(errno), "{request:?}");
        }
        peer.behave(&incoming);
        peer.behave_on();
    });
    let (client, file) = with_memory(&server);
    client.read(RegionIndex::BAR0, 0, Width::Bits32).expect("the read, after the server's DMA");
    let mut all = vec![0; 0x3000];
    file.read_exact_at(&mut all, 0).expect("read");
    assert!(all.iter().all(|byte| *byte == 0x11), "nothing was written");
}

#[test]
fn dma_after_unmap_is_refused() {
    let server = Server::run(|peer| {
        let incoming = peer.until(Command::REGION_READ);
        let (header, _) = ask(peer, &Request::DmaRead(wire::DmaRead { address: 0x1_0000, count: 8 }));
        assert_eq!(header.error, Some(Errno::EFAULT));
        peer.behave(&incoming);
        peer.behave_on();
    });
    let (client, _file) = with_memory(&server);
    client.unmap(0x1_0000, 0x2000).expect("unmapped");
    client.read(RegionIndex::BAR0, 0, Width::Bits32).expect("the read");
}

#[test]
fn server_that_only_asks_is_a_timeout() {
    let server = Server::run(|peer| {
        peer.until(Command::REGION_READ);
        let request = Request::DmaRead(wire::DmaRead { address: 0, count: 8 });
        let payload = request.encode();
        let header = Header::command(1, request.command(), payload.len());
        let bytes = [&header.encode()[..], &payload].concat();
        let started = udrv_backend::clock::now();
        while started.elapsed() < HUNG / 4 && peer.0.write_all(&bytes).is_ok() && peer.next().is_some() {}
    });
    let (client, error) = server.read_error();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert_gone(&client);
}

#[test]
fn server_that_is_given_up_is_told() {
    let (told, is_told) = std::sync::mpsc::channel();
    let server = Server::run(move |peer| {
        let incoming = peer.until(Command::REGION_READ);
        peer.reply(&incoming, &[]);
        // Returns once the client hangs up, though the client object still lives.
        peer.drain();
        let _listening = told.send(());
    });
    let (client, _error) = server.read_error();
    is_told.recv_timeout(HUNG).expect("the server is told while the client lives");
    drop(client);
}
