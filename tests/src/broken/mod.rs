//! Backends with one fault each, so that it can be seen which checks of the conformance suite notice it.
//!
//! The fault is put around a sound backend; where it needs to know what was armed or mapped, the wrapper keeps book.

mod backend;
mod dma;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use udrv_backend::{AnyBackend, Backend as _, DeviceInfo, Dma, IrqIndex, Result, Trigger};

/// What is wrong with a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are sentences")]
pub enum Fault {
    None,
    AddressIsEmpty,
    EmptyRegionIsReadable,
    RegionBeyondTheLastExists,
    IrqInfoNamesAnother,
    LastRegisterIsOutOfBounds,
    ReadBoundIsOffByOne,
    WriteOffsetIsCutTo32Bits,
    UnalignedReadIsDone,
    UnalignedWriteIsDone,
    WideValueIsTruncated,
    HalfWordsAreSwapped,
    UpperHalfIsDropped,
    MappableAreaIsTooLong,
    RegionFileIsTheWrongPart,
    VectorBeyondTheLastFires,
    FireSignalsTwice,
    SocketIsNoTrigger,
    UnarmedFireIsLatched,
    DescriptorIsBorrowed,
    SixthFireCountsTwice,
    QueueIsBounded,
    ReplacedTriggerIsSignalledToo,
    TriggerTakenAwayIsKeptOpen,
    DisabledTriggerIsSignalled,
    SeveralKindsAreArmed,
    MessagesCanBeMasked,
    MaskOutlivesItsTrigger,
    RangePastTheEndIsCut,
    RangeSumOverflows,
    EmptyRangeDisarms,
    TriggersAreArmedInReverse,
    ArmingForgetsHigherVectors,
    ArmingForgetsLowerVectors,
    HolesAreClosedUp,
    MessagesComeFromTheNextVector,
    EleventhMessageIsLost,
    LineIsNotAutomasked,
    LineAssertedBeforeArmingIsLost,
    UnmaskDoesNotLookAtTheLine,
    UnmaskSignalsAQuietLine,
    MaskIsIgnored,
    FireMasksTheLine,
    NoMappingIsPossible,
    ReadOnlyMappingIsRefused,
    EnclosingMappingIsAccepted,
    DoubleMappingIsAccepted,
    LongUnmapIsAccepted,
    OverflowingMappingIsAccepted,
    MappingOutOfReachIsAccepted,
    LastPageIsRefused,
    ShortFileIsRefusedTooLate,
    MappingsAreFew,
    FileOffsetIsIgnored,
    UnmapIsForgotten,
    AccessIsIgnored,
    ResetKeepsARegister,
    ResetDisarmsMessages,
    ResetLeavesTheLineMasked,
    ResetUnmaps,
    OnlyOneThreadIsServed,
    DropLeavesTriggersOpen,
    /// Not the wrapper's: the device is not closed between two openings.
    DropDoesNothing,
    Panics,
}

/// A backend with a fault.
pub struct Broken {
    inner: AnyBackend,
    fault: Fault,
    info: DeviceInfo,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    armed: BTreeMap<(IrqIndex, u32), OwnedFd>,
    /// No longer armed, and signalled or kept all the same.
    ghosts: Vec<OwnedFd>,
    latched: Vec<(IrqIndex, u32)>,
    /// The caller's descriptor, and what it was.
    borrowed: BTreeMap<(IrqIndex, u32), String>,
    mask: bool,
    fires: u32,
    raises: u32,
    mapped: BTreeMap<u64, u64>,
    /// Unmapped, as far as the caller knows.
    forgotten: Vec<(u64, u64)>,
    thread: Option<ThreadId>,
}

const RAISE: u64 = 0x100;
const PENDING: u64 = 0x108;

fn duplicate(trigger: Trigger<'_>) -> OwnedFd {
    trigger.try_clone_to_owned().expect("a descriptor to spare")
}

fn is_socket(fd: Trigger<'_>) -> bool {
    nix::sys::socket::getsockopt(&fd, nix::sys::socket::sockopt::SockType).is_ok()
}

fn throwaway() -> OwnedFd {
    nix::sys::eventfd::EventFd::from_value_and_flags(0, nix::sys::eventfd::EfdFlags::EFD_NONBLOCK)
        .expect("an eventfd")
        .into()
}

impl Broken {
    /// A sound backend, broken.
    #[must_use]
    pub fn new(inner: AnyBackend, fault: Fault) -> Self {
        let mut info = inner.info().clone();
        if fault == Fault::AddressIsEmpty {
            info.address.clear();
        }
        Self { inner, fault, info, book: Mutex::default() }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn count(&self, index: IrqIndex) -> u32 {
        self.inner.irq(index).map_or(0, |info| info.count)
    }

    fn inner_dma(&self) -> &dyn Dma {
        self.inner.dma().expect("the sound backend has DMA")
    }

    /// Hands triggers on, and keeps book of them.
    fn arm(&self, index: IrqIndex, start: u32, triggers: &[Option<Trigger<'_>>]) -> Result<()> {
        let fits = u64::from(start) + triggers.len() as u64 <= u64::from(self.count(index));
        if self.is(Fault::MessagesComeFromTheNextVector) && index != IrqIndex::INTX && fits {
            for (vector, trigger) in (start..).zip(triggers) {
                self.inner.set_triggers(index, self.next(index, vector), &[*trigger])?;
            }
        } else {
            self.inner.set_triggers(index, start, triggers)?;
        }
        let mut book = self.book();
        for (vector, trigger) in (start..).zip(triggers) {
            let old = match trigger {
                Some(trigger) => {
                    let link = std::fs::read_link(format!("/proc/self/fd/{}", trigger.as_raw_fd())).expect("our own");
                    let link = format!("{} {}", trigger.as_raw_fd(), link.display());
                    book.borrowed.insert((index, vector), link);
                    book.armed.insert((index, vector), duplicate(*trigger))
                }
                None => book.armed.remove(&(index, vector)),
            };
            let keep = match trigger {
                Some(_) => self.is(Fault::ReplacedTriggerIsSignalledToo),
                None => self.is(Fault::TriggerTakenAwayIsKeptOpen),
            };
            book.ghosts.extend(old.filter(|_| keep));
        }
        Ok(())
    }

    fn next(&self, index: IrqIndex, vector: u32) -> u32 {
        (vector + 1) % self.count(index)
    }

    fn haunt(&self) {
        for ghost in &self.book().ghosts {
            let file = File::from(duplicate(ghost.as_fd()));
            // Its reader may have gone.
            let _ = (&file).write_all(&1u64.to_ne_bytes());
        }
    }

    fn fire(&self, index: IrqIndex, vector: u32) -> Result<()> {
        match self.fault {
            Fault::MessagesComeFromTheNextVector if index != IrqIndex::INTX && vector < self.count(index) => {
                self.inner.fire_irq(index, self.next(index, vector))
            }
            _ => self.inner.fire_irq(index, vector),
        }
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        if self.is(Fault::DropLeavesTriggersOpen) {
            std::mem::take(&mut self.book().armed).into_values().for_each(std::mem::forget);
        }
    }
}
