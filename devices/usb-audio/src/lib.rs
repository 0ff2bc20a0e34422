//! USB audio, class 1: PCM streams over isochronous transfers.
//!
//! "Universal Serial Bus Device Class Definition for Audio Devices", release 1.0 (here: UAC); its "Audio Data Formats" (FMT)
//! and "Terminal Types"; for rates and feedback, USB 2.0, 5.12.
#![forbid(unsafe_code)]

#[cfg(feature = "driver")]
pub mod driver;
pub mod model;
pub mod pace;
pub mod protocol;
