//! The driver on the software disk, and the disk alone; wrappers and commands are typed again from the specifications.

use std::sync::Arc;
use std::time::Duration;
use udrv_usb::faults::Faulty;
use udrv_usb::software::{Model as _, Reply, Software};
use udrv_usb::{Device, EndpointAddress, Error, Status, Transfer};
use udrv_usb_storage::driver::{MAX_TRANSFER, Storage};
use udrv_usb_storage::model::Disk;

const IN: EndpointAddress = EndpointAddress(0x81);
const OUT: EndpointAddress = EndpointAddress(0x02);
const LONG: Duration = Duration::from_secs(20);

/// No two blocks alike, wherever they are.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at as u32 + 1).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn plugged(length: usize) -> (Arc<Software<Disk>>, Device) {
    let bus = Arc::new(Software::new("model:usb-storage", Disk::new(pattern(length))).unwrap());
    let device = Device::new(bus.clone()).unwrap();
    (bus, device)
}

fn attached(length: usize) -> (Arc<Software<Disk>>, Storage) {
    let (bus, device) = plugged(length);
    (bus, Storage::attach(device).unwrap())
}

/// A command block wrapper (BOT, table 5.1).
fn cbw(tag: u32, length: u32, flags: u8, command: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x55, 0x53, 0x42, 0x43];
    bytes.extend(tag.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend([flags, 0, command.len() as u8]);
    bytes.extend(command);
    bytes.resize(31, 0);
    bytes
}

/// A command status wrapper (BOT, table 5.2).
fn csw(tag: u32, residue: u32, status: u8) -> Vec<u8> {
    let mut bytes = vec![0x55, 0x53, 0x42, 0x53];
    bytes.extend(tag.to_le_bytes());
    bytes.extend(residue.to_le_bytes());
    bytes.push(status);
    bytes
}

#[test]
fn attach_reads_what_it_is_and_its_size() {
    let (_bus, storage) = attached(100 * 512);

    assert_eq!((storage.inquiry().vendor.as_str(), storage.inquiry().product.as_str()), ("udrv", "Software Disk"));
    assert_eq!((storage.capacity().blocks, storage.capacity().block_size), (100, 512));
    assert_eq!(storage.logical_units().unwrap(), 1);
}

#[test]
fn read_of_more_than_one_command_gives_the_medium() {
    let length = 2 * MAX_TRANSFER + 3 * 512;
    let (_bus, mut storage) = attached(length);
    let mut read = Vec::new();

    let each = |piece: &[u8]| {
        read.extend_from_slice(piece);
        Ok(())
    };
    storage.read(0, length as u64, each).unwrap();

    assert!(read == pattern(length));
}

#[test]
fn write_changes_the_blocks_written_and_no_others() {
    let (bus, mut storage) = attached(64 * 512);

    storage.write(10, &[0xee; 3 * 512]).unwrap();
    storage.flush().unwrap();

    let mut expected = pattern(64 * 512);
    expected[10 * 512..13 * 512].fill(0xee);
    assert!(bus.with_model(|disk| disk.medium() == expected));
}

#[test]
fn read_beyond_the_end_is_refused_before_the_device_sees_it() {
    let (_bus, mut storage) = attached(64 * 512);

    for (lba, length) in [(64, 512), (63, 1024), (u64::MAX, 512), (0, 100)] {
        assert!(matches!(storage.read(lba, length, |_| Ok(())), Err(Error::Protocol { .. })), "{lba} {length}");
    }
}

#[test]
fn unplugged_while_it_reads_is_gone() {
    let (bus, mut storage) = attached(4 * MAX_TRANSFER);

    let error = storage.read(0, 4 * MAX_TRANSFER as u64, |_| {
        bus.unplug();
        Ok(())
    });

    assert!(matches!(error, Err(Error::Gone { .. })), "{error:?}");
}

/// Bulk transfers of bring-up: three commands to the device; two answers and three statuses to the host.
fn attached_with(faults: &str) -> (Arc<Software<Disk>>, Storage) {
    let bus = Arc::new(Software::new("model:usb-storage", Disk::new(pattern(64 * 512))).unwrap());
    let faulty = Faulty::new(bus.clone(), faults.parse().unwrap()).unwrap();
    (bus, Storage::attach(Device::new(Arc::new(faulty)).unwrap()).unwrap())
}

#[test]
fn read_that_goes_wrong_in_any_of_its_stages_is_done_again() {
    for faults in ["0x02@4=stall", "0x02@4=error", "0x81@6=error", "0x81@6=stall", "0x81@7=stall", "0x81@7=short:5"] {
        let (bus, mut storage) = attached_with(faults);
        let mut read = Vec::new();

        let each = |piece: &[u8]| {
            read.extend_from_slice(piece);
            Ok(())
        };
        storage.read(3, 4096, each).unwrap_or_else(|error| panic!("{faults}: {error}"));

        assert!(read == pattern(64 * 512)[3 * 512..][..4096], "{faults}");
        assert_eq!(bus.in_flight(), 0, "{faults}");
    }
}

#[test]
fn write_that_goes_wrong_in_any_of_its_stages_is_done_again() {
    for faults in ["0x02@4=stall", "0x02@4=error", "0x02@5=error", "0x81@6=stall", "0x81@6=error"] {
        let (bus, mut storage) = attached_with(faults);

        storage.write(3, &[0xee; 4096]).unwrap_or_else(|error| panic!("{faults}: {error}"));

        let mut expected = pattern(64 * 512);
        expected[3 * 512..][..4096].fill(0xee);
        assert!(bus.with_model(|disk| disk.medium() == expected), "{faults}");
        assert_eq!(bus.in_flight(), 0, "{faults}");
    }
}

#[test]
fn pieces_of_a_read_come_in_the_same_memory() {
    let (_bus, mut storage) = attached(3 * MAX_TRANSFER);
    let mut begins = Vec::new();

    let each = |piece: &[u8]| {
        begins.push(piece.as_ptr() as usize);
        Ok(())
    };
    storage.read(0, 3 * MAX_TRANSFER as u64, each).unwrap();

    assert_eq!(begins, [begins[0]; 3]);
}

#[test]
fn invalid_wrapper_left_by_another_is_recovered_from() {
    let (_bus, device) = plugged(8 * 512);
    let stalled = device.transfer(Transfer::bulk(OUT, vec![0; 31]), LONG).unwrap();
    assert_eq!(stalled.status, Status::Stall);

    let storage = Storage::attach(device).unwrap();

    assert_eq!(storage.capacity().blocks, 8);
}

#[test]
fn disk_read_10_sends_the_blocks_then_the_status() {
    let mut disk = Disk::new(pattern(8 * 512));
    disk.receive(OUT, &cbw(7, 1024, 0x80, &[0x28, 0, 0, 0, 0, 2, 0, 0, 2, 0]));

    let packets: Vec<Reply> = (0..4).map(|_| disk.send(IN, 512)).collect();

    let content = pattern(8 * 512);
    let data = |from: usize| Reply::Data(content[from..from + 512].to_vec());
    assert_eq!(packets, [data(1024), data(1536), Reply::Data(csw(7, 0, 0)), Reply::Nak]);
}

#[test]
fn disk_read_beyond_the_end_stalls_and_fails_with_sense_data() {
    let mut disk = Disk::new(pattern(8 * 512));
    disk.receive(OUT, &cbw(7, 512, 0x80, &[0x28, 0, 0, 0, 0, 8, 0, 0, 1, 0]));

    assert_eq!(disk.send(IN, 512), Reply::Stall);
    assert_eq!(disk.send(IN, 512), Reply::Data(csw(7, 512, 1)));
    disk.receive(OUT, &cbw(8, 18, 0x80, &[0x03, 0, 0, 0, 18, 0]));
    let Reply::Data(sense) = disk.send(IN, 512) else { panic!("no sense data") };
    // ILLEGAL REQUEST, LOGICAL BLOCK ADDRESS OUT OF RANGE (SPC-4, table 28 and annex D)
    assert_eq!((sense[0], sense[2], sense[12], sense[13]), (0x70, 0x05, 0x21, 0x00));
}

#[test]
fn disk_with_less_data_than_the_host_expects_sends_it_with_a_residue() {
    let mut disk = Disk::new(pattern(8 * 512));
    disk.receive(OUT, &cbw(9, 255, 0x80, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]));

    assert_eq!(disk.send(IN, 512), Reply::Data(vec![0, 0, 0, 7, 0, 0, 2, 0]));
    assert_eq!(disk.send(IN, 512), Reply::Data(csw(9, 247, 0)));
}

#[test]
fn disk_asked_to_write_in_the_wrong_direction_is_a_phase_error() {
    let mut disk = Disk::new(pattern(8 * 512));
    disk.receive(OUT, &cbw(9, 512, 0x80, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0]));

    assert_eq!(disk.send(IN, 512), Reply::Stall);
    assert_eq!(disk.send(IN, 512), Reply::Data(csw(9, 512, 2)));
}
