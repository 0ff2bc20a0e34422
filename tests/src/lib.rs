//! What crosses crates: stub and runtime together, hostile peers, the virtual machine.
#![forbid(unsafe_code)]

pub mod broken;
pub mod flushed;
pub mod nvme;
pub mod recording;
pub mod schedules;
pub mod two_drivers;
pub mod vectors;
