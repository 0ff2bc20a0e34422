//! A conversation with one client: each message becomes a call of the device and a reply.

use super::lease::Lease;
use super::refusal::Refusal;
use super::{access, irqs};
use std::os::fd::{AsFd as _, OwnedFd};
use udrv_backend::{Error, IrqIndex, RegionFlags, RegionIndex};
use udrv_channel::{Channel, ChannelError, MAX_FDS, Message};
use udrv_wire::{
    self as wire, Capabilities, DeviceFlags, Errno, Header, Limits, MessageKind, RegionData, RegionInfo,
    RegionWriteMultiReply, RegionWriteReply, Request, Version,
};

/// The version spoken here; a client that proposes an older minor one gets that.
const MAJOR: u16 = 0;
const MINOR: u16 = 2;

/// What this side accepts.
pub(super) const LIMITS: Limits =
    Limits { max_data_xfer_size: 0x10_0000, max_message_size: 0x10_0020, max_msg_fds: MAX_FDS as u32 };

/// What a client said in its first message.
pub(super) struct Hello {
    header: Header,
    version: Version,
}

/// Waits for the first message, which must be a VERSION and come within the channel's patience.
///
/// # Errors
/// Why there is no conversation; the client has been told.
pub(super) fn greet(channel: &Channel) -> Result<Hello, String> {
    let Message { header, payload, .. } = receive(channel)?;
    let judged = match Request::decode(header.command, &payload, &LIMITS) {
        Ok(Request::Version(version)) if version.major == MAJOR => Ok(version),
        Ok(Request::Version(version)) => {
            Err(Refusal::invalid(format!("it speaks version {}.{}, not {MAJOR}.x", version.major, version.minor)))
        }
        Ok(other) => Err(Refusal::invalid(format!("its first message is {}, not VERSION", other.command()))),
        Err(error) => Err(error.into()),
    };
    judged.map(|version| Hello { header, version }).map_err(|refusal| refuse(channel, &header, refusal))
}

impl Hello {
    /// Tells the client that there is no lease for it.
    pub(super) fn turn_away(&self, channel: &Channel, refusal: Refusal) -> String {
        refuse(channel, &self.header, refusal)
    }
}

/// Sends the error reply, if one is wanted; returns the reason.
fn refuse(channel: &Channel, header: &Header, refusal: Refusal) -> String {
    if !header.no_reply {
        // That the client is gone already is noticed by whoever reads next.
        let _ = channel.send(&Header::error_reply(header.msg_id, header.command, refusal.errno), &[], &[]);
    }
    refusal.why
}

/// The next command.
fn receive(channel: &Channel) -> Result<Message, String> {
    let message = channel.receive().map_err(|error| {
        let ChannelError::Header(header) = &error else { return error.to_string() };
        if header.answerable {
            let _ = channel.send(&Header::error_reply(header.msg_id, header.command, header.errno()), &[], &[]);
        }
        format!("{header}: {}", header.source)
    })?;
    match message.header.kind {
        MessageKind::Command => Ok(message),
        MessageKind::Reply => Err(format!("it replied to {}, which nobody asked", message.header.command)),
    }
}

/// What goes back to the client when all is well.
#[derive(Default)]
struct Answer {
    payload: Vec<u8>,
    fd: Option<OwnedFd>,
}

impl From<Vec<u8>> for Answer {
    fn from(payload: Vec<u8>) -> Self {
        Self { payload, fd: None }
    }
}

/// A client with its device.
pub(super) struct Session<'a> {
    pub(super) channel: &'a Channel,
    pub(super) lease: &'a mut Lease,
    /// Whether it may map regions.
    pub(super) mmap: bool,
    pub(super) name: &'a str,
}

impl Session<'_> {
    /// Serves it until it goes or breaks the protocol. Returns why it ended.
    pub(super) fn run(&mut self, hello: &Hello) -> String {
        match self.converse(hello) {
            Err(why) => why,
            Ok(never) => match never {},
        }
    }

    fn converse(&mut self, hello: &Hello) -> Result<std::convert::Infallible, String> {
        // A client that takes no descriptor cannot be given one.
        self.mmap &= hello.version.capabilities.max_msg_fds > 0;
        let welcome = Answer::from(self.welcome(&hello.version).encode());
        self.reply(&hello.header, Ok(welcome))?;
        loop {
            self.channel.wait().map_err(|error| error.to_string())?;
            let message = receive(self.channel)?;
            self.lease.counters.messages.add_one();
            let answer = self.handle(&message);
            self.reply(&message.header, answer)?;
        }
    }

    fn reply(&self, to: &Header, answer: Result<Answer, Refusal>) -> Result<(), String> {
        let sent = match answer {
            Ok(_) if to.no_reply => Ok(()),
            Ok(Answer { payload, fd }) => {
                let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
                self.channel.send(&to.reply(payload.len()), &payload, &fds)
            }
            Err(refusal) => {
                self.lease.counters.errors.add_one();
                tracing::debug!("{}: {} refused with {}: {}", self.name, to.command, refusal.errno, refusal.why);
                let header = Header::error_reply(to.msg_id, to.command, refusal.errno);
                if to.no_reply { Ok(()) } else { self.channel.send(&header, &[], &[]) }
            }
        };
        sent.map_err(|error| match error {
            ChannelError::Timeout(after) => format!("it did not take its replies within {after:?}"),
            other => other.to_string(),
        })
    }

    fn welcome(&self, proposed: &Version) -> Version {
        let limits = self.lease.device.dma().map(udrv_backend::Dma::limits);
        let capabilities = Capabilities {
            max_msg_fds: LIMITS.max_msg_fds,
            max_data_xfer_size: LIMITS.max_data_xfer_size.into(),
            max_dma_maps: self.lease.mappings.most().into(),
            pgsizes: limits.map_or(4096, |limits| limits.page_size),
            twin_socket: None,
            write_multiple: true,
        };
        Version { major: MAJOR, minor: proposed.minor.min(MINOR), capabilities }
    }

    fn handle(&mut self, message: &Message) -> Result<Answer, Refusal> {
        if message.surplus_fds > 0 {
            return Err(Refusal::invalid(format!("more than {MAX_FDS} descriptors with one message")));
        }
        let device = &*self.lease.device;
        let regions = &self.lease.regions;
        let counters = &self.lease.counters;
        match Request::decode(message.header.command, &message.payload, &LIMITS)? {
            Request::DeviceGetInfo(_) => Ok(self.device_info().into()),
            Request::DeviceGetRegionInfo(request) => self.region_info(&request),
            Request::DeviceGetRegionIoFds(request) => self.region_io_fds(&request),
            Request::DeviceGetIrqInfo(request) => self.irq_info(&request),
            Request::DeviceSetIrqs(request) => {
                counters.irqs_set.add_one();
                irqs::set(device, &self.lease.hold, &request, &message.fds)?;
                Ok(Answer::default())
            }
            Request::RegionRead(wire::RegionRead { offset, region, count }) => {
                counters.reads.add_one();
                let data = access::read(device, regions, region, offset, count as usize)?;
                Ok(RegionData { offset, region, data: &data }.encode().into())
            }
            Request::RegionWrite(wire::RegionWrite { offset, region, data }) => {
                counters.writes.add_one();
                access::write(device, regions, region, offset, data)?;
                Ok(RegionWriteReply { offset, region, count: data.len() as u32 }.encode().into())
            }
            Request::RegionWriteMulti(request) => {
                for write in &request.writes {
                    counters.writes.add_one();
                    access::write(device, regions, write.region, write.offset, write.bytes())?;
                }
                Ok(RegionWriteMultiReply { wr_cnt: request.writes.len() as u64 }.encode().into())
            }
            Request::DmaMap(request) => {
                self.lease.mappings.map(device, &request, &message.fds)?;
                counters.dma_bytes.set(self.lease.mappings.bytes());
                Ok(Answer::default())
            }
            Request::DmaUnmap(request) => {
                let outcome = self.lease.mappings.unmap(device, &request);
                counters.dma_bytes.set(self.lease.mappings.bytes());
                outcome.map(|()| request.encode().into())
            }
            Request::DeviceReset => {
                let by = device.info().address.clone();
                let method = device.resettable().ok_or(Error::NotSupported { what: "reset", by })?;
                method.reset()?;
                Ok(Answer::default())
            }
            Request::Version(_) => Err(Refusal::invalid("a second VERSION")),
            Request::DmaRead(_) | Request::DmaWrite(_) => {
                Err(Refusal::invalid("only a server asks for the client's memory"))
            }
            // What the kernel's VFIO answers for a feature that a device lacks.
            Request::DeviceFeature(feature) => {
                Err(Refusal::new(Errno::ENOTTY, format!("no device feature {}", feature.flags & 0xffff)))
            }
            other => Err(Refusal::new(Errno::ENOSYS, format!("{} is not implemented", other.command()))),
        }
    }

    fn device_info(&self) -> Vec<u8> {
        let device = &self.lease.device;
        let mut flags = DeviceFlags::PCI;
        flags.set(DeviceFlags::RESET, device.resettable().is_some());
        let info = device.info();
        wire::DeviceInfo { flags, num_regions: info.regions, num_irqs: info.irqs }.encode()
    }

    fn region_info(&self, request: &wire::DeviceGetRegionInfo) -> Result<Answer, Refusal> {
        let index = RegionIndex(request.index);
        let none = Error::NoSuchRegion { region: index, count: self.lease.regions.len() as u32 };
        let info = self.lease.regions.get(request.index as usize).ok_or(none)?;
        let mut answer = RegionInfo {
            index: request.index,
            flags: wire::RegionFlags::from_bits_truncate((info.flags - RegionFlags::MMAP).bits()),
            size: info.size,
            offset: 0,
            sparse_areas: None,
        };
        let mut fd = None;
        if self.mmap
            && !info.mappable.is_empty()
            && let Some(device) = self.lease.device.mappable()
        {
            let file = device.region_file(index)?;
            let copy = file.file.try_clone_to_owned();
            fd = Some(copy.map_err(|error| Error::os(format!("passing {index} on"), error))?);
            answer.flags |= wire::RegionFlags::MMAP;
            answer.offset = file.offset;
            let areas = info.mappable.iter().map(|area| wire::SparseArea { offset: area.offset, size: area.size });
            let whole = matches!(info.mappable.as_slice(), [area] if area.offset == 0 && area.size == info.size);
            answer.sparse_areas = (!whole).then(|| areas.collect());
        }
        Ok(Answer { payload: answer.encode(request.argsz), fd })
    }

    /// No region has a part that is better reached through a descriptor.
    fn region_io_fds(&self, request: &wire::DeviceGetRegionIoFds) -> Result<Answer, Refusal> {
        let count = self.lease.regions.len() as u32;
        if request.index >= count {
            return Err(Error::NoSuchRegion { region: RegionIndex(request.index), count }.into());
        }
        Ok(wire::RegionIoFds { index: request.index, sub_regions: Vec::new() }.encode(request.argsz).into())
    }

    fn irq_info(&self, request: &wire::DeviceGetIrqInfo) -> Result<Answer, Refusal> {
        let index = IrqIndex(request.index);
        let none = Error::NoSuchIrq { index, start: 0, count: 0, available: 0 };
        let info = self.lease.irqs.get(request.index as usize).ok_or(none)?;
        let flags = wire::IrqFlags::from_bits_retain(info.flags.bits());
        Ok(wire::IrqInfo { flags, index: request.index, count: info.count }.encode().into())
    }
}
