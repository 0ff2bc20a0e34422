//! USB mass storage: bulk-only transport carrying SCSI.
//!
//! "Universal Serial Bus Mass Storage Class, Bulk-Only Transport", revision 1.0 (here: BOT); "SCSI Primary Commands - 4"
//! (SPC-4); "SCSI Block Commands - 3" (SBC-3).
#![forbid(unsafe_code)]

pub mod driver;
pub mod model;
pub mod protocol;
