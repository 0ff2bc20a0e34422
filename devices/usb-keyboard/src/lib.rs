//! USB keyboards in boot protocol.
//!
//! "Device Class Definition for Human Interface Devices (HID)", version 1.11 (here: HID); "HID Usage Tables", version 1.12.
#![forbid(unsafe_code)]

#[cfg(feature = "driver")]
pub mod driver;
pub mod model;
pub mod protocol;
