//! A 16550 serial port on PCI (National Semiconductor PC16550D, data sheet SNLS378C): registers, driver, model.
#![forbid(unsafe_code)]

#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "driver")]
pub mod driver;
#[cfg(feature = "model")]
pub mod model;
pub mod registers;
