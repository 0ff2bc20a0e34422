//! What a USB/IP client sends. See `udrv_fuzz::usbip`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| udrv_fuzz::usbip(bytes));
