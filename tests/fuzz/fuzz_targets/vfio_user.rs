//! What a vfio-user peer sends. See `udrv_fuzz::vfio_user`.
#![no_main]
#![expect(unsafe_code, reason = "libFuzzer looks for a function by its C name")]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| udrv_fuzz::vfio_user(bytes));
