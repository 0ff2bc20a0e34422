//! Whatever is encoded decodes to itself, and no bytes make a decoder panic.

use proptest::collection::vec;
use proptest::prelude::*;
use udrv_wire::*;

const LIMITS: Limits = Limits { max_data_xfer_size: 0x10_0000, max_message_size: 0x10_0020, max_msg_fds: 1 };

fn round_trip(request: &Request<'_>) -> Result<(), TestCaseError> {
    let payload = request.encode();
    let decoded = Request::decode(request.command(), &payload, &LIMITS);
    prop_assert_eq!(decoded.as_ref(), Ok(request));
    Ok(())
}

prop_compose! {
    fn capabilities()(max_msg_fds: u32, max_data_xfer_size: u64, max_dma_maps: u64, pgsizes: u64, write_multiple: bool,
                      twin: Option<(bool, Option<u32>)>) -> Capabilities {
        let twin_socket = twin.map(|(supported, fd_index)| TwinSocket { supported, fd_index });
        Capabilities { max_msg_fds, max_data_xfer_size, max_dma_maps, pgsizes, twin_socket, write_multiple }
    }
}

proptest! {
    #[test]
    fn header_round_trips(msg_id: u16, command: u16, size in 16u32.., no_reply: bool, reply: bool, error: Option<u32>) {
        let kind = if reply { MessageKind::Reply } else { MessageKind::Command };
        let error = error.filter(|_| reply).map(Errno);
        let header = Header { msg_id, command: Command(command), size, kind, no_reply, error };
        prop_assert_eq!(Header::decode(&header.encode(), u32::MAX), Ok(header));
    }

    #[test]
    fn version_round_trips(major: u16, minor: u16, capabilities in capabilities()) {
        round_trip(&Request::Version(Version { major, minor, capabilities }))?;
    }

    #[test]
    fn dma_requests_round_trip(flags in 0u32..4, a in 0..1u64 << 62, size in 1..1u64 << 62, count in 1u64..=0x10_0000,
                               data in vec(any::<u8>(), 1..64)) {
        round_trip(&Request::DmaMap(DmaMap { flags: DmaFlags::from_bits_retain(flags), offset: a / 2, iova: a, size }))?;
        round_trip(&Request::DmaUnmap(DmaUnmap { all: false, iova: a, size }))?;
        round_trip(&Request::DmaUnmap(DmaUnmap { all: true, iova: 0, size: 0 }))?;
        round_trip(&Request::DmaRead(DmaRead { address: a, count }))?;
        let write = DmaWrite { address: a, data: &data };
        round_trip(&Request::DmaWrite(write))?;
        let payload = write.encode();
        prop_assert_eq!(DmaData::decode_read_reply(&payload, &LIMITS), Ok(write));
        let reply = DmaWriteReply { address: a, count };
        prop_assert_eq!(DmaWriteReply::decode(&reply.encode()), Ok(reply));
    }

    #[test]
    fn queries_and_their_replies_round_trip(argsz in 32u32.., index: u32, n: u32, bits: u32, data in vec(any::<u8>(), 0..64)) {
        round_trip(&Request::DeviceGetInfo(DeviceGetInfo { argsz }))?;
        round_trip(&Request::DeviceGetRegionInfo(DeviceGetRegionInfo { argsz, index }))?;
        round_trip(&Request::DeviceGetRegionIoFds(DeviceGetRegionIoFds { argsz, index }))?;
        round_trip(&Request::DeviceGetIrqInfo(DeviceGetIrqInfo { argsz, index }))?;
        round_trip(&Request::DeviceFeature(DeviceFeature { argsz, flags: bits, data: &data }))?;
        round_trip(&Request::DeviceReset)?;
        let info = DeviceInfo { flags: DeviceFlags::from_bits_retain(bits), num_regions: index, num_irqs: n };
        prop_assert_eq!(DeviceInfo::decode(&info.encode()), Ok(info));
        let info = IrqInfo { flags: IrqFlags::from_bits_retain(bits), index, count: n };
        prop_assert_eq!(IrqInfo::decode(&info.encode()), Ok(info));
    }

    #[test]
    fn region_io_round_trips(offset in 0..u64::MAX - 0x10_0000, region: u32, count in 1u32..=0x10_0000,
                             data in vec(any::<u8>(), 0..64), writes in vec((any::<u32>(), 1u32..=8, any::<[u8; 8]>()), 0..9)) {
        round_trip(&Request::RegionRead(RegionRead { offset, region, count }))?;
        let write = RegionWrite { offset, region, data: &data };
        round_trip(&Request::RegionWrite(write))?;
        let payload = write.encode();
        prop_assert_eq!(RegionData::decode_read_reply(&payload, &LIMITS), Ok(write));
        let reply = RegionWriteReply { offset, region, count };
        prop_assert_eq!(RegionWriteReply::decode(&reply.encode()), Ok(reply));
        let writes = writes.into_iter().map(|(region, count, data)| MultiWrite { offset, region, count, data }).collect();
        round_trip(&Request::RegionWriteMulti(RegionWriteMulti { writes }))?;
        let reply = RegionWriteMultiReply { wr_cnt: offset };
        prop_assert_eq!(RegionWriteMultiReply::decode(&reply.encode()), Ok(reply));
    }

    #[test]
    fn set_irqs_round_trips(action in 0..3, data in 0..3, index: u32, start in 0u32..1 << 31, bools in vec(any::<u8>(), 1..64)) {
        let action = [IrqAction::Mask, IrqAction::Unmask, IrqAction::Trigger][action as usize];
        let data = [IrqData::None, IrqData::Bool(&bools), IrqData::Eventfd][data as usize];
        round_trip(&Request::DeviceSetIrqs(DeviceSetIrqs { action, data, index, start, count: bools.len() as u32 }))?;
    }

    #[test]
    fn region_replies_round_trip(index: u32, bits: u32, size in 1u64 << 33.., offset: u64,
                                 areas: Option<Vec<(u32, u32)>>, subs: Vec<(u64, u64, u32, u32, u32, u64)>) {
        let sparse_areas = areas.map(|a| a.into_iter().map(|(o, s)| SparseArea { offset: o.into(), size: s.into() }).collect());
        let info = RegionInfo { index, flags: RegionFlags::from_bits_truncate(bits), size, offset, sparse_areas };
        prop_assert_eq!(RegionInfo::decode(&info.encode(u32::MAX)), Ok(RegionInfoReply::Full(info)));
        let sub_regions = subs.into_iter()
            .map(|(offset, size, fd_index, io_type, flags, data)| IoFdSubRegion { offset, size, fd_index, io_type, flags, data })
            .collect();
        let fds = RegionIoFds { index, sub_regions };
        prop_assert_eq!(RegionIoFds::decode(&fds.encode(u32::MAX)), Ok(fds));
    }

    #[test]
    fn arbitrary_bytes_never_panic(header: [u8; 16], command in 0u16..20, bytes in vec(prop_oneof![Just(0u8), 0..64u8, any::<u8>()], 0..160)) {
        let _ = Header::decode(&header, 0x1000);
        if let Ok(Request::DeviceSetIrqs(set)) = Request::decode(Command(command), &bytes, &LIMITS) {
            let _ = (set.check_fds(bytes.len()), set.check_count(1));
        }
        let _ = Request::decode(Command(command), &bytes, &Limits { max_data_xfer_size: 0, ..LIMITS });
        let _ = (Version::decode(&bytes), DeviceInfo::decode(&bytes), IrqInfo::decode(&bytes), DeviceFeature::decode(&bytes));
        let _ = (RegionInfo::decode(&bytes), RegionIoFds::decode(&bytes), DmaUnmap::decode(&bytes));
        let _ = (RegionData::decode_read_reply(&bytes, &LIMITS), RegionWriteReply::decode(&bytes));
        let _ = (RegionWriteMultiReply::decode(&bytes), DmaData::decode_read_reply(&bytes, &LIMITS), DmaWriteReply::decode(&bytes));
    }

    #[test]
    fn arbitrary_capability_chains_never_panic(at: u32, chain in vec((0u16..3, 0u16..3, 0u32..12, 0u32..4, any::<bool>()), 0..8)) {
        let mut reply = Vec::new();
        for word in [0u32, 0xf, 0, if at % 4 == 0 { at } else { 32 }] {
            reply.extend(word.to_ne_bytes());
        }
        reply.extend([0xff; 16]);
        for (id, version, next, nr, odd) in chain {
            reply.extend(id.to_ne_bytes());
            reply.extend(version.to_ne_bytes());
            reply.extend((next * 8 + u32::from(odd)).to_ne_bytes());
            reply.extend(nr.to_ne_bytes());
            reply.extend(0u32.to_ne_bytes());
        }
        let argsz = (reply.len() as u32).to_ne_bytes();
        reply[..4].copy_from_slice(&argsz);
        let _ = RegionInfo::decode(&reply);
    }

    #[test]
    fn arbitrary_text_as_version_data_never_panics(text in "\\PC{0,64}", nul: bool) {
        let mut payload = vec![0; 4];
        payload.extend(text.as_bytes());
        payload.extend(nul.then_some(0));
        let _ = Version::decode(&payload);
    }
}
