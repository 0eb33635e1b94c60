#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rustq_fuzz::fold(data));
