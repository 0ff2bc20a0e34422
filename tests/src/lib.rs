//! What crosses crates: stub and runtime together, hostile peers, the virtual machine.
#![forbid(unsafe_code)]

pub mod broken;
pub mod nvme;
pub mod two_drivers;
pub mod vectors;
