//! What a USB device says of itself. See `udrv_fuzz::usb_descriptors`.
#![no_main]
#![expect(unsafe_code, reason = "libFuzzer looks for a function by its C name")]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| udrv_fuzz::usb_descriptors(bytes));
