//! NVMe controllers (NVM Express Base Specification, revision 1.4): registers, commands, driver, model.
#![forbid(unsafe_code)]

pub mod command;
#[cfg(feature = "driver")]
pub mod driver;
#[cfg(feature = "model")]
pub mod model;
pub mod registers;
