//! What is served: a device, under a name, to a user.

use super::dma::Mappings;
use super::recordings::Recordings;
use nix::unistd::{Uid, geteuid};
use std::any::Any;
use std::sync::Arc;
use udrv_backend::{AnyBackend, Error, Result};
use udrv_debug::trace::Recorder;
use udrv_usb::host::UsbAddress;

/// The protocol's default, and the most that QEMU's client accepts.
const MOST_MAPPINGS: u32 = 65_535;

/// A device opened for one lease. At the lease's end `device` is dropped first, then `held`.
pub struct Opened {
    /// The device.
    pub device: AnyBackend,
    /// What must be kept as long as the device is open, and whose drop gives back what was taken for this lease.
    pub held: Option<Box<dyn Any + Send>>,
}

/// One device to be served, and to whom.
pub struct Export {
    name: String,
    address: String,
    owner: Uid,
    mmap: bool,
    hold: bool,
    most_mappings: u32,
    most_bytes: u64,
    /// The device, if it is there without a lease.
    shared: Option<AnyBackend>,
    /// A USB device: drivers get its node, and speak no vfio-user.
    usb: Option<UsbAddress>,
    open: Box<dyn Fn() -> Result<Opened> + Send + Sync>,
    recordings: Option<Recordings>,
}

impl Export {
    /// One device for all leases, one after the other: a software model.
    pub fn shared(name: &str, device: AnyBackend) -> Self {
        let address = device.info().address.clone();
        let shared = Some(device.clone());
        let open = move || Ok(Opened { device: device.clone(), held: None });
        Self { shared, ..Self::opened_by(name, &address, open) }
    }

    /// A device opened anew for each lease, so that nothing of one lease is left in the next.
    pub fn opened_by(name: &str, address: &str, open: impl Fn() -> Result<Opened> + Send + Sync + 'static) -> Self {
        Self {
            name: name.into(),
            address: address.into(),
            owner: geteuid(),
            mmap: false,
            hold: true,
            most_mappings: MOST_MAPPINGS,
            most_bytes: u64::MAX,
            shared: None,
            usb: None,
            open: Box::new(open),
            recordings: None,
        }
    }

    /// A USB device, whose open node is passed on to the driver that has the lease.
    pub(super) fn of_usb(name: &str, address: UsbAddress) -> Self {
        let text = address.to_string();
        let open = || Err(Error::NotSupported { what: "vfio-user", by: "a USB device".into() });
        Self { usb: Some(address), ..Self::opened_by(name, &text, open) }
    }

    pub(super) const fn passed_on(&self) -> Option<&UsbAddress> {
        self.usb.as_ref()
    }

    /// Serves it to this user rather than to the one who runs this process.
    #[must_use]
    pub fn owned_by(self, owner: Uid) -> Self {
        Self { owner, ..self }
    }

    /// Whether clients may map its regions. For kernel VFIO they then hold the device's own descriptor.
    #[must_use]
    pub fn mapped(self, mmap: bool) -> Self {
        Self { mmap, ..self }
    }

    /// Whether a client that stands in a debugger, or by a signal, has its interrupts held back and its deadlines stand still.
    /// It has, unless told otherwise.
    #[must_use]
    pub fn held(self, hold: bool) -> Self {
        Self { hold, ..self }
    }

    /// Records what passes between each client and the device: one recording a lease. Regions are then not mapped.
    #[must_use]
    pub fn recorded(self, recordings: Option<Recordings>) -> Self {
        Self { recordings, ..self }
    }

    /// How many DMA mappings a client may have, each of which may keep a descriptor; 65535 at most.
    #[must_use]
    pub fn mappings_at_most(self, most: u32) -> Self {
        Self { most_mappings: most.min(MOST_MAPPINGS), ..self }
    }

    /// How many bytes of its memory a client may have mapped at a time. Memory that a real device reaches stays in RAM, by
    /// this process's right and not by the client's.
    #[must_use]
    pub fn memory_at_most(self, bytes: u64) -> Self {
        Self { most_bytes: bytes, ..self }
    }

    /// The name in logs, on the control socket, and of its socket.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's address.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The user it is served to.
    #[must_use]
    pub const fn owner(&self) -> Uid {
        self.owner
    }

    pub(super) const fn shared_device(&self) -> Option<&AnyBackend> {
        self.shared.as_ref()
    }

    /// A client's memory, with what it may map.
    pub(super) const fn no_mappings(&self) -> Mappings {
        Mappings::new(self.most_mappings, self.most_bytes)
    }

    pub(super) const fn holds(&self) -> bool {
        self.hold
    }

    pub(super) const fn maps(&self) -> bool {
        self.mmap
    }

    /// Opens the device.
    ///
    /// # Errors
    /// What opening it gave.
    pub fn open(&self) -> Result<Opened> {
        (self.open)()
    }

    /// Opens it for a lease: as [`Export::open`], recorded if that was asked for.
    ///
    /// # Errors
    /// What opening it gave, or making the recording: a lease that was to be recorded is not to go unrecorded.
    pub(super) fn lease(&self) -> Result<Opened> {
        let Opened { device, held } = self.open()?;
        let Some(recordings) = &self.recordings else { return Ok(Opened { device, held }) };
        let path = recordings.next(&self.name)?;
        tracing::info!("{}: recorded into {}", self.name, path.display());
        Ok(Opened { device: Arc::new(Recorder::new(device, &path, recordings.options)?), held })
    }
}
