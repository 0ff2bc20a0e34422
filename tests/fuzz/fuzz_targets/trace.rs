//! What is in a recording's file. See `udrv_fuzz::trace`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| udrv_fuzz::trace(bytes));
