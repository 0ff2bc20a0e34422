//! One malformed field a test, end to end over a real socket, with the errno that libvfio-user's Python tests expect of a
//! server. After each, the stream is in step and the device untouched. What one message alone shows to be wrong is tested
//! in `stub-driver/wire` besides.

mod support;

use std::os::fd::{AsFd as _, BorrowedFd};
use support::{Client, MSIX_VECTORS, longs, memfd, serve, words};
use udrv_wire::{Command, Errno, HEADER_SIZE, Header, MessageKind};

const NONE: u32 = 1;
const BOOL: u32 = 2;
const EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;

const INTX: u32 = 0;
const MSI: u32 = 1;
const MSIX: u32 = 2;
const ERR: u32 = 3;
const REQ: u32 = 4;

/// Sends it, expects the errno, and expects that nothing was done and nothing is out of step.
fn refused(command: Command, payload: &[u8], fds: &[BorrowedFd<'_>], errno: Errno) {
    let stub = serve();
    let mut client = stub.client();
    stub.device.taken_log();
    assert_eq!(client.call(command, payload, fds), Err(errno));
    assert_eq!(stub.device.taken_log(), Vec::<String>::new());
    client.assert_served();
}

/// As [`refused`], for SET_IRQS with these flags, index, start and count.
fn set_irqs_refused(fields: [u32; 4], data: &[u8], fds: &[BorrowedFd<'_>], errno: Errno) {
    let mut payload = words(&[20 + data.len() as u32]);
    payload.extend(words(&fields));
    payload.extend(data);
    refused(Command::DEVICE_SET_IRQS, &payload, fds, errno);
}

fn dma_map(fields: [u64; 3]) -> Vec<u8> {
    [words(&[32, 3]), longs(&fields)].concat()
}

fn dma_unmap(fields: [u64; 2]) -> Vec<u8> {
    [words(&[24, 0]), longs(&fields)].concat()
}

/// REGION_READ, and the header of REGION_WRITE.
fn access(offset: u64, region: u32, count: u32) -> Vec<u8> {
    [longs(&[offset]), words(&[region, count])].concat()
}

#[test]
fn set_irqs_without_payload_is_einval() {
    refused(Command::DEVICE_SET_IRQS, &[], &[], Errno::EINVAL);
}

#[test]
fn set_irqs_short_is_einval() {
    refused(Command::DEVICE_SET_IRQS, &words(&[0, 0]), &[], Errno::EINVAL);
}

#[test]
fn set_irqs_argsz_short_is_einval() {
    refused(Command::DEVICE_SET_IRQS, &words(&[3, TRIGGER | NONE, REQ, 0, 0]), &[], Errno::EINVAL);
}

#[test]
fn set_irqs_index_beyond_the_last_is_einval() {
    set_irqs_refused([TRIGGER | NONE, 5, 0, 0], &[], &[], Errno::EINVAL);
}

#[test]
fn set_irqs_index_without_vectors_is_einval() {
    set_irqs_refused([TRIGGER | NONE, MSI, 0, 0], &[], &[], Errno::EINVAL);
}

#[test]
fn set_irqs_mask_with_unmask_is_einval() {
    set_irqs_refused([MASK | UNMASK | NONE, MSIX, 0, 1], &[], &[], Errno::EINVAL);
}

#[test]
fn set_irqs_data_none_with_data_bool_is_einval() {
    set_irqs_refused([MASK | NONE | BOOL, MSIX, 0, 1], &[], &[], Errno::EINVAL);
}

#[test]
fn set_irqs_start_and_count_beyond_the_end_is_einval() {
    set_irqs_refused([TRIGGER | NONE, MSIX, MSIX_VECTORS - 1, 2], &[], &[], Errno::EINVAL);
}

#[test]
fn set_irqs_start_beyond_the_end_is_einval() {
    set_irqs_refused([TRIGGER | NONE, MSIX, MSIX_VECTORS + 1, 1], &[], &[], Errno::EINVAL);
}

#[test]
fn set_irqs_start_at_the_end_is_einval() {
    set_irqs_refused([TRIGGER | NONE, MSIX, MSIX_VECTORS, 0], &[], &[], Errno::EINVAL);
}

#[test]
fn set_irqs_count_that_wraps_is_einval() {
    set_irqs_refused([TRIGGER | EVENTFD, MSIX, 284, u32::MAX], &[], &[], Errno::EINVAL);
}

#[test]
fn set_irqs_largest_count_is_einval() {
    set_irqs_refused([TRIGGER | EVENTFD, MSIX, 0, u32::MAX], &[], &[], Errno::EINVAL);
}

#[test]
fn set_irqs_mask_of_err_is_einval() {
    set_irqs_refused([MASK | NONE, ERR, 0, 1], &[], &[], Errno::EINVAL);
}

#[test]
fn set_irqs_unmask_of_req_is_einval() {
    set_irqs_refused([UNMASK | NONE, REQ, 0, 1], &[], &[], Errno::EINVAL);
}

#[test]
fn set_irqs_two_err_vectors_is_einval() {
    set_irqs_refused([TRIGGER | NONE, ERR, 0, 2], &[], &[], Errno::EINVAL);
}

#[test]
fn set_irqs_start_with_count_0_is_einval() {
    set_irqs_refused([TRIGGER | NONE, MSIX, 1, 0], &[], &[], Errno::EINVAL);
}

#[test]
fn set_irqs_mask_with_count_0_is_einval() {
    set_irqs_refused([MASK | NONE, MSIX, 0, 0], &[], &[], Errno::EINVAL);
}

#[test]
fn set_irqs_bool_with_count_0_is_einval() {
    set_irqs_refused([TRIGGER | BOOL, MSIX, 0, 0], &[], &[], Errno::EINVAL);
}

#[test]
fn set_irqs_bool_shorter_than_count_is_einval() {
    set_irqs_refused([TRIGGER | BOOL, MSIX, 0, 2], &[1], &[], Errno::EINVAL);
}

#[test]
fn set_irqs_bool_longer_than_count_is_einval() {
    set_irqs_refused([TRIGGER | BOOL, MSIX, 0, 2], &[1, 1, 1], &[], Errno::EINVAL);
}

#[test]
fn set_irqs_descriptor_with_data_none_is_einval() {
    let fd = memfd(0);
    set_irqs_refused([TRIGGER | NONE, MSIX, 0, 1], &[], &[fd.as_fd()], Errno::EINVAL);
}

#[test]
fn set_irqs_descriptor_with_data_bool_is_einval() {
    let fd = memfd(0);
    set_irqs_refused([TRIGGER | BOOL, MSIX, 0, 1], &[0], &[fd.as_fd()], Errno::EINVAL);
}

#[test]
fn set_irqs_fewer_descriptors_than_count_is_einval() {
    let fd = memfd(0);
    set_irqs_refused([TRIGGER | EVENTFD, MSIX, 0, 2], &[], &[fd.as_fd()], Errno::EINVAL);
}

#[test]
fn set_irqs_more_descriptors_than_count_is_einval() {
    let fd = memfd(0);
    set_irqs_refused([TRIGGER | EVENTFD, MSIX, 0, 1], &[], &[fd.as_fd(); 2], Errno::EINVAL);
}

#[test]
fn set_irqs_more_descriptors_than_a_message_carries_is_einval() {
    let fd = memfd(0);
    set_irqs_refused([TRIGGER | EVENTFD, MSIX, 0, 16], &[], &[fd.as_fd(); 17], Errno::EINVAL);
}

#[test]
fn set_irqs_unmask_by_eventfd_is_enotsup() {
    let fd = memfd(0);
    set_irqs_refused([UNMASK | EVENTFD, INTX, 0, 1], &[], &[fd.as_fd()], Errno::ENOTSUP);
}

#[test]
fn set_irqs_mask_of_unmaskable_is_enotsup() {
    set_irqs_refused([MASK | NONE, MSIX, 0, 1], &[], &[], Errno::ENOTSUP);
}

#[test]
fn irq_info_index_beyond_the_last_is_einval() {
    refused(Command::DEVICE_GET_IRQ_INFO, &words(&[16, 0, 5, 0]), &[], Errno::EINVAL);
}

#[test]
fn irq_info_argsz_short_is_einval() {
    refused(Command::DEVICE_GET_IRQ_INFO, &words(&[15, 0, 0, 0]), &[], Errno::EINVAL);
}

#[test]
fn device_info_argsz_short_is_einval() {
    refused(Command::DEVICE_GET_INFO, &words(&[8, 0, 0, 0]), &[], Errno::EINVAL);
}

#[test]
fn region_info_index_beyond_the_last_is_einval() {
    refused(Command::DEVICE_GET_REGION_INFO, &words(&[32, 0, 9, 0, 0, 0, 0, 0]), &[], Errno::EINVAL);
}

#[test]
fn region_info_argsz_short_is_einval() {
    refused(Command::DEVICE_GET_REGION_INFO, &words(&[31, 0, 0, 0, 0, 0, 0, 0]), &[], Errno::EINVAL);
}

#[test]
fn region_io_fds_index_beyond_the_last_is_einval() {
    refused(Command::DEVICE_GET_REGION_IO_FDS, &words(&[16, 0, 9, 0]), &[], Errno::EINVAL);
}

#[test]
fn region_read_of_no_region_is_einval() {
    refused(Command::REGION_READ, &access(0, 9, 4), &[], Errno::EINVAL);
}

#[test]
fn region_read_of_unimplemented_region_is_einval() {
    refused(Command::REGION_READ, &access(0, 1, 4), &[], Errno::EINVAL);
}

#[test]
fn region_read_across_the_end_is_einval() {
    refused(Command::REGION_READ, &access(support::BAR0_SIZE - 2, 0, 4), &[], Errno::EINVAL);
}

#[test]
fn region_read_beyond_the_end_is_einval() {
    refused(Command::REGION_READ, &access(support::BAR0_SIZE, 0, 1), &[], Errno::EINVAL);
}

#[test]
fn region_read_whose_end_overflows_is_einval() {
    refused(Command::REGION_READ, &access(u64::MAX - 1, 0, 4), &[], Errno::EINVAL);
}

#[test]
fn region_read_of_nothing_is_einval() {
    refused(Command::REGION_READ, &access(0, 0, 0), &[], Errno::EINVAL);
}

#[test]
fn region_read_beyond_the_negotiated_size_is_einval() {
    refused(Command::REGION_READ, &access(0, 0, 0x10_0001), &[], Errno::EINVAL);
}

#[test]
fn region_write_across_the_end_is_einval() {
    let payload = [access(support::BAR0_SIZE - 2, 0, 4), vec![0; 4]].concat();
    refused(Command::REGION_WRITE, &payload, &[], Errno::EINVAL);
}

#[test]
fn region_write_with_less_data_than_count_is_einval() {
    let payload = [access(0, 0, 8), vec![0; 4]].concat();
    refused(Command::REGION_WRITE, &payload, &[], Errno::EINVAL);
}

#[test]
fn write_multi_with_count_of_more_than_follow_is_einval() {
    let payload = [longs(&[2]), access(0, 0, 4), vec![0; 8]].concat();
    refused(Command::REGION_WRITE_MULTI, &payload, &[], Errno::EINVAL);
}

#[test]
fn dma_map_short_is_einval() {
    refused(Command::DMA_MAP, &words(&[32, 3]), &[], Errno::EINVAL);
}

#[test]
fn dma_map_argsz_short_is_einval() {
    let payload = [words(&[31, 3]), longs(&[0, 0, 4096])].concat();
    refused(Command::DMA_MAP, &payload, &[], Errno::EINVAL);
}

#[test]
fn dma_map_unknown_flag_is_einval() {
    let payload = [words(&[32, 8]), longs(&[0, 0, 4096])].concat();
    refused(Command::DMA_MAP, &payload, &[], Errno::EINVAL);
}

#[test]
fn dma_map_whose_end_overflows_is_einval() {
    refused(Command::DMA_MAP, &dma_map([0, u64::MAX - 4095, 8192]), &[], Errno::EINVAL);
}

#[test]
fn dma_map_of_nothing_is_einval() {
    refused(Command::DMA_MAP, &dma_map([0, 0, 0]), &[], Errno::EINVAL);
}

#[test]
fn dma_map_with_two_descriptors_is_einval() {
    let fd = memfd(4096);
    refused(Command::DMA_MAP, &dma_map([0, 0, 4096]), &[fd.as_fd(); 2], Errno::EINVAL);
}

#[test]
fn dma_unmap_of_nothing_mapped_is_enoent() {
    refused(Command::DMA_UNMAP, &dma_unmap([0, 4096]), &[], Errno::ENOENT);
}

#[test]
fn dma_unmap_dirty_bitmap_is_enotsup() {
    let payload = [words(&[24, 1]), longs(&[0, 4096]), longs(&[4096, 8]), vec![0; 8]].concat();
    refused(Command::DMA_UNMAP, &payload, &[], Errno::ENOTSUP);
}

#[test]
fn dma_unmap_all_with_an_address_is_einval() {
    refused(Command::DMA_UNMAP, &[words(&[24, 2]), longs(&[4096, 0])].concat(), &[], Errno::EINVAL);
}

#[test]
fn dma_read_from_a_client_is_einval() {
    refused(Command::DMA_READ, &longs(&[0, 4]), &[], Errno::EINVAL);
}

#[test]
fn dma_write_from_a_client_is_einval() {
    refused(Command::DMA_WRITE, &[longs(&[0, 4]), vec![0; 4]].concat(), &[], Errno::EINVAL);
}

#[test]
fn reset_with_payload_is_einval() {
    refused(Command::DEVICE_RESET, &[0], &[], Errno::EINVAL);
}

#[test]
fn device_feature_unknown_is_enotty() {
    refused(Command::DEVICE_FEATURE, &words(&[8, 1 << 16 | 1]), &[], Errno::ENOTTY);
}

#[test]
fn unknown_command_is_enosys() {
    refused(Command(14), &[1, 2, 3], &[], Errno::ENOSYS);
}

#[test]
fn second_version_is_einval() {
    refused(Command::VERSION, &[0, 0, 0, 0], &[], Errno::EINVAL);
}

#[test]
fn dma_map_that_overlaps_is_eexist() {
    let stub = serve();
    let mut client = stub.client();
    let file = memfd(8192);
    client.call(Command::DMA_MAP, &dma_map([0, 0x4000, 8192]), &[file.as_fd()]).expect("mapped");
    for iova in [0x3000, 0x4000, 0x5000] {
        let again = client.call(Command::DMA_MAP, &dma_map([0, iova, 8192]), &[file.as_fd()]);
        assert_eq!(again, Err(Errno::EEXIST), "{iova:#x}");
    }
    client.call(Command::DMA_MAP, &dma_map([0, 0x6000, 4096]), &[file.as_fd()]).expect("its neighbour");
}

#[test]
fn dma_unmap_of_a_part_is_enoent_and_leaves_the_whole() {
    let stub = serve();
    let mut client = stub.client();
    let file = memfd(8192);
    client.call(Command::DMA_MAP, &dma_map([0, 0x4000, 8192]), &[file.as_fd()]).expect("mapped");
    assert_eq!(client.call(Command::DMA_UNMAP, &dma_unmap([0x4000, 4096]), &[]), Err(Errno::ENOENT));
    assert_eq!(client.call(Command::DMA_UNMAP, &dma_unmap([0x5000, 4096]), &[]), Err(Errno::ENOENT));
    client.call(Command::DMA_UNMAP, &dma_unmap([0x4000, 8192]), &[]).expect("unmapped");
}

#[test]
fn dma_map_beyond_the_allowed_number_is_enospc() {
    let stub = serve();
    let mut client = stub.client();
    for page in 0..8 {
        client.call(Command::DMA_MAP, &dma_map([0, page * 4096, 4096]), &[]).expect("mapped");
    }
    assert_eq!(client.call(Command::DMA_MAP, &dma_map([0, 0x10_0000, 4096]), &[]), Err(Errno::ENOSPC));
}

#[test]
fn reset_of_a_device_without_a_reset_method_is_enotsup() {
    let folder = support::Folder::new();
    let export = stub_driver::serve::Export::shared("edu", std::sync::Arc::new(udrv_edu::model::edu()));
    let server = stub_driver::serve::DeviceServer::start(export, &folder.join("edu.sock")).expect("served");
    let mut client = Client::connect(server.path());
    assert_eq!(client.call(Command::DEVICE_RESET, &[], &[]), Err(Errno::ENOTSUP));
}

/// A first message that ends the conversation.
fn turned_away(command: Command, payload: &[u8], errno: Errno) {
    let stub = serve();
    let mut client = Client::over(stub.stream());
    assert_eq!(client.call(command, payload, &[]), Err(errno));
    client.assert_closed();
    stub.client().assert_served();
}

#[test]
fn version_of_another_major_is_einval_and_the_end() {
    turned_away(Command::VERSION, &[1, 0, 0, 0], Errno::EINVAL);
}

#[test]
fn version_without_nul_is_einval_and_the_end() {
    turned_away(Command::VERSION, b"\0\0\0\0{}", Errno::EINVAL);
}

#[test]
fn version_whose_json_is_none_is_einval_and_the_end() {
    turned_away(Command::VERSION, b"\0\0\0\0{\"capabilities\":[]}\0", Errno::EINVAL);
}

#[test]
fn version_short_is_einval_and_the_end() {
    turned_away(Command::VERSION, &[0, 0], Errno::EINVAL);
}

#[test]
fn command_before_version_is_einval_and_the_end() {
    turned_away(Command::DEVICE_GET_INFO, &words(&[16, 0, 0, 0]), Errno::EINVAL);
}

/// A header that ends the conversation; whether it is answered, and with what.
fn header_refused(change: impl FnOnce(&mut [u8; 16]), errno: Option<Errno>) {
    use std::io::Write as _;
    let stub = serve();
    let client = stub.client();
    let mut bytes = Header::command(7, Command::DEVICE_RESET, 0).encode();
    change(&mut bytes);
    client.channel.stream().write_all(&bytes).expect("sent");
    if let Some(errno) = errno {
        let reply = client.channel.receive().expect("an error reply").header;
        assert_eq!((reply.kind, reply.msg_id, reply.error), (MessageKind::Reply, 7, Some(errno)));
    }
    client.assert_closed();
    stub.client().assert_served();
}

#[test]
fn header_size_below_its_own_is_einval_and_the_end() {
    header_refused(|bytes| bytes[4..8].copy_from_slice(&(HEADER_SIZE - 1).to_ne_bytes()), Some(Errno::EINVAL));
}

#[test]
fn header_size_beyond_the_limit_is_einval_and_the_end() {
    header_refused(|bytes| bytes[4..8].copy_from_slice(&u32::MAX.to_ne_bytes()), Some(Errno::EINVAL));
}

#[test]
fn header_of_unknown_type_is_einval_and_the_end() {
    header_refused(|bytes| bytes[8] = 2, Some(Errno::EINVAL));
}

#[test]
fn reply_that_nobody_asked_for_is_the_end_without_an_answer() {
    header_refused(|bytes| bytes[8] = 1, None);
}
