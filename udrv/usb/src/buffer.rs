//! [`Buffer`]: the data of a transfer.

use crate::host::Mapping;
use std::fmt;
use std::ops::{Deref, DerefMut};

/// Bytes that a transfer carries, on the heap or in memory that the host controller reaches ([`crate::Device::buffer`]).
///
/// What a mapped one saves is the kernel's copy, and its allocation for each transfer; a driver uses it again and again.
/// Otherwise both are the same, and a `Vec<u8>` becomes the one without a copy.
#[derive(Default)]
pub struct Buffer {
    memory: Memory,
    /// At most as much as the memory has.
    length: usize,
}

enum Memory {
    Heap(Vec<u8>),
    Mapped(Mapping),
}

impl Default for Memory {
    fn default() -> Self {
        Self::Heap(Vec::new())
    }
}

impl Memory {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Mapped(mapping) => mapping,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Mapped(mapping) => mapping,
        }
    }
}

impl Buffer {
    /// So many zeros, on the heap.
    #[must_use]
    pub fn zeroed(length: usize) -> Self {
        vec![0; length].into()
    }

    pub(crate) fn mapped(mapping: Mapping, length: usize) -> Self {
        let length = length.min(mapping.len());
        Self { memory: Memory::Mapped(mapping), length }
    }

    /// Whether it is in memory that the host controller reaches.
    #[must_use]
    pub const fn is_mapped(&self) -> bool {
        matches!(self.memory, Memory::Mapped(_))
    }

    /// How long it can be made without other memory.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.memory.bytes().len()
    }

    /// Makes it shorter. The rest comes back by [`Buffer::resize`].
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Makes it this long, for another transfer. Bytes that it did not have before are any: zeros, or those of an earlier
    /// transfer. One that is longer than its memory moves to the heap.
    pub fn resize(&mut self, length: usize) {
        if length > self.capacity() {
            let mut bytes = std::mem::take(self).into_vec();
            bytes.resize(length, 0);
            self.memory = Memory::Heap(bytes);
        }
        self.length = length;
    }

    /// The bytes on the heap; copied there if they were mapped.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        match self.memory {
            Memory::Heap(mut bytes) => {
                bytes.truncate(self.length);
                bytes
            }
            Memory::Mapped(mapping) => mapping.get(..self.length).unwrap_or_default().to_vec(),
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory.bytes().get(..self.length).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut().get_mut(..self.length).unwrap_or_default()
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self { length: bytes.len(), memory: Memory::Heap(bytes) }
    }
}

impl From<Buffer> for Vec<u8> {
    fn from(buffer: Buffer) -> Self {
        buffer.into_vec()
    }
}

/// On the heap, whatever it is a clone of.
impl Clone for Buffer {
    fn clone(&self) -> Self {
        self.to_vec().into()
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Buffer {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

impl Eq for Buffer {}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resize_after_truncate_brings_back_the_length_and_keeps_the_memory() {
        let mut buffer = Buffer::from(vec![1, 2, 3, 4]);
        let at = buffer.as_ptr();

        buffer.truncate(1);
        assert_eq!(buffer, [1]);
        buffer.resize(4);

        assert_eq!((buffer.len(), buffer.as_ptr()), (4, at));
    }

    #[test]
    fn resize_beyond_the_memory_keeps_the_bytes_and_adds_zeros() {
        let mut buffer = Buffer::from(vec![1, 2]);

        buffer.resize(4);

        assert_eq!(buffer, [1, 2, 0, 0]);
    }

    #[test]
    fn vec_of_a_truncated_buffer_has_no_more_than_is_left() {
        let mut buffer = Buffer::from(vec![1, 2, 3]);
        buffer.truncate(2);

        assert_eq!(buffer.into_vec(), [1, 2]);
    }
}
