//! The mass storage driver: what a disk is, and its blocks. How a command gets to it and what goes wrong on the way is in
//! `transport.rs`.

mod transport;

use crate::protocol::{
    CAPACITY_10_LENGTH, CAPACITY_16_LENGTH, Capacity, Command, GET_MAX_LUN, INQUIRY_LENGTH, INTERFACE_CLASS, Inquiry,
    SENSE_LENGTH, Sense,
};
use std::time::Duration;
use transport::{Data, Outcome};
use udrv_usb::descriptor::TransferType;
use udrv_usb::{Buffer, Device, EndpointAddress, Error, Result, Status, Transfer};

/// How long one command may take. Disks that spin up take tens of seconds; the kernel's driver gives them 30.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the device may take to answer a class request.
const CONTROL: Duration = Duration::from_secs(5);

/// How often a command is tried that the device says it could not do this time.
const ATTEMPTS: usize = 5;

/// Bytes a command moves at most: 1 MiB is where larger ones stop being faster.
pub const MAX_TRANSFER: usize = 1 << 20;

/// A mass storage device, brought up. Its interface is given back when it is dropped.
pub struct Storage {
    device: Device,
    interface: u8,
    bulk_in: EndpointAddress,
    bulk_out: EndpointAddress,
    tag: u32,
    lun: u8,
    inquiry: Inquiry,
    capacity: Capacity,
    /// The buffer of the last command, for the next: new memory for each costs more than the transfer.
    spare: Buffer,
}

impl Storage {
    /// Takes a device's first bulk-only interface and brings up its logical unit 0.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it has no such interface, or another program has it; [`Error::Protocol`] if it does not
    /// speak as it should; [`Error::Timeout`], [`Error::Gone`].
    pub fn attach(device: Device) -> Result<Self> {
        let (interface, bulk_in, bulk_out) = find(&device)?;
        device.backend().claim(interface)?;
        let inquiry = Inquiry {
            device_type: 0,
            removable: false,
            vendor: String::new(),
            product: String::new(),
            revision: String::new(),
        };
        let capacity = Capacity { blocks: 0, block_size: 0 };
        let mut storage =
            Self { device, interface, bulk_in, bulk_out, tag: 1, lun: 0, inquiry, capacity, spare: Buffer::default() };
        let bytes = storage.run(&Command::inquiry(), &Data::In(usize::from(INQUIRY_LENGTH)), "INQUIRY")?;
        storage.inquiry = Inquiry::from_bytes(&bytes).ok_or_else(|| storage.nonsense("INQUIRY", &bytes))?;
        storage.run(&Command::test_unit_ready(), &Data::None, "TEST UNIT READY")?;
        storage.capacity = storage.read_capacity()?;
        Ok(storage)
    }

    /// How many logical units there are (BOT, 3.2: a device with one may answer STALL).
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Gone`].
    pub fn logical_units(&self) -> Result<u8> {
        let setup = self.class_request(GET_MAX_LUN);
        let completion = self.device.transfer(Transfer::control(setup, vec![0]), CONTROL)?;
        if completion.status == Status::Stall {
            return Ok(1);
        }
        let data = completion.into_data(self.device.address(), "Get Max LUN", CONTROL)?;
        Ok(data.first().map_or(1, |last| (last & 0x0f) + 1))
    }

    /// What it is.
    #[must_use]
    pub const fn inquiry(&self) -> &Inquiry {
        &self.inquiry
    }

    /// How large it is.
    #[must_use]
    pub const fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// The device.
    #[must_use]
    pub const fn device(&self) -> &Device {
        &self.device
    }

    /// Reads blocks from `lba` on until `length` bytes, a multiple of the block's size, have been given to `each`, piece by
    /// piece and in order.
    ///
    /// # Errors
    /// [`Error::Protocol`] with the sense data, or for blocks that do not exist; [`Error::Timeout`], [`Error::Gone`]; what
    /// `each` returned.
    pub fn read(&mut self, lba: u64, length: u64, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.check(lba, length)?;
        let block = u64::from(self.capacity.block_size);
        let (mut lba, mut left) = (lba, length / block);
        while left > 0 {
            let blocks = left.min(self.blocks_at_once());
            let length = usize::try_from(blocks * block).unwrap_or(MAX_TRANSFER);
            let command = Command::access(false, lba, u32::try_from(blocks).unwrap_or(u32::MAX));
            let bytes = self.run(&command, &Data::In(length), "READ")?;
            if bytes.len() != length {
                return Err(self.nonsense(&format!("READ of {length} bytes"), &bytes));
            }
            each(&bytes)?;
            self.spare = bytes;
            (lba, left) = (lba + blocks, left - blocks);
        }
        Ok(())
    }

    /// Writes `bytes`, a multiple of the block's size, from `lba` on.
    ///
    /// # Errors
    /// As [`Storage::read`].
    pub fn write(&mut self, lba: u64, bytes: &[u8]) -> Result<()> {
        self.check(lba, bytes.len() as u64)?;
        let block = u64::from(self.capacity.block_size);
        let piece = usize::try_from(self.blocks_at_once() * block).unwrap_or(MAX_TRANSFER);
        let mut lba = lba;
        for bytes in bytes.chunks(piece.max(1)) {
            let blocks = bytes.len() as u64 / block;
            let command = Command::access(true, lba, u32::try_from(blocks).unwrap_or(u32::MAX));
            self.spare = self.run(&command, &Data::Out(bytes), "WRITE")?;
            lba += blocks;
        }
        Ok(())
    }

    /// Has everything written reach the medium.
    ///
    /// # Errors
    /// As [`Storage::read`].
    pub fn flush(&mut self) -> Result<()> {
        self.run(&Command::synchronize_cache(), &Data::None, "SYNCHRONIZE CACHE").map(drop)
    }

    fn blocks_at_once(&self) -> u64 {
        (MAX_TRANSFER as u64 / u64::from(self.capacity.block_size)).max(1)
    }

    fn check(&self, lba: u64, length: u64) -> Result<()> {
        let block = u64::from(self.capacity.block_size);
        let end = length.checked_div(block).and_then(|blocks| lba.checked_add(blocks));
        if end.is_some_and(|end| end <= self.capacity.blocks) && length.is_multiple_of(block) {
            return Ok(());
        }
        Err(Error::Protocol {
            peer: "the caller".into(),
            found: format!("{length} bytes from block {lba}"),
            expected: format!("whole blocks of {block} bytes below block {}", self.capacity.blocks),
        })
    }

    fn read_capacity(&mut self) -> Result<Capacity> {
        let bytes =
            self.run(&Command::read_capacity_10(), &Data::In(usize::from(CAPACITY_10_LENGTH)), "READ CAPACITY (10)")?;
        let capacity = match Capacity::from_bytes_10(&bytes) {
            Some((u32::MAX, _)) => {
                let data = Data::In(usize::from(CAPACITY_16_LENGTH));
                let bytes = self.run(&Command::read_capacity_16(), &data, "READ CAPACITY (16)")?;
                Capacity::from_bytes_16(&bytes)
            }
            Some((last, block_size)) => Some(Capacity { blocks: u64::from(last) + 1, block_size }),
            None => None,
        };
        let sane = |capacity: &Capacity| (1..=MAX_TRANSFER as u32).contains(&capacity.block_size);
        capacity.filter(sane).ok_or_else(|| self.nonsense("READ CAPACITY", &bytes))
    }

    fn nonsense(&self, command: &str, bytes: &[u8]) -> Error {
        Error::Protocol {
            peer: self.device.address().into(),
            found: format!("{} bytes in answer to {command}: {:02x?}", bytes.len(), bytes.get(..bytes.len().min(16))),
            expected: "what SPC-4 and SBC-3 say".into(),
        }
    }

    /// Runs a command, with its sense data read where it fails, and tried again where that says that it may work.
    fn run(&mut self, command: &Command, data: &Data<'_>, name: &str) -> Result<Buffer> {
        let mut sense = Sense::NONE;
        for _ in 0..ATTEMPTS {
            match self.attempt(command, data, name)? {
                Outcome::Good(bytes) => return Ok(bytes),
                Outcome::Failed => sense = self.request_sense()?,
            }
            tracing::debug!(command = name, %sense, "failed");
            if !matches!(sense.key, Sense::UNIT_ATTENTION | Sense::NOT_READY) {
                break;
            }
        }
        Err(Error::Protocol {
            peer: self.device.address().into(),
            found: format!("{sense} in answer to {name}"),
            expected: "GOOD".into(),
        })
    }

    fn request_sense(&mut self) -> Result<Sense> {
        let data = Data::In(usize::from(SENSE_LENGTH));
        match self.attempt(&Command::request_sense(), &data, "REQUEST SENSE")? {
            Outcome::Good(bytes) => Sense::from_bytes(&bytes).ok_or_else(|| self.nonsense("REQUEST SENSE", &bytes)),
            Outcome::Failed => Err(self.nonsense("REQUEST SENSE", &[])),
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Err(error) = self.device.backend().release(self.interface) {
            tracing::debug!(%error, "giving the interface back");
        }
    }
}

/// The interface and its endpoints.
fn find(device: &Device) -> Result<(u8, EndpointAddress, EndpointAddress)> {
    let active = device.backend().configuration()?;
    let configuration = device.info().descriptors.configuration(active);
    let interfaces = configuration.into_iter().flat_map(|configuration| &configuration.interfaces);
    let mut ours = interfaces.filter(|interface| interface.class == INTERFACE_CLASS && interface.alternate == 0);
    let found = ours.find_map(|interface| {
        let bulk_in = interface.endpoint(TransferType::Bulk, true)?.address;
        let bulk_out = interface.endpoint(TransferType::Bulk, false)?.address;
        Some((interface.number, bulk_in, bulk_out))
    });
    found.ok_or_else(|| Error::Unavailable {
        device: device.address().into(),
        why: "it has no bulk-only mass storage interface (08:06:50)".into(),
        advice: "`udrv usb list` shows what it has".into(),
    })
}
