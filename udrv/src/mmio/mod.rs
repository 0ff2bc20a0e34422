//! Register access: by message through a backend, or mapped.
//!
//! Both forms implement [`Io`], so a driver generic over it compiles to the bare load or store on [`Mapped`], where the
//! size is part of the type and the bounds check of a constant offset folds away. Order between registers and DMA memory
//! is the subject of [`order`].

mod mapped;
pub mod order;
mod seen;
mod sigbus;

pub use mapped::Mapped;
pub(crate) use seen::MAPPED_IS_SHOWN;

use seen::Seen;
use std::sync::Arc;
use udrv_backend::register::{Readable, ReadableWithEffect, Register, Value, Word, Writable};
use udrv_backend::{Backend, RegionIndex, Result};

/// Access to one region.
pub trait Io: Send + Sync {
    /// One read of `W`'s width at a byte offset.
    ///
    /// # Errors
    /// As [`Backend::read`].
    fn load<W: Word>(&self, offset: u64) -> Result<W>;
    /// One write of `W`'s width at a byte offset.
    ///
    /// # Errors
    /// As [`Backend::write`].
    fn store<W: Word>(&self, offset: u64, value: W) -> Result<()>;

    /// Whether the device is still there, as far as accesses so far have told. Where accesses report that themselves this
    /// is always `Ok`; a mapped access cannot, and reads all ones.
    ///
    /// # Errors
    /// [`Error::Gone`](udrv_backend::Error::Gone).
    fn alive(&self) -> Result<()> {
        Ok(())
    }

    /// Reads a register that a read does not change.
    ///
    /// # Errors
    /// As [`Io::load`].
    #[inline(always)]
    fn read<V: Value, A: Readable>(&self, register: Register<V, A>) -> Result<V> {
        Ok(V::from_word(self.load(register.offset)?))
    }

    /// Reads a register that a read changes: exclusive, so that two readers cannot steal from each other.
    ///
    /// # Errors
    /// As [`Io::load`].
    #[inline(always)]
    fn read_effect<V: Value, A: ReadableWithEffect>(&mut self, register: Register<V, A>) -> Result<V> {
        Ok(V::from_word(self.load(register.offset)?))
    }

    /// Writes a register.
    ///
    /// # Errors
    /// As [`Io::store`].
    #[inline(always)]
    fn write<V: Value, A: Writable>(&self, register: Register<V, A>, value: V) -> Result<()> {
        self.store(register.offset, value.into_word())
    }
}

/// A region reached by one backend call an access.
pub struct ByMessage<B: ?Sized> {
    backend: Arc<B>,
    seen: Seen,
}

impl<B: Backend + ?Sized> ByMessage<B> {
    /// Over one region of a backend.
    pub fn new(backend: Arc<B>, region: RegionIndex) -> Self {
        let seen = Seen::new(&*backend, region);
        Self { backend, seen }
    }
}

impl<B: Backend + ?Sized> Io for ByMessage<B> {
    fn load<W: Word>(&self, offset: u64) -> Result<W> {
        let value = self.backend.read(self.seen.region, offset, W::WIDTH)?;
        self.seen.read(offset, W::WIDTH, value);
        Ok(W::from_raw(value))
    }
    fn store<W: Word>(&self, offset: u64, value: W) -> Result<()> {
        self.seen.write(offset, W::WIDTH, value.into_raw());
        self.backend.write(self.seen.region, offset, W::WIDTH, value.into_raw())
    }
}

/// A region however it can be reached: mapped where that is possible, by message otherwise.
pub enum Window<const SIZE: usize> {
    /// By loads and stores.
    Mapped(Mapped<SIZE>),
    /// By backend calls.
    ByMessage(ByMessage<dyn Backend>),
}

impl<const SIZE: usize> Window<SIZE> {
    /// Opens the start of a region.
    ///
    /// # Errors
    /// [`Error::OutOfRegion`](udrv_backend::Error::OutOfRegion) if the region has less than `SIZE` bytes; as [`Mapped::map`].
    pub fn open(backend: &Arc<dyn Backend>, region: RegionIndex) -> Result<Self> {
        backend.region(region)?.check_range(0, SIZE as u64)?;
        // Asked for by `udrv debug --by-message`: then each access can be seen, in builds without checks, too.
        let by_message = std::env::var_os("UDRV_BY_MESSAGE").is_some_and(|value| value != "0");
        Ok(match if by_message { None } else { Mapped::map(&**backend, region)? } {
            Some(mapped) => Self::Mapped(mapped),
            None => Self::ByMessage(ByMessage::new(Arc::clone(backend), region)),
        })
    }
}

impl<const SIZE: usize> Io for Window<SIZE> {
    #[inline(always)]
    fn load<W: Word>(&self, offset: u64) -> Result<W> {
        match self {
            Self::Mapped(io) => io.load(offset),
            Self::ByMessage(io) => io.load(offset),
        }
    }
    #[inline(always)]
    fn store<W: Word>(&self, offset: u64, value: W) -> Result<()> {
        match self {
            Self::Mapped(io) => io.store(offset, value),
            Self::ByMessage(io) => io.store(offset, value),
        }
    }
    fn alive(&self) -> Result<()> {
        match self {
            Self::Mapped(io) => io.alive(),
            Self::ByMessage(io) => io.alive(),
        }
    }
}
