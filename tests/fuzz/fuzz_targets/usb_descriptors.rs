//! What a USB device says of itself. See `udrv_fuzz::usb_descriptors`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| udrv_fuzz::usb_descriptors(bytes));
