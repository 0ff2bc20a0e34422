//! Registers as types: offset, name, width, and what an access may do.
//!
//! A device's `registers.rs` declares constants of [`Register`]; its driver accesses them by name and its model decodes
//! them from the same constants. The access is part of the type, so that writing a read-only register, or reading one
//! whose read has side effects through a shared reference, does not compile.

use crate::Width;
use std::marker::PhantomData;

/// An integer that one access carries.
pub trait Word: Copy + Send + Sync + 'static {
    /// The access's width.
    const WIDTH: Width;
    /// From the low bits of `raw`.
    fn from_raw(raw: u64) -> Self;
    /// Zero-extended.
    fn into_raw(self) -> u64;
}

macro_rules! word {
    ($($t:ty => $w:ident),*) => {$(
        impl Word for $t {
            const WIDTH: Width = Width::$w;
            #[inline(always)]
            fn from_raw(raw: u64) -> Self { raw as $t }
            #[inline(always)]
            fn into_raw(self) -> u64 { u64::from(self) }
        }
    )*};
}
word!(u8 => Bits8, u16 => Bits16, u32 => Bits32, u64 => Bits64);

/// What a register holds: an integer, or a type over one (flags). Unknown bits must survive a round trip.
pub trait Value: Copy {
    /// The integer that is transferred.
    type Word: Word;
    /// From the bits read.
    fn from_word(word: Self::Word) -> Self;
    /// To the bits to write.
    fn into_word(self) -> Self::Word;
}

impl<W: Word> Value for W {
    type Word = W;
    #[inline(always)]
    fn from_word(word: W) -> Self {
        word
    }
    #[inline(always)]
    fn into_word(self) -> W {
        self
    }
}

/// Implements [`Value`] for a `bitflags` type; unknown bits are retained.
#[macro_export]
macro_rules! flags_value {
    ($t:ty, $word:ty) => {
        impl $crate::register::Value for $t {
            type Word = $word;
            #[inline(always)]
            fn from_word(word: $word) -> Self {
                Self::from_bits_retain(word)
            }
            #[inline(always)]
            fn into_word(self) -> $word {
                self.bits()
            }
        }
    };
}

/// Reading is possible and changes nothing.
pub trait Readable {}
/// Writing is possible.
pub trait Writable {}
/// Reading is possible, and changes the device.
pub trait ReadableWithEffect {}

/// Read only, without side effects.
#[derive(Debug, Clone, Copy)]
pub enum ReadOnly {}
/// Write only.
#[derive(Debug, Clone, Copy)]
pub enum WriteOnly {}
/// Readable without side effects, and writable.
#[derive(Debug, Clone, Copy)]
pub enum ReadWrite {}
/// A read changes the device (read-to-clear, FIFO); writable too.
#[derive(Debug, Clone, Copy)]
pub enum ReadEffect {}

impl Readable for ReadOnly {}
impl Readable for ReadWrite {}
impl Writable for ReadWrite {}
impl Writable for WriteOnly {}
impl Writable for ReadEffect {}
impl ReadableWithEffect for ReadEffect {}

/// One register: byte offset in its region, datasheet name, value type `V`, access `A`.
#[derive(Debug)]
pub struct Register<V, A> {
    /// Byte offset from the start of the region.
    pub offset: u64,
    /// The datasheet's name.
    pub name: &'static str,
    marker: PhantomData<fn() -> (V, A)>,
}

impl<V, A> Register<V, A> {
    /// Declares a register.
    #[must_use]
    pub const fn new(name: &'static str, offset: u64) -> Self {
        Self { offset, name, marker: PhantomData }
    }
}

impl<V, A> Clone for Register<V, A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<V, A> Copy for Register<V, A> {}
