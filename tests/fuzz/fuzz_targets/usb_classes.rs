//! What a USB device of a class says to its driver. See `udrv_fuzz::usb_classes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| udrv_fuzz::usb_classes(bytes));
