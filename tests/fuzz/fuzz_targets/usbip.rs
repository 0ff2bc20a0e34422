//! What a USB/IP client sends. See `udrv_fuzz::usbip`.
#![no_main]
#![expect(unsafe_code, reason = "libFuzzer looks for a function by its C name")]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| udrv_fuzz::usbip(bytes));
