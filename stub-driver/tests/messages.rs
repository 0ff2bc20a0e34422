//! What well-formed messages do to the device.

mod support;

use nix::sys::eventfd::EventFd;
use std::os::fd::{AsFd as _, BorrowedFd};
use support::{Answered, BAR0_SIZE, Client, Stub, memfd, serve};
use udrv_wire::{
    self as wire, DeviceGetRegionInfo, DeviceSetIrqs, DmaFlags, DmaMap, DmaUnmap, Errno, Header, IrqAction, IrqData,
    MultiWrite, RegionData, RegionFlags, RegionInfo, RegionInfoReply, RegionRead, RegionWrite, RegionWriteMulti,
    Request, SparseArea, Version,
};

fn start() -> (Stub, Client) {
    let stub = serve();
    let client = stub.client();
    stub.device.taken_log();
    (stub, client)
}

fn set_irqs(
    client: &mut Client,
    action: IrqAction,
    data: IrqData<'_>,
    (index, start, count): (u32, u32, u32),
    fds: &[BorrowedFd<'_>],
) -> Answered<Vec<u8>> {
    client.request(&Request::DeviceSetIrqs(DeviceSetIrqs { action, data, index, start, count }), fds)
}

#[test]
fn version_is_answered_with_limits_that_qemu_accepts() {
    let stub = serve();
    let mut client = Client::over(stub.stream());
    let version = Version::decode(&client.hello().expect("a lease")).expect("a version");
    assert_eq!((version.major, version.minor), (0, 2));
    let capabilities = version.capabilities;
    assert_eq!((capabilities.max_msg_fds, capabilities.max_data_xfer_size), (16, 0x10_0000));
    // The recorder allows 8 mappings.
    assert_eq!((capabilities.max_dma_maps, capabilities.pgsizes), (8, 4096));
}

#[test]
fn version_of_an_older_minor_is_answered_with_that() {
    let stub = serve();
    let mut client = Client::over(stub.stream());
    let reply = client.call(wire::Command::VERSION, &[0, 0, 0, 0], &[]).expect("a lease");
    assert_eq!(Version::decode(&reply).expect("a version").minor, 0);
}

#[test]
fn set_irqs_with_descriptors_assigns_them() {
    let (stub, mut client) = start();
    let event = EventFd::new().expect("an eventfd");
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let fds = [event.as_fd(), socket.as_fd()];
    set_irqs(&mut client, IrqAction::Trigger, IrqData::Eventfd, (2, 5, 2), &fds).expect("assigned");
    assert_eq!(stub.device.taken_log(), ["triggers MSI-X 5 ++"]);
}

#[test]
fn set_irqs_with_what_a_write_may_wait_for_is_refused_and_kept_from_the_device() {
    let (stub, mut client) = start();
    let file = std::fs::File::options().write(true).open("/proc/self/comm").expect("a file of /proc");
    let (_read, pipe) = std::io::pipe().expect("a pipe");
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for fd in [file.as_fd(), pipe.as_fd(), socket.as_fd()] {
        let refused = set_irqs(&mut client, IrqAction::Trigger, IrqData::Eventfd, (2, 5, 1), &[fd]);
        assert_eq!(refused, Err(Errno::EINVAL));
    }
    assert_eq!(stub.device.taken_log(), <[String; 0]>::default());
}

#[test]
fn dma_map_of_a_file_that_is_not_memory_is_refused_and_kept_from_the_device() {
    let (stub, mut client) = start();
    let map = DmaMap { flags: DmaFlags::READ, offset: 0, iova: 0x1000, size: 4096 };
    for path in ["/proc/self/environ", "/dev/zero"] {
        let file = std::fs::File::open(path).expect(path);
        assert_eq!(client.request(&Request::DmaMap(map), &[file.as_fd()]), Err(Errno::EINVAL), "{path}");
    }
    assert_eq!(stub.device.taken_log(), <[String; 0]>::default());
}

#[test]
fn set_irqs_without_descriptors_takes_them_away() {
    let (stub, mut client) = start();
    set_irqs(&mut client, IrqAction::Trigger, IrqData::Eventfd, (2, 5, 3), &[]).expect("taken away");
    assert_eq!(stub.device.taken_log(), ["triggers MSI-X 5 ---"]);
}

#[test]
fn set_irqs_trigger_none_with_count_0_disables_the_index() {
    let (stub, mut client) = start();
    set_irqs(&mut client, IrqAction::Trigger, IrqData::None, (2, 0, 0), &[]).expect("disabled");
    assert_eq!(stub.device.taken_log(), ["disable MSI-X"]);
}

#[test]
fn set_irqs_trigger_none_fires_every_vector() {
    let (stub, mut client) = start();
    set_irqs(&mut client, IrqAction::Trigger, IrqData::None, (2, 7, 2), &[]).expect("fired");
    assert_eq!(stub.device.taken_log(), ["fire MSI-X 7", "fire MSI-X 8"]);
}

#[test]
fn set_irqs_trigger_bool_fires_the_chosen_vectors() {
    let (stub, mut client) = start();
    set_irqs(&mut client, IrqAction::Trigger, IrqData::Bool(&[1, 0, 1]), (2, 7, 3), &[]).expect("fired");
    assert_eq!(stub.device.taken_log(), ["fire MSI-X 7", "fire MSI-X 9"]);
}

#[test]
fn set_irqs_mask_and_unmask_reach_the_vector() {
    let (stub, mut client) = start();
    set_irqs(&mut client, IrqAction::Mask, IrqData::None, (0, 0, 1), &[]).expect("masked");
    set_irqs(&mut client, IrqAction::Unmask, IrqData::Bool(&[1]), (0, 0, 1), &[]).expect("unmasked");
    assert_eq!(stub.device.taken_log(), ["mask INTx 0", "unmask INTx 0"]);
}

#[test]
fn region_access_of_any_alignment_is_split_and_carries_the_bytes() {
    let (stub, mut client) = start();
    let data = [1, 2, 3, 4, 5, 6, 7];
    client.request(&Request::RegionWrite(RegionWrite { offset: 3, region: 0, data: &data }), &[]).expect("written");
    assert_eq!(
        stub.device.taken_log(),
        ["write BAR0 0x3 1 0x1", "write BAR0 0x4 4 0x5040302", "write BAR0 0x8 2 0x706"]
    );
    let read = Request::RegionRead(RegionRead { offset: 2, region: 0, count: 9 });
    let reply = client.request(&read, &[]).expect("read");
    let came = RegionData::decode_read_reply(&reply, &wire::Limits::default()).expect("data");
    assert_eq!(came.data, [0, 1, 2, 3, 4, 5, 6, 7, 0]);
    assert_eq!((came.offset, came.region), (2, 0));
}

#[test]
fn region_read_of_all_of_it_is_answered() {
    let (_stub, mut client) = start();
    let read = Request::RegionRead(RegionRead { offset: 0, region: 0, count: BAR0_SIZE as u32 });
    assert_eq!(client.request(&read, &[]).expect("read").len(), 16 + BAR0_SIZE as usize);
}

#[test]
fn write_with_no_reply_is_done_and_not_answered() {
    let (stub, mut client) = start();
    let payload = Request::RegionWrite(RegionWrite { offset: 0, region: 0, data: &[9] }).encode();
    let header = Header { no_reply: true, ..Header::command(1, wire::Command::REGION_WRITE, payload.len()) };
    client.channel.send(&header, &payload, &[]).expect("sent");
    // Also one that fails.
    let beyond = Request::RegionWrite(RegionWrite { offset: BAR0_SIZE, region: 0, data: &[9] }).encode();
    client.channel.send(&header, &beyond, &[]).expect("sent");
    client.assert_served();
    assert_eq!(stub.device.taken_log(), ["write BAR0 0x0 1 0x9"]);
}

#[test]
fn write_multi_is_done_in_order() {
    let (stub, mut client) = start();
    let write = |offset, count| MultiWrite { offset, region: 0, count, data: [1, 0, 0, 0, 0, 0, 0, 0] };
    let request = Request::RegionWriteMulti(RegionWriteMulti { writes: vec![write(8, 4), write(0, 2)] });
    let reply = client.request(&request, &[]).expect("written");
    assert_eq!(wire::RegionWriteMultiReply::decode(&reply).expect("a count").wr_cnt, 2);
    assert_eq!(stub.device.taken_log(), ["write BAR0 0x8 4 0x1", "write BAR0 0x0 2 0x1"]);
}

fn region_info(client: &mut Client, index: u32) -> (RegionInfo, usize) {
    client.send(
        wire::Command::DEVICE_GET_REGION_INFO,
        &Request::DeviceGetRegionInfo(DeviceGetRegionInfo { argsz: 4096, index }).encode(),
        &[],
    );
    let message = client.reply().expect("info");
    match RegionInfo::decode(&message.payload).expect("info") {
        RegionInfoReply::Full(info) => (info, message.fds.len()),
        truncated @ RegionInfoReply::Truncated { .. } => panic!("{truncated:?}"),
    }
}

#[test]
fn region_that_can_be_mapped_comes_with_its_file_and_areas() {
    let (_stub, mut client) = start();
    let (info, fds) = region_info(&mut client, 0);
    assert!(info.flags.contains(RegionFlags::MMAP));
    assert_eq!(info.sparse_areas, Some(vec![SparseArea { offset: 0x1000, size: 0x1000 }]));
    assert_eq!(fds, 1);
}

#[test]
fn region_that_cannot_be_mapped_comes_without() {
    let (_stub, mut client) = start();
    let (info, fds) = region_info(&mut client, 7);
    assert!(!info.flags.contains(RegionFlags::MMAP));
    assert_eq!((info.size, info.sparse_areas, fds), (256, None, 0));
}

#[test]
fn region_of_an_export_without_mmap_comes_without_a_file() {
    let folder = support::Folder::new();
    let device = std::sync::Arc::new(support::Recorder::default());
    let export = stub_driver::serve::Export::shared("recorder", support::erased(&device));
    let server = stub_driver::serve::DeviceServer::start(export, &folder.join("it.sock")).expect("served");
    let (info, fds) = region_info(&mut Client::connect(server.path()), 0);
    assert!(!info.flags.contains(RegionFlags::MMAP));
    assert_eq!((info.size, info.sparse_areas, fds), (BAR0_SIZE, None, 0));
}

#[test]
fn dma_map_without_descriptor_is_remembered_and_kept_from_the_device() {
    let (stub, mut client) = start();
    let map = DmaMap { flags: DmaFlags::READ, offset: 0, iova: 0xf000, size: 4096 };
    client.request(&Request::DmaMap(map), &[]).expect("remembered");
    let unmap = DmaUnmap { all: false, iova: 0xf000, size: 4096 };
    client.request(&Request::DmaUnmap(unmap), &[]).expect("forgotten");
    assert_eq!(client.request(&Request::DmaUnmap(unmap), &[]), Err(Errno::ENOENT));
    assert_eq!(stub.device.taken_log(), Vec::<String>::new());
}

#[test]
fn dma_map_beyond_the_memory_allowed_is_refused_until_some_is_taken_back() {
    let folder = support::Folder::new();
    let device = std::sync::Arc::new(support::Recorder::default());
    let export = stub_driver::serve::Export::shared("recorder", support::erased(&device)).memory_at_most(8192);
    let server = stub_driver::serve::DeviceServer::start(export, &folder.join("it.sock")).expect("served");
    let mut client = Client::connect(server.path());
    let file = memfd(16384);
    let mut map = |iova, size| {
        let map = DmaMap { flags: DmaFlags::READ, offset: 0, iova, size };
        client.request(&Request::DmaMap(map), &[file.as_fd()])
    };
    map(0, 8192).expect("all that is allowed");
    assert_eq!(map(0x1_0000, 4096), Err(Errno::ENOMEM));
    client.request(&Request::DmaUnmap(DmaUnmap { all: false, iova: 0, size: 8192 }), &[]).expect("unmapped");
    let map = DmaMap { flags: DmaFlags::READ, offset: 0, iova: 0x1_0000, size: 4096 };
    client.request(&Request::DmaMap(map), &[file.as_fd()]).expect("there is room again");
}

#[test]
fn dma_unmap_all_takes_back_every_mapping() {
    let (stub, mut client) = start();
    let file = memfd(8192);
    for iova in [0, 4096] {
        let map = DmaMap { flags: DmaFlags::READ, offset: 0, iova, size: 4096 };
        client.request(&Request::DmaMap(map), &[file.as_fd()]).expect("mapped");
    }
    client.request(&Request::DmaUnmap(DmaUnmap { all: true, iova: 0, size: 0 }), &[]).expect("unmapped");
    assert_eq!(
        stub.device.taken_log(),
        ["map 0x0 0x1000", "map 0x1000 0x1000", "unmap 0x0 0x1000", "unmap 0x1000 0x1000"]
    );
}

#[test]
fn device_that_refuses_answers_with_its_errno() {
    let (stub, mut client) = start();
    stub.device.failing.lock().expect("unpoisoned").extend(["reset", "read BAR0"]);
    assert_eq!(client.request(&Request::DeviceReset, &[]), Err(Errno::EIO));
    let read = Request::RegionRead(RegionRead { offset: 0, region: 0, count: 4 });
    assert_eq!(client.request(&read, &[]), Err(Errno::EIO));
    client.assert_served();
}
