//! Registers as types: offset, name, width, and what an access may do.
//!
//! A device's `registers.rs` declares constants of [`Register`]; its driver accesses them by name and its model decodes
//! them from the same constants. The access is part of the type, so that writing a read-only register, or reading one
//! whose read has side effects through a shared reference, does not compile.

use crate::{RegionIndex, Width};
#[doc(hidden)]
pub use bitflags::Flags;
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
    /// The bits that have names, in the order of their declaration.
    #[must_use]
    fn named_bits() -> Vec<Bits> {
        Vec::new()
    }
}

/// A bit, or some, with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bits {
    /// As declared.
    pub name: &'static str,
    /// Which bits of the register.
    pub mask: u64,
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
            fn named_bits() -> Vec<$crate::register::Bits> {
                let named = <Self as $crate::register::Flags>::FLAGS.iter().filter(|flag| !flag.name().is_empty());
                named
                    .map(|flag| $crate::register::Bits { name: flag.name(), mask: u64::from(flag.value().bits()) })
                    .collect()
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

/// What may be done with a register, as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`ReadOnly`].
    ReadOnly,
    /// [`WriteOnly`].
    WriteOnly,
    /// [`ReadWrite`].
    ReadWrite,
    /// [`ReadEffect`].
    ReadEffect,
}

impl Kind {
    /// Whether it can be read without changing the device.
    #[must_use]
    pub const fn is_readable(self) -> bool {
        matches!(self, Self::ReadOnly | Self::ReadWrite)
    }
}

/// What may be done with a register, as a type.
pub trait Access {
    /// The same as a value.
    const KIND: Kind;
}
impl Access for ReadOnly {
    const KIND: Kind = Kind::ReadOnly;
}
impl Access for WriteOnly {
    const KIND: Kind = Kind::WriteOnly;
}
impl Access for ReadWrite {
    const KIND: Kind = Kind::ReadWrite;
}
impl Access for ReadEffect {
    const KIND: Kind = Kind::ReadEffect;
}

/// The registers of a device, for whoever shows them: a driver publishes one beside its constants, made of them.
#[derive(Debug, Clone, Copy)]
pub struct RegisterMap {
    /// The driver's name.
    pub device: &'static str,
    /// The region they are in.
    pub region: RegionIndex,
    /// All of them.
    pub registers: &'static [RegisterInfo],
}

impl RegisterMap {
    /// The register that holds this byte, and which byte of it that is. Of several at one offset, the first.
    #[must_use]
    pub fn find(&self, region: RegionIndex, offset: u64) -> Option<(&'static RegisterInfo, u64)> {
        self.at(region, offset).next()
    }

    /// As [`RegisterMap::find`], for a write: of several at one offset, one that can only be written.
    #[must_use]
    pub fn find_written(&self, region: RegionIndex, offset: u64) -> Option<(&'static RegisterInfo, u64)> {
        let write_only = self.at(region, offset).find(|(register, _)| register.kind == Kind::WriteOnly);
        write_only.or_else(|| self.find(region, offset))
    }

    fn at(&self, region: RegionIndex, offset: u64) -> impl Iterator<Item = (&'static RegisterInfo, u64)> {
        let within = move |register: &'static RegisterInfo| {
            let byte = offset.checked_sub(register.offset)?;
            (byte < register.width.bytes()).then_some((register, byte))
        };
        self.registers.iter().filter(move |_| region == self.region).filter_map(within)
    }
}

/// A register without its types. Made by [`Register::info`].
#[derive(Debug, Clone, Copy)]
pub struct RegisterInfo {
    /// The datasheet's name.
    pub name: &'static str,
    /// Byte offset from the start of its region.
    pub offset: u64,
    /// Its width.
    pub width: Width,
    /// What may be done with it.
    pub kind: Kind,
    bits: fn() -> Vec<Bits>,
    value_type: fn() -> &'static str,
}

impl RegisterInfo {
    /// The name of the type of its values, as a debugger has it.
    #[must_use]
    pub fn value_type(&self) -> &'static str {
        (self.value_type)()
    }

    /// Its bits that have names.
    #[must_use]
    pub fn bits(&self) -> Vec<Bits> {
        (self.bits)()
    }

    /// A value by its bits' names, `A | B | 0x30`; in hexadecimal if none has one.
    #[must_use]
    pub fn decode(&self, value: u64) -> String {
        let mut left = value;
        let mut words = Vec::new();
        for bits in self.bits() {
            if bits.mask != 0 && left & bits.mask == bits.mask {
                words.push(bits.name.to_owned());
                left &= !bits.mask;
            }
        }
        if left != 0 || words.is_empty() {
            words.push(format!("{left:#x}"));
        }
        words.join(" | ")
    }
}

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

impl<V: Value, A: Access> Register<V, A> {
    /// The register without its types, for a [`RegisterMap`].
    #[must_use]
    pub const fn info(self) -> RegisterInfo {
        RegisterInfo {
            name: self.name,
            offset: self.offset,
            width: <V::Word as Word>::WIDTH,
            kind: A::KIND,
            bits: V::named_bits,
            value_type: std::any::type_name::<V>,
        }
    }
}

impl<V, A> Clone for Register<V, A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<V, A> Copy for Register<V, A> {}
