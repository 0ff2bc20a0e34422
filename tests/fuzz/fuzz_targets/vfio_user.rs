//! What a vfio-user peer sends. See `udrv_fuzz::vfio_user`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| udrv_fuzz::vfio_user(bytes));
