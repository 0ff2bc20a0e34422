//! What a driver holds: memory that is its own, the device's, or both's.

use super::memory::Memory;
use super::pool::Inner;
use crate::mmio::order::{dma_rmb, dma_wmb};
use std::marker::PhantomData;
use std::sync::Arc;
use udrv_backend::register::Word;
use udrv_backend::{DmaAccess, Error, Result};
use udrv_inspect::layout::buffer as layout;

/// Which way a buffer's data goes.
pub trait Direction: Send + 'static {
    /// What the device may do with it.
    const ACCESS: DmaAccess;
}
/// The device reads it.
#[derive(Debug)]
pub enum ToDevice {}
/// The device writes it.
#[derive(Debug)]
pub enum FromDevice {}
/// Both.
#[derive(Debug)]
pub enum Bidirectional {}

impl Direction for ToDevice {
    const ACCESS: DmaAccess = DmaAccess::READ;
}
impl Direction for FromDevice {
    const ACCESS: DmaAccess = DmaAccess::WRITE;
}
impl Direction for Bidirectional {
    const ACCESS: DmaAccess = DmaAccess::READ.union(DmaAccess::WRITE);
}

/// A piece of memory that is mapped for the device.
pub(super) struct Block {
    pub(super) pool: Arc<Inner>,
    pub(super) memory: Arc<Memory>,
    pub(super) offset: usize,
    pub(super) iova: u64,
    /// Bytes mapped; at least `length`.
    pub(super) size: u64,
    pub(super) length: usize,
    pub(super) is_huge: bool,
    /// Whether it was submitted and not completed.
    pub(super) with_device: bool,
    /// Its place in the inspection page, until it is leaked.
    pub(super) shown: Option<udrv_inspect::Buffer>,
}

impl Block {
    #[inline]
    fn show_owner(&self, owner: u64) {
        if let Some(shown) = &self.shown {
            shown.belongs_to(owner);
        }
    }

    /// To the device, or back.
    #[inline]
    fn hand_over(&mut self, to_device: bool) {
        self.with_device = to_device;
        self.show_owner(if to_device { layout::DEVICE } else { layout::DRIVER });
        self.pool.observe_hand_over(self);
    }

    #[inline]
    fn place(&self, offset: usize, length: usize) -> Result<usize> {
        match offset.checked_add(length) {
            Some(end) if end <= self.length => Ok(self.offset + offset),
            _ => Err(self.beyond(offset, length)),
        }
    }

    #[cold]
    const fn beyond(&self, offset: usize, length: usize) -> Error {
        Error::DmaRange {
            iova: self.iova.saturating_add(offset as u64),
            size: length as u64,
            why: "the access goes beyond its buffer",
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.with_device {
            self.pool.leak(self);
            if let Some(shown) = self.shown.take() {
                shown.leak();
            }
        } else {
            self.pool.release(self);
        }
    }
}

/// Memory that the driver owns.
pub struct Buffer<D: Direction> {
    /// In a place of its own: a buffer changes hands several times a transfer.
    block: Box<Block>,
    direction: PhantomData<D>,
}

impl<D: Direction> Buffer<D> {
    pub(super) fn new(block: Block) -> Self {
        Self { block: Box::new(block), direction: PhantomData }
    }

    /// Where the device finds it, on the bus.
    #[must_use]
    #[inline]
    pub fn iova(&self) -> u64 {
        self.block.iova
    }

    /// Length in bytes, as asked for.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.block.length
    }

    /// Whether its length is 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.block.length == 0
    }

    /// Whether it is in huge pages.
    #[must_use]
    pub fn is_huge(&self) -> bool {
        self.block.is_huge
    }

    /// Copies `data` into the buffer at byte `offset`.
    ///
    /// # Errors
    /// [`Error::DmaRange`] if it does not fit.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Result<()> {
        self.block.memory.write(self.block.place(offset, data.len())?, data)
    }

    /// Copies bytes from `offset` out of the buffer.
    ///
    /// # Errors
    /// [`Error::DmaRange`] if they are not all there.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        self.block.memory.read(self.block.place(offset, into.len())?, into)
    }

    /// Hands it to the device: what was written to it is seen by the device before any register write that follows.
    #[must_use = "dropping what is in flight leaks it: complete it"]
    #[inline]
    pub fn submit(mut self) -> InFlight<D> {
        dma_wmb();
        self.block.hand_over(true);
        InFlight { buffer: self }
    }
}

/// A buffer that the device owns. Dropping it leaks the memory, which stays mapped: the device may still write there.
pub struct InFlight<D: Direction> {
    buffer: Buffer<D>,
}

impl<D: Direction> InFlight<D> {
    /// Where the device finds it, on the bus.
    #[must_use]
    pub fn iova(&self) -> u64 {
        self.buffer.block.iova
    }

    /// Takes it back, once the device has said that it is done with it (or has been reset): what the device wrote before
    /// it said so is seen.
    #[must_use]
    #[inline]
    pub fn complete(mut self) -> Buffer<D> {
        dma_rmb();
        self.buffer.block.hand_over(false);
        self.buffer
    }
}

/// Memory that driver and device use at the same time: rings, queues, mailboxes.
///
/// Accesses are single volatile loads and stores of integers. Their order with the device's own accesses is the driver's
/// to say, with [`dma_wmb`] and [`dma_rmb`]. Dropping it takes it from the device, whose IOMMU then stops what it may
/// still be doing there: stop the device first.
pub struct Coherent {
    block: Block,
}

impl Coherent {
    pub(super) fn new(block: Block) -> Self {
        block.show_owner(layout::BOTH);
        Self { block }
    }

    /// Where the device finds it, on the bus.
    #[must_use]
    pub const fn iova(&self) -> u64 {
        self.block.iova
    }

    /// Length in bytes, as asked for.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.block.length
    }

    /// Whether its length is 0.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.block.length == 0
    }

    /// One load of `W`'s width at byte `offset`.
    ///
    /// # Errors
    /// [`Error::DmaRange`] if it is not in the buffer, or not aligned to its width.
    #[inline]
    pub fn read<W: Word>(&self, offset: usize) -> Result<W> {
        self.block.memory.load(self.block.place(offset, size_of::<W>())?)
    }

    /// One store of `W`'s width at byte `offset`.
    ///
    /// # Errors
    /// As [`Coherent::read`].
    #[inline]
    pub fn write<W: Word>(&self, offset: usize, value: W) -> Result<()> {
        self.block.memory.store(self.block.place(offset, size_of::<W>())?, value)
    }

    /// `N` loads as [`Coherent::read`] makes them, from `offset` on, in order.
    ///
    /// # Errors
    /// As [`Coherent::read`].
    #[inline]
    pub fn read_all<W: Word, const N: usize>(&self, offset: usize) -> Result<[W; N]> {
        self.block.memory.load_all(self.block.place(offset, N * size_of::<W>())?)
    }

    /// `N` stores as [`Coherent::write`] makes them, from `offset` on, in order.
    ///
    /// # Errors
    /// As [`Coherent::read`].
    #[inline]
    pub fn write_all<W: Word, const N: usize>(&self, offset: usize, values: [W; N]) -> Result<()> {
        self.block.memory.store_all(self.block.place(offset, N * size_of::<W>())?, values)
    }
}
