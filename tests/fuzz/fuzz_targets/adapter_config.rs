#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trephine::fuzzing::adapter_config(bytes));
