//! One malformed field a test, with the errno to answer. The numbers are retyped from the tables of vfio-user.rst and from
//! `<linux/vfio.h>`, never produced by the encoders.

use udrv_wire::{
    Command, DmaWriteReply, Errno, Header, Limits, RegionData, RegionInfo, RegionInfoReply, Request, Version,
};

/// Fields of a payload, in host order.
enum F {
    B(u8),
    H(u16),
    W(u32),
    Q(u64),
}
use F::{B, H, Q, W};

fn bytes(fields: &[F]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields {
        match field {
            B(v) => out.push(*v),
            H(v) => out.extend(v.to_ne_bytes()),
            W(v) => out.extend(v.to_ne_bytes()),
            Q(v) => out.extend(v.to_ne_bytes()),
        }
    }
    out
}

/// The errno for `fields` as payload of command `number`; 0 if it is accepted.
fn errno(number: u16, fields: &[F]) -> u32 {
    match Request::decode(Command(number), &bytes(fields), &Limits::default()) {
        Ok(_) => 0,
        Err(e) => e.errno().0,
    }
}

macro_rules! cases {
    ($($name:ident: $command:literal, [$($field:expr),* $(,)?] => $errno:literal;)*) => {
        $(#[test] fn $name() { assert_eq!(errno($command, &[$($field),*]), $errno); })*
    };
}

// 22 is EINVAL, 95 EOPNOTSUPP.
cases! {
    version_three_bytes_is_einval: 1, [H(0), B(2)] => 22;

    dma_map_read_write_is_accepted: 2, [W(32), W(3), Q(0), Q(0x1000), Q(0x1000)] => 0;
    dma_map_up_to_the_last_address_is_accepted: 2, [W(32), W(3), Q(0), Q(0xffff_ffff_ffff_f000), Q(0x1000)] => 0;
    dma_map_short_is_einval: 2, [W(32), W(3), Q(0), Q(0x1000), W(0x1000)] => 22;
    dma_map_long_is_einval: 2, [W(32), W(3), Q(0), Q(0x1000), Q(0x1000), B(0)] => 22;
    dma_map_small_argsz_is_einval: 2, [W(31), W(3), Q(0), Q(0x1000), Q(0x1000)] => 22;
    dma_map_unknown_flag_is_einval: 2, [W(32), W(7), Q(0), Q(0x1000), Q(0x1000)] => 22;
    dma_map_size_zero_is_einval: 2, [W(32), W(3), Q(0), Q(0x1000), Q(0)] => 22;
    dma_map_wrapping_address_is_einval: 2, [W(32), W(3), Q(0), Q(0xffff_ffff_ffff_f000), Q(0x1001)] => 22;
    dma_map_wrapping_offset_is_einval: 2, [W(32), W(3), Q(u64::MAX), Q(0x1000), Q(0x1000)] => 22;

    dma_unmap_is_accepted: 3, [W(24), W(0), Q(0x1000), Q(0x1000)] => 0;
    dma_unmap_all_is_accepted: 3, [W(24), W(2), Q(0), Q(0)] => 0;
    dma_unmap_short_is_einval: 3, [W(24), W(0), Q(0x1000)] => 22;
    dma_unmap_long_is_einval: 3, [W(24), W(0), Q(0x1000), Q(0x1000), Q(0)] => 22;
    dma_unmap_small_argsz_is_einval: 3, [W(23), W(0), Q(0x1000), Q(0x1000)] => 22;
    dma_unmap_dirty_bitmap_is_eopnotsupp: 3, [W(40), W(1), Q(0x1000), Q(0x1000), Q(4096), Q(8)] => 95;
    dma_unmap_all_with_dirty_bitmap_is_einval: 3, [W(24), W(3), Q(0), Q(0)] => 22;
    dma_unmap_unknown_flag_is_einval: 3, [W(24), W(4), Q(0x1000), Q(0x1000)] => 22;
    dma_unmap_all_with_address_is_einval: 3, [W(24), W(2), Q(0x10000), Q(0)] => 22;
    dma_unmap_all_with_size_is_einval: 3, [W(24), W(2), Q(0), Q(4096)] => 22;
    dma_unmap_size_zero_is_einval: 3, [W(24), W(0), Q(0x1000), Q(0)] => 22;
    dma_unmap_wrapping_range_is_einval: 3, [W(24), W(0), Q(u64::MAX), Q(2)] => 22;

    device_info_of_a_newer_kernel_is_accepted: 4, [W(24), W(0), W(0), W(0), W(0), W(0)] => 0;
    device_info_short_is_einval: 4, [W(16), W(0), W(0)] => 22;
    device_info_small_argsz_is_einval: 4, [W(15), W(0), W(0), W(0)] => 22;

    region_info_is_accepted: 5, [W(32), W(0), W(7), W(0), Q(0), Q(0)] => 0;
    region_info_short_is_einval: 5, [W(32), W(0), W(7), W(0), Q(0)] => 22;
    region_info_small_argsz_is_einval: 5, [W(31), W(0), W(7), W(0), Q(0), Q(0)] => 22;

    region_io_fds_short_is_einval: 6, [W(16), W(0), W(0)] => 22;
    region_io_fds_small_argsz_is_einval: 6, [W(15), W(0), W(0), W(0)] => 22;
    region_io_fds_flags_are_einval: 6, [W(16), W(1), W(0), W(0)] => 22;

    irq_info_is_accepted: 7, [W(16), W(0), W(2), W(0)] => 0;
    irq_info_short_is_einval: 7, [W(16), W(0), W(2)] => 22;
    irq_info_small_argsz_is_einval: 7, [W(15), W(0), W(2), W(0)] => 22;

    set_irqs_disable_is_accepted: 8, [W(20), W(0x21), W(2), W(0), W(0)] => 0;
    set_irqs_eventfd_is_accepted: 8, [W(20), W(0x24), W(2), W(0), W(2)] => 0;
    set_irqs_mask_by_eventfd_is_accepted: 8, [W(20), W(0x0c), W(0), W(0), W(1)] => 0;
    set_irqs_bool_is_accepted: 8, [W(22), W(0x22), W(2), W(0), W(2), B(0), B(1)] => 0;
    set_irqs_empty_is_einval: 8, [] => 22;
    set_irqs_short_is_einval: 8, [W(0), W(0)] => 22;
    set_irqs_small_argsz_is_einval: 8, [W(3), W(0x21), W(4), W(0), W(0)] => 22;
    set_irqs_argsz_beyond_payload_is_einval: 8, [W(21), W(0x21), W(4), W(0), W(0)] => 22;
    set_irqs_mask_and_unmask_is_einval: 8, [W(20), W(0x19), W(2), W(0), W(1)] => 22;
    set_irqs_no_action_is_einval: 8, [W(20), W(0x01), W(2), W(0), W(1)] => 22;
    set_irqs_none_and_bool_is_einval: 8, [W(20), W(0x23), W(2), W(0), W(0)] => 22;
    set_irqs_no_data_type_is_einval: 8, [W(20), W(0x20), W(2), W(0), W(1)] => 22;
    set_irqs_unknown_flag_is_einval: 8, [W(20), W(0x61), W(2), W(0), W(1)] => 22;
    set_irqs_wrapping_range_is_einval: 8, [W(20), W(0x21), W(2), W(1), W(0xffff_ffff)] => 22;
    set_irqs_bool_count_all_ones_is_einval: 8, [W(21), W(0x22), W(2), W(0), W(0xffff_ffff), B(1)] => 22;
    set_irqs_bool_too_small_is_einval: 8, [W(21), W(0x22), W(2), W(0), W(2), B(0)] => 22;
    set_irqs_bool_too_large_is_einval: 8, [W(23), W(0x22), W(2), W(0), W(2), B(0), B(0), B(0)] => 22;
    set_irqs_data_with_none_is_einval: 8, [W(21), W(0x21), W(2), W(0), W(1), B(0)] => 22;
    set_irqs_mask_count_zero_is_einval: 8, [W(20), W(0x09), W(2), W(0), W(0)] => 22;
    set_irqs_bool_count_zero_is_einval: 8, [W(20), W(0x22), W(2), W(0), W(0)] => 22;
    set_irqs_eventfd_count_zero_is_einval: 8, [W(20), W(0x24), W(2), W(0), W(0)] => 22;
    set_irqs_start_with_count_zero_is_einval: 8, [W(20), W(0x21), W(2), W(1), W(0)] => 22;

    region_read_of_the_maximum_is_accepted: 9, [Q(0), W(0), W(0x10_0000)] => 0;
    region_read_short_is_einval: 9, [Q(0), W(0)] => 22;
    region_read_long_is_einval: 9, [Q(0), W(0), W(4), B(0)] => 22;
    region_read_count_zero_is_einval: 9, [Q(0), W(0), W(0)] => 22;
    region_read_beyond_maximum_is_einval: 9, [Q(0), W(0), W(0x10_0001)] => 22;
    region_read_count_all_ones_is_einval: 9, [Q(0), W(0), W(0xffff_ffff)] => 22;
    region_read_wrapping_offset_is_einval: 9, [Q(u64::MAX), W(7), W(256)] => 22;

    region_write_is_accepted: 10, [Q(0), W(0), W(4), W(1)] => 0;
    region_write_short_is_einval: 10, [Q(0), W(0)] => 22;
    region_write_count_above_data_is_einval: 10, [Q(0), W(0), W(5), W(1)] => 22;
    region_write_count_below_data_is_einval: 10, [Q(0), W(0), W(3), W(1)] => 22;
    region_write_count_all_ones_is_einval: 10, [Q(0), W(0), W(0xffff_ffff), W(1)] => 22;
    region_write_wrapping_offset_is_einval: 10, [Q(u64::MAX), W(0), W(4), W(1)] => 22;

    dma_read_short_is_einval: 11, [Q(0x1000), W(4)] => 22;
    dma_read_count_zero_is_einval: 11, [Q(0x1000), Q(0)] => 22;
    dma_read_beyond_maximum_is_einval: 11, [Q(0x1000), Q(0x10_0001)] => 22;
    dma_read_wrapping_address_is_einval: 11, [Q(u64::MAX), Q(2)] => 22;
    dma_write_count_above_data_is_einval: 12, [Q(0x1000), Q(5), W(1)] => 22;
    dma_write_wrapping_address_is_einval: 12, [Q(u64::MAX), Q(4), W(1)] => 22;

    reset_with_payload_is_einval: 13, [B(0)] => 22;

    write_multi_is_accepted: 15, [Q(1), Q(0), W(0), W(8), Q(1)] => 0;
    write_multi_short_is_einval: 15, [W(1)] => 22;
    write_multi_count_above_data_is_einval: 15, [Q(2), Q(0), W(0), W(8), Q(1)] => 22;
    write_multi_count_all_ones_is_einval: 15, [Q(u64::MAX), Q(0), W(0), W(8), Q(1)] => 22;
    write_multi_nine_bytes_is_einval: 15, [Q(1), Q(0), W(0), W(9), Q(1)] => 22;
    write_multi_zero_bytes_is_einval: 15, [Q(1), Q(0), W(0), W(0), Q(1)] => 22;
    write_multi_half_a_write_is_einval: 15, [Q(1), Q(0), W(0), W(8), Q(1), W(0)] => 22;

    feature_short_is_einval: 16, [W(8)] => 22;
    feature_small_argsz_is_einval: 16, [W(7), W(0x1_0001)] => 22;
    command_999_is_unknown_not_an_error: 999, [B(1)] => 0;
}

// Header: id, command, size, flags, error.

fn header(id: u16, command: u16, size: u32, flags: u32, error: u32) -> [u8; 16] {
    bytes(&[H(id), H(command), W(size), W(flags), W(error)]).try_into().unwrap()
}

#[test]
fn header_size_15_is_einval_and_ends_the_stream() {
    let e = Header::decode(&header(7, 8, 15, 0, 0), 100).unwrap_err();
    assert_eq!((e.msg_id, e.command.0, e.errno().0, e.skip, e.answerable), (7, 8, 22, None, true));
}

#[test]
fn header_size_above_limit_is_einval_and_ends_the_stream() {
    let e = Header::decode(&header(7, 8, 101, 0, 0), 100).unwrap_err();
    assert_eq!((e.msg_id, e.errno().0, e.skip), (7, 22, None));
}

#[test]
fn header_type_2_is_einval_and_can_be_skipped() {
    let e = Header::decode(&header(7, 8, 100, 2, 0), 100).unwrap_err();
    assert_eq!((e.msg_id, e.errno().0, e.skip, e.answerable), (7, 22, Some(84), true));
}

#[test]
fn header_bad_size_in_reply_is_not_answerable() {
    assert!(!Header::decode(&header(7, 8, 0, 1, 0), 100).unwrap_err().answerable);
}

#[test]
fn header_error_reply_has_the_errno() {
    assert_eq!(Header::decode(&header(7, 8, 16, 0x21, 22), 100).unwrap().error, Some(Errno::EINVAL));
}

#[test]
fn header_error_of_a_command_is_ignored() {
    let h = Header::decode(&header(7, 8, 16, 0x30, 22), 100).unwrap();
    assert_eq!((h.error, h.no_reply), (None, true));
}

#[test]
fn error_reply_encodes_as_sixteen_bytes() {
    assert_eq!(Header::error_reply(7, Command(8), Errno(22)).encode(), header(7, 8, 16, 0x21, 22));
}

// Version data.

fn version(json: &[u8]) -> Result<Version, u32> {
    let mut payload = bytes(&[H(0), H(2)]);
    payload.extend(json);
    Version::decode(&payload).map_err(|e| e.errno().0)
}

macro_rules! bad_json {
    ($($name:ident: $json:literal;)*) => { $(#[test] fn $name() { assert_eq!(version($json), Err(22)); })* };
}

bad_json! {
    json_without_nul_is_einval: b"{}";
    json_missing_brace_is_einval: b"{\0";
    json_missing_quote_is_einval: b"\"\0";
    json_two_objects_is_einval: b"{}{}\0";
    json_text_after_nul_is_einval: b"{}\0x\0";
    json_array_is_einval: b"[]\0";
    json_not_utf8_is_einval: b"{\"\xff\":1}\0";
    json_capabilities_string_is_einval: b"{\"capabilities\":\"23\"}\0";
    json_capabilities_array_is_einval: b"{\"capabilities\":[8]}\0";
    json_capabilities_null_is_einval: b"{\"capabilities\":null}\0";
    json_max_msg_fds_string_is_einval: b"{\"capabilities\":{\"max_msg_fds\":\"foo\"}}\0";
    json_max_msg_fds_negative_is_einval: b"{\"capabilities\":{\"max_msg_fds\":-1}}\0";
    json_max_data_xfer_size_float_is_einval: b"{\"capabilities\":{\"max_data_xfer_size\":1.5}}\0";
    json_pgsizes_bool_is_einval: b"{\"capabilities\":{\"pgsizes\":true}}\0";
    json_write_multiple_number_is_einval: b"{\"capabilities\":{\"write_multiple\":1}}\0";
    json_twin_socket_array_is_einval: b"{\"capabilities\":{\"twin_socket\":[true]}}\0";
    json_twin_socket_null_is_einval: b"{\"capabilities\":{\"twin_socket\":null}}\0";
    json_fd_index_string_is_einval: b"{\"capabilities\":{\"twin_socket\":{\"fd_index\":\"0\"}}}\0";
}

#[test]
fn json_nested_ten_thousand_deep_is_einval() {
    let json = ["{\"x\":".as_bytes(), &[b'['; 10_000], b"\0"].concat();
    assert_eq!(version(&json), Err(22));
}

#[test]
fn json_absent_or_empty_gives_the_defaults() {
    for json in
        [&b""[..], b"\0", b"{}\0", b"{\"capabilities\":{}}\0", b"{\"capabilities\":{\"migration\":{\"pgsize\":1}}}\0"]
    {
        let c = version(json).unwrap().capabilities;
        assert_eq!((c.max_msg_fds, c.max_data_xfer_size, c.max_dma_maps, c.pgsizes), (1, 1048576, 65535, 4096));
        assert_eq!((c.twin_socket, c.write_multiple), (None, false));
    }
}

#[test]
fn json_twin_socket_is_read() {
    let v = version(b"{\"capabilities\":{\"max_msg_fds\":8,\"twin_socket\":{\"supported\":true,\"fd_index\":3}}}\0")
        .unwrap();
    let twin = v.capabilities.twin_socket.unwrap();
    assert_eq!((v.major, v.minor, v.capabilities.max_msg_fds, twin.supported, twin.fd_index), (0, 2, 8, true, Some(3)));
}

// Region info replies: argsz, flags, index, cap_offset, size, offset; then id, version, next, nr_areas, reserved, areas.

fn region_info(fields: &[F]) -> Result<RegionInfoReply, u32> {
    RegionInfo::decode(&bytes(fields)).map_err(|e| e.errno().0)
}

macro_rules! bad_region_info {
    ($($name:ident: [$($field:expr),* $(,)?];)*) => {
        $(#[test] fn $name() { assert_eq!(region_info(&[$($field),*]), Err(22)); })*
    };
}

bad_region_info! {
    reply_region_info_short_is_einval: [W(32), W(3), W(0), W(0), Q(0x1000)];
    reply_region_info_small_argsz_is_einval: [W(31), W(3), W(0), W(0), Q(0x1000), Q(0)];
    caps_without_room_is_einval: [W(32), W(0xf), W(0), W(32), Q(0x1000), Q(0)];
    cap_offset_in_structure_is_einval: [W(40), W(0xf), W(0), W(24), Q(0x1000), Q(0), H(9), H(1), W(0)];
    cap_offset_zero_is_einval: [W(40), W(0xf), W(0), W(0), Q(0x1000), Q(0), H(9), H(1), W(0)];
    cap_offset_misaligned_is_einval: [W(48), W(0xf), W(0), W(33), Q(0x1000), Q(0), Q(0), Q(0)];
    cap_offset_beyond_payload_is_einval: [W(40), W(0xf), W(0), W(48), Q(0x1000), Q(0), H(9), H(1), W(0)];
    cap_offset_all_ones_is_einval: [W(40), W(0xf), W(0), W(0xffff_fff8), Q(0x1000), Q(0), H(9), H(1), W(0)];
    cap_next_to_itself_is_einval: [W(40), W(0xf), W(0), W(32), Q(0x1000), Q(0), H(9), H(1), W(32)];
    cap_next_backwards_is_einval:
        [W(48), W(0xf), W(0), W(32), Q(0x1000), Q(0), H(9), H(1), W(40), H(9), H(1), W(32)];
    cap_next_beyond_payload_is_einval: [W(40), W(0xf), W(0), W(32), Q(0x1000), Q(0), H(9), H(1), W(40)];
    cap_version_2_is_einval: [W(48), W(0xf), W(0), W(32), Q(0x1000), Q(0), H(1), H(2), W(0), W(0), W(0)];
    cap_sparse_twice_is_einval:
        [W(64), W(0xf), W(0), W(32), Q(0x1000), Q(0), H(1), H(1), W(48), W(0), W(0), H(1), H(1), W(0), W(0), W(0)];
    nr_areas_beyond_payload_is_einval:
        [W(64), W(0xf), W(0), W(32), Q(0x1000), Q(0), H(1), H(1), W(0), W(2), W(0), Q(0), Q(0x1000)];
    nr_areas_all_ones_is_einval:
        [W(64), W(0xf), W(0), W(32), Q(0x1000), Q(0), H(1), H(1), W(0), W(0xffff_ffff), W(0), Q(0), Q(0x1000)];
    area_beyond_region_is_einval:
        [W(64), W(0xf), W(0), W(32), Q(0x1000), Q(0), H(1), H(1), W(0), W(1), W(0), Q(0), Q(0x1001)];
    area_wrapping_is_einval:
        [W(64), W(0xf), W(0), W(32), Q(0x1000), Q(0), H(1), H(1), W(0), W(1), W(0), Q(u64::MAX), Q(2)];
}

#[test]
fn sparse_cap_behind_unknown_cap_is_found_and_encoded_alone() {
    let reply = region_info(&[
        W(72),
        W(0xf),
        W(2),
        W(32),
        Q(0x3000),
        Q(0x7000),
        H(9),
        H(5),
        W(40),
        H(1),
        H(1),
        W(0),
        W(1),
        W(0),
        Q(0x1000),
        Q(0x2000),
    ]);
    let Ok(RegionInfoReply::Full(info)) = reply else { panic!("{reply:?}") };
    let alone = [W(64), W(0xf), W(2), W(32), Q(0x3000), Q(0x7000), H(1), H(1), W(0), W(1), W(0), Q(0x1000), Q(0x2000)];
    assert_eq!(info.encode(64), bytes(&alone));
}

#[test]
fn sparse_cap_without_room_is_left_out_and_asked_for_again() {
    let full = [W(64), W(0xf), W(2), W(32), Q(0x3000), Q(0), H(1), H(1), W(0), W(1), W(0), Q(0x1000), Q(0x2000)];
    let Ok(RegionInfoReply::Full(info)) = region_info(&full) else { panic!() };
    assert_eq!(info.encode(63), bytes(&[W(64), W(0xf), W(2), W(32), Q(0x3000), Q(0)]));
    let again = RegionInfo::decode(&info.encode(63));
    assert!(matches!(again, Ok(RegionInfoReply::Truncated { needed: 64, .. })), "{again:?}");
}

#[test]
fn region_read_reply_count_above_data_is_einval() {
    let payload = bytes(&[Q(0), W(0), W(8), W(1)]);
    assert_eq!(RegionData::decode_read_reply(&payload, &Limits::default()).unwrap_err().errno().0, 22);
}

#[test]
fn dma_write_reply_with_four_byte_count_is_accepted() {
    assert_eq!(DmaWriteReply::decode(&bytes(&[Q(0x1000), W(4)])), Ok(DmaWriteReply { address: 0x1000, count: 4 }));
}

#[test]
fn set_irqs_file_descriptors_are_checked_against_count() {
    let set = |flags, count| {
        let payload = bytes(&[W(20), W(flags), W(2), W(2047), W(count)]);
        let Ok(Request::DeviceSetIrqs(set)) = Request::decode(Command(8), &payload, &Limits::default()) else {
            panic!()
        };
        ([0, 1, 2].map(|fds| set.check_fds(fds).is_ok()), set.check_count(2048).is_ok())
    };
    assert_eq!(set(0x24, 2), ([true, false, true], false));
    assert_eq!(set(0x21, 1), ([true, false, false], true));
}
