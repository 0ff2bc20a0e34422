//! vfio-user messages: encode and decode, no I/O, no unsafe.
#![forbid(unsafe_code)]
