//! USB serial ports: CDC-ACM (modems, most microcontrollers) and FTDI's chips, which have a protocol of their own.
//!
//! "USB Class Definitions for Communications Devices", revision 1.2 (here: CDC); its "Subclass Specification for PSTN Devices",
//! revision 1.2 (PSTN). FTDI has published no specification of its protocol, only application notes: AN232B-05 "Configuring
//! FT232R, FT2232 and FT232B Baud Rates" and AN120 "Aliasing VCP Baud Rates"; the requests are as in the kernel's
//! `drivers/usb/serial/ftdi_sio.h`.
#![forbid(unsafe_code)]

pub mod cdc;
#[cfg(feature = "driver")]
pub mod driver;
pub mod ftdi;
pub mod line;
pub mod model;
